//! A peer that lies: every [`Corruption`], and that it stays.

use std::string::ToString;

use proptest::prelude::*;

use super::support::{IN, OUT, PENDING, Peer, Ring};
use crate::protocol::packet::PacketType;
use crate::ring::{Consumer, Corruption, External, Header, InvalidRing, Producer, ReadError, Signal, WriteError};

const ID: Header = Header::in_band(1);

/// A consumer whose peer has written these words and says that there are `len` bytes.
fn reading(words: &[u64], len: u32) -> (Peer, Consumer<Ring, Box<[u64]>>) {
    let peer = Peer::new(1);
    let consumer = Consumer::create(peer.ring(), vec![0; 32].into_boxed_slice());
    peer.store(0, words);
    peer.set(IN, len);
    (peer, consumer)
}

/// What reading finds wrong, twice: a broken ring stays broken, whatever the peer says afterwards.
fn read_corruption(words: &[u64], len: u32) -> Corruption {
    let (peer, mut consumer) = reading(words, len);
    let Err(ReadError::Corrupt(corruption)) = consumer.next() else {
        panic!("{words:x?} of {len} are no packet")
    };
    peer.descriptor(0, 6, 2, 2, 0, 0);
    peer.set(IN, 24);
    assert_eq!(consumer.next().unwrap_err(), ReadError::Corrupt(corruption));
    assert_eq!(consumer.has_packets().unwrap_err(), ReadError::Corrupt(corruption));
    assert_eq!(consumer.peek().unwrap_err(), ReadError::Corrupt(corruption));
    assert_eq!(consumer.unmask().unwrap_err(), ReadError::Corrupt(corruption));
    assert_eq!(consumer.commit(), Signal::NotNeeded);
    assert_eq!(consumer.fault(), Some(corruption));
    assert_eq!(peer.get(OUT), 0);
    assert!(!corruption.to_string().is_empty());
    corruption
}

/// A packet's first word.
const fn first(packet_type: u16, offset8: u16, len8: u16, flags: u16) -> u64 {
    packet_type as u64 | (offset8 as u64) << 16 | (len8 as u64) << 32 | (flags as u64) << 48
}

/// All indices below this and some others: all 32-bit values would take minutes.
fn indices() -> impl Iterator<Item = u32> {
    let edges = (12..32).flat_map(|bit| (-9..9_i64).map(move |near| u32::try_from((1 << bit) + near).unwrap()));
    (0..9000)
        .step_by(if cfg!(miri) { 487 } else { 1 })
        .chain(edges)
        .chain(u32::MAX - 64..=u32::MAX)
        .step_by(if cfg!(miri) { 5 } else { 1 })
}

#[test]
fn r2_each_write_index_of_the_peer_is_checked() {
    for raw in indices() {
        let (_peer, mut consumer) = reading(&[first(6, 2, 2, 0), 0], raw);
        let expected = match raw {
            raw if raw >= 4096 || raw % 8 != 0 => Some(Corruption::WriteIndex { raw, size: 4096 }),
            0 => None,
            8 | 16 => Some(Corruption::Fragment { available: raw }),
            _ => {
                assert!(consumer.next().is_ok());
                None
            }
        };
        match expected {
            Some(corruption) => assert_eq!(consumer.next().unwrap_err(), ReadError::Corrupt(corruption)),
            None => assert!(consumer.fault().is_none()),
        }
    }
}

#[test]
fn r2_each_read_index_of_the_peer_is_checked() {
    let step = if cfg!(miri) { 40 } else { 1 };
    for raw in indices().step_by(step) {
        let peer = Peer::new(1);
        let mut producer = Producer::create(peer.ring());
        producer.send(ID, &[0; 1000]).unwrap();
        peer.set(OUT, raw);
        // At a commit, where a wrong index must not cause a signal.
        let signal = producer.commit();
        let valid = raw % 8 == 0 && raw <= 1024;
        assert_eq!(signal.is_needed(), raw == 0);
        let expected = if valid {
            None
        } else if raw < 4096 && raw % 8 == 0 {
            Some(Corruption::ReadIndexBackwards {
                raw,
                known: 1024,
                claimed: 1024 + 4096 - raw,
            })
        } else {
            Some(Corruption::ReadIndex { raw, size: 4096 })
        };
        assert_eq!(producer.fault(), expected, "{raw:#x}");
        if let Some(corruption) = expected {
            let broken = WriteError::Corrupt(corruption);
            peer.set(OUT, 0);
            assert_eq!(producer.room(), 0);
            assert_eq!(producer.send(ID, &[]), Err(broken));
            assert_eq!(producer.reserve(ID, 0, 8).unwrap_err(), broken);
            assert_eq!(producer.wait_for_room(8), Err(broken));
            assert_eq!(peer.get(PENDING), 0);
            assert_eq!(producer.refresh_room(), Err(broken));
            producer.revert();
            assert_eq!(producer.send(ID, &[]), Err(broken));
            assert_eq!(producer.commit(), Signal::NotNeeded);
        } else {
            assert_eq!(producer.room(), 4088 - 1024 + raw);
        }
    }
}

