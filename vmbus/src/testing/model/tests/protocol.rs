//! Contact, offers, GPADLs, open, traffic, close, unload.

use std::vec::Vec;

use super::RawGuest;
use super::guest::words;
use crate::memory::SharedPages;
use crate::testing::model::{Config, Echo, Offer, Personality};

pub(super) const CLASS: &str = "525074dc-8985-46e2-8057-a307dc18a502";
pub(super) const INSTANCE: &str = "1eccfd72-4b41-45ef-b73a-4a6e44c12924";

pub(super) fn offer() -> Offer {
    Offer::new(CLASS, INSTANCE)
}

#[test]
fn a_whole_life_leaves_nothing_behind() {
    for (personality, version, connection) in [
        (Personality::HyperV, 0x5_0003, 4),
        (Personality::Qemu, 0x4_0000, 1),
        (Personality::OpenVmm, 0x6_0000, 4),
    ] {
        let mut guest = RawGuest::new(Config::new(personality));
        let channel = guest.host.offer_with(offer(), Echo);
        let answer = guest.contact(version, connection).unwrap();
        assert_eq!(answer[..3], [15, 0, 1]);
        guest.post(&[3, 0]);
        let offered = guest.take().unwrap();
        assert_eq!(offered.len(), 196);
        assert_eq!(
            offered[8..12],
            [0xdc, 0x74, 0x50, 0x52],
            "the class in the order of the wire"
        );
        let offered = words(&offered);
        assert_eq!((offered[0], offered[46]), (1, channel));
        let signal_connection = offered[48];
        assert_eq!(guest.take_words(), [4, 0]);

        let rings = SharedPages::allocate(guest.platform, 8).unwrap();
        guest.gpadl(channel, 77, &rings);
        assert_eq!(guest.take_words(), [10, 0, channel, 77, 0]);
        guest.post(&RawGuest::open_words(channel, 5, 77, 4));
        assert_eq!(guest.take_words(), [6, 0, channel, 5, 0]);

        // An in-band packet of 5 bytes that asks for a completion: 2 units of head, 1 of payload, then the trailer.
        let packet = [
            6, 0, 2, 0, 3, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0,
        ];
        rings.write_at(4096, &packet).unwrap();
        rings.write_at(0, &32_u32.to_le_bytes()).unwrap();
        assert_eq!(guest.signal(signal_connection), 0);
        let mut indices = [0; 8];
        rings.read_at(0, &mut indices).unwrap();
        assert_eq!(words(&indices), [32, 32], "the host has read it");
        let mut event = [0];
        guest
            .events
            .read_at(2 * 256 + usize::try_from(channel).unwrap() / 8, &mut event)
            .unwrap();
        assert_eq!(event[0], 1 << (channel % 8));
        let mut answer = [0; 32];
        rings.read_at(5 * 4096, &mut answer).unwrap();
        assert_eq!(answer[..8], [11, 0, 2, 0, 3, 0, 0, 0]);
        assert_eq!(answer[8..24], packet[8..24]);
        let mut feature_bits = [0];
        rings.read_at(4 * 4096 + 64, &mut feature_bits).unwrap();
        assert_eq!(feature_bits[0], 1);

        guest.post(&[7, 0, channel]);
        guest.post(&[11, 0, channel, 77]);
        assert_eq!(guest.take_words(), [12, 0, 77]);
        drop(rings);
        guest.post(&[16, 0]);
        assert_eq!(guest.take_words(), [17, 0]);
        guest.leave();
    }
}

#[test]
fn the_ladder_meets_each_maximum() {
    for (max, personality) in [
        (0x6_0000, Personality::HyperV),
        (0x5_0003, Personality::HyperV),
        (0x5_0000, Personality::OpenVmm),
        (0x4_0000, Personality::Qemu),
        (0x3_0000, Personality::Qemu),
        (0x2_0004, Personality::HyperV),
    ] {
        let mut guest = RawGuest::new(Config::new(personality).max_version(max));
        let ladder = [
            0x6_0000, 0x5_0003, 0x5_0002, 0x5_0001, 0x5_0000, 0x4_0001, 0x4_0000, 0x3_0000, 0x2_0004,
        ];
        let mut accepted = Vec::new();
        for version in ladder {
            let connection = if version >= 0x5_0000 { 4 } else { 1 };
            let answer = guest.contact(version, connection);
            assert_eq!(answer.is_none(), personality == Personality::Qemu && connection == 4);
            if answer.is_some_and(|answer| answer[2] & 0xff == 1) {
                accepted.push(version);
                break;
            }
        }
        assert_eq!(accepted, [max]);
        assert_eq!(guest.host.version(), Some(max));
        guest.host.assert_no_violations();
    }
}
