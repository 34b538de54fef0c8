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

/// A client's context that keeps its last handle.
#[derive(Default)]
struct Own(std::sync::Mutex<Option<Channel<Self>>>);

impl Own {
    fn let_go(&self) {
        let last = self.0.lock().unwrap().take();
        drop(last);
    }
}

#[test]
fn a_channel_whose_last_handle_goes_in_its_own_callback_is_closed_behind_it() {
    let both = Loopback::echo().unwrap();
    let pages = both.platform().live_pages();
    for in_routine in [false, true] {
        let client = Channel::allocate_client_with(both.host(), Own::default()).unwrap();
        let client = client
            .init_set_target(Loopback::CLASS, crate::kmcl::Instance::Any)
            .init_set_process_packet_callback(|channel, packet| {
                channel.context().let_go();
                packet.complete(&[]).unwrap();
            })
            .enable(Deadline::seconds(5))
            .unwrap();
        if in_routine {
            let mut packet = client.packet_allocate().unwrap();
            packet.set_completion_routine(|channel, _, _| channel.context().let_go());
            packet
                .send(b"x", None, crate::kmcl::SendFlags::WAIT_FOR_COMPLETION)
                .unwrap();
        } else {
            both.server().send(b"x").unwrap();
        }
        *client.context().0.lock().unwrap() = Some(client.clone());
        drop(client);
        both.host().process();
        assert_eq!(both.platform().live_pages(), pages, "{in_routine}");
    }
    drop(both.open().unwrap());
}

#[test]
fn a_channel_whose_last_handle_went_while_packets_were_held_is_closed_with_the_last_of_them() {
    static HELD: std::sync::Mutex<Option<crate::kmcl::IncomingPacket<()>>> = std::sync::Mutex::new(None);
    let both = Loopback::echo().unwrap();
    let pages = both.platform().live_pages();
    let client = both.client().unwrap();
    let client = client.init_set_process_packet_callback(|_, packet| *HELD.lock().unwrap() = Some(packet));
    let client = client.enable(Deadline::seconds(5)).unwrap();
    both.server().send(b"x").unwrap();
    both.host().process();
    drop(client);
    let packet = HELD.lock().unwrap().take().unwrap();
    packet.complete(&[]).unwrap();
    both.host().process();
    assert_eq!(both.platform().live_pages(), pages);
    drop(both.open().unwrap());
}