#[test]
fn r2_a_write_index_that_goes_back_is_corruption() {
    let (peer, mut consumer) = reading(&[first(6, 2, 2, 0), 0, 0, first(6, 2, 2, 0), 0, 0], 48);
    consumer.next().unwrap();
    consumer.next().unwrap();
    // Nothing was given back, so the peer cannot have come around.
    peer.set(IN, 24);
    let corruption = Corruption::WriteIndexBackwards {
        raw: 24,
        known: 48,
        claimed: 24,
    };
    assert_eq!(consumer.next().unwrap_err(), ReadError::Corrupt(corruption));
    // What was taken is given back nevertheless.
    let _ = consumer.commit();
    assert_eq!(peer.get(OUT), 48);
}

#[test]
fn r2_a_read_index_that_goes_back_is_corruption() {
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    producer.send(ID, &[0; 1000]).unwrap();
    let _ = producer.commit();
    peer.set(OUT, 1024);
    assert_eq!(producer.refresh_room().unwrap(), 4088);
    peer.set(OUT, 512);
    let corruption = Corruption::ReadIndexBackwards {
        raw: 512,
        known: 0,
        claimed: 512,
    };
    assert_eq!(producer.refresh_room(), Err(WriteError::Corrupt(corruption)));
    assert!(!corruption.to_string().is_empty());

    // A ring that broke stays so, and silent, even if the index says what it should by then.
    producer.revert();
    peer.set(OUT, peer.get(IN));
    assert_eq!(producer.commit(), Signal::NotNeeded);
    assert_eq!(producer.send(ID, &[]), Err(WriteError::Corrupt(corruption)));

    // Nor can the peer have read what is only staged.
    let peer = Peer::new(1);
    let mut producer = Producer::create(peer.ring());
    producer.send(ID, &[]).unwrap();
    let _ = producer.commit();
    producer.send(ID, &[]).unwrap();
    peer.set(OUT, 48);
    let corruption = Corruption::ReadIndexBackwards {
        raw: 48,
        known: 48,
        claimed: 0,
    };
    assert_eq!(producer.refresh_room(), Err(WriteError::Corrupt(corruption)));
}

#[test]
fn r2_a_broken_write_index_at_a_room_signal_is_corruption() {
    let (peer, mut consumer) = reading(&[first(6, 2, 2, 0), 0, 0], 24);
    consumer.next().unwrap();
    peer.set(PENDING, 4088);
    peer.set(IN, 9);
    assert_eq!(consumer.commit(), Signal::NotNeeded);
    assert_eq!(consumer.fault(), Some(Corruption::WriteIndex { raw: 9, size: 4096 }));
}

#[test]
fn r3_descriptors_that_cannot_be_are_corruption() {
    let corrupt = |packet_type, offset8, len8, flags, available| {
        read_corruption(&[first(packet_type, offset8, len8, flags), 1], available)
    };
    for (offset8, len8) in [
        (0, 2),
        (1, 2),
        (3, 2),
        (0xffff, 2),
        (0xffff, 0xfffe),
        (2, 1),
        (2, 0),
        (0, 0),
    ] {
        let expected = Corruption::DataOffset {
            data_offset8: offset8,
            length8: len8,
        };
        assert_eq!(corrupt(6, offset8, len8, 0, 1024), expected);
    }
    // The trailer counts: a packet that fills what there is has none.
    for (len8, available) in [(3, 24), (128, 1024), (0xffff, 4088), (0x1fff, 4088), (0x200, 4088)] {
        assert_eq!(
            corrupt(6, 2, len8, 0, available),
            Corruption::Length {
                length8: len8,
                available
            }
        );
    }
    for packet_type in (0..0x20)
        .chain([0x106, 0x8006, 0xffff])
        .filter(|raw| ![6, 7, 9, 0xb].contains(raw))
    {
        let raw = PacketType(packet_type);
        assert_eq!(corrupt(packet_type, 2, 2, 0, 24), Corruption::PacketType { raw });
    }
    for flags in [2, 3, 4, 0x8000, 0xffff] {
        assert_eq!(corrupt(6, 2, 2, flags, 24), Corruption::Flags { raw: flags });
    }
    for available in [8, 16] {
        assert_eq!(corrupt(6, 2, 2, 0, available), Corruption::Fragment { available });
    }
}

