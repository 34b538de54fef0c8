//! What the two halves promise each other, with a well-behaved peer: staging, room, signals.

use super::support::{FEATURES, IN, MASK, OUT, PENDING, Peer, padded_pattern, pattern};
use crate::ring::{Consumer, Header, PacketToSend, Producer, ReadError, Room, Unmasked, WriteError};
use crate::ring::{ExternalToSend, GpaRangeToSend, Signal};

const ID: Header = Header::in_band(1);

/// Reads all packets; how many there were.
fn drain(consumer: &mut Consumer<super::support::Ring, Box<[u64]>>) -> usize {
    let mut count = 0;
    while consumer.next().is_ok() {
        count += 1;
    }
    count
}

#[test]
fn r14_create_makes_an_empty_ring_of_dirty_pages() {
    let peer = Peer::new(1);
    let producer = Producer::create(peer.ring());
    for offset in (0..64).step_by(4) {
        assert_eq!(peer.get(offset), 0, "control word at {offset}");
    }
    assert_eq!(
        peer.get(FEATURES),
        1,
        "a producer announces that it tells what it waits for"
    );
    assert_eq!(producer.room(), 4096 - 8);

    let peer = Peer::new(1);
    let mut consumer = Consumer::create(peer.ring(), [0; 8]);
    for offset in (0..=64).step_by(4) {
        assert_eq!(peer.get(offset), 0, "control word at {offset}");
    }
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
}

#[test]
fn r1_our_indices_are_private() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    producer.send(ID, &pattern(1, 40)).unwrap();
    let _ = producer.commit();

    // The peer writes to the words that are ours to write: the write index moves on from where we know that it was.
    for (n, lie) in (2..).zip([0, 8, 4088, 4096, 3, u32::MAX]) {
        peer.set(IN, lie);
        producer.send(ID, &pattern(n, 40)).unwrap();
        let _ = producer.commit();
        assert_eq!(u64::from(peer.get(IN)), 64 * n);
    }
    // And so does the read index.
    for n in 1..=7 {
        peer.set(OUT, 0xdead_beef);
        assert_eq!(consumer.next().unwrap().payload(), padded_pattern(n, 40));
        let _ = consumer.commit();
        assert_eq!(u64::from(peer.get(OUT)), 64 * n);
    }
}

#[test]
fn r6_a_full_ring_keeps_a_gap_and_is_not_empty() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<512>();
    // 4096 - 8 bytes are one packet with all that fits.
    assert_eq!(producer.limit(), 4088);
    let largest = pattern(3, 4088 - 24);
    assert_eq!(
        producer.send(ID, &pattern(3, 4088 - 24 + 1)),
        Err(WriteError::TooLarge {
            needed: 4096,
            limit: 4088
        })
    );
    producer.send(ID, &largest).unwrap();
    assert_eq!(producer.room(), 0);
    assert_eq!(producer.send(ID, &[]), Err(WriteError::Full { needed: 24 }));
    let _ = producer.commit();
    assert_ne!(peer.get(IN), peer.get(OUT));
    assert_eq!(consumer.next().unwrap().payload(), largest);
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
    assert_eq!(
        producer.send(ID, &[]),
        Err(WriteError::Full { needed: 24 }),
        "taken, but not given back"
    );
    let _ = consumer.commit();
    // Now from the middle, in small ones: 4088 bytes are 170 packets of 24, and 8 bytes left.
    for _ in 0..170 {
        producer.send(ID, &[]).unwrap();
    }
    assert_eq!(producer.room(), 8);
    assert_eq!(producer.send(ID, &[]), Err(WriteError::Full { needed: 24 }));
    let _ = producer.commit();
    assert_eq!(drain(&mut consumer), 170);
}

