//! What a packet costs in this kernel: instructions per packet and per round trip between a client and a server in the kernel.
//!
//! Only a deterministic machine, one instruction a nanosecond, has instructions to tell by its clock; elsewhere these are
//! nanoseconds, of which the least of several runs counts.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use vmbus::host::Host;
use vmbus::kmcl::{Channel, Instance, OutgoingPacket, SendFlags};
use vmbus::protocol::Guid;
use vmbus::{Deadline, Instant};

use super::{Verdict, ensure};
use crate::hyperv::port::PLATFORM;
use crate::time;

const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000bec40");
const SOON: Deadline = Deadline::seconds(5);
const LEN: usize = 64;
const BATCH: u64 = 16;
/// Operations in a run.
const COUNT: u64 = 512;
const RUNS: usize = 5;

static ARRIVED: AtomicU64 = AtomicU64::new(0);
static COMPLETED: AtomicU64 = AtomicU64::new(0);

fn clock() -> Instant {
    Instant::from_reference_units(time::now_ns() / 100 + 1)
}

/// Runs `work` several times after a run that does not count; returns the least time in nanoseconds.
fn least(mut work: impl FnMut() -> Verdict) -> Result<u64, String> {
    work()?;
    let mut least = u64::MAX;
    for _ in 0..RUNS {
        let begin = time::now_ns();
        work()?;
        least = least.min(time::now_ns() - begin);
    }
    Ok(least)
}

fn ask(client: &Channel<()>, payload: &[u8]) -> Verdict {
    let mut packet = client.packet_allocate().map_err(|error| format!("{error}"))?;
    packet.set_completion_routine(|_, packet: OutgoingPacket<()>, outcome| {
        if outcome.is_ok() && packet.completion().len() == LEN {
            COMPLETED.fetch_add(1, Ordering::Relaxed);
        }
    });
    packet
        .send(payload, None, SendFlags::WAIT_FOR_COMPLETION)
        .map_err(|refused| format!("{}", refused.error))
}

pub(super) fn run() -> Verdict {
    let host = Host::new(&PLATFORM, clock).map_err(|error| format!("{error}"))?;
    let server = Channel::allocate_server(&host)
        .map_err(|error| format!("{error}"))?
        .init_set_target(CLASS, Instance::Only(CLASS))
        .init_set_process_packet_callback(|_: &Channel<()>, packet| {
            ARRIVED.fetch_add(1, Ordering::Relaxed);
            let mut answer = [0; LEN];
            answer.copy_from_slice(packet.payload().first_chunk::<LEN>().unwrap_or(&[0; LEN]));
            if let Err(error) = packet.complete(&answer) {
                log::warn!("no answer: {error}");
            }
        })
        .enable(SOON)
        .map_err(|refused| format!("{}", refused.error))?;
    let client = Channel::allocate_client(&host)
        .map_err(|error| format!("{error}"))?
        .init_set_target(CLASS, Instance::Any)
        .init_set_maximum_packet_count(64)
        .enable(SOON)
        .map_err(|refused| format!("{}", refused.error))?;
    host.process();
    ARRIVED.store(0, Ordering::Relaxed);
    COMPLETED.store(0, Ordering::Relaxed);

    let payload = [0x5a; LEN];
    let trip = least(|| {
        for _ in 0..COUNT {
            ask(&client, &payload)?;
            host.process();
        }
        Ok(())
    })?;
    let packet = least(|| {
        for _ in 0..COUNT / BATCH {
            for _ in 0..BATCH {
                client.send(&payload).map_err(|error| format!("{error}"))?;
            }
            host.process();
        }
        Ok(())
    })?;
    let runs = RUNS as u64 + 1;
    let (arrived, completed) = (ARRIVED.load(Ordering::Relaxed), COMPLETED.load(Ordering::Relaxed));
    ensure!(
        (arrived, completed) == (2 * runs * COUNT, runs * COUNT),
        "{arrived} packets arrived and {completed} were completed"
    );
    crate::println!(
        "  round trip of 64 bytes between two ends of a channel: {} ns",
        trip / COUNT
    );
    crate::println!(
        "  packet of 64 bytes, 16 at a time:                     {} ns",
        packet / COUNT
    );
    crate::println!("@@ mark speed-round-trip-64 {}", trip / COUNT);
    crate::println!("@@ mark speed-packet-64x16 {}", packet / COUNT);
    client.disable(SOON).map_err(|refused| format!("{}", refused.error))?;
    server.disable(SOON).map_err(|refused| format!("{}", refused.error))?;
    Ok(())
}
