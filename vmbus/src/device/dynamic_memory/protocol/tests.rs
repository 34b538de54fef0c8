//! Golden bytes, written from the layout and not with the structures; and refusals.

use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::memory::Pfn;

fn range(start: u64, count: u64) -> WireRange {
    WireRange::new(Pfn::new(start), count).unwrap()
}

/// Each message with its bytes. Transaction number 0x11223344 in all of them.
fn golden() -> Vec<(Message<'static>, Vec<u8>)> {
    const ONE: &[WireRange] = &[WireRange::from_bits(0x1_2345 | 0x202 << 40)];
    const TWO: &[WireRange] = &[
        WireRange::from_bits(0x12_3456_789a | 1 << 40),
        WireRange::from_bits(u64::MAX),
    ];
    let header = |message_type: u8, size: u8| vec![message_type, 0, size, 0, 0x44, 0x33, 0x22, 0x11];
    let message = |message_type, size, body: &[u8]| [&header(message_type, size)[..], body].concat();
    let ranges = |ranges| Ranges::new(ranges).unwrap();
    vec![
        (
            Message::VersionRequest {
                version: ProtocolVersion::V3,
                is_last_attempt: false,
            },
            message(1, 16, &[0, 0, 2, 0, 0, 0, 0, 0]),
        ),
        (
            Message::VersionRequest {
                version: ProtocolVersion::V2,
                is_last_attempt: false,
            },
            message(1, 16, &[0, 0, 1, 0, 0, 0, 0, 0]),
        ),
        (
            Message::VersionRequest {
                version: ProtocolVersion::V1,
                is_last_attempt: true,
            },
            message(1, 16, &[3, 0, 0, 0, 1, 0, 0, 0]),
        ),
        (
            Message::VersionResponse { is_accepted: true },
            message(2, 16, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            Message::CapabilitiesReport {
                capabilities: Capabilities::BALLOON.union(Capabilities::hot_add(HotAddAlignment::MIB_128)),
                min_page_count: 0x0102,
                max_page_number: u64::MAX,
            },
            // Balloon, hot add, 7 << 2.
            message(
                3,
                32,
                &[
                    0x1f, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ],
            ),
        ),
        (
            Message::CapabilitiesResponse(CapabilitiesAnswer::all()),
            message(4, 16, &[7, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            Message::StatusReport(Status {
                available_pages: 0x1111,
                committed_pages: 0x2222_0000_0000,
                page_file_pages: 0x33,
                zero_and_free_pages: 0x44,
                page_file_writes: 0x55,
                io_difference: 0x6600_0000,
            }),
            message(
                5,
                48,
                &[
                    0x11, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x22, 0x22, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0, 0x44, 0, 0,
                    0, 0, 0, 0, 0, 0x55, 0, 0, 0, 0, 0, 0, 0x66,
                ],
            ),
        ),
        (
            // 585,728 pages, the most that QEMU asks for at once.
            Message::BalloonRequest { page_count: 585_728 },
            message(6, 16, &[0x00, 0xf0, 0x08, 0, 0, 0, 0, 0]),
        ),
        (
            Message::BalloonResponse {
                ranges: ranges(&[]),
                more: false,
            },
            message(7, 16, &[0; 8]),
        ),
        (
            Message::BalloonResponse {
                ranges: ranges(ONE),
                more: true,
            },
            message(7, 24, &[0, 0, 0, 0, 3, 0, 0, 0, 0x45, 0x23, 0x01, 0, 0, 0x02, 0x02, 0]),
        ),
        (
            Message::UnballoonRequest {
                ranges: ranges(TWO),
                more: true,
            },
            message(
                8,
                32,
                &[
                    1, 0, 0, 0, 2, 0, 0, 0, 0x9a, 0x78, 0x56, 0x34, 0x12, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                    0xff, 0xff,
                ],
            ),
        ),
        (Message::UnballoonResponse, message(9, 8, &[])),
        (
            Message::HotAddRequest {
                pages: range(0x80_0000, 0x8000),
                region: None,
            },
            message(10, 16, &[0, 0, 0x80, 0, 0, 0, 0x80, 0]),
        ),
        (
            Message::HotAddRequest {
                pages: range(0x80_0000, 0x8000),
                region: Some(range(0x80_0000, 0x1_0000)),
            },
            message(10, 24, &[0, 0, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 1]),
        ),
        (
            Message::HotAddResponse {
                page_count: 0x8000,
                is_final: true,
            },
            message(11, 16, &[0, 0x80, 0, 0, 1, 0, 0, 0]),
        ),
        (
            Message::Information(Information::MaxPageCount(0x10_0000)),
            message(
                12,
                32,
                &[
                    0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
                ],
            ),
        ),
        (
            Message::Information(Information::Other {
                kind: 9,
                claimed_bytes: 4,
            }),
            message(12, 24, &[0, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0]),
        ),
    ]
}

#[test]
fn every_message_has_its_golden_bytes() {
    for (message, bytes) in golden() {
        // A dirty buffer: whatever is not written would show.
        let mut buffer = [0xaa; MAX_MESSAGE_BYTES];
        assert_eq!(
            message.emit(0x1122_3344, &mut buffer),
            Ok(&bytes[..]),
            "{message:?} to bytes"
        );
        assert_eq!(
            Message::parse(&bytes),
            Ok((0x1122_3344, message)),
            "{message:?} from bytes"
        );
    }
}

#[test]
fn q12_every_message_is_refused_when_it_is_cut_short() {
    for (message, bytes) in golden() {
        let message_type = bytes[0];
        for len in 0..bytes.len() {
            let mut cut = bytes[..len].to_vec();
            let error = Message::parse(&cut).unwrap_err();
            if len < 8 {
                assert_eq!(error, ParseError::NoHeader { len });
                continue;
            }
            assert_eq!(
                error,
                ParseError::BadSize {
                    message_type: message_type.into(),
                    claimed_bytes: u16::try_from(bytes.len()).unwrap(),
                    len
                }
            );
            // The same with an honest size.
            cut[2] = u8::try_from(len).unwrap();
            match (Message::parse(&cut), message) {
                (
                    Err(ParseError::TooShort {
                        len: reported,
                        needed_bytes,
                        ..
                    }),
                    _,
                ) => {
                    assert!(reported == len && needed_bytes > len, "{message:?} at {len}");
                }
                (Err(ParseError::TooManyRanges { claimed, present }), _) => {
                    assert!(present < claimed as usize, "{message:?} at {len}");
                }
                // Without its region, or without all of it, this is another valid message; so is information without its
                // data.
                (
                    Ok((_, Message::HotAddRequest { region: None, .. })),
                    Message::HotAddRequest { region: Some(_), .. },
                ) => {
                    assert!((16..24).contains(&len));
                }
                (Ok((_, Message::Information(Information::Other { kind: 0, .. }))), Message::Information(_)) => {
                    assert!((24..32).contains(&len));
                }
                (other, _) => panic!("{message:?} at {len}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_follows_the_claimed_size_is_not_part_of_the_message() {
    // A ring rounds packets up to 8 bytes.
    for (message, mut bytes) in golden() {
        bytes.extend([0xee; 7]);
        assert_eq!(Message::parse(&bytes), Ok((0x1122_3344, message)));
    }
    // A size below the header's is nonsense.
    let error = Message::parse(&[9, 0, 7, 0, 0, 0, 0, 0]).unwrap_err();
    assert!(
        matches!(
            error,
            ParseError::BadSize {
                message_type: 9,
                claimed_bytes: 7,
                len: 8
            }
        ),
        "{error}"
    );
}

#[test]
fn q12_a_range_count_beyond_the_message_is_refused() {
    let unballoon = |claimed: u32, present: usize| {
        let size = 16 + 8 * present;
        let mut bytes = vec![8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&u16::try_from(size).unwrap().to_le_bytes());
        bytes.extend(claimed.to_le_bytes());
        bytes.resize(size, 0x11);
        bytes
    };
    for (claimed, present) in [(1, 0), (3, 2), (u32::MAX, 2), (511, 511), (0x2000_0002, 2)] {
        assert_eq!(
            Message::parse(&unballoon(claimed, present)),
            Err(ParseError::TooManyRanges {
                claimed,
                present: present.min(510)
            })
        );
    }
    let bytes = unballoon(510, 510);
    let Ok((_, Message::UnballoonRequest { ranges, more: false })) = Message::parse(&bytes) else {
        panic!("the largest message is fine");
    };
    assert_eq!(ranges.as_slice().len(), 510);
    assert_eq!(bytes.len(), MAX_MESSAGE_BYTES);
}

#[test]
fn information_of_another_size_is_not_taken_for_the_one_that_is_known() {
    let mut bytes = [0; 32];
    bytes[0] = 12;
    bytes[2] = 32;
    bytes[12] = 16;
    for claimed_bytes in [0, 4, 7, 9, 16] {
        bytes[20] = claimed_bytes;
        let other = Information::Other {
            kind: 0,
            claimed_bytes: claimed_bytes.into(),
        };
        assert_eq!(Message::parse(&bytes), Ok((0, Message::Information(other))));
    }
}

#[test]
fn unknown_types_are_not_errors_of_the_host() {
    for message_type in [0, 13, 14, 0x7fff] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&u16::to_le_bytes(message_type));
        bytes[2] = 16;
        assert_eq!(Message::parse(&bytes), Err(ParseError::UnknownType { message_type }));
    }
}

#[test]
fn a_buffer_that_is_too_small_is_not_touched_beyond_its_end() {
    for (message, bytes) in golden() {
        for len in 0..bytes.len() {
            let mut buffer = vec![0; len];
            assert_eq!(
                message.emit(1, &mut buffer),
                Err(BufferTooSmall {
                    needed_bytes: bytes.len()
                })
            );
        }
    }
    assert_eq!(Ranges::new(&[WireRange::default(); 511]), None);
}

#[test]
fn a_range_is_40_bits_of_page_and_24_of_count() {
    let largest = range((1 << 40) - 0xff_ffff, 0xff_ffff);
    assert_eq!(largest.pages().unwrap().end().get(), 1 << 40);
    assert_eq!(WireRange::new(Pfn::new(1 << 40), 1), None);
    assert_eq!(WireRange::new(Pfn::new(0), 1 << 24), None);
    assert_eq!(
        WireRange::new(Pfn::new((1 << 40) - 1), 2),
        None,
        "its last page has 41 bits"
    );
    assert_eq!(WireRange::from_bits(0x1234).pages(), None, "no pages");
    let pages = PageRange::new(Pfn::new(5), 1 << 24).unwrap();
    assert_eq!(WireRange::try_from(pages), Err(pages));
}

#[test]
fn versions_are_ordered_and_named_as_the_wire_has_them() {
    assert_eq!(
        ProtocolVersion::LADDER.map(|version| std::format!("{version}")),
        ["2.0", "1.0", "0.3"]
    );
    assert!(ProtocolVersion::LADDER.is_sorted_by(|newer, older| newer > older));
    assert_eq!(HotAddAlignment::MIB_128.pages(), 32_768);
    assert_eq!(HotAddAlignment::from_log2_mib(16), None);
    assert_eq!(HotAddAlignment::from_log2_mib(0).unwrap().pages(), 256);
}

#[test]
fn versions_are_shown_as_numbers_and_capabilities_joined_once() {
    assert_eq!(
        std::format!("{} {:?}", ProtocolVersion::V1, ProtocolVersion::V3),
        "0.3 2.0"
    );
    assert_eq!(
        Capabilities::BALLOON.union(Capabilities::BALLOON),
        Capabilities::BALLOON
    );
    assert_eq!(std::format!("{:?}", Capabilities::BALLOON), "Capabilities(0x1)");
    let range = WireRange::from_bits(5 << 40 | 0x10);
    assert_eq!(std::format!("{range:?}"), "5 pages from 0x10");
}

proptest! {
    #[test]
    fn parsing_any_bytes_never_panics_and_emitting_gives_them_back(
        message_type in 0_u16..16,
        size in 0_u16..200,
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [&message_type.to_le_bytes()[..], &size.to_le_bytes(), &7_u32.to_le_bytes(), &body].concat();
        if let Ok((transaction, message)) = Message::parse(&bytes) {
            prop_assert_eq!(transaction, 7);
            let mut buffer = [0; MAX_MESSAGE_BYTES];
            let emitted = message.emit(transaction, &mut buffer).unwrap();
            prop_assert_eq!(Message::parse(emitted), Ok((transaction, message)));
        }
    }
}