#[test]
fn r3_packets_longer_than_agreed_are_corruption() {
    // The scratch area has 256 bytes.
    let (_peer, mut consumer) = reading(&[first(6, 2, 34, 0), 1], 1024);
    assert_eq!(consumer.next().unwrap().payload().len(), 256);
    let expected = Corruption::TooLong {
        length: 35 * 8,
        limit: 256 + 16,
    };
    assert_eq!(read_corruption(&[first(6, 2, 35, 0), 1], 1024), expected);

    let (_peer, mut consumer) = reading(&[first(6, 2, 3, 0), 1], 1024);
    let expected = Corruption::TooLong { length: 24, limit: 16 };
    assert_eq!(consumer.next_into(&mut []).unwrap_err(), ReadError::Corrupt(expected));
}

#[test]
fn r4_what_was_copied_no_longer_changes() {
    let (peer, mut consumer) = reading(&[first(9, 5, 6, 1), 1, 1 << 32, 4096, 77, 0x1111], 56);
    let packet = consumer.next().unwrap();
    for at in (0..4096).step_by(8) {
        peer.store(at, &[u64::MAX]);
    }
    assert_eq!(packet.payload(), 0x1111_u64.to_le_bytes());
    assert_eq!(packet.transaction_id(), 1);
    let External::GpaDirect(ranges) = packet.external() else {
        panic!("{packet:?}")
    };
    assert_eq!(ranges.iter().map(|range| range.pfns[0].get()).collect::<Vec<_>>(), [77]);
}

#[test]
fn r4_a_peeked_descriptor_is_read_once() {
    let (peer, mut consumer) = reading(&[first(6, 2, 4, 0), 1, 2, 3], 40);
    let peek = consumer.peek().unwrap();
    // Longer than the ring by now, but nobody looks.
    peer.descriptor(0, 9, 2, 0xffff, 0xffff, 5);
    let mut slot = [0; 8];
    let packet = peek.take_into(&mut slot).unwrap();
    assert_eq!(
        (packet.packet_type(), packet.transaction_id()),
        (PacketType::IN_BAND, 1)
    );
    assert_eq!(packet.payload().len(), 16);
}

#[test]
fn r5_page_lists_that_cannot_be_are_corruption() {
    let gpa_direct = |external: &[u64]| {
        let offset8 = 2 + u16::try_from(external.len()).unwrap();
        let words = [&[first(9, offset8, offset8, 1), 1], external].concat();
        read_corruption(&words, u32::from(offset8) * 8 + 8)
    };
    let count = |count: u64| count << 32 | 0xdead;
    let range = |count: u64, offset: u64| count | offset << 32;
    assert_eq!(gpa_direct(&[]), Corruption::ExternalHeader { available: 0 });
    assert_eq!(
        gpa_direct(&[count(0)]),
        Corruption::RangeCount { count: 0, available: 0 }
    );
    assert_eq!(
        gpa_direct(&[count(0), range(1, 0), 0]),
        Corruption::RangeCount {
            count: 0,
            available: 16
        }
    );
    // Counts whose product with a size would wrap in 32 bits.
    for n in [2, 0x1000_0001, 0x2000_0001, 0x8000_0001, 0xffff_ffff] {
        let n32 = u32::try_from(n).unwrap();
        assert_eq!(
            gpa_direct(&[count(n), range(1, 0), 0]),
            Corruption::RangeCount {
                count: n32,
                available: 16
            }
        );
    }
    let cases: [(u32, u32); 6] = [(0, 0), (1, 4096), (1, u32::MAX), (4097, 0), (4096, 1), (u32::MAX, 4095)];
    for (byte_count, byte_offset) in cases {
        let bad = range(byte_count.into(), byte_offset.into());
        let expected = |index| Corruption::GpaRange {
            index,
            byte_count,
            byte_offset,
        };
        assert_eq!(gpa_direct(&[count(1), bad, 0]), expected(0));
        assert_eq!(gpa_direct(&[count(2), range(1, 0), 0, bad, 0]), expected(1));
    }
    // The first range takes so many pages that nothing is left for the second.
    let expected = Corruption::GpaRange {
        index: 1,
        byte_count: 0,
        byte_offset: 0,
    };
    assert_eq!(gpa_direct(&[count(2), range(8193, 0), 1, 2, 3]), expected);

    let transfer = |external: &[u64]| {
        let offset8 = 2 + u16::try_from(external.len()).unwrap();
        let words = [&[first(7, offset8, offset8, 1), 1], external].concat();
        read_corruption(&words, u32::from(offset8) * 8 + 8)
    };
    assert_eq!(transfer(&[]), Corruption::ExternalHeader { available: 0 });
    for n in [2, 0x2000_0001, 0xffff_ffff] {
        let n32 = u32::try_from(n).unwrap();
        assert_eq!(
            transfer(&[count(n), 0]),
            Corruption::RangeCount {
                count: n32,
                available: 8
            }
        );
    }
}

