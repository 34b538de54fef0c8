//! The in-kernel storage controller and its memory: each single allocation fails once and nothing is left behind, and reading and
//! writing allocates nothing. One test, because the heap's figures are the whole program's.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use vmbus::Deadline;
use vmbus::host::Host;
use vmbus::host::storage::{
    Address, AttachError, Config, Controller, Disk, DiskConfig, Effect, Fault, Filter, MemoryDisk, PowerCut,
    Provisioning, WriteCache,
};
use vmbus::kmcl::{Channel, Error, Instance};
use vmbus::memory::{DmaBuffer, Mdl};
use vmbus::protocol::class;
use vmbus::testing::{FakePlatform, TestHeap};

mod heap;

#[global_allocator]
static HEAP: TestHeap = TestHeap;

const SOON: Deadline = Deadline::seconds(5);

/// A packet: its operation, and a number behind the header.
fn packet(operation: u8, number: u16) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = operation;
    bytes[12..14].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// A request for 8 blocks of LUN 0, read or written.
fn blocks(opcode: u8, first: u32) -> [u8; 64] {
    let mut bytes = packet(3, 0x34);
    (bytes[20], bytes[21], bytes[22]) = (10, 0x14, u8::from(opcode == 0x28));
    bytes[24..28].copy_from_slice(&4096_u32.to_le_bytes());
    bytes[28] = opcode;
    bytes[30..34].copy_from_slice(&first.to_be_bytes());
    bytes[36] = 8;
    bytes
}

fn ask(client: &Channel, payload: &[u8], mdl: Option<Mdl>) -> Result<(u8, Option<Mdl>), Error> {
    let mut answer = [0; 64];
    let sent = client
        .send_synchronous_request(payload, mdl, SOON, &mut answer)
        .map_err(|refused| refused.error)?;
    Ok((answer[14], sent.mdl))
}

struct Ground {
    controller: Controller,
    client: Channel,
    disk: MemoryDisk,
    mdl: Mdl,
}

impl Ground {
    fn new(platform: &'static FakePlatform) -> Result<Self, Error> {
        let host = Host::new(platform, || {
            vmbus::Instant::from_reference_units(platform.look_at_clock())
        })?;
        let controller = Controller::new(&host, Config::default())?;
        let disk = MemoryDisk::new(platform, 1 << 30, WriteCache::Volatile)?;
        let config = DiskConfig {
            provisioning: Provisioning::THIN,
            write_cache: WriteCache::Volatile,
            ..DiskConfig::default()
        };
        let disk_for = |_| Disk::new(disk.clone(), config);
        for lun in [3, 0] {
            controller
                .attach(Address::lun(lun), disk_for(lun)?)
                .map_err(|error| match error {
                    AttachError::OutOfMemory(error) => Error::from(error),
                    _ => Error::WrongState,
                })?;
        }
        controller.offer()?;
        let client = Channel::allocate_client(&host)?
            .init_set_target(class::STORAGE, Instance::Any)
            .enable(SOON)?;
        for (operation, number) in [(7, 0), (9, 0x0602), (10, 0), (8, 0)] {
            ask(&client, &packet(operation, number), None)?;
        }
        let buffer = DmaBuffer::allocate(platform, 4096).map_err(|_| vmbus::fallible::OutOfMemory)?;
        buffer.write_at(0, &[7; 4096]).unwrap();
        Ok(Self {
            controller,
            client,
            disk,
            mdl: buffer.into(),
        })
    }

    /// Writes and reads, and returns the status of each.
    fn transfer(&mut self, first: u32) -> Result<[u8; 2], Error> {
        let mut statuses = [0; 2];
        for (status, opcode) in statuses.iter_mut().zip([0x2A, 0x28]) {
            *status = ask(&self.client, &blocks(opcode, first), Some(self.mdl.clone()))?.0;
        }
        Ok(statuses)
    }
}

/// All that a controller does which may allocate.
fn everything(platform: &'static FakePlatform) -> Result<(), Error> {
    let mut ground = Ground::new(platform)?;
    // Chunks in any order, the first one twice.
    for first in [1000, 10, 1001, 500_000] {
        let [written, read] = ground.transfer(first)?;
        // Without memory for it a write fails, and what is there can be read all the same.
        assert_eq!((written & 0x3E, read), (if written == 1 { 0 } else { 4 }, 1));
    }
    let rewrite = Effect::rewrite(|answer| answer.put(14, &[9]))?;
    ground.controller.inject(Fault::new(Filter::reads(), rewrite))?;
    let _ = ground.transfer(0)?;
    ground.controller.hold();
    let mdl = Some(ground.mdl.clone());
    let held = ground
        .client
        .send_synchronous_request(&blocks(0x28, 0), mdl, Deadline::millis(1), &mut [0; 64]);
    drop(held);
    ground.controller.resume();
    let detached = ground.controller.detach(Address::lun(3));
    assert!(detached.is_some());
    assert_eq!(ground.controller.take_violations(), []);
    ground.disk.cut_power(PowerCut::LosesSome(1));
    let Ground { controller, client, .. } = ground;
    controller.revoke(SOON)?;
    drop(client);
    Ok(())
}

#[test]
fn whatever_allocation_fails_nothing_is_left_behind_and_transfers_allocate_nothing() {
    let platform = TestHeap::exempt(FakePlatform::new);
    everything(platform).unwrap();
    heap::fail_each(platform, 40, || everything(platform), || {});

    let mut ground = Ground::new(platform).unwrap();
    assert_eq!(ground.transfer(64).unwrap(), [1, 1]);
    let before = TestHeap::allocations();
    for first in 0..100 {
        assert_eq!(ground.transfer(first).unwrap(), [1, 1]);
    }
    assert_eq!(TestHeap::allocations(), before);
    assert_eq!(ground.controller.take_violations(), []);
}
