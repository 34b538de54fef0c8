//! Two threads, one ring: everything arrives once, in order and whole, and nobody sleeps for ever.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::support::{Peer, padded_pattern, pattern};
use crate::ring::{Header, Room, Signal, WriteError};

const PACKETS: u64 = if cfg!(miri) { 120 } else { 50_000 };
/// Longer than any scheduling hiccup: reached only if a wake-up was lost.
const LOST: Duration = Duration::from_secs(if cfg!(miri) { 600 } else { 20 });

fn length(id: u64) -> usize {
    usize::try_from(id.wrapping_mul(0x9e37_79b9) % 257).unwrap()
}

/// An interrupt: any number of signals before it is taken are one.
fn signal(line: &SyncSender<()>, signal: Signal) {
    if signal.is_needed() {
        let _ = line.try_send(());
    }
}

#[test]
fn r8_r9_no_wake_up_is_lost_between_two_threads() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let (wake_consumer, consumer_woken) = sync_channel(1);
    let (wake_producer, producer_woken) = sync_channel(1);

    let writer = thread::spawn(move || {
        for id in 0..PACKETS {
            let payload = pattern(id, length(id));
            while let Err(error) = producer.send(Header::in_band(id), &payload) {
                let WriteError::Full { needed } = error else {
                    panic!("{error}")
                };
                signal(&wake_consumer, producer.commit());
                if producer.wait_for_room(needed).unwrap() == Room::Awaited {
                    producer_woken.recv_timeout(LOST).expect("the reader signals room");
                }
            }
            if id % 3 == 0 {
                signal(&wake_consumer, producer.commit());
            }
        }
        signal(&wake_consumer, producer.commit());
        // The line stays up until the reader has all.
        wake_consumer
    });

    let mut id = 0;
    while id < PACKETS {
        consumer.mask();
        loop {
            let mut batch = 0;
            while let Ok(packet) = consumer.next() {
                assert_eq!(packet.transaction_id(), id);
                assert_eq!(packet.payload(), padded_pattern(id, length(id)));
                id += 1;
                batch += 1;
                if batch == 7 {
                    break;
                }
            }
            if batch == 0 {
                break;
            }
            signal(&wake_producer, consumer.commit());
        }
        let unmasked = consumer.unmask().unwrap();
        signal(&wake_producer, unmasked.signal);
        if !unmasked.more && id < PACKETS {
            consumer_woken.recv_timeout(LOST).expect("the writer signals packets");
        }
    }
    writer.join().unwrap();
}

#[test]
fn r4_a_peer_that_writes_all_the_time_does_no_harm() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let stop = Arc::new(());
    let running = Arc::downgrade(&stop);
    let vandal = {
        let peer = peer.clone();
        thread::spawn(move || {
            let mut word = 1_u64;
            while running.strong_count() != 0 {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let at = u32::try_from(word >> 52).unwrap() & !7;
                // Mostly descriptors that could be.
                peer.descriptor(
                    at,
                    6 + u16::try_from(word >> 62).unwrap(),
                    2,
                    u16::try_from(at % 40).unwrap(),
                    0,
                    word,
                );
                thread::yield_now();
            }
        })
    };
    for id in 0..PACKETS / 10 {
        if producer.send(Header::in_band(id), &pattern(id, length(id))).is_err() {
            break;
        }
        let _ = producer.commit();
        while let Ok(packet) = consumer.next() {
            assert!(packet.payload().len() <= 512);
        }
        let _ = consumer.commit();
        if consumer.fault().is_some() {
            let fresh = peer.pair::<64>();
            (producer, consumer) = fresh;
        }
    }
    drop(stop);
    vandal.join().unwrap();
}