#[test]
fn r5_transfer_ranges_lie_in_the_buffer() {
    let range = |count: u64, offset: u64| count | offset << 32;
    for (byte_count, byte_offset, inside) in [
        (0x1000, 0, true),
        (0, 0x1000, true),
        (1, 0xfff, true),
        (1, 0x1000, false),
        (0x1001, 0, false),
        (u32::MAX, 1, false),
        (u32::MAX, u32::MAX, false),
        (1, u32::MAX, false),
    ] {
        let words = [
            first(7, 5, 5, 1),
            1,
            2 << 32,
            range(8, 8),
            range(byte_count.into(), byte_offset.into()),
        ];
        let (_peer, mut consumer) = reading(&words, 48);
        let packet = consumer.next().unwrap();
        let External::TransferPages(pages) = packet.external() else {
            panic!("{packet:?}")
        };
        let checked = pages.within(0x1000).map(|ranges| ranges.count());
        let expected = Corruption::TransferRange {
            index: 1,
            byte_count,
            byte_offset,
        };
        assert_eq!(checked, if inside { Ok(2) } else { Err(expected) });
    }
}

#[test]
fn rings_left_by_others_are_checked() {
    for (write, read, corruption) in [
        (4096, 0, Corruption::WriteIndex { raw: 4096, size: 4096 }),
        (12, 0, Corruption::WriteIndex { raw: 12, size: 4096 }),
        (
            0,
            u32::MAX,
            Corruption::ReadIndex {
                raw: u32::MAX,
                size: 4096,
            },
        ),
    ] {
        let peer = Peer::new(1);
        peer.set(IN, write);
        peer.set(OUT, read);
        assert_eq!(
            Producer::attach(peer.ring()).unwrap_err(),
            InvalidRing::Corrupt(corruption)
        );
    }
    let peer = Peer::new(1);
    peer.set(OUT, 5);
    let expected = InvalidRing::Corrupt(Corruption::ReadIndex { raw: 5, size: 4096 });
    assert_eq!(Consumer::attach(peer.ring(), [0; 1]).unwrap_err(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 1024 }, ..ProptestConfig::default() })]

    /// Whatever stands in a ring, and whatever the indices say: reading ends, and all that comes out lies within bounds.
    #[test]
    fn r3_any_bytes_are_read_without_harm(
        words in proptest::collection::vec(prop_oneof![
            any::<u64>(),
            (0_u16..16, 0_u16..20, 0_u16..24, 0_u16..3).prop_map(|(t, o, l, f)| first(t, o, l, f)),
            (1_u64..4, 0_u64..3).prop_map(|(low, high)| low | high << 32),
        ], 0..96),
        indices in proptest::collection::vec((prop_oneof![0_u32..96, Just(512), any::<u32>()], any::<u32>()), 1..6),
    ) {
        let (peer, mut consumer) = reading(&words, 0);
        for (write, out) in indices {
            peer.set(IN, write.wrapping_mul(8));
            peer.set(OUT, out);
            let mut taken = 0;
            while let Ok(packet) = consumer.next() {
                taken += 24;
                prop_assert!(taken < 4096, "no more packets than fit");
                prop_assert!(packet.payload().len() <= 256 && packet.payload().len() % 8 == 0);
                if let External::GpaDirect(ranges) = packet.external() {
                    prop_assert_eq!(ranges.iter().count(), ranges.count() as usize);
                    for range in ranges.iter() {
                        let end = u64::from(range.byte_offset) + u64::from(range.byte_count);
                        prop_assert_eq!(range.pfns.len() as u64, end.div_ceil(4096));
                    }
                }
            }
            let _ = consumer.commit();
            prop_assert!(peer.get(OUT) < 4096 && peer.get(OUT) % 8 == 0 || peer.get(OUT) == out);
        }
    }
}
