//! The table of those that wait for an answer.

use super::*;
use crate::bus::replies::{Answer, Key, Replies};
use crate::protocol::{GpadlId, OpenId};

const CHANNEL: ChannelId = ChannelId(7);
const OTHER: ChannelId = ChannelId(8);

fn replies(places: u16) -> Replies {
    Replies::new(FakePlatform::new(), places).unwrap()
}

#[test]
fn the_last_place_is_for_the_end_of_the_connection() {
    let replies = replies(2);
    let first = replies.expect(Key::Modify(CHANNEL), Some(CHANNEL)).unwrap();
    let second = replies.expect(Key::Modify(OTHER), Some(OTHER)).unwrap();
    let third = replies.expect(Key::Contact, None);
    assert_eq!(third.err(), Some(Error::TooManyRequests));
    let end = replies.expect(Key::Unload, None).unwrap();
    assert_eq!(replies.expect(Key::Unload, None).err(), Some(Error::TooManyRequests));
    drop((first, second, end));
    let again = replies.expect(Key::Contact, None);
    assert!(again.is_ok(), "who stops waiting leaves its place");
}

#[test]
fn m5_an_answer_is_for_the_one_whole_key_and_comes_once() {
    let replies = replies(4);
    let open = replies.expect(Key::Open(CHANNEL, OpenId(1)), Some(CHANNEL)).unwrap();
    let gpadl = replies.expect(Key::GpadlTorndown(GpadlId(3)), Some(CHANNEL)).unwrap();
    for stray in [
        Key::Open(CHANNEL, OpenId(2)),
        Key::Open(OTHER, OpenId(1)),
        Key::GpadlCreated(CHANNEL, GpadlId(3)),
        Key::GpadlTorndown(GpadlId(4)),
        Key::Unload,
    ] {
        assert!(!replies.answer(stray, Answer::Status(0)));
    }
    assert!(!open.is_answered() && open.outcome().is_none() && open.failure().is_none());
    assert!(replies.answer(Key::Open(CHANNEL, OpenId(1)), Answer::Status(5)));
    assert!(
        !replies.answer(Key::Open(CHANNEL, OpenId(1)), Answer::Status(0)),
        "twice"
    );
    assert!(open.is_answered() && !gpadl.is_answered());
    assert_eq!(open.outcome(), Some(Err(Error::Refused { status: 5 })));
    assert_eq!(open.failure(), None, "an answer is none");
    assert!(replies.answer(Key::GpadlTorndown(GpadlId(3)), Answer::Status(0)));
    assert_eq!(gpadl.outcome(), Some(Ok(())));
}

#[test]
fn c1_a_withdrawal_and_an_end_answer_those_that_still_wait_and_are_theirs() {
    let replies = replies(4);
    let theirs = replies.expect(Key::Modify(CHANNEL), Some(CHANNEL)).unwrap();
    let answered = replies.expect(Key::Open(CHANNEL, OpenId(1)), Some(CHANNEL)).unwrap();
    let other = replies.expect(Key::Modify(OTHER), Some(OTHER)).unwrap();
    let end = replies.expect(Key::Unload, None).unwrap();
    assert!(replies.answer(Key::Open(CHANNEL, OpenId(1)), Answer::Status(0)));
    replies.rescind(CHANNEL);
    assert_eq!(theirs.failure(), Some(Error::Rescinded(CHANNEL)));
    assert_eq!(theirs.outcome(), Some(Err(Error::Rescinded(CHANNEL))));
    assert_eq!(answered.outcome(), Some(Ok(())), "as the host said before");
    assert!(!other.is_answered());
    replies.disconnect();
    assert_eq!(other.outcome(), Some(Err(Error::Disconnected)));
    assert_eq!(
        theirs.failure(),
        Some(Error::Rescinded(CHANNEL)),
        "the first answer stands"
    );
    assert!(!end.is_answered(), "the end is waited for to the end");
}
