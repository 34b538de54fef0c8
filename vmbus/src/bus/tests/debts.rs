//! What a host is too busy for when it is to be told, and hears later.

use super::*;
use crate::memory::SharedPages;
use crate::testing::model::Reply;

/// Status of a host that has no room for a message now.
const BUSY: u16 = 0x13;

/// Lets time pass, in which the host is looked at now and then.
fn settle_later(ground: Ground, bus: &Bus) {
    for _ in 0..10 {
        ground.platform.advance(core::time::Duration::from_millis(11));
        bus.poll();
        ground.settle(bus);
    }
}

#[test]
fn g4_a_channel_that_is_dropped_while_the_host_is_busy_is_closed_later_and_its_rings_come_back() {
    for is_refused in [false, true] {
        let (ground, id) = Ground::with_channel();
        let bus = ground.connect();
        let pages = ground.platform.live_pages();
        let (opened, _) = open(&bus, id);
        // For the close, and for the first and the second time that it is made up for.
        ground.host.fail_posts(BUSY, 3);
        drop(opened);
        assert_eq!((bus.counters().parked_blocks, ground.posts_of(11)), (1, 0));
        if is_refused {
            // To the host it is open still.
            let again = bus.open(id, &OpenParameters::default(), Recorder::default(), Deadline::IMMEDIATE);
            assert_eq!(again.err(), Some(Error::InUse(id)));
        }
        settle_later(ground, &bus);
        assert_eq!(
            (bus.counters().unparked_blocks, ground.platform.live_pages()),
            (1, pages)
        );
        assert_eq!((bus.shared_bytes(), ground.host.gpadl_count()), (0, 0));
        open(&bus, id).0.close(SECOND).unwrap();
        ground.finish(bus);
    }
}

#[test]
fn g4_memory_that_a_busy_host_could_not_be_asked_for_comes_back_later() {
    let (ground, id) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, id);
    let pages = ground.platform.live_pages();
    let share = || {
        let memory = SharedPages::allocate(ground.platform, 5).unwrap();
        opened.create_gpadl(memory, SECOND).unwrap()
    };
    let (dropped, waited) = (share(), share());
    ground.host.fail_posts(BUSY, 1);
    drop(dropped);
    // Ten, twenty, forty microseconds and so on: more than two milliseconds in all.
    ground.host.fail_posts(BUSY, 13);
    assert_eq!(waited.teardown(Deadline::millis(2)).err(), Some(Error::TimedOut));
    settle_later(ground, &bus);
    assert_eq!(ground.platform.live_pages(), pages);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g4_what_a_busy_host_was_not_told_of_a_channel_is_forgotten_when_it_withdraws_it() {
    let (ground, id) = Ground::with_channel();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    let (opened, _) = open(&bus, id);
    ground.host.fail_posts(BUSY, 1);
    drop(opened);
    ground.host.rescind(id.0);
    settle_later(ground, &bus);
    assert_eq!((ground.posts_of(7), ground.posts_of(11)), (1, 0));
    ground.platform.advance(core::time::Duration::from_secs(30));
    ground.settle(&bus);
    assert_eq!(ground.platform.live_pages(), pages);
    ground.finish(bus);
}

#[test]
fn g4_what_an_old_host_was_too_busy_for_it_hears_before_the_connection_ends() {
    let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(0x2_0004));
    let id = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect();
    let (opened, _) = open(&bus, id);
    ground.host.fail_posts(BUSY, 1);
    drop(opened);
    ground.host.set_reply(16, Reply::Ignore);
    bus.disconnect(SECOND).unwrap();
    assert_eq!((ground.posts_of(7), ground.posts_of(11)), (2, 1));
    assert_eq!(bus.shared_bytes(), 0);
}

#[test]
fn g3_the_rings_of_a_channel_that_the_host_could_not_be_told_of_are_not_asked_for() {
    // For good, and for longer than the end of the connection may take.
    for (status, times) in [(5, 1), (BUSY, 200)] {
        for is_dropped in [false, true] {
            // Before 3.0 memory is taken back piece by piece.
            let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(0x2_0004));
            let id = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
            let bus = ground.connect();
            let (opened, _) = open(&bus, id);
            let mut kept = Some(opened);
            ground.host.fail_posts(status, times);
            if is_dropped {
                drop(kept.take());
            }
            let _ = bus.disconnect(Deadline::millis(100));
            assert_eq!(ground.posts_of(11), 0, "{status:#x} {is_dropped}");
        }
    }
    // A host that had no time first, and does not take it then.
    let (ground, id) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, id);
    ground.host.fail_posts(BUSY, 1);
    ground.host.fail_posts(5, 1);
    drop(opened);
    settle_later(ground, &bus);
    // Both in vain.
    assert_eq!((ground.posts_of(7), ground.posts_of(11)), (2, 0));
    assert_eq!(bus.counters().parked_blocks, 1);
    bus.disconnect(SECOND).unwrap();
    assert_eq!(bus.counters().unparked_blocks, 1, "with the connection");
}
