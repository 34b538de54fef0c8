//! Channel messages, versions, GUIDs and the messages of dynamic memory: whatever the bytes are, parsing ends, and what was
//! parsed is written as it was read.

use vmbus::device::dynamic_memory::protocol::{MAX_MESSAGE_BYTES, Message};
use vmbus::protocol::channel::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenChannelResult, RelIdReleased,
};
use vmbus::protocol::contact::{
    ConnectionState, InitiateContact, Unload, UnloadResponse, VersionResponse, contact_connection,
};
use vmbus::protocol::gpadl::{
    GpadlBody, GpadlCreated, GpadlHeader, GpadlRange, GpadlTeardown, GpadlTorndown, MAX_GPADL_PAGES,
};
use vmbus::protocol::message::{HEADER_LEN, MAX_MESSAGE_LEN};
use vmbus::protocol::offer::{AllOffersDelivered, OfferChannel, RequestOffers, RescindChannelOffer};
use vmbus::protocol::{ChannelId, ChannelMessage, GpadlId, Guid, MessageType, Version, VpIndex, class};

use crate::observe::note;

/// Bytes as any message that there is.
pub fn messages(data: &[u8]) {
    match MessageType::of(data) {
        Ok(message_type) => {
            let _ = (message_type.row(), format!("{message_type}"));
        }
        Err(error) => note("ParseError", &error),
    }
    there_and_back::<OfferChannel>(data);
    there_and_back::<RescindChannelOffer>(data);
    there_and_back::<RequestOffers>(data);
    there_and_back::<AllOffersDelivered>(data);
    there_and_back::<OpenChannel>(data);
    there_and_back::<OpenChannelResult>(data);
    there_and_back::<CloseChannel>(data);
    there_and_back::<GpadlHeader>(data);
    there_and_back::<GpadlBody>(data);
    there_and_back::<GpadlCreated>(data);
    there_and_back::<GpadlTeardown>(data);
    there_and_back::<GpadlTorndown>(data);
    there_and_back::<RelIdReleased>(data);
    there_and_back::<InitiateContact>(data);
    there_and_back::<VersionResponse>(data);
    there_and_back::<Unload>(data);
    there_and_back::<UnloadResponse>(data);
    there_and_back::<ModifyChannel>(data);
    there_and_back::<ModifyChannelResponse>(data);

    fields(data);
    texts(data);
    dynamic_memory(data);
    described_memory(data);
}

/// What was decoded is encoded to the same bytes: those that its type has, zero where they were missing.
fn there_and_back<M: ChannelMessage>(data: &[u8]) {
    let message = match M::decode(data) {
        Ok(message) => message,
        Err(error) => {
            note("ParseError", &error);
            return;
        }
    };
    let encoded = message.encode();
    let bytes = encoded.as_slice();
    assert!(bytes.len() <= MAX_MESSAGE_LEN && bytes.len() >= M::MIN_LEN);
    assert_eq!(bytes[..4], data[..4]);
    assert_eq!(bytes[4..HEADER_LEN], [0; 4], "the padding is zero");
    for (index, byte) in bytes.iter().enumerate().skip(HEADER_LEN) {
        assert_eq!(*byte, data.get(index).copied().unwrap_or(0), "byte {index}");
    }
    let again = M::decode(bytes).map(|again| again.encode().as_slice() == bytes);
    assert_eq!(again, Ok(true));
}

/// Reads every field that means more than a number.
fn fields(data: &[u8]) {
    if let Ok(offer) = OfferChannel::decode(data) {
        let _ = (offer.flags(), offer.monitor(), offer.is_dedicated_interrupt());
        let _ = (class::name(offer.class()), offer.instance(), offer.connection());
    }
    if let Ok(contact) = InitiateContact::decode(data) {
        let _ = contact_connection(contact.version());
    }
    if let Ok(response) = VersionResponse::decode(data) {
        let is_fine = response.is_supported() && response.state() == ConnectionState::SUCCESSFUL;
        for version in Version::LADDER {
            let _ = (is_fine, response.message_connection(version), response.features());
        }
    }
    if let Ok(modify) = ModifyChannel::decode(data) {
        assert_eq!(
            ModifyChannel::new(modify.channel(), modify.target_vp())
                .encode()
                .as_slice()[8..16],
            data[8..16]
        );
    }
    if let Ok(header) = GpadlHeader::decode(data) {
        match header.range() {
            Ok(range) => {
                assert!(range.page_count() <= MAX_GPADL_PAGES && range.offset_bytes() < 4096);
                assert!(range.len_bytes() > 0 && range.message_count() >= 1);
            }
            Err(error) => note("ParseError", &error),
        }
        assert!(GpadlHeader::pages(data).count() <= data.len() / 8);
    }
    assert!(GpadlBody::pages(data).count() <= data.len() / 8);
}

fn texts(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    if let Ok(version) = Version::parse(text) {
        assert_eq!(Version::parse(&version.to_string()), Ok(version));
    }
    if let Ok(guid) = Guid::parse(text) {
        assert_eq!(Guid::parse(&guid.to_string()), Ok(guid));
    }
}

fn dynamic_memory(data: &[u8]) {
    let (transaction, message) = match Message::parse(data) {
        Ok(parsed) => parsed,
        Err(error) => {
            note("dynamic_memory::ParseError", &error);
            return;
        }
    };
    let mut buffer = [0xa5; MAX_MESSAGE_BYTES];
    // What is longer than any message cannot be written, and need not.
    let Ok(bytes) = message.emit(transaction, &mut buffer) else {
        return;
    };
    assert_eq!(Message::parse(bytes), Ok((transaction, message)));
}

/// Memory of any size and offset, described and put together again.
fn described_memory(data: &[u8]) {
    let Some((&[a, b, c, d, e, f], _)) = data.split_first_chunk::<6>() else {
        return;
    };
    let offset = usize::from(u16::from_le_bytes([a, b]));
    let len = usize::try_from(u32::from_le_bytes([c, d, e, f])).unwrap_or(0);
    let range = match GpadlRange::new(offset, len) {
        Ok(range) => range,
        Err(error) => {
            note("BadRange", &error);
            return;
        }
    };
    assert_eq!(range.page_count(), (offset + len).div_ceil(4096));
    if range.page_count() > 256 {
        // The same loop as below, only longer.
        return;
    }
    let page = |index: usize| Ok::<u64, ()>(0x1_0000 + index as u64 * 3);
    let Ok(header) = GpadlHeader::describe(ChannelId(7), GpadlId(9), range, page) else {
        panic!("the pages are all there");
    };
    let decoded = GpadlHeader::decode(header.as_slice()).map(|header| header.range());
    assert_eq!(decoded, Ok(Ok(range)));
    let mut pages: Vec<u64> = GpadlHeader::pages(header.as_slice()).collect();
    for number in 1..range.message_count() {
        let Ok(body) = GpadlBody::describe(number, GpadlId(9), range, page) else {
            panic!("the pages are all there");
        };
        pages.extend(GpadlBody::pages(body.as_slice()));
    }
    let expected: Vec<u64> = (0..range.page_count()).filter_map(|index| page(index).ok()).collect();
    assert_eq!(pages, expected);
    let _ = VpIndex(0);
}

/// Shows the bytes as the message that they are.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:?}, {data:02x?}", MessageType::of(data))
}
