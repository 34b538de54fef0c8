//! The storage driver and its memory: each single allocation fails once and nothing is left behind, and requests allocate
//! nothing. One test, because the heap's figures are the whole program's.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use vmbus::Deadline;
use vmbus::device::storage::{self, Controller, Disk, Error, Lba, SCSI};
use vmbus::host::Host;
use vmbus::host::storage::{
    Address, Config, Controller as Server, Disk as ServerDisk, DiskConfig, MemoryDisk, Provisioning, WriteCache,
};
use vmbus::memory::DmaBuffer;
use vmbus::testing::{FakePlatform, TestHeap};

mod heap;

#[global_allocator]
static HEAP: TestHeap = TestHeap;

const SOON: Deadline = Deadline::seconds(5);

/// The host's side, which has all the memory that it wants.
struct Ground {
    host: Host,
    _server: Server,
}

impl Ground {
    fn new(platform: &'static FakePlatform) -> Self {
        let host = Host::new(platform, || {
            vmbus::Instant::from_reference_units(platform.look_at_clock())
        })
        .unwrap();
        let server = Server::new(&host, Config::default()).unwrap();
        let memory = MemoryDisk::new(platform, 1 << 20, WriteCache::None).unwrap();
        memory.write_at(0, &[7; 1 << 20]).unwrap();
        let config = DiskConfig {
            provisioning: Provisioning::THIN,
            ..DiskConfig::default()
        };
        for lun in [0, 5] {
            let disk = ServerDisk::new(memory.clone(), config).unwrap();
            server.attach(Address::lun(lun), disk).unwrap();
        }
        server.offer().unwrap();
        Self { host, _server: server }
    }
}

fn attach(ground: &Ground) -> Result<(Controller, Disk), Error> {
    let controller = storage::attach(&ground.host, SCSI, SOON)?;
    let disk = controller.wait_for_disk(SOON)?;
    Ok((controller, disk))
}

/// One of each request; the buffer comes back.
fn requests(disk: &Disk, buffer: DmaBuffer) -> Result<DmaBuffer, Error> {
    let buffer = disk.write(Lba(8), buffer, SOON)?;
    let buffer = disk.read(Lba(8), buffer, SOON)?;
    let (first, second) = (disk.start_read(Lba(0), buffer), disk.start_flush());
    second.wait(SOON)?;
    let buffer = first.wait(SOON)?;
    let mut block = [0; 512];
    disk.read_into(Lba(3), &mut block, SOON)?;
    disk.write_from(Lba(4), &block, SOON)?;
    disk.discard(Lba(100), 8, SOON)?;
    Ok(buffer)
}

fn everything(ground: &Ground, platform: &'static FakePlatform) -> Result<(), Error> {
    let (controller, disk) = attach(ground)?;
    let buffer = DmaBuffer::allocate(platform, 4096).map_err(|_| vmbus::fallible::OutOfMemory)?;
    drop(requests(&disk, buffer)?);
    assert_eq!(controller.disks()?.len(), 2);
    drop((controller, disk));
    ground.host.process();
    Ok(())
}

#[test]
fn whatever_allocation_fails_nothing_is_left_behind_and_requests_allocate_nothing() {
    let platform = TestHeap::exempt(FakePlatform::new);
    let ground = Ground::new(platform);
    everything(&ground, platform).unwrap();
    heap::fail_each(
        platform,
        40,
        || everything(&ground, platform),
        || {
            ground.host.process();
        },
    );

    let (controller, disk) = attach(&ground).unwrap();
    let mut buffer = requests(&disk, DmaBuffer::allocate(platform, 64 * 1024).unwrap()).unwrap();
    let (allocations, pages) = (TestHeap::allocations(), platform.allocations());
    for _ in 0..100 {
        buffer = requests(&disk, buffer).unwrap();
    }
    assert_eq!((TestHeap::allocations(), platform.allocations()), (allocations, pages));
    assert_eq!(controller.counters().failures, 0);
}
