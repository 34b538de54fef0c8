//! The bytes of the packets.

use proptest::prelude::*;

use super::*;

#[test]
fn a_read_is_these_bytes() {
    let read = Execute {
        address: Address {
            path: 0,
            target: 1,
            lun: 7,
        },
        cdb: Cdb::read(0x0102_0304, 8),
        direction: Direction::In,
        transfer_bytes: 4096,
    };
    #[rustfmt::skip]
    let long = [
        3, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0,
        52, 0, 0, 0, 0, 0, 1, 7, 10, 20, 1, 0,  0, 0x10, 0, 0,
        0x28, 0, 1, 2, 3, 4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0xff, 0x20,  0x4a, 1, 0, 0,  180, 0, 0, 0,  0, 0, 0, 0,
    ];
    assert_eq!(read.packet(Version::V6_2).bytes(), long);
    assert_eq!(read.packet(Version::V5_1).bytes(), long);
    // Before version 5.1: no extension, and less room for sense data.
    let mut short = long;
    (short[12], short[21]) = (36, 18);
    assert_eq!(read.packet(Version::V4_2).bytes(), &short[..48]);
}

#[test]
fn the_initialisation_is_these_bytes() {
    let begin = Packet::control(Operation::BEGIN_INITIALIZATION, None);
    assert_eq!(begin.bytes()[..12], [7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(begin.bytes()[12..], [0; 36]);
    let version = Packet::query_version(Version::V6_2);
    assert_eq!(version.bytes()[..16], [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 6, 0, 0]);
    let end = Packet::control(Operation::END_INITIALIZATION, Some(Version::V6_2));
    assert_eq!(end.bytes().len(), 64);
    assert_eq!(Version::LADDER.map(Version::get), [0x602, 0x600, 0x501, 0x402]);
}

#[test]
fn properties_are_read_from_their_places() {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    bytes[12..36].copy_from_slice(&[0, 0, 3, 4, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let properties = Answer::parse(&bytes).unwrap().properties().unwrap();
    assert_eq!(
        properties,
        Properties {
            path: 3,
            target: 4,
            max_channels: 5,
            max_transfer_bytes: 0x40000,
        }
    );
    // Channels only where the host knows of such.
    bytes[20] = 0;
    assert_eq!(Answer::parse(&bytes).unwrap().properties().unwrap().max_channels, 0);
}

#[test]
fn q9_sense_data_is_only_what_is_flagged_and_fits() {
    let mut bytes = [0; 64];
    (bytes[0], bytes[14], bytes[15], bytes[21]) = (1, 0xc4, 2, 255);
    bytes[28] = 0x70;
    let executed = Answer::parse(&bytes).unwrap().executed().unwrap();
    assert_eq!(
        (executed.srb, executed.scsi),
        (SrbStatus::ERROR, ScsiStatus::CHECK_CONDITION)
    );
    assert_eq!(executed.sense.len(), 20);
    bytes[14] = 0x44;
    assert!(Answer::parse(&bytes).unwrap().executed().unwrap().sense.is_empty());
}

proptest! {
    #[test]
    fn q9_any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = parse_notice(&bytes);
        let _ = Sense::parse(&bytes);
        if let Ok(answer) = Answer::parse(&bytes) {
            prop_assert!(bytes.len() >= 12 && bytes[..4] == [1, 0, 0, 0]);
            prop_assert_eq!(answer.properties().is_ok(), bytes.len() >= 36);
            prop_assert_eq!(answer.executed().is_ok(), bytes.len() >= 48);
            if let Ok(executed) = answer.executed() {
                prop_assert!(executed.sense.len() <= 20);
            }
        }
    }
}
