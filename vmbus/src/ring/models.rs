//! Every interleaving of a producer and a consumer, by loom: no packet is lost or torn, and nobody sleeps for ever.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --package vmbus --lib ring::models`

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::control::Control;
use super::memory::Words;
use super::sync::{AtomicU32, publish};
use super::{Consumer, Header, Producer, Room, Signal, WriteError};

/// Words of the ring: two packets with one word of payload each, and the gap.
const WORDS: usize = 9;

/// A ring in loom's own memory, far smaller than a page.
#[derive(Debug)]
struct Pages {
    control: Control,
    data: [AtomicU64; WORDS],
}

#[derive(Clone, Debug)]
struct Ring(Arc<Pages>);

impl Ring {
    fn new() -> Self {
        Self(Arc::new(Pages {
            control: Control::zeroed(),
            data: core::array::from_fn(|_| AtomicU64::new(0)),
        }))
    }

    fn word(&self, at: u32) -> &AtomicU64 {
        &self.0.data[at as usize / 8 % WORDS]
    }
}

impl Words for Ring {
    fn control(&self) -> &Control {
        &self.0.control
    }

    fn publish(&self, word: &AtomicU32, value: u32) {
        publish(word, value);
    }

    fn size(&self) -> u32 {
        8 * WORDS as u32
    }

    fn store_words<const N: usize>(&self, at: u32, words: [u64; N]) {
        for (n, word) in (0..).zip(words) {
            self.word(at + 8 * n).store(word, Ordering::Relaxed);
        }
    }

    fn store_packet(&self, at: u32, first: u64, second: u64, payload: &[u8], trailer: u64) {
        self.store_packet_in_parts(at, first, second, payload, trailer);
    }

    fn load_pair(&self, at: u32) -> [u64; 2] {
        [
            self.word(at).load(Ordering::Relaxed),
            self.word(at + 8).load(Ordering::Relaxed),
        ]
    }

    fn store_padded(&self, at: u32, bytes: &[u8]) {
        for (n, chunk) in (0..).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(at + 8 * n).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn load(&self, at: u32, words: &mut [u64]) {
        for (n, word) in (0..).zip(words) {
            *word = self.word(at + 8 * n).load(Ordering::Relaxed);
        }
    }

    fn store_bytes(&self, _: u32, _: &[u8]) {
        unreachable!("the models send whole words");
    }

    fn load_bytes(&self, _: u32, _: &mut [u8]) {
        unreachable!("the models take whole packets");
    }
}

/// An interrupt line.
fn tell(line: &Notify, signal: Signal) {
    if signal.is_needed() {
        line.notify();
    }
}

fn pair() -> (Producer<Ring>, Consumer<Ring, [u64; 2]>) {
    let ring = Ring::new();
    let producer = Producer::create(ring.clone());
    let consumer = Consumer::attach(ring, [0; 2]).unwrap();
    (producer, consumer)
}

/// Takes what there is; the id of the next packet.
fn drain(consumer: &mut Consumer<Ring, [u64; 2]>, mut id: u64) -> u64 {
    while let Ok(packet) = consumer.next() {
        assert_eq!(packet.transaction_id(), id);
        assert_eq!(packet.payload(), (id ^ 0xabcd).to_le_bytes());
        id += 1;
    }
    assert_eq!(consumer.fault(), None);
    id
}

fn send(producer: &mut Producer<Ring>, id: u64) -> Result<(), WriteError> {
    producer.send(Header::in_band(id), &(id ^ 0xabcd).to_le_bytes())
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Four involuntary switches find what these models can get wrong; all of them would take hours.
    builder.preemption_bound = Some(4);
    builder.check(run);
}

/// A sleeping consumer that masks while it drains, and looks again after unmasking, misses no packet.
#[test]
fn r8_a_consumer_that_unmasks_and_sleeps_is_woken() {
    model(|| {
        let (mut producer, mut consumer) = pair();
        let line = Arc::new(Notify::new());
        let writer = {
            let line = line.clone();
            thread::spawn(move || {
                for id in 0..2 {
                    send(&mut producer, id).unwrap();
                    tell(&line, producer.commit());
                }
            })
        };
        let mut id = 0;
        while id < 2 {
            consumer.mask();
            id = drain(&mut consumer, id);
            let unmasked = consumer.unmask().unwrap();
            assert_eq!(unmasked.signal, Signal::NotNeeded, "nobody waits for room");
            if !unmasked.more && id < 2 {
                line.wait();
            }
        }
        writer.join().unwrap();
    });
}

/// The same without masking: publishing the read index and looking at the ring cross the producer's publishing and looking.
#[test]
fn r7_a_consumer_that_commits_and_sleeps_is_woken() {
    model(|| {
        let (mut producer, mut consumer) = pair();
        let line = Arc::new(Notify::new());
        let writer = {
            let line = line.clone();
            thread::spawn(move || {
                for id in 0..2 {
                    send(&mut producer, id).unwrap();
                    tell(&line, producer.commit());
                }
            })
        };
        let mut id = 0;
        while id < 2 {
            id = drain(&mut consumer, id);
            let _ = consumer.commit();
            if !consumer.has_packets().unwrap() && id < 2 {
                line.wait();
            }
        }
        writer.join().unwrap();
    });
}

/// A producer that waits for room is woken when there is, and what it writes over was read before: the ring wraps.
#[test]
fn r9_r10_a_producer_that_waits_for_room_is_woken() {
    model(|| {
        let (mut producer, mut consumer) = pair();
        let room = Arc::new(Notify::new());
        for id in 0..2 {
            send(&mut producer, id).unwrap();
        }
        let _ = producer.commit();
        let writer = {
            let room = room.clone();
            thread::spawn(move || {
                while let Err(error) = send(&mut producer, 2) {
                    let WriteError::Full { needed } = error else {
                        panic!("{error}")
                    };
                    if producer.wait_for_room(needed).unwrap() == Room::Awaited {
                        room.wait();
                    }
                }
                let _ = producer.commit();
                producer
            })
        };
        // One publication for each packet: only one of them crosses.
        let mut id = 0_u64;
        for _ in 0..2 {
            let packet = consumer.next().unwrap();
            assert_eq!(
                (packet.transaction_id(), packet.payload()),
                (id, &(id ^ 0xabcd).to_le_bytes()[..])
            );
            id += 1;
            tell(&room, consumer.commit());
        }
        let producer = writer.join().unwrap();
        assert_eq!(drain(&mut consumer, id), 3);
        assert_eq!(producer.fault(), None);
    });
}

/// Room given with `unmask` wakes a waiting producer as room given with `commit` does.
#[test]
fn r9_room_given_while_unmasking_wakes_a_producer() {
    model(|| {
        let (mut producer, mut consumer) = pair();
        let room = Arc::new(Notify::new());
        for id in 0..2 {
            send(&mut producer, id).unwrap();
        }
        let _ = producer.commit();
        let writer = {
            let room = room.clone();
            thread::spawn(move || {
                while let Err(error) = send(&mut producer, 2) {
                    let WriteError::Full { needed } = error else {
                        panic!("{error}")
                    };
                    if producer.wait_for_room(needed).unwrap() == Room::Awaited {
                        room.wait();
                    }
                }
            })
        };
        consumer.mask();
        assert_eq!(drain(&mut consumer, 0), 2);
        tell(&room, consumer.unmask().unwrap().signal);
        writer.join().unwrap();
    });
}
