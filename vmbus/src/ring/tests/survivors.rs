//! What mutation testing found that nothing showed: `MUTANTS.md`.

use super::support::{IN, OUT, PENDING, Peer};
use crate::ring::memory::Words;
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

#[test]
fn the_beginning_of_a_payload_is_taken_as_far_as_it_and_the_memory_for_it_reach() {
    let peer = Peer::new(1);
    let mut consumer = Consumer::create(peer.ring(), [0; 4]);
    // Each with 16 bytes of page list, which is left out, and 16 of payload.
    for at in [0, 56] {
        peer.descriptor(at, 7, 4, 6, 0, 1);
        peer.store(at + 16, &[0xaa, 0xbb, 0x11, 0x22, 0xcc]);
    }
    peer.set(IN, 112);
    let mut memory = [0x99; 4];
    consumer.peek().unwrap().take_payload_into(&mut memory);
    assert_eq!(memory, [0x11, 0x22, 0x99, 0x99]);
    let mut memory = [0x99; 1];
    consumer.peek().unwrap().take_payload_into(&mut memory);
    assert_eq!(memory, [0x11]);
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty, "both are taken");
}

/// An index that no peer may write.
const RUBBISH: u32 = 3;

#[test]
fn what_is_known_to_have_come_is_taken_without_another_look() {
    let peer = Peer::new(1);
    let mut consumer = Consumer::create(peer.ring(), [0; 32]);
    peer.descriptor(0, 6, 2, 2, 0, 7);
    peer.descriptor(24, 6, 2, 2, 0, 8);
    peer.set(IN, 48);
    assert_eq!(consumer.next().unwrap().transaction_id(), 7);
    peer.set(IN, RUBBISH);
    assert_eq!(consumer.next().unwrap().transaction_id(), 8);
    assert!(matches!(consumer.next(), Err(ReadError::Corrupt(_))));
}

#[test]
fn room_that_is_known_is_used_to_its_end_without_another_look() {
    // A whole small ring, more than the fast path's limit would be if it were wrong, and the longest packet.
    for (pages, payload) in [(1, 4064), (16, 40_000), (129, 524_264)] {
        let peer = Peer::new(pages);
        let mut producer = Producer::create(peer.ring());
        peer.set(OUT, RUBBISH);
        producer.send(ID, &vec![0; payload]).unwrap();
    }
}

#[test]
fn room_that_is_known_is_not_waited_for() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    peer.set(OUT, RUBBISH);
    assert_eq!(producer.wait_for_room(4088), Ok(Room::Available));
}

#[test]
fn a_page_list_that_was_not_written_to_its_end_is_zeroes_there() {
    for written in [0, 8] {
        let peer = Peer::new(1);
        let mut producer = Producer::create(peer.ring());
        let mut reservation = producer.reserve(ID, 24, 8).unwrap();
        reservation.write_external(&[0x11; 8][..written]).unwrap();
        assert_eq!(
            reservation.write_external(&[0x22; 12]),
            Err(WriteError::OutOfBounds { excess: 4 }),
            "not whole words"
        );
        reservation.write(&[0x33; 8]).unwrap();
        reservation.finish();
        let mut expected = [0; 32];
        expected[..written].fill(0x11);
        expected[24..].fill(0x33);
        assert_eq!(peer.bytes(16, 32), expected);
    }
}

#[test]
fn rings_with_a_peer_on_this_processor_carry_packets_too() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring().with_peer_on_this_processor());
    let mut consumer = Consumer::attach(peer.ring().with_peer_on_this_processor(), [0; 32]).unwrap();
    producer.send(ID, b"eight by").unwrap();
    assert_eq!(producer.commit(), Signal::Needed);
    assert_eq!(peer.get(IN), 32);
    assert_eq!(consumer.next().unwrap().payload(), b"eight by");
    let _ = consumer.commit();
    assert_eq!(peer.get(OUT), 32);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "4097 bytes at 0 of a ring of 4096")]
fn an_access_longer_than_the_ring_is_a_mistake_of_ours() {
    Peer::new(1).ring().load_bytes(0, &mut [0; 4097]);
}

#[test]
fn only_descriptors_that_are_valid_in_every_field_are_packets() {
    const IN_BAND: u16 = 6;
    const COMPLETION: u16 = 11;
    for packet_type in (0..32).filter(|number| ![7, 9].contains(number)) {
        // Under Miri the valid ones and some others.
        if cfg!(miri) && ![0, IN_BAND, 8, COMPLETION, 31].contains(&packet_type) {
            continue;
        }
        for offset8 in 0..=5 {
            for flags in [0, 1, 2, 0x8000, 0xfffe] {
                let peer = Peer::new(1);
                let mut consumer = Consumer::create(peer.ring(), [0; 32]);
                peer.descriptor(0, packet_type, offset8, 4, flags, 7);
                peer.set(IN, 40);
                let is_valid = [IN_BAND, COMPLETION].contains(&packet_type) && (2..=4).contains(&offset8) && flags <= 1;
                let what = std::format!("type {packet_type}, offset {offset8}, flags {flags:#x}");
                assert_eq!(consumer.peek().is_ok(), is_valid, "{what}");
                let taken = consumer.next().map(|packet| packet.payload().len());
                assert_eq!(taken.is_ok(), is_valid, "{what}");
                if is_valid {
                    assert_eq!(taken, Ok(32 - usize::from(offset8) * 8), "{what}");
                }
            }
        }
    }
}
