//! Each message as any value, written and read again: nothing is lost, and what is cut short is refused.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::string::ToString as _;
use std::vec::Vec;

use super::channel::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenChannelResult, RelIdReleased,
};
use super::contact::{InitiateContact, Unload, UnloadResponse, VersionResponse};
use super::gpadl::{GpadlBody, GpadlCreated, GpadlHeader, GpadlRange, GpadlTeardown, GpadlTorndown};
use super::message::MAX_MESSAGE_LEN;
use super::offer::{AllOffersDelivered, OfferChannel, RequestOffers, RescindChannelOffer};
use super::*;

/// A message with these bytes as its fields goes there and back, alone and with more behind it; cut, it is refused or what is
/// missing is zero.
fn there_and_back<T: ChannelMessage>(fields: &[u8]) -> MessageType {
    let message = T::read_from_bytes(&fields[..size_of::<T>()]).unwrap();
    let encoded = message.encode();
    let bytes = encoded.as_slice();
    assert_eq!(encoded.message_type(), T::TYPE);
    assert_eq!(bytes.len(), 8 + size_of::<T>());
    assert_eq!(&bytes[4..8], &[0; 4], "padding");
    assert_eq!(T::decode(bytes).unwrap().as_bytes(), message.as_bytes());
    let longer = [bytes, &[0xee; 8]].concat();
    assert_eq!(T::decode(&longer).unwrap().as_bytes(), message.as_bytes());
    for len in (0..bytes.len()).step_by(if cfg!(miri) { 37 } else { 1 }) {
        match T::decode(&bytes[..len]) {
            Ok(cut) => {
                assert!(len >= T::MIN_LEN);
                let (kept, rest) = cut.as_bytes().split_at(len - 8);
                assert_eq!(kept, &message.as_bytes()[..len - 8]);
                assert!(rest.iter().all(|byte| *byte == 0));
            }
            Err(_) => assert!(len < T::MIN_LEN, "{len} bytes of {}", T::TYPE),
        }
    }
    T::TYPE
}

/// All messages that there are.
fn all_there_and_back(fields: &[u8]) -> BTreeSet<MessageType> {
    [
        there_and_back::<OfferChannel>,
        there_and_back::<RescindChannelOffer>,
        there_and_back::<RequestOffers>,
        there_and_back::<AllOffersDelivered>,
        there_and_back::<OpenChannel>,
        there_and_back::<OpenChannelResult>,
        there_and_back::<CloseChannel>,
        there_and_back::<GpadlHeader>,
        there_and_back::<GpadlBody>,
        there_and_back::<GpadlCreated>,
        there_and_back::<GpadlTeardown>,
        there_and_back::<GpadlTorndown>,
        there_and_back::<RelIdReleased>,
        there_and_back::<InitiateContact>,
        there_and_back::<VersionResponse>,
        there_and_back::<Unload>,
        there_and_back::<UnloadResponse>,
        there_and_back::<ModifyChannel>,
        there_and_back::<ModifyChannelResponse>,
    ]
    .into_iter()
    .map(|check| check(fields))
    .collect()
}

#[test]
fn every_message_of_the_table_goes_there_and_back() {
    let checked = all_there_and_back(&[0x5a; MAX_MESSAGE_LEN]);
    let table: BTreeSet<_> = MessageType::TABLE.iter().map(|row| row.message_type).collect();
    assert_eq!(checked, table);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_of_any_fields_go_there_and_back(fields in prop::collection::vec(any::<u8>(), MAX_MESSAGE_LEN)) {
        all_there_and_back(&fields);
    }

    #[test]
    fn memory_of_any_size_and_offset_is_described_and_read_again(
        offset in 0_usize..4096,
        len in 1_usize..300 * 4096,
        seed in any::<u64>(),
    ) {
        let range = GpadlRange::new(offset, len).unwrap();
        let page = |index: usize| Ok::<u64, ()>(seed.wrapping_mul(index as u64 | 1));
        let header = GpadlHeader::describe(ChannelId(3), GpadlId(4), range, page).unwrap();
        let read = GpadlHeader::decode(header.as_slice()).unwrap();
        prop_assert_eq!((read.channel(), read.gpadl(), read.range()), (ChannelId(3), GpadlId(4), Ok(range)));
        let mut pages: Vec<u64> = GpadlHeader::pages(header.as_slice()).collect();
        for number in 1..range.message_count() {
            let body = GpadlBody::describe(number, GpadlId(4), range, page).unwrap();
            let read = GpadlBody::decode(body.as_slice()).unwrap();
            prop_assert_eq!((read.number() as usize, read.gpadl()), (number, GpadlId(4)));
            pages.extend(GpadlBody::pages(body.as_slice()));
        }
        let expected: Vec<u64> = (0..range.page_count()).map(|index| page(index).unwrap()).collect();
        prop_assert_eq!(pages, expected);
    }

    #[test]
    fn guids_go_there_and_back_as_bytes_and_as_text(bytes in any::<[u8; 16]>()) {
        let guid = Guid::from_wire(bytes);
        prop_assert_eq!(guid.to_wire(), bytes);
        prop_assert_eq!(Guid::parse(&guid.to_string()), Ok(guid));
        prop_assert_eq!(Guid::parse(&guid.to_string().to_uppercase()), Ok(guid));
    }

    #[test]
    fn any_text_is_a_guid_or_none(text in "[0-9a-fA-F-]{30,40}|\\PC{0,40}") {
        if let Ok(guid) = Guid::parse(&text) {
            prop_assert_eq!(guid.to_string(), text.to_lowercase());
        }
    }

    #[test]
    fn any_text_is_a_version_or_none(text in "[0-9]{0,3}\\.[0-9]{0,3}|\\PC{0,12}", number in any::<u32>()) {
        prop_assert_eq!(Version::from_wire(number).to_wire(), number);
        if let Ok(version) = Version::parse(&text) {
            prop_assert!(Version::LADDER.contains(&version));
            prop_assert_eq!(Version::parse(&version.to_string()), Ok(version));
        }
    }
}

#[test]
fn versions_go_there_and_back_as_text() {
    for version in Version::LADDER {
        assert_eq!(Version::parse(&version.to_string()), Ok(version));
    }
}
