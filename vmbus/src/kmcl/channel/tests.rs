//! What a handle may do inside of its channel's callbacks.

use core::sync::atomic::AtomicUsize;

use super::*;
use crate::testing::Loopback;

#[test]
fn a_packet_callback_may_look_at_what_is_there_and_not_wait() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let both = Loopback::new(|channel, _| {
        assert!(!channel.look());
        let wait = |deadline, found| channel.wait_until(deadline, || found);
        assert_eq!(wait(Deadline::IMMEDIATE, Some(7)), Ok(7));
        assert_eq!(wait(Deadline::IMMEDIATE, None::<i32>), Err(Error::TimedOut));
        assert_eq!(wait(Deadline::Never, Some(7)), Err(Error::WouldDeadlock));
        SEEN.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    let client = both.open().unwrap();
    client.send(b"x").unwrap();
    both.host().process();
    assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    // Outside, all is allowed.
    assert!(client.look());
    assert_eq!(client.wait_until(Deadline::seconds(5), || Some(7)), Ok(7));
}

#[test]
fn a_look_from_outside_takes_completions_in() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let request = client.send_request(b"question", None).unwrap();
    both.server().process();
    assert!(!request.is_done());
    assert!(client.look());
    assert!(request.is_done());
}

#[test]
fn the_last_handle_that_goes_ends_the_channel_and_no_other() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let (second, third) = (client.clone(), client.clone());
    drop((client, third));
    assert!(second.is_running());
    let watch = second.uncounted();
    drop(second);
    assert_eq!(
        (watch.core().phase(), watch.gone()),
        (Phase::Ended, Some(Gone::Disabled))
    );
}

#[test]
fn a_channel_has_the_time_of_where_its_offer_is() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let (first, second) = (client.now(), client.now());
    assert!(Instant::default() < first && first <= second, "{first:?} {second:?}");
}