#[test]
fn packets_longer_than_a_descriptor_can_tell_are_refused() {
    let pages = 256;
    let peer = Peer::new(pages);
    let mut producer = Producer::create(peer.ring());
    let limit = 0xffff * 8 + 8;
    assert_eq!(producer.limit(), limit);
    for (external, payload) in [
        (0, 0xffff * 8),
        (0xffff * 8, 0),
        (0, usize::MAX),
        (usize::MAX, usize::MAX),
    ] {
        let refused = producer.reserve(ID, external, payload).unwrap_err();
        assert!(
            matches!(refused, WriteError::TooLarge { limit: l, .. } if l == limit),
            "{refused:?}"
        );
    }
    if cfg!(miri) {
        // Half a megabyte takes minutes there.
        return;
    }
    producer.reserve(ID, 0, 0xffff * 8 - 16).unwrap().finish();
    assert_eq!(peer.bytes(0, 8), [6, 0, 2, 0, 0xff, 0xff, 0, 0]);
}

#[test]
fn staged_packets_are_invisible_until_commit_and_can_be_taken_back() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    producer.send(ID, b"first").unwrap();
    producer.send(ID, b"second").unwrap();
    assert_eq!(peer.get(IN), 0);
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
    producer.revert();
    assert_eq!(producer.room(), 4088);
    assert_eq!(producer.commit(), Signal::NotNeeded);
    producer.send(ID, b"third").unwrap();
    assert_eq!(producer.commit(), Signal::Needed);
    assert_eq!(consumer.next().unwrap().payload(), b"third\0\0\0");
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
}

#[test]
fn room_is_known_without_shared_memory_until_it_runs_out() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    // An impossible index that nobody looks at...
    peer.set(OUT, 7);
    for _ in 0..127 {
        producer.send(ID, &[0; 8]).unwrap();
    }
    // ...until room runs out.
    assert!(matches!(producer.send(ID, &[0; 8]), Err(WriteError::Corrupt(_))));
}

#[test]
fn an_unfinished_reservation_stages_nothing() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let mut reservation = producer.reserve(ID, 0, 16).unwrap();
    reservation.write(b"never sent").unwrap();
    drop(reservation);
    assert_eq!(producer.commit(), Signal::NotNeeded);
    producer.send(ID, b"sent").unwrap();
    let _ = producer.commit();
    assert_eq!(consumer.next().unwrap().payload(), b"sent\0\0\0\0");
}

#[test]
fn a_reservation_is_filled_in_any_order_and_the_rest_is_zero() {
    // At each place of a dirty ring, so that all pieces also wrap.
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let step = if cfg!(miri) { 37 } else { 1 };
    for round in (0..200_u64).step_by(step) {
        let mut reservation = producer.reserve(Header::in_band(round), 0, 203).unwrap();
        reservation.write(b"abc").unwrap();
        reservation.write(b"defgh").unwrap();
        assert_eq!(reservation.remaining(), 195);
        reservation.write_at(11, b"xyz").unwrap();
        reservation.write_at(0, b"A").unwrap();
        reservation.write_at(120, &pattern(round, 24)).unwrap();
        assert_eq!(
            reservation.write_at(200, b"four"),
            Err(WriteError::OutOfBounds { excess: 1 })
        );
        assert_eq!(
            reservation.write_at(204, b""),
            Err(WriteError::OutOfBounds { excess: 1 })
        );
        assert_eq!(reservation.write(&[1; 60]), Err(WriteError::OutOfBounds { excess: 1 }));
        reservation.finish();
        let _ = producer.commit();

        let mut expected = vec![0; 208];
        expected[..14].copy_from_slice(b"Abcdefgh\0\0\0xyz");
        expected[120..144].copy_from_slice(&pattern(round, 24));
        let packet = consumer.next().unwrap();
        assert_eq!(packet.transaction_id(), round);
        assert_eq!(packet.payload(), expected);
        let _ = consumer.commit();
    }
}

