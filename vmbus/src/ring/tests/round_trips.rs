//! Packets of every type with any memory that they describe, written and read again.

use proptest::prelude::*;

use super::support::{Peer, padded_pattern, pattern};
use crate::protocol::packet::{PacketType, TransferPageRange};
use crate::ring::{External, ExternalToSend, GpaRangeToSend, Header, Packet, PacketToSend};

/// Writes a packet and hands what is read to `check`, by both ways of reading.
fn there_and_back(packet: &PacketToSend<'_>, payload: &[u8], mut check: impl FnMut(&Packet<'_>)) {
    let peer = Peer::new(4);
    let (mut producer, mut consumer) = peer.pair::<2048>();
    for _ in 0..2 {
        producer.write(packet).unwrap();
        let _ = producer.commit();
    }
    let mut same = |read: &Packet<'_>| {
        assert_eq!(read.packet_type(), packet.header.packet_type);
        assert_eq!(read.transaction_id(), packet.header.transaction_id);
        let is_wanted = !packet.header.flags.is_empty();
        assert_eq!(read.is_completion_requested(), is_wanted);
        assert_eq!(read.payload(), payload);
        check(read);
    };
    same(&consumer.next().unwrap());
    let mut slot = [0_u64; 2048];
    same(&consumer.peek().unwrap().take_into(&mut slot).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_without_memory_go_there_and_back(id in any::<u64>(), len in 0_usize..600, kind in 0..3) {
        let header = match kind {
            0 => Header::in_band(id),
            1 => Header::in_band_with_completion(id),
            _ => Header::completion(id),
        };
        let bytes = pattern(id, len);
        let packet = PacketToSend { header, external: ExternalToSend::None, pieces: &[&bytes] };
        there_and_back(&packet, &padded_pattern(id, len), |read| assert!(matches!(read.external(), External::None)));
    }

    #[test]
    fn page_lists_go_there_and_back(
        id in any::<u64>(),
        len in 0_usize..200,
        ranges in prop::collection::vec((1_u32..100_000, 0_u32..4096, any::<u64>()), 1..6),
    ) {
        let pfns: Vec<Vec<u64>> = ranges
            .iter()
            .map(|(count, offset, seed)| {
                (0..u64::from((count + offset).div_ceil(4096))).map(|page| seed.wrapping_add(page * page)).collect()
            })
            .collect();
        let to_send: Vec<_> = ranges
            .iter()
            .zip(&pfns)
            .map(|(&(byte_count, byte_offset, _), pfns)| GpaRangeToSend { byte_count, byte_offset, pfns })
            .collect();
        let bytes = pattern(id, len);
        let packet = PacketToSend {
            header: Header::gpa_direct(id),
            external: ExternalToSend::GpaDirect(&to_send),
            pieces: &[&bytes],
        };
        there_and_back(&packet, &padded_pattern(id, len), |read| {
            assert_eq!(read.packet_type(), PacketType::GPA_DIRECT);
            let External::GpaDirect(read) = read.external() else { panic!("{read:?}") };
            assert_eq!(read.count() as usize, to_send.len());
            assert_eq!(read.total_bytes(), ranges.iter().map(|range| u64::from(range.0)).sum::<u64>());
            for (read, sent) in read.iter().zip(&to_send) {
                assert_eq!((read.byte_count, read.byte_offset), (sent.byte_count, sent.byte_offset));
                let numbers: Vec<u64> = read.pfns.iter().map(|pfn| pfn.get()).collect();
                assert_eq!(numbers, sent.pfns);
            }
        });
    }

    #[test]
    fn transfer_ranges_go_there_and_back(
        id in any::<u64>(),
        set_id in any::<u16>(),
        ranges in prop::collection::vec((0_u32..1 << 20, 0_u32..1 << 20), 1..20),
    ) {
        let to_send: Vec<_> = ranges
            .iter()
            .map(|&(byte_count, byte_offset)| TransferPageRange {
                byte_count: byte_count.into(),
                byte_offset: byte_offset.into(),
            })
            .collect();
        let packet = PacketToSend {
            header: Header::transfer_pages(id),
            external: ExternalToSend::TransferPages { set_id, ranges: &to_send },
            pieces: &[],
        };
        there_and_back(&packet, &[], |read| {
            let External::TransferPages(read) = read.external() else { panic!("{read:?}") };
            assert_eq!((read.set_id(), read.count()), (set_id, ranges.len()));
            let lent: Vec<_> = read.within(2 << 20).unwrap().collect();
            let expected: Vec<_> = ranges.iter().map(|&(byte_count, byte_offset)| (byte_offset, byte_count)).collect();
            assert_eq!(lent, expected);
        });
    }
}
