//! A controller with disks, and the driver on it.

use vmbus::device::storage::{self, Controller, Disk, Lba};
use vmbus::host::Host;
use vmbus::host::storage::{
    Address, Config, Controller as Server, Disk as ServerDisk, DiskConfig, Effect, Fault, Filter, MemoryDisk, Outcome,
    WriteCache,
};
use vmbus::memory::DmaBuffer;
use vmbus::protocol::Guid;
use vmbus::testing::FakePlatform;
use vmbus::{Deadline, Instant};

/// Longer than all that the driver tries.
pub(crate) const PATIENT: Deadline = Deadline::seconds(60);
/// A size that takes no time.
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Ground {
    pub(crate) platform: &'static FakePlatform,
    pub(crate) host: Host,
    pub(crate) server: Server,
}

/// A disk's description, with an id of its own.
pub(crate) fn disk_config(number: u8) -> DiskConfig {
    let mut id = [0x5D; 16];
    id[15] = number;
    DiskConfig {
        id: Guid::from_wire(id),
        ..DiskConfig::default()
    }
}

impl Ground {
    /// A controller without disks that is not offered yet.
    pub(crate) fn new(config: Config) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, || Instant::from_reference_units(platform.look_at_clock())).unwrap();
        let server = Server::new(&host, config).unwrap();
        Self { platform, host, server }
    }

    pub(crate) fn add_as(&self, at: Address, len: u64, config: DiskConfig) -> (MemoryDisk, ServerDisk) {
        let memory = MemoryDisk::new(self.platform, len, WriteCache::Volatile).unwrap();
        let disk = ServerDisk::new(memory.clone(), config).unwrap();
        self.server.attach(at, disk.clone()).unwrap();
        (memory, disk)
    }

    pub(crate) fn add(&self, lun: u8, len: u64) -> (MemoryDisk, ServerDisk) {
        self.add_as(Address::lun(lun), len, disk_config(lun))
    }

    /// Offers the controller, and has the driver look what there is.
    pub(crate) fn drive(&self) -> Controller {
        self.server.offer().unwrap();
        let client = storage::attach(&self.host, storage::SCSI, PATIENT).unwrap();
        client.rescan(PATIENT).unwrap();
        client
    }

    /// A controller with one disk of a MiB at LUN 0, found.
    pub(crate) fn with_disk() -> (Self, Controller, Disk, MemoryDisk) {
        let ground = Self::new(Config::default());
        let (memory, _) = ground.add(0, MIB);
        let client = ground.drive();
        let disk = only(&client);
        (ground, client, disk, memory)
    }

    pub(crate) fn buffer(&self, bytes: &[u8]) -> DmaBuffer {
        let buffer = DmaBuffer::allocate(self.platform, bytes.len()).unwrap();
        buffer.write_at(0, bytes).unwrap();
        buffer
    }

    pub(crate) fn inject(&self, fault: Fault) {
        self.server.inject(fault).unwrap();
    }

    /// The next request that the filter meets is answered so, and not executed.
    pub(crate) fn answer(&self, filter: Filter, outcome: Outcome) {
        self.inject(Fault::new(filter, Effect::Answer(outcome)));
    }

    /// Asserts that the driver did nothing wrong, and that nothing of it is left.
    #[track_caller]
    pub(crate) fn finish(self) {
        assert_eq!(self.server.take_violations(), []);
        self.server.revoke(PATIENT).unwrap();
        self.host.process();
        drop((self.server, self.host));
        assert_eq!(self.platform.live_pages(), 0, "pages left behind");
        self.platform.assert_no_faults();
    }
}

pub(crate) fn only(client: &Controller) -> Disk {
    let mut disks = client.disks().unwrap();
    assert_eq!(disks.len(), 1);
    disks.remove(0)
}

pub(crate) fn luns(client: &Controller) -> Vec<u8> {
    let disks = client.disks().unwrap();
    disks.iter().map(|disk| disk.address().lun).collect()
}

pub(crate) fn read(disk: &Disk, block: u64, blocks: usize) -> Result<Vec<u8>, storage::Error> {
    let mut bytes = vec![0xEE; blocks * disk.block_len() as usize];
    disk.read_into(Lba(block), &mut bytes, PATIENT)?;
    Ok(bytes)
}

/// Blocks of bytes that tell them apart.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let byte = |index: usize| u8::try_from(index % 251).unwrap();
    (0..len).map(|index| byte(index) ^ byte(index / 512) ^ seed).collect()
}