#[test]
fn gathered_pieces_arrive_in_one_row_at_any_place() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let step = if cfg!(miri) { 29 } else { 1 };
    for round in (0..120_u64).step_by(step) {
        let whole = pattern(round, 61);
        let cut = usize::try_from(round).unwrap() % 61;
        let (a, b) = whole.split_at(cut);
        let (b, c) = b.split_at(b.len() / 2);
        let pfns = [round, round + 1, round + 2];
        let packet = PacketToSend {
            header: Header::gpa_direct(round),
            external: ExternalToSend::GpaDirect(&[GpaRangeToSend {
                byte_count: 8193,
                byte_offset: 5,
                pfns: &pfns,
            }]),
            pieces: &[a, &[], b, c],
        };
        producer.write(&packet).unwrap();
        let _ = producer.commit();
        let packet = consumer.next().unwrap();
        assert_eq!(packet.payload(), padded_pattern(round, 61), "cut at {cut}");
        let _ = consumer.commit();
    }
}

#[test]
fn page_lists_that_hosts_refuse_are_refused_here() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    let good = GpaRangeToSend {
        byte_count: 4096,
        byte_offset: 0,
        pfns: &[1],
    };
    let cases: [(&[GpaRangeToSend<'_>], u32); 5] = [
        (&[], 0),
        (
            &[
                good,
                GpaRangeToSend {
                    byte_count: 0,
                    byte_offset: 0,
                    pfns: &[],
                },
            ],
            1,
        ),
        (
            &[GpaRangeToSend {
                byte_offset: 4096,
                ..good
            }],
            0,
        ),
        (&[good, good, GpaRangeToSend { byte_offset: 1, ..good }], 2),
        (&[GpaRangeToSend { pfns: &[1, 2], ..good }], 0),
    ];
    for (ranges, index) in cases {
        let packet = PacketToSend {
            header: Header::gpa_direct(1),
            external: ExternalToSend::GpaDirect(ranges),
            pieces: &[],
        };
        assert_eq!(producer.write(&packet), Err(WriteError::PageList { index }));
    }
    assert_eq!(producer.commit(), Signal::NotNeeded);
}

#[test]
fn r12_a_signal_only_from_empty_to_not_empty_and_one_a_batch() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    for batch in [1, 2, 16] {
        for _ in 0..batch {
            producer.send(ID, b"payload").unwrap();
        }
        assert_eq!(producer.commit(), Signal::Needed, "the ring was empty");
        assert_eq!(producer.commit(), Signal::NotNeeded, "nothing new");
        producer.send(ID, b"payload").unwrap();
        assert_eq!(producer.commit(), Signal::NotNeeded, "the peer has not read yet");
        assert_eq!(drain(&mut consumer), batch + 1);
        assert_eq!(consumer.commit(), Signal::NotNeeded, "nobody waits for room");
        assert_eq!(consumer.commit(), Signal::NotNeeded);
    }
}

#[test]
fn r7_a_masked_peer_is_not_signalled() {
    let peer = Peer::new(1);
    let (mut producer, _consumer) = peer.pair::<64>();
    for mask in [1, 2, u32::MAX] {
        peer.set(MASK, mask);
        producer.send(ID, &[]).unwrap();
        assert_eq!(producer.commit(), Signal::NotNeeded);
        peer.set(OUT, peer.get(IN));
    }
    peer.set(MASK, 0);
    producer.send(ID, &[]).unwrap();
    assert_eq!(producer.commit(), Signal::Needed);
    assert_eq!(peer.get(MASK), 0, "the mask is the consumer's: never written here");
}

#[test]
fn r8_unmasking_looks_again_and_publishes_first() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    consumer.mask();
    assert_eq!(peer.get(MASK), 1);
    producer.send(ID, b"one").unwrap();
    assert_eq!(producer.commit(), Signal::NotNeeded);
    assert_eq!(drain(&mut consumer), 1);
    // Between the last look and unmasking another one comes, unsignalled.
    producer.send(ID, b"two").unwrap();
    assert_eq!(producer.commit(), Signal::NotNeeded);
    assert_eq!(
        consumer.unmask().unwrap(),
        Unmasked {
            more: true,
            signal: Signal::NotNeeded
        }
    );
    assert_eq!(peer.get(OUT), 32, "room was given back");
    consumer.mask();
    assert_eq!(drain(&mut consumer), 1);
    assert_eq!(
        consumer.unmask().unwrap(),
        Unmasked {
            more: false,
            signal: Signal::NotNeeded
        }
    );
    assert_eq!((peer.get(OUT), peer.get(MASK)), (64, 0));
    // The ring is empty and the producer knows: the next packet is signalled.
    producer.send(ID, b"three").unwrap();
    assert_eq!(producer.commit(), Signal::Needed);
}

