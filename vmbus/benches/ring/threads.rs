//! Two threads on two cores: throughput and round trip of rings, beside what it costs to bounce one cache line.

use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use vmbus::ring::{Consumer, Header, Producer, ReadError, WriteError};

use crate::twice::Twice;

const RING: u32 = 256 * 1024;
/// Short runs, and many, so that some fall between two interruptions.
const ROUNDS: usize = 60;
/// Bytes of packets in a run.
const RUN: usize = 4 << 20;

// SAFETY: it only hands out rings, which reach the pages by atomics and assembly copies.
unsafe impl Sync for Twice {}

#[repr(align(128))]
struct Line(AtomicU64);

/// Ties the thread to one core; whether that worked.
fn stay_on(core: usize) -> bool {
    // SAFETY: plain data, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: the set is ours, and the number is small.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: a set and its size; 0 is this thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) == 0 }
}

/// Runs `here` on one core while `there` runs on another; returns the nanoseconds of `here`.
fn on_two_cores(here: impl FnOnce(), there: impl FnOnce() + Send) -> f64 {
    let ready = AtomicBool::new(false);
    thread::scope(|scope| {
        let ready = &ready;
        scope.spawn(move || {
            stay_on(1);
            ready.store(true, Ordering::Release);
            there();
        });
        while !ready.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let start = Instant::now();
        here();
        start.elapsed().as_secs_f64() * 1e9
    })
}

/// One line there and back.
fn bounce(count: u64) -> f64 {
    let line = Line(AtomicU64::new(0));
    let wait_for = |value| {
        while line.0.load(Ordering::Acquire) != value {
            spin_loop();
        }
    };
    let took = on_two_cores(
        || {
            for round in 0..count {
                line.0.store(2 * round + 1, Ordering::Release);
                wait_for(2 * round + 2);
            }
        },
        || {
            for round in 0..count {
                wait_for(2 * round + 1);
                line.0.store(2 * round + 2, Ordering::Release);
            }
        },
    );
    took / count as f64
}

fn send<M: vmbus::ring::RingMemory>(producer: &mut Producer<M>, id: u64, payload: &[u8]) {
    loop {
        match producer.send(Header::in_band_with_completion(id), payload) {
            Ok(()) => return,
            Err(WriteError::Full { .. }) => spin_loop(),
            Err(error) => panic!("a sound ring: {error}"),
        }
    }
}

/// Takes one packet and checks its number.
fn take<M: vmbus::ring::RingMemory>(consumer: &mut Consumer<M, Box<[u64]>>, id: u64) {
    loop {
        match consumer.next() {
            Ok(packet) => {
                assert_eq!(packet.transaction_id(), id);
                black_box(packet.payload());
                return;
            }
            Err(ReadError::Empty) => spin_loop(),
            Err(error) => panic!("a sound ring: {error}"),
        }
    }
}

fn throughput(pages: &Twice, len: usize, batch: u64, count: u64) -> f64 {
    let payload = vec![0x5a; len];
    let mut producer = Producer::create(pages.ring().expect("pages of a ring"));
    let scratch = vec![0; len.div_ceil(8)].into_boxed_slice();
    let mut consumer = Consumer::attach(pages.ring().expect("pages of a ring"), scratch).expect("a fresh ring");
    let took = on_two_cores(
        || {
            for id in 0..count {
                take(&mut consumer, id);
                if (id + 1) % batch == 0 {
                    let _ = consumer.commit();
                }
            }
        },
        || {
            for id in 0..count {
                send(&mut producer, id, &payload);
                if (id + 1) % batch == 0 {
                    let _ = producer.commit();
                }
            }
        },
    );
    took / count as f64
}

fn round_trip(there: &Twice, back: &Twice, count: u64) -> f64 {
    let payload = [0x5a; 64];
    let scratch = || vec![0; 8].into_boxed_slice();
    let ring = |pages| Twice::ring(pages).expect("pages of a ring");
    let (mut out, mut returning) = (Producer::create(ring(there)), Producer::create(ring(back)));
    let mut arriving = Consumer::attach(ring(there), scratch()).expect("a fresh ring");
    let mut incoming = Consumer::attach(ring(back), scratch()).expect("a fresh ring");
    let took = on_two_cores(
        || {
            for id in 0..count {
                send(&mut out, id, &payload);
                let _ = out.commit();
                take(&mut incoming, id);
                let _ = incoming.commit();
            }
        },
        || {
            for id in 0..count {
                take(&mut arriving, id);
                let _ = arriving.commit();
                send(&mut returning, id, &payload);
                let _ = returning.commit();
            }
        },
    );
    took / count as f64
}

pub(crate) fn main() {
    if thread::available_parallelism().map_or(1, usize::from) < 2 || !stay_on(0) {
        println!("two cores: not measured, there is only one, or it cannot be chosen");
        return;
    }
    let pages = [(); 2].map(|()| Twice::new(RING).expect("memory for a ring"));
    let (mut line, mut trip) = (f64::MAX, f64::MAX);
    let rows = [(64, 16), (1500, 16), (16384, 4)];
    let mut through = rows.map(|_| f64::MAX);
    for _ in 0..ROUNDS {
        line = line.min(bounce(4_000));
        trip = trip.min(round_trip(&pages[0], &pages[1], 4_000));
        for ((len, batch), least) in rows.into_iter().zip(&mut through) {
            let count = (RUN / (len + 24)) as u64 / batch * batch;
            *least = least.min(throughput(&pages[0], len, batch, count));
        }
    }
    println!(
        "two cores round trip 64: {trip:.0} ns, one cache line there and back {line:.0} ns, ratio {:.2}",
        trip / line
    );
    for ((len, batch), took) in rows.into_iter().zip(through) {
        println!(
            "two cores stream {len}x{batch}: {took:.1} ns a packet, {:.2} GB/s",
            len as f64 / took
        );
    }
}
