//! Each message as any value, written and read again.

use proptest::prelude::*;
use std::vec::Vec;

use super::*;

fn ranges() -> impl Strategy<Value = Vec<WireRange>> {
    prop::collection::vec(
        any::<u64>().prop_map(WireRange::from_bits),
        0..=if cfg!(miri) { 4 } else { MAX_RANGES },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_of_any_values_goes_there_and_back(
        transaction in any::<u32>(),
        (words, numbers, flag) in (any::<[u32; 3]>(), any::<[u64; 6]>(), any::<bool>()),
        ranges in ranges(),
    ) {
        let [first, second, third] = words;
        let [a, b, c, d, e, f] = numbers;
        let list = Ranges::new(&ranges).unwrap();
        let messages = [
            Message::VersionRequest { version: ProtocolVersion(first), is_last_attempt: flag },
            Message::VersionResponse { is_accepted: flag },
            Message::CapabilitiesReport { capabilities: Capabilities(a), min_page_count: b, max_page_number: c },
            Message::CapabilitiesResponse(CapabilitiesAnswer::from_bits_retain(a)),
            Message::StatusReport(Status {
                available_pages: a,
                committed_pages: b,
                page_file_pages: c,
                zero_and_free_pages: d,
                page_file_writes: third,
                io_difference: second,
            }),
            Message::BalloonRequest { page_count: first },
            Message::BalloonResponse { ranges: list, more: flag },
            Message::UnballoonRequest { ranges: list, more: flag },
            Message::UnballoonResponse,
            Message::HotAddRequest { pages: WireRange::from_bits(e), region: flag.then(|| WireRange::from_bits(f)) },
            Message::HotAddResponse { page_count: first, is_final: flag },
            Message::Information(Information::MaxPageCount(a)),
        ];
        // One of each: what is new is to be added above, and the count says so.
        for (number, message) in (1_u16..).zip(messages) {
            let mut buffer = [0xee; MAX_MESSAGE_BYTES];
            let bytes = message.emit(transaction, &mut buffer).unwrap();
            prop_assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), number);
            prop_assert_eq!(usize::from(u16::from_le_bytes([bytes[2], bytes[3]])), bytes.len());
            prop_assert_eq!(Message::parse(bytes), Ok((transaction, message)));
            for len in (0..bytes.len()).step_by(if cfg!(miri) { 7 } else { 1 }) {
                prop_assert!(Message::parse(&bytes[..len]).is_err(), "{message:?} of {len} bytes");
            }
            let needed = bytes.len();
            let mut small = [0; MAX_MESSAGE_BYTES];
            prop_assert!(message.emit(transaction, &mut small[..needed - 1]).is_err());
        }
    }
}
