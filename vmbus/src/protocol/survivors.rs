//! What mutation testing found that nothing showed: `MUTANTS.md`.

use super::channel::OpenChannel;
use super::gpadl::{GpadlBody, GpadlRange};
use super::offer::OfferChannel;
use super::*;

#[test]
fn an_opening_says_where_the_second_ring_begins() {
    let open = OpenChannel::new(ChannelId(1), OpenId(2), GpadlId(3), 9, VpIndex(4), [0; 120]);
    assert_eq!(open.downstream_offset_pages(), 9);
}

#[test]
fn a_range_says_where_it_begins_and_how_long_it_is() {
    let range = GpadlRange::new(77, 5000).unwrap();
    assert_eq!((range.offset_bytes(), range.len_bytes()), (77, 5000));
}

#[test]
fn a_body_says_which_it_is() {
    let range = GpadlRange::new(0, 100 * 4096).unwrap();
    let message = GpadlBody::describe(2, GpadlId(3), range, |_| Ok::<u64, ()>(0)).unwrap();
    assert_eq!(GpadlBody::decode(message.as_slice()).unwrap().number(), 2);
    assert!(std::format!("{message:?}").contains("GPADL_BODY"), "{message:?}");
}

#[test]
fn an_offer_says_whether_its_signals_need_a_bit() {
    let offer = OfferChannel::new(Guid::ZERO, Guid::ZERO, ChannelId(7), ConnectionId(1));
    let mut bytes = offer.encode().as_slice().to_vec();
    // In front of the connection, the last four bytes.
    let dedicated = bytes.len() - 6;
    assert!(OfferChannel::decode(&bytes).unwrap().is_dedicated_interrupt());
    // Other bits mean nothing here.
    for (value, expected) in [(0, false), (2, false), (3, true), (0xfe, false)] {
        bytes[dedicated] = value;
        assert_eq!(OfferChannel::decode(&bytes).unwrap().is_dedicated_interrupt(), expected);
    }
}

#[test]
fn numbers_are_shown_by_their_names() {
    let guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    assert_eq!(std::format!("{guid:?}"), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    assert_eq!(std::format!("{:?}", MessageType::OPEN_CHANNEL), "OPEN_CHANNEL (5)");
}
