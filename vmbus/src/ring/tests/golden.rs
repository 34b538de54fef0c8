//! Byte for byte: what goes into a ring, written down by hand from the wire format, and what comes out of such bytes.

use crate::protocol::packet::{PacketType, TransferPageRange};
use crate::ring::tests::support::Peer;
use crate::ring::{External, ExternalToSend, GpaRangeToSend, Header, PacketToSend};

#[rustfmt::skip]
const IN_BAND: [u8; 40] = [
    6, 0,  2, 0,  4, 0,  1, 0,      0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // type, offset, length, flags; id
    b'V', b'M', b'B', b'u', b's', b' ', b'r', b'i', b'n', b'g', 0, 0, 0, 0, 0, 0,   // payload, padding
    0, 0, 0, 0,  0, 0, 0, 0,                                                        // trailer: the first packet starts at 0
];

#[rustfmt::skip]
const COMPLETION: [u8; 24] = [
    0x0b, 0,  2, 0,  2, 0,  0, 0,   9, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0,  40, 0, 0, 0,                                                       // it starts behind the first
];

#[rustfmt::skip]
const GPA_DIRECT: [u8; 88] = [
    9, 0,  9, 0,  10, 0,  1, 0,    0x0a, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0,  2, 0, 0, 0,                                                        // reserved, two ranges
    0x01, 0x10, 0, 0,  0xff, 0x0f, 0, 0,                                            // 0x1001 bytes at 0xfff: two pages
    0x34, 0x12, 0, 0, 0, 0, 0, 0,   0x78, 0x56, 0, 0, 0, 0, 0, 0x80,
    0x00, 0x10, 0, 0,  0x10, 0, 0, 0,                                               // 0x1000 bytes at 0x10: two pages
    1, 0, 0, 0, 0, 0, 0, 0,         2, 0, 0, 0, 0, 0, 0, 0,
    0xaa, 0xbb, 0xcc, 0, 0, 0, 0, 0,
    0, 0, 0, 0,  64, 0, 0, 0,
];

#[rustfmt::skip]
const TRANSFER_PAGES: [u8; 48] = [
    7, 0,  5, 0,  5, 0,  1, 0,      0x0b, 0, 0, 0, 0, 0, 0, 0,
    0xce, 0xca, 0, 0,  2, 0, 0, 0,                                                  // set, reserved, two ranges
    0x10, 0, 0, 0,  0x00, 0x20, 0, 0,
    0x20, 0, 0, 0,  0x00, 0x30, 0, 0,
    0, 0, 0, 0,  152, 0, 0, 0,
];

#[test]
fn r13_packets_and_trailers_are_on_the_wire_as_documented() {
    let peer = Peer::new(1);
    let (mut producer, mut consumer) = peer.pair::<64>();

    producer
        .send(Header::in_band_with_completion(0x1122_3344_5566_7788), b"VMBus ring")
        .unwrap();
    producer.send(Header::completion(9), &[]).unwrap();
    let gpa_direct = PacketToSend {
        header: Header::gpa_direct(10),
        external: ExternalToSend::GpaDirect(&[
            GpaRangeToSend {
                byte_count: 0x1001,
                byte_offset: 0xfff,
                pfns: &[0x1234, 0x8000_0000_0000_5678],
            },
            GpaRangeToSend {
                byte_count: 0x1000,
                byte_offset: 0x10,
                pfns: &[1, 2],
            },
        ]),
        pieces: &[&[0xaa], &[0xbb, 0xcc]],
    };
    producer.write(&gpa_direct).unwrap();
    let range = |count: u32, offset: u32| TransferPageRange {
        byte_count: count.into(),
        byte_offset: offset.into(),
    };
    let transfer_pages = PacketToSend {
        header: Header::transfer_pages(11),
        external: ExternalToSend::TransferPages {
            set_id: 0xcace,
            ranges: &[range(0x10, 0x2000), range(0x20, 0x3000)],
        },
        pieces: &[],
    };
    producer.write(&transfer_pages).unwrap();
    assert!(producer.commit().is_needed());

    let wire: Vec<u8> = [&IN_BAND[..], &COMPLETION, &GPA_DIRECT, &TRANSFER_PAGES].concat();
    assert_eq!(peer.bytes(0, u32::try_from(wire.len()).unwrap()), wire);
    assert_eq!(peer.get(super::support::IN), 200);

    // The trailers are not read back: the reader does not care what they say.
    for at in [32, 56, 144, 192] {
        peer.store(at, &[u64::MAX]);
    }

    let packet = consumer.next().unwrap();
    assert_eq!(
        (packet.packet_type(), packet.transaction_id()),
        (PacketType::IN_BAND, 0x1122_3344_5566_7788)
    );
    assert!(packet.is_completion_requested());
    assert_eq!(packet.payload(), &IN_BAND[16..32]);
    assert!(matches!(packet.external(), External::None));

    let packet = consumer.next().unwrap();
    assert_eq!(
        (packet.packet_type(), packet.transaction_id()),
        (PacketType::COMPLETION, 9)
    );
    assert!(!packet.is_completion_requested());
    assert_eq!(packet.payload(), &[]);

    let packet = consumer.next().unwrap();
    let External::GpaDirect(ranges) = packet.external() else {
        panic!("{packet:?}")
    };
    assert_eq!((ranges.count(), ranges.total_bytes()), (2, 0x2001));
    let ranges: Vec<_> = ranges
        .iter()
        .map(|r| {
            (
                r.byte_count,
                r.byte_offset,
                r.pfns.iter().map(|p| p.get()).collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        ranges,
        [
            (0x1001, 0xfff, vec![0x1234, 0x8000_0000_0000_5678]),
            (0x1000, 0x10, vec![1, 2])
        ]
    );
    assert_eq!(packet.payload(), [0xaa, 0xbb, 0xcc, 0, 0, 0, 0, 0]);

    let packet = consumer.next().unwrap();
    let External::TransferPages(pages) = packet.external() else {
        panic!("{packet:?}")
    };
    assert_eq!((pages.set_id(), pages.count()), (0xcace, 2));
    assert_eq!(
        pages.within(0x3020).unwrap().collect::<Vec<_>>(),
        [(0x2000, 0x10), (0x3000, 0x20)]
    );
    assert_eq!(packet.payload(), &[]);

    assert!(!consumer.commit().is_needed());
    assert_eq!(peer.get(super::support::OUT), 200);
}