#[test]
fn r9_waiting_for_room_tells_the_peer_and_looks_again() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<512>();
    producer.send(ID, &[0; 2000]).unwrap();
    producer.send(ID, &[0; 1000]).unwrap();
    let _ = producer.commit();
    assert_eq!(producer.wait_for_room(1000).unwrap(), Room::Available);
    assert_eq!(
        peer.get(PENDING),
        0,
        "enough is known to be free: the peer is not bothered"
    );

    let Err(WriteError::Full { needed }) = producer.send(ID, &[0; 2995]) else {
        panic!("there is no room")
    };
    assert_eq!(needed, 3024);
    assert_eq!(producer.wait_for_room(needed - 7).unwrap(), Room::Awaited, "rounded up");
    assert_eq!(peer.get(PENDING), 3024);
    // 1040 + 2024 = 3064 bytes are free after the first packet.
    consumer.next().unwrap();
    assert_eq!(consumer.commit(), Signal::Needed);
    assert_eq!(producer.wait_for_room(needed).unwrap(), Room::Available);
    assert_eq!(peer.get(PENDING), 0, "cleared when no longer waiting");
    producer.send(ID, &[0; 2995]).unwrap();

    // A peer that reads between "full" and "waiting" is seen at once.
    let _ = producer.commit();
    let Err(WriteError::Full { needed }) = producer.send(ID, &[0; 1000]) else {
        panic!("there is no room")
    };
    drain(&mut consumer);
    assert_eq!(consumer.commit(), Signal::NotNeeded, "nobody waits yet");
    assert_eq!(producer.wait_for_room(needed).unwrap(), Room::Available);
    assert_eq!(peer.get(PENDING), 0);

    // Giving up takes it back, too; and what can never be is not waited for.
    producer.send(ID, &[0; 4000]).unwrap();
    let _ = producer.commit();
    assert_eq!(producer.wait_for_room(100).unwrap(), Room::Awaited);
    producer.stop_waiting();
    assert_eq!(peer.get(PENDING), 0);
    assert_eq!(
        producer.wait_for_room(4089),
        Err(WriteError::TooLarge {
            needed: 4089,
            limit: 4088
        })
    );
    assert_eq!(
        producer.wait_for_room(u32::MAX),
        Err(WriteError::TooLarge {
            needed: u32::MAX,
            limit: 4088
        })
    );
}

#[test]
fn r10_room_is_signalled_only_when_it_crosses_what_the_peer_waits_for() {
    // A full ring of 24-byte packets; all numbers of packets read in two steps, against all sizes that a peer may wait for.
    let step = if cfg!(miri) { 1201 } else { 61 };
    let sizes = [1, 7, 8, 9, 24, 4080, 4087, 4088, 4095, 4096, 4097, u32::MAX, 1 << 31];
    // Under miri, which is slow, every sixth of them.
    let every = if cfg!(miri) { 6 } else { 1 };
    for waits in (0..4096).step_by(step).chain(sizes).step_by(every) {
        for (first, second) in [(0, 1), (1, 1), (1, 84), (84, 85), (0, 170), (169, 1)] {
            let peer = Peer::new(1);
            let (mut producer, mut consumer) = peer.pair::<64>();
            for _ in 0..170 {
                producer.send(ID, &[]).unwrap();
            }
            let _ = producer.commit();
            for _ in 0..first {
                consumer.next().unwrap();
            }
            let _ = consumer.commit();
            peer.set(PENDING, waits);
            for _ in 0..second {
                consumer.next().unwrap();
            }
            let free = |read: u32| 8 + 24 * read;
            let wanted = (waits & !7).min(4088);
            let crossed = free(first) < wanted && free(first + second) >= wanted;
            assert_eq!(
                consumer.commit().is_needed(),
                crossed,
                "waits for {waits}, {first} then {second} read"
            );
            // Reading on without crossing again says nothing more.
            let rest = drain(&mut consumer);
            let later = free(first + second) < wanted && rest != 0;
            assert_eq!(consumer.commit().is_needed(), later);
        }
    }
}

