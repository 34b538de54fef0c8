//! The storage driver under a controller that answers anything: completion packets, sense data, what a disk says of itself. No
//! answer makes a request end twice or never, and no length that it names is believed. And the parsers alone, with any bytes.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arbitrary::Arbitrary;
use vmbus::device::storage::protocol::{self, Answer, Sense};
use vmbus::device::storage::{self, Config, Controller, Disk, Lba, scsi};
use vmbus::host::Host;
use vmbus::kmcl::{Channel, IncomingPacket};
use vmbus::memory::DmaBuffer;
use vmbus::protocol::Guid;
use vmbus::testing::TestHeap;
use vmbus::{Deadline, Instant};

use crate::input::input;
use crate::observe::{is_recording, note};
use crate::world::World;

#[derive(Arbitrary, Debug)]
struct Input {
    bytes: Vec<u8>,
    answers: Vec<Reaction>,
    steps: Vec<Step>,
}

/// How a request is answered; when there are no more of these, as it should be.
#[derive(Arbitrary, Clone, Debug)]
enum Reaction {
    Right,
    /// Rightly, but for a byte of the answer and one of the data.
    Almost {
        at: u8,
        byte: u8,
        data_at: u8,
        data: u8,
    },
    Status {
        srb: u8,
        scsi: u8,
        transferred: Option<u32>,
        sense: [u8; 20],
    },
    Bytes(Vec<u8>),
    /// Later, before something else is answered; or never.
    Hold,
    Drop,
    /// Tells first that the devices have changed, or something else.
    Notice {
        operation: u8,
    },
    /// Goes away.
    Data(Vec<u8>),
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Disks,
    WaitForDisk,
    Rescan,
    Reset,
    Read { lba: u32, len: u16 },
    Write { lba: u32, len: u16 },
    Copy { lba: u32, len: u16, writes: bool },
    Flush,
    Discard { lba: u32, count: u16 },
    Start { lba: u32, len: u16 },
    DropStarted,
    News,
}

