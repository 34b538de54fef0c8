//! What mutation testing found that nothing showed: `MUTANTS.md`.

use super::support::{IN, OUT, PENDING, Peer};
use crate::ring::{Consumer, Corruption, Header, Producer, ReadError, Room, Signal, WriteError};

const ID: Header = Header::in_band(1);

#[test]
fn room_that_is_given_while_unmasking_is_signalled_to_who_waits_for_it() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<512>();
    peer.set(64, 1);
    producer.send(ID, &[0; 4000]).unwrap();
    let _ = producer.commit();
    peer.set(PENDING, 1000);
    consumer.mask();
    let nothing_taken = consumer.unmask().unwrap();
    assert_eq!(nothing_taken.signal, Signal::NotNeeded);
    consumer.mask();
    consumer.next().unwrap();
    assert_eq!(consumer.unmask().unwrap().signal, Signal::Needed);
}

#[test]
fn a_rest_that_is_no_packet_is_found_after_one_that_is() {
    for rest in [8, 16] {
        let peer = Peer::new(1);
        let mut consumer = Consumer::create(peer.ring(), [0; 32]);
        peer.descriptor(0, 6, 2, 2, 0, 7);
        // What lies behind looks like a packet.
        peer.descriptor(24, 6, 2, 2, 0, 8);
        peer.set(IN, 24 + rest);
        assert_eq!(consumer.next().unwrap().transaction_id(), 7);
        let Err(ReadError::Corrupt(corruption)) = consumer.next() else {
            panic!("{rest} bytes are no packet")
        };
        assert_eq!(corruption, Corruption::Fragment { available: rest });
    }
}

#[test]
fn a_packet_that_fits_exactly_is_taken() {
    let peer = Peer::new(1);
    let mut consumer = Consumer::create(peer.ring(), [0; 2]);
    peer.descriptor(0, 6, 2, 4, 1, 7);
    peer.set(IN, 40);
    let peek = consumer.peek().unwrap();
    assert!(peek.is_completion_requested());
    assert_eq!(peek.payload_len(), 16);
    assert_eq!(consumer.next().unwrap().payload().len(), 16);
    peer.descriptor(40, 6, 2, 2, 0, 8);
    peer.set(IN, 64);
    assert!(!consumer.peek().unwrap().is_completion_requested());
}

#[test]
fn waiting_for_all_that_a_ring_holds_is_possible_and_for_more_is_not() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    assert_eq!(producer.wait_for_room(4088), Ok(Room::Available));
    assert_eq!(
        producer.wait_for_room(4096),
        Err(WriteError::TooLarge {
            needed: 4096,
            limit: 4088
        })
    );
    producer.send(ID, &[0; 1000]).unwrap();
    let _ = producer.commit();
    assert_eq!(producer.wait_for_room(4088), Ok(Room::Awaited));
    // Exactly as much as is waited for.
    peer.set(OUT, 1024);
    assert_eq!(producer.wait_for_room(4088), Ok(Room::Available));
}