#[test]
fn r11_a_peer_without_the_feature_is_told_of_each_publication() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    peer.set(FEATURES, 0);
    assert!(!consumer.peer_signals_room());
    for _ in 0..3 {
        producer.send(ID, &[]).unwrap();
        producer.send(ID, &[]).unwrap();
        let _ = producer.commit();
        assert_eq!(drain(&mut consumer), 2);
        assert_eq!(consumer.commit(), Signal::Needed);
        assert_eq!(consumer.commit(), Signal::NotNeeded, "nothing was published");
    }
    // It may announce the feature later.
    peer.set(FEATURES, 0xffff_ffff);
    assert!(consumer.peer_signals_room());
    producer.send(ID, &[]).unwrap();
    let _ = producer.commit();
    assert_eq!(drain(&mut consumer), 1);
    assert_eq!(consumer.commit(), Signal::NotNeeded);
}

#[test]
fn peeking_takes_nothing_and_loads_fields_in_place() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    let step = if cfg!(miri) { 50 } else { 1 };
    for round in (0..100_u64).step_by(step) {
        producer
            .send(Header::in_band_with_completion(round), &pattern(round, 100))
            .unwrap();
        let _ = producer.commit();
        for _ in 0..2 {
            let peek = consumer.peek().unwrap();
            assert_eq!(
                (peek.transaction_id(), peek.payload_len(), peek.words()),
                (round, 104, 13)
            );
            assert!(peek.is_completion_requested());
            let mut field = [0; 7];
            assert!(peek.load_payload(50, &mut field));
            assert_eq!(field, pattern(round, 100)[50..57]);
            assert!(peek.load_payload(97, &mut field), "padding can be looked at");
            assert!(!peek.load_payload(98, &mut field));
            assert!(!peek.load_payload(u32::MAX, &mut field));
        }
        if round % 3 == 0 {
            consumer.peek().unwrap().skip();
        } else {
            let mut slot = [0; 13];
            let packet = consumer.peek().unwrap().take_into(&mut slot).unwrap();
            assert_eq!(packet.payload(), padded_pattern(round, 100));
        }
        assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
        let _ = consumer.commit();
    }
}

#[test]
fn attach_goes_on_where_an_earlier_owner_stopped() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();
    for n in 0..100 {
        producer.send(Header::in_band(n), &pattern(n, 20)).unwrap();
        let _ = producer.commit();
        if n < 60 {
            consumer.next().unwrap();
            let _ = consumer.commit();
        }
    }
    let room = producer.room();
    let mut producer = Producer::attach(peer.ring()).unwrap();
    assert_eq!(producer.room(), 4088 - 40 * 48);
    assert!(producer.room() >= room);
    let mut consumer = Consumer::attach(peer.ring(), [0; 16]).unwrap();
    producer.send(Header::in_band(100), &pattern(100, 20)).unwrap();
    let _ = producer.commit();
    for n in 60..=100 {
        let packet = consumer.next().unwrap();
        assert_eq!(
            (packet.transaction_id(), packet.payload()),
            (n, &padded_pattern(n, 20)[..])
        );
    }
    assert_eq!(consumer.next().unwrap_err(), ReadError::Empty);
}

#[test]
fn private_state_has_its_own_cache_lines() {
    type P = Producer<super::support::Ring>;
    type C = Consumer<super::support::Ring, Box<[u64]>>;
    assert!(align_of::<P>() >= 128 && align_of::<C>() >= 128);
}