/// What the controller knows.
#[derive(Default)]
struct Device {
    reactions: Mutex<VecDeque<Reaction>>,
    held: Mutex<Vec<IncomingPacket<Self>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const INSTANCE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000f024");
const SHORT: Deadline = Deadline::After(LIMIT);
const LIMIT: Duration = Duration::from_millis(200);

/// The storage driver, and its parsers.
pub fn storage(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    parsers(&input.bytes);
    let world = World::alone();
    let live_before = TestHeap::live();
    run(world, &input);
    let faults = world.platform.faults();
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(world.platform.live_pages(), 0, "pages are left");
    world.start_over();
    if !is_recording() {
        assert_eq!(TestHeap::live(), live_before, "the heap is as it was");
    }
}

fn parsers(bytes: &[u8]) {
    let _ = protocol::parse_notice(bytes);
    match Answer::parse(bytes) {
        Ok(answer) => {
            let _ = answer.properties();
            if let Ok(executed) = answer.executed() {
                assert!(executed.sense.len() <= 20);
                let _ = (executed.transferred, Sense::parse(executed.sense));
            }
        }
        Err(error) => note("storage::ParseError", &error),
    }
    let _ = (
        Sense::parse(bytes),
        scsi::Inquiry::parse(bytes),
        scsi::is_write_protected(bytes),
    );
    let _ = (
        scsi::Capacity::parse_10(bytes),
        scsi::Capacity::parse_16(bytes),
        scsi::parse_provisioning(bytes),
    );
    assert!(scsi::luns(bytes).count() <= 256);
    assert!(scsi::vpd_pages(bytes).len() <= bytes.len());
    if let Some(text) = scsi::parse_serial(bytes) {
        assert!(text.as_str().chars().all(|letter| !letter.is_control()), "{text:?}");
    }
    if let Some(identity) = scsi::parse_identity(bytes) {
        assert!(identity.bytes().len() <= bytes.len());
    }
    let _ = scsi::parse_block_limits(bytes);
}

/// What a disk of 1000 blocks says, by command.
fn data(command: &[u8]) -> Vec<u8> {
    let page = |code: u8, body: &[u8]| [&[0, code, 0, body.len() as u8], body].concat();
    match (command.first(), command.get(1), command.get(2)) {
        (Some(0x12), Some(1), Some(0)) => page(0, &[0, 0x80, 0x83, 0xb0, 0xb2]),
        (Some(0x12), Some(1), Some(0x80)) => page(0x80, b"serial"),
        (Some(0x12), Some(1), Some(0x83)) => page(0x83, &[1, 3, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
        (Some(0x12), Some(1), Some(0xb0)) => page(
            0xb0,
            &[
                0, 1, 0, 8, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1,
            ],
        ),
        (Some(0x12), Some(1), Some(0xb2)) => page(0xb2, &[0, 0x80, 2, 0]),
        (Some(0x12), ..) => [&[0, 0, 5, 2, 31, 0, 0, 0][..], b"Msft    Virtual Disk    1.0 "].concat(),
        (Some(0x25), ..) => vec![0, 0, 3, 0xe7, 0, 0, 2, 0],
        (Some(0x9e), ..) => {
            let mut bytes = vec![0, 0, 0, 0, 0, 0, 3, 0xe7, 0, 0, 2, 0];
            bytes.resize(32, 0);
            bytes
        }
        (Some(0xa0), ..) => vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        (Some(0x1a), ..) => vec![3, 0, 0, 0],
        _ => vec![0x77; 64],
    }
}

/// The answer as it should be: the request, with its status.
fn right(request: &[u8]) -> Vec<u8> {
    let mut answer = request.to_vec();
    answer.resize(64, 0);
    let operation = answer[0];
    answer[0] = 1;
    answer[8..12].fill(0);
    match operation {
        // A command.
        3 => answer[14..16].copy_from_slice(&[1, 0]),
        // Its properties: the longest transfer.
        9 => answer[24..28].copy_from_slice(&0x4_0000_u32.to_le_bytes()),
        _ => {}
    }
    answer
}

fn fill(packet: &mut IncomingPacket<Device>, bytes: &[u8]) {
    if let Ok(memory) = packet.external_data() {
        let len = memory.len().min(bytes.len());
        // A request that writes lends its memory to be read only.
        let _ = memory.write_at(0, &bytes[..len]);
    }
}

fn complete(packet: IncomingPacket<Device>, answer: &[u8]) {
    if let Err(refused) = packet.complete(answer) {
        note("kmcl::Error", &refused.error);
    }
}

fn on_request(channel: &Channel<Device>, mut packet: IncomingPacket<Device>) {
    let device = channel.context();
    let reaction = locked(&device.reactions).pop_front().unwrap_or(Reaction::Right);
    let request = packet.payload().to_vec();
    let mut answer = right(&request);
    let mut bytes = data(request.get(28..44).unwrap_or_default());
    match reaction {
        Reaction::Right => {}
        Reaction::Almost {
            at,
            byte,
            data_at,
            data,
        } => {
            if let Some(target) = answer.get_mut(usize::from(at) % 64) {
                *target = byte;
            }
            let data_at = usize::from(data_at) % bytes.len();
            bytes[data_at] = data;
        }
        Reaction::Status {
            srb,
            scsi,
            transferred,
            sense,
        } => {
            answer[14..16].copy_from_slice(&[srb, scsi]);
            answer[21] = 20;
            if let Some(transferred) = transferred {
                answer[24..28].copy_from_slice(&transferred.to_le_bytes());
            }
            answer[28..48].copy_from_slice(&sense);
        }
        Reaction::Bytes(bytes) => {
            return complete(packet, bytes.get(..64).unwrap_or(&bytes));
        }
        Reaction::Hold => {
            let mut held = locked(&device.held);
            held.push(packet);
            return;
        }
        Reaction::Drop => return drop(packet),
        Reaction::Notice { operation } => {
            let notice = [operation % 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let _ = channel.send(&notice);
        }
        Reaction::Data(other) => bytes = other,
    }
    fill(&mut packet, &bytes);
    complete(packet, &answer);
    let late = locked(&device.held).pop();
    if let Some(packet) = late {
        let answer = right(packet.payload());
        complete(packet, &answer);
    }
}

fn run(world: &'static World, input: &Input) {
    let platform = world.platform;
    let clock = || Instant::from_reference_units(platform.look_at_clock());
    let Ok(host) = Host::new(platform, clock) else {
        panic!("memory enough");
    };
    let device = Device::default();
    locked(&device.reactions).extend(input.answers.iter().take(64).cloned());
    let Ok(server) = Channel::allocate_server_with(&host, device) else {
        panic!("memory enough");
    };
    let server = server
        .init_set_target_interface_id(storage::SCSI, INSTANCE)
        .init_set_ring_buffer_page_count(2, 2)
        .init_set_process_packet_callbacks(on_request, |_, _| ());
    let Ok(server) = server.enable(SHORT) else {
        panic!("nobody is in the way of the server");
    };
    let config = Config {
        class: storage::SCSI,
        commands: 6,
        ring_pages: 2,
        max_transfer: 64 * 1024,
        copy_buffers: 1,
        copy_buffer_len: 4096,
        ..Config::default()
    };
    // Several requests, one after the other.
    match world.within(LIMIT * 8, || storage::attach_with(&host, &config, || (), SHORT)) {
        Ok(controller) => work(world, &host, &controller, &input.steps),
        Err(error) => note("storage::Error", &error),
    }
    locked(&server.context().held).clear();
    host.process();
    let ended = world.within(LIMIT * 4, || server.disable(SHORT));
    drop(ended.map_err(|refused| panic!("the server is held: {}", refused.error)));
    host.process();
}

fn met<T>(result: Result<T, storage::Error>) -> Option<T> {
    result.inspect_err(|error| note("storage::Error", error)).ok()
}

fn work(world: &'static World, host: &Host, controller: &Controller, steps: &[Step]) {
    let mut disk: Option<Disk> = None;
    let mut started = Vec::new();
    let buffer = |len: u16| DmaBuffer::allocate(world.platform, usize::from(len % 16_384).max(1)).ok();
    // Retries and a recovery may come before the end of a call's time; looking for disks is many calls.
    let (call, many) = (LIMIT * 20, LIMIT * 2000);
    for step in steps.iter().take(24) {
        match step {
            Step::Disks => disk = controller.disks().ok().and_then(|disks| disks.into_iter().next()),
            Step::WaitForDisk => disk = met(world.within(many, || controller.wait_for_disk(SHORT))).or(disk),
            Step::Rescan => drop(met(world.within(many, || controller.rescan(SHORT)))),
            Step::Reset => drop(met(world.within(many, || controller.reset(SHORT)))),
            Step::News => drop(met(world.within(call, || controller.wait_for_news(SHORT)))),
            Step::DropStarted => drop(started.pop()),
            _ => {}
        }
        let Some(disk) = &disk else { continue };
        let _ = (
            disk.blocks(),
            disk.size_bytes(),
            disk.block_len(),
            disk.info(),
            disk.discard_granularity(),
        );
        match step {
            Step::Read { lba, len } => {
                let Some(buffer) = buffer(*len) else { continue };
                let read = world.within(call, || disk.read(Lba(u64::from(*lba)), buffer, SHORT));
                if let Err(failed) = read {
                    note("storage::Error", &failed.error);
                }
            }
            Step::Write { lba, len } => {
                let Some(buffer) = buffer(*len) else { continue };
                let written = world.within(call, || disk.write(Lba(u64::from(*lba)), buffer, SHORT));
                if let Err(failed) = written {
                    note("storage::Error", &failed.error);
                }
            }
            Step::Copy { lba, len, writes } => {
                let mut bytes = vec![0; usize::from(len % 9000)];
                let lba = Lba(u64::from(*lba));
                let copied = world.within(many, || {
                    if *writes {
                        disk.write_from(lba, &bytes, SHORT)
                    } else {
                        disk.read_into(lba, &mut bytes, SHORT)
                    }
                });
                met(copied);
            }
            Step::Flush => drop(met(world.within(call, || disk.flush(SHORT)))),
            Step::Discard { lba, count } => {
                met(world.within(call, || disk.discard(Lba(u64::from(*lba)), u64::from(*count), SHORT)));
            }
            Step::Start { lba, len } => {
                if let Some(buffer) = buffer(*len)
                    && started.len() < 4
                {
                    started.push(disk.start_read(Lba(u64::from(*lba)), buffer));
                    host.process();
                }
            }
            _ => {}
        }
    }
    for transfer in started {
        if let Err(failed) = world.within(call, || transfer.wait(SHORT)) {
            note("storage::Error", &failed.error);
        }
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
