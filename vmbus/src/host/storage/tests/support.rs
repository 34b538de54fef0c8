//! The ground for tests: a controller, and a client that sends raw packets.

use std::sync::{Arc, Mutex};

use super::super::{Address, Config, Controller, Disk, DiskConfig, MemoryDisk, WriteCache};
use crate::host::Host;
use crate::kmcl::{Channel, Instance, OutgoingPacket, SendFlags};
use crate::memory::{DmaBuffer, Mdl};
use crate::protocol::Guid;
use crate::test_platform::TestPlatform;
use crate::{Deadline, Instant};

pub(super) const SCSI: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
pub(super) const IDE: Guid = Guid::literal("32412632-86cb-44a2-9b5c-50d1417354f5");
/// Never reached, on a busy machine either.
pub(super) const SOON: Deadline = Deadline::seconds(60);
/// For what is known not to come.
pub(super) const AT_ONCE: Deadline = Deadline::millis(1);

/// The bytes of a completion, or why there is none.
pub(super) type Completion = Result<Vec<u8>, crate::kmcl::Error>;

/// What a client was sent: packets that it did not ask for, and completions of commands that it did not wait for, each with its tag.
#[derive(Default)]
pub(super) struct Log {
    pub(super) unasked: Mutex<Vec<Vec<u8>>>,
    pub(super) completed: Mutex<Vec<(usize, Completion)>>,
}

pub(super) type Client = Channel<Arc<Log>>;

pub(super) struct Ground {
    pub(super) platform: &'static TestPlatform,
    pub(super) host: Host,
    pub(super) controller: Controller,
    pub(super) client: Client,
}

/// What came back for a command.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) data: Vec<u8>,
}

impl Reply {
    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    pub(super) fn status(&self) -> u32 {
        self.u32(8)
    }
    pub(super) fn srb_status(&self) -> u8 {
        self.bytes[14]
    }
    pub(super) fn scsi_status(&self) -> u8 {
        self.bytes[15]
    }
    pub(super) fn transferred(&self) -> u32 {
        self.u32(24)
    }
    /// Key, code and qualifier.
    pub(super) fn sense(&self) -> (u8, u8, u8) {
        (self.bytes[28 + 2] & 0xF, self.bytes[28 + 12], self.bytes[28 + 13])
    }
    #[track_caller]
    pub(super) fn good(self) -> Vec<u8> {
        assert_eq!(
            (self.status(), self.srb_status(), self.scsi_status()),
            (0, 1, 0),
            "{:?}",
            self.sense()
        );
        self.data
    }
    /// Asserts a check condition with this sense.
    #[track_caller]
    pub(super) fn check(&self, srb_status: u8, sense: (u8, u8, u8)) {
        assert_eq!((self.srb_status(), self.scsi_status()), (srb_status | 0x80, 2));
        assert_eq!(self.sense(), sense);
        assert_eq!(self.transferred(), 0);
    }
}

/// Which way data go, and which.
#[derive(Clone)]
pub(super) enum Data {
    None,
    In(usize),
    Out(Vec<u8>),
}

pub(super) fn host() -> (Host, &'static TestPlatform) {
    let platform = TestPlatform::leak();
    let start = std::time::Instant::now();
    let clock = move || Instant::from_reference_units(1 + u64::try_from(start.elapsed().as_nanos() / 100).unwrap());
    (Host::new(platform, clock).unwrap(), platform)
}

pub(super) fn connect(host: &Host, class: Guid) -> Client {
    Channel::allocate_client_with(host, Arc::<Log>::default())
        .unwrap()
        .init_set_target(class, Instance::Any)
        .init_set_ring_buffer_page_count(8, 8)
        .init_set_maximum_packet_size(64)
        .unwrap()
        .init_set_maximum_external_data(8 << 20, 4)
        .unwrap()
        .init_set_maximum_packet_count(64)
        .init_set_process_packet_callback(|channel: &Client, packet| {
            channel
                .context()
                .unasked
                .lock()
                .unwrap()
                .push(packet.payload().to_vec());
        })
        .enable(SOON)
        .unwrap()
}

/// A packet with this operation and these bytes behind the header.
pub(super) fn packet(operation: u32, rest: &[u8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&operation.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[12..12 + rest.len()].copy_from_slice(rest);
    bytes
}

/// A SCSI request.
pub(super) fn request(at: Address, cdb: &[u8], data: &Data) -> [u8; 64] {
    let mut bytes = packet(3, &[]);
    bytes[12] = 0x34;
    (bytes[17], bytes[18], bytes[19]) = (at.path, at.target, at.lun);
    (bytes[20], bytes[21]) = (u8::try_from(cdb.len()).unwrap(), 0x14);
    let (direction, len) = match data {
        Data::None => (2, 0),
        Data::In(len) => (1, *len),
        Data::Out(bytes) => (0, bytes.len()),
    };
    bytes[22] = direction;
    bytes[24..28].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    bytes[28..28 + cdb.len()].copy_from_slice(cdb);
    bytes
}

impl Ground {
    /// A controller without disks, and a client that has opened it.
    pub(super) fn opened(config: Config) -> Self {
        let (host, platform) = host();
        let controller = Controller::new(&host, config).unwrap();
        controller.offer().unwrap();
        let client = connect(&host, config.class());
        Self {
            platform,
            host,
            controller,
            client,
        }
    }

    /// The same, initialised to the end.
    pub(super) fn ready(config: Config) -> Self {
        let ground = Self::opened(config);
        let version = u16::from_be_bytes([config.max_version.major, config.max_version.minor]);
        ground.initialise(version);
        ground
    }

    /// A controller with one disk of a MiB at LUN 0.
    pub(super) fn with_disk(config: DiskConfig) -> (Self, MemoryDisk) {
        let ground = Self::ready(Config::default());
        let cache = config.write_cache;
        let memory = ground.add(Address::lun(0), 1 << 20, cache, config);
        (ground, memory)
    }

    pub(super) fn add(&self, at: Address, len: u64, cache: WriteCache, config: DiskConfig) -> MemoryDisk {
        let memory = MemoryDisk::new(self.platform, len, cache).unwrap();
        self.controller
            .attach(at, Disk::new(memory.clone(), config).unwrap())
            .unwrap();
        memory
    }

    pub(super) fn initialise(&self, version: u16) {
        for (operation, rest) in [(7, 0), (9, version), (10, 0), (8, 0)] {
            let answer = self.control(operation, &rest.to_le_bytes());
            assert_eq!(answer.status(), 0, "operation {operation}");
        }
        assert!(self.controller.is_ready());
    }

    /// Sends an operation that is no SCSI command.
    pub(super) fn control(&self, operation: u32, rest: &[u8]) -> Reply {
        self.ask(&packet(operation, rest), None)
    }

    pub(super) fn ask(&self, payload: &[u8], mdl: Option<Mdl>) -> Reply {
        let mut bytes = vec![0xEE; 64];
        let sent = self
            .client
            .send_synchronous_request(payload, mdl, SOON, &mut bytes)
            .unwrap();
        bytes.truncate(sent.len);
        let data = sent.mdl.map_or_else(Vec::new, |mdl| {
            let mut data = vec![0; mdl.len()];
            mdl.read_at(0, &mut data).unwrap();
            data
        });
        Reply { bytes, data }
    }

    pub(super) fn mdl(&self, data: &Data) -> Option<Mdl> {
        let bytes = match data {
            Data::None => return None,
            Data::In(0) => return None,
            Data::In(len) => vec![0xCC; *len],
            Data::Out(bytes) => bytes.clone(),
        };
        let buffer = DmaBuffer::allocate(self.platform, bytes.len()).unwrap();
        buffer.write_at(0, &bytes).unwrap();
        Some(buffer.into())
    }

    /// Executes a SCSI command on LUN 0.
    pub(super) fn run(&self, cdb: &[u8], data: Data) -> Reply {
        self.run_at(Address::lun(0), cdb, data)
    }

    pub(super) fn run_at(&self, at: Address, cdb: &[u8], data: Data) -> Reply {
        let mdl = self.mdl(&data);
        self.ask(&request(at, cdb, &data), mdl)
    }

    /// Sends a SCSI command and does not wait for it.
    pub(super) fn start(&self, tag: usize, cdb: &[u8], data: Data) {
        let mut packet = self.client.packet_allocate().unwrap();
        packet.set_pointer(tag);
        packet.set_completion_routine(|channel, packet: OutgoingPacket<Arc<Log>>, status| {
            let what = status.map(|()| packet.completion().to_vec());
            channel
                .context()
                .completed
                .lock()
                .unwrap()
                .push((packet.pointer(), what));
        });
        let mdl = self.mdl(&data);
        packet
            .send(
                &request(Address::lun(0), cdb, &data),
                mdl,
                SendFlags::WAIT_FOR_COMPLETION,
            )
            .unwrap();
    }

    /// Lets both ends work, and returns the tags of what was completed meanwhile, with the status of each.
    pub(super) fn completed(&self) -> Vec<(usize, Option<u8>)> {
        self.host.process();
        let completed = std::mem::take(&mut *self.client.context().completed.lock().unwrap());
        completed
            .into_iter()
            .map(|(tag, what)| (tag, what.ok().map(|bytes| bytes[14])))
            .collect()
    }

    pub(super) fn unasked(&self) -> Vec<Vec<u8>> {
        self.host.process();
        std::mem::take(&mut *self.client.context().unasked.lock().unwrap())
    }

    /// Asserts that the packet is not answered, and that the ring is not read any more.
    #[track_caller]
    pub(super) fn stops_at(&self, payload: &[u8], mdl: Option<Mdl>) {
        let refused = self
            .client
            .send_synchronous_request(payload, mdl, AT_ONCE, &mut [0; 64])
            .unwrap_err();
        assert_eq!(refused.error, crate::kmcl::Error::Cancelled);
        self.is_deaf();
    }

    #[track_caller]
    pub(super) fn is_deaf(&self) {
        let sent = self
            .client
            .send_synchronous_request(&packet(6, &[]), None, AT_ONCE, &mut [0; 64]);
        assert!(sent.is_err(), "the ring is still read");
    }

    /// Takes everything down and checks that the client did nothing wrong and nothing is left.
    #[track_caller]
    pub(super) fn close(self) {
        assert_eq!(self.controller.take_violations(), []);
        let Self {
            platform,
            host,
            controller,
            client,
        } = self;
        drop(client.disable(SOON).unwrap());
        controller.revoke(SOON).unwrap();
        drop(controller);
        host.process();
        assert_eq!(platform.pages_in_use(), 0, "pages left behind");
        assert_eq!(
            crate::fallible::Shared::owner_count(&host.inner),
            1,
            "handles left behind"
        );
    }
}

/// READ (10).
pub(super) fn read_10(first: u32, count: u16) -> [u8; 10] {
    ten(0x28, first, count)
}

/// WRITE (10).
pub(super) fn write_10(first: u32, count: u16) -> [u8; 10] {
    ten(0x2A, first, count)
}

pub(super) fn ten(opcode: u8, first: u32, count: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&first.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}

pub(super) fn sixteen(opcode: u8, first: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&first.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

/// Bytes that tell where they belong.
pub(super) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let byte = |index: usize| u8::try_from(index % 251).unwrap();
    (0..len).map(|index| byte(index / 7) ^ seed ^ byte(index)).collect()
}
