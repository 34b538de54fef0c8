//! Memory shared on a channel.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::*;
use crate::bus::gpadls::{Gpadls, Parking, TornDown};
use crate::bus::parked::{Kept, Parked};
use crate::memory::{Pfn, SharedPages};
use crate::platform::NotMapped;
use crate::protocol::GpadlId;
use crate::testing::model::Reply;
use crate::time::Instant;

fn pages(ground: Ground, count: usize) -> SharedPages {
    SharedPages::allocate(ground.platform, count).unwrap()
}

/// Pages that are used from an offset on, and not to the end.
struct Part {
    pages: SharedPages,
    offset: usize,
    len: usize,
}

#[expect(unsafe_code, reason = "lends pages of its own")]
// SAFETY: pages for the host, which the value keeps.
unsafe impl GpadlMemory for Part {
    fn offset_bytes(&self) -> usize {
        self.offset
    }

    fn len_bytes(&self) -> usize {
        self.len
    }

    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        self.pages.pfn(index)
    }
}

#[test]
fn g1_memory_of_every_size_arrives_page_by_page() {
    for count in [1, 25, 26, 27, 54, 55, 82, 83, 8190] {
        if cfg!(miri) && !matches!(count, 26 | 27 | 55) {
            continue;
        }
        for personality in [Personality::HyperV, Personality::Qemu] {
            let ground = Ground::new(model::Config::new(personality));
            let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
            let bus = ground.connect();
            let (opened, _) = open(&bus, channel);
            let bodies = ground.posts_of(9);
            let gpadl = opened
                .create_gpadl(pages(ground, count), Deadline::seconds(60))
                .unwrap();
            assert_eq!(ground.posts_of(9) - bodies, count.saturating_sub(26).div_ceil(28));
            let ranges = ground.host.gpadl(gpadl.id().0).unwrap();
            assert_eq!((ranges.len(), ranges[0].offset), (1, 0));
            assert_eq!(ranges[0].len_bytes as usize, count * 4096);
            let memory = gpadl.memory().unwrap();
            let expected: Vec<u64> = (0..count).map(|index| memory.pfn(index).unwrap().get()).collect();
            assert_eq!(ranges[0].page_numbers, expected);
            let memory = gpadl.teardown(Deadline::seconds(60)).unwrap();
            assert_eq!(memory.page_count(), count);
            drop(memory);
            opened.close(SECOND).unwrap();
            ground.finish(bus);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "pages by the ten thousand: hours in Miri")]
fn g1_more_pages_than_a_description_can_name_are_refused_before_anything_is_sent() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let headers = ground.posts_of(8);
    let live = ground.platform.live_pages();
    for count in [8191, 8192] {
        let error = opened.create_gpadl(pages(ground, count), SECOND).unwrap_err();
        assert!(matches!(error, Error::BadRange(_)), "{error}");
    }
    assert_eq!((ground.posts_of(8), ground.platform.live_pages()), (headers, live));
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn a_part_of_pages_is_described_with_its_offset() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let part = Part {
        pages: pages(ground, 3),
        offset: 100,
        len: 2 * 4096,
    };
    let gpadl = opened.create_gpadl(part, SECOND).unwrap();
    let ranges = ground.host.gpadl(gpadl.id().0).unwrap();
    assert_eq!(
        (ranges[0].offset, ranges[0].len_bytes, ranges[0].page_numbers.len()),
        (100, 8192, 3)
    );
    gpadl.teardown(SECOND).unwrap();
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g2_a_refused_gpadl_gives_its_memory_back_at_once() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let (live, shared) = (ground.platform.live_pages(), bus.shared_bytes());
    ground.host.set_next_replies(8, Reply::Status(0x8000_ffff), 1);
    let error = opened.create_gpadl(pages(ground, 30), SECOND).unwrap_err();
    assert_eq!(error, Error::Refused { status: 0x8000_ffff });
    assert_eq!((ground.platform.live_pages(), bus.shared_bytes()), (live, shared));
    assert_eq!(ground.posts_of(11), 0);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g3_closing_comes_before_the_teardown_and_that_before_the_memory_is_freed() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let gpadl = opened.create_gpadl(pages(ground, 2), SECOND).unwrap();
    opened.close(SECOND).unwrap();
    // As a network adapter does: its buffers go after the channel.
    gpadl.teardown(SECOND).unwrap();
    let order: Vec<u32> = ground.posts().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(order[order.len() - 3..], [7, 11, 11]);
    // That memory is freed only after TORNDOWN is what the model host watches.
    ground.finish(bus);
}

#[test]
fn g4_memory_that_the_host_keeps_is_kept_from_use() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let live = ground.platform.live_pages();
    let gpadl = opened.create_gpadl(pages(ground, 5), SECOND).unwrap();
    ground.host.set_reply(11, Reply::Silent);
    assert_eq!(gpadl.teardown(SECOND).err(), Some(Error::TimedOut));
    assert_eq!(ground.platform.live_pages(), live + 5);
    // Not the time of grace: the channel stands.
    ground.platform.advance(Duration::from_secs(1000));
    ground.settle(&bus);
    assert_eq!(ground.platform.live_pages(), live + 5);
    ground.host.set_reply(11, Reply::Normal);
    opened.close(SECOND).unwrap();
    drop(opened);
    // The end of the connection is the host's word for everything.
    ground.finish(bus);
    // The pages of the contact and of posting: the test's interrupt handler still holds the bus.
    assert_eq!(ground.platform.live_pages(), 5);
}

#[test]
fn c1_a_silent_host_of_a_withdrawn_channel_is_told_apart_and_not_waited_for() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let gpadl = opened.create_gpadl(pages(ground, 5), SECOND).unwrap();
    assert_eq!(gpadl.memory().map(GpadlMemory::len_bytes), Some(5 * 4096));
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    ground.host.set_reply(11, Reply::Silent);
    let start = ground.hypervisor.now();
    assert_eq!(gpadl.teardown(SECOND).err(), Some(Error::Rescinded(channel)));
    assert!(ground.hypervisor.elapsed_since(start) < Duration::from_millis(100));
    ground.host.set_reply(11, Reply::Normal);
    opened.close(SECOND).unwrap();
    drop(opened);
    ground.finish(bus);
}

#[test]
fn g4_memory_that_rests_is_freed_some_time_after_its_channel_is_withdrawn_and_only_then() {
    let ground = Ground::hyper_v();
    let [first, second] = [INSTANCE, OTHER_INSTANCE].map(|instance| {
        let id = ground.host.offer(model::Offer::new(CLASS, instance));
        ChannelId(id)
    });
    let bus = ground.connect();
    let ((one, _), (other, _)) = (open(&bus, first), open(&bus, second));
    let in_use = one.create_gpadl(pages(ground, 3), SECOND).unwrap();
    let live = ground.platform.live_pages();
    let resting = [
        one.create_gpadl(pages(ground, 5), SECOND).unwrap(),
        other.create_gpadl(pages(ground, 7), SECOND).unwrap(),
    ];
    ground.host.set_reply(11, Reply::Silent);
    for gpadl in resting {
        assert_eq!(gpadl.teardown(SECOND).err(), Some(Error::TimedOut));
    }
    ground.host.set_reply(11, Reply::Normal);
    ground.host.rescind(first.0);
    ground.settle(&bus);
    ground.platform.advance(Duration::from_secs(9));
    ground.settle(&bus);
    assert_eq!(ground.platform.live_pages(), live + 5 + 7);
    ground.platform.advance(Duration::from_secs(2));
    ground.settle(&bus);
    assert_eq!(ground.platform.live_pages(), live + 7, "the other channel stands");
    assert_eq!((bus.counters().parked_blocks, bus.counters().unparked_blocks), (2, 1));
    in_use.teardown(SECOND).unwrap();
    one.close(SECOND).unwrap();
    other.close(SECOND).unwrap();
}

fn parked(ground: Ground) -> Parked {
    Parked::new(Box::new(pages(ground, 1)), None)
}

#[test]
fn g4_an_answer_for_one_gpadl_frees_no_other() {
    let ground = Ground::hyper_v();
    let gpadls = Gpadls::new(ground.platform, 4).unwrap();
    let [answered, resting] = [(), ()].map(|()| gpadls.reserve(ChannelId(1), 4096, u64::MAX).unwrap());
    gpadls.begin_teardown(answered);
    assert!(matches!(gpadls.torn_down(answered), TornDown::Waited));
    assert_eq!(gpadls.park(resting, parked(ground), || None), Parking::Parked);
    assert_eq!((gpadls.parked_count(), ground.platform.live_pages()), (1, 1));
    // The one whose answer came has nothing to wait for.
    assert_eq!(gpadls.park(answered, parked(ground), || None), Parking::GivenUp);
    assert_eq!((gpadls.parked_count(), ground.platform.live_pages()), (1, 1));
    assert!(matches!(gpadls.torn_down(answered), TornDown::Stray));
    assert!(matches!(gpadls.torn_down(resting), TornDown::Parked(_)));
    assert_eq!(ground.platform.live_pages(), 0);
}

#[test]
fn g4_resting_memory_is_due_at_its_time_and_not_before() {
    let ground = Ground::hyper_v();
    let gpadls = Gpadls::new(ground.platform, 4).unwrap();
    let at = Instant::from_reference_units;
    for time in [2000, 1000, 3000] {
        let id = gpadls.reserve(ChannelId(1), 4096, u64::MAX).unwrap();
        assert_eq!(gpadls.park(id, parked(ground), || Some(at(time))), Parking::Parked);
    }
    for time in [1000, 2000, 3000] {
        assert!(gpadls.take_due(at(time - 1)).is_none());
        assert!(gpadls.take_due(at(time)).is_some());
        assert!(gpadls.take_due(at(time)).is_none());
    }
    assert_eq!((gpadls.shared_bytes(), ground.platform.live_pages()), (0, 0));
}

#[test]
fn g4_the_end_waits_for_what_was_asked_for_and_not_answered() {
    let ground = Ground::hyper_v();
    let gpadls = Gpadls::new(ground.platform, 4).unwrap();
    assert!(!gpadls.is_tearing_down());
    let id = gpadls.reserve(ChannelId(1), 4096, u64::MAX).unwrap();
    assert!(!gpadls.is_tearing_down());
    gpadls.begin_teardown(id);
    assert!(gpadls.is_tearing_down());
    assert!(matches!(gpadls.torn_down(id), TornDown::Waited));
    assert!(!gpadls.is_tearing_down());
}

#[test]
fn g4_what_still_rests_when_the_bus_is_freed_is_lost_on_purpose() {
    let ground = Ground::hyper_v();
    let gpadls = Gpadls::new(ground.platform, 4).unwrap();
    let id = gpadls.reserve(ChannelId(1), 4096, u64::MAX).unwrap();
    assert_eq!(gpadls.park(id, parked(ground), || None), Parking::Parked);
    drop(gpadls);
    assert_eq!(ground.platform.live_pages(), 1, "the host may still write there");
}

#[test]
fn g4_memory_that_was_never_given_up_is_lost() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let gpadl = opened.create_gpadl(pages(ground, 5), SECOND).unwrap();
    ground.host.set_reply(11, Reply::Silent);
    ground.host.set_reply(16, Reply::Silent);
    assert_eq!(gpadl.teardown(SECOND).err(), Some(Error::TimedOut));
    assert_eq!(opened.close(SECOND), Err(Error::TimedOut));
    assert_eq!(bus.disconnect(SECOND), Err(Error::TimedOut));
    assert_eq!(bus.counters().lost_blocks, 2);
    drop(opened);
    drop(bus);
    // The five pages, the rings, and the three pages of the contact; input areas and SynIC are ours again. The deferred
    // handler and the interrupt handler of the test still hold the bus, so nothing is freed yet either way.
    assert!(ground.platform.live_pages() >= 5 + 10 + 3);
    ground.platform.assert_no_faults();
}

#[test]
fn g4_a_dropped_gpadl_is_torn_down_without_waiting() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let live = ground.platform.live_pages();
    drop(opened.create_gpadl(pages(ground, 5), SECOND).unwrap());
    ground.settle(&bus);
    assert_eq!((ground.posts_of(11), ground.platform.live_pages()), (1, live));
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g6_the_hosts_limit_of_shared_memory_is_kept() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect_with(Config {
        gpadl_bytes: Some(100 * 4096),
        ..Config::default()
    });
    let (opened, _) = open(&bus, channel);
    // The rings have 10 pages.
    let first = opened.create_gpadl(pages(ground, 90), SECOND).unwrap();
    let error = opened.create_gpadl(pages(ground, 1), SECOND).unwrap_err();
    assert_eq!(
        error,
        Error::GpadlLimit {
            wanted: 4096,
            shared: 100 * 4096,
            limit: 100 * 4096
        }
    );
    first.teardown(SECOND).unwrap();
    opened
        .create_gpadl(pages(ground, 1), SECOND)
        .unwrap()
        .teardown(SECOND)
        .unwrap();
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g6_the_table_of_gpadls_is_bounded() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect_with(Config {
        gpadls: 4,
        ..Config::default()
    });
    let (opened, _) = open(&bus, channel);
    let gpadls: Vec<_> = (0..3)
        .map(|_| opened.create_gpadl(pages(ground, 1), SECOND).unwrap())
        .collect();
    assert_eq!(
        opened.create_gpadl(pages(ground, 1), SECOND).err(),
        Some(Error::TooManyGpadls)
    );
    for gpadl in gpadls {
        gpadl.teardown(SECOND).unwrap();
    }
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g7_numbers_wrap_past_those_in_use() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    bus.0.gpadls.set_next_id(u32::MAX);
    let last = opened.create_gpadl(pages(ground, 1), SECOND).unwrap();
    assert_eq!(last.id(), GpadlId(u32::MAX));
    // 0 is no number, and 1 is the rings'.
    let next = opened.create_gpadl(pages(ground, 1), SECOND).unwrap();
    assert_eq!(next.id(), GpadlId(2));
    // A number stays taken while its teardown is not confirmed.
    ground.host.set_next_replies(11, Reply::Late(Duration::from_secs(5)), 1);
    assert!(next.teardown(SECOND).is_err());
    bus.0.gpadls.set_next_id(2);
    let third = opened.create_gpadl(pages(ground, 1), SECOND).unwrap();
    assert_eq!(third.id(), GpadlId(3));
    ground.platform.advance(Duration::from_secs(5));
    ground.settle(&bus);
    bus.0.gpadls.set_next_id(2);
    let fourth = opened.create_gpadl(pages(ground, 1), SECOND).unwrap();
    assert_eq!(fourth.id(), GpadlId(2), "confirmed, so it is free");
    for gpadl in [last, third, fourth] {
        gpadl.teardown(SECOND).unwrap();
    }
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn c1_a_withdrawn_channels_id_is_released_after_its_gpadls() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let gpadl = opened.create_gpadl(pages(ground, 2), SECOND).unwrap();
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    assert!(opened.create_gpadl(pages(ground, 2), SECOND).is_err());
    opened.close(SECOND).unwrap();
    assert_eq!(ground.posts_of(13), 0);
    gpadl.teardown(SECOND).unwrap();
    assert_eq!(ground.posts_of(13), 1);
    drop(opened);
    ground.finish(bus);
}

#[test]
fn posts_that_fail_in_the_middle_of_a_description_take_it_back() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let live = ground.platform.live_pages();
    // A refusal that is final, at the first body.
    let step = ground.host.step_count();
    ground
        .host
        .at_step(step, model::When::After, |host, _| host.fail_posts(0x06, 1));
    let error = opened.create_gpadl(pages(ground, 60), SECOND).unwrap_err();
    assert!(matches!(error, Error::Hypercall(_)), "{error}");
    ground.settle(&bus);
    assert_eq!((ground.posts_of(11), ground.platform.live_pages()), (1, live));
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g3_the_rings_of_a_channel_that_the_host_was_not_told_of_closing_are_not_asked_for() {
    let (ground, id) = Ground::with_channel();
    let bus = ground.connect();
    let (channel, _) = open(&bus, id);
    // Neither a refusal nor a host that is busy for too long.
    ground.host.fail_posts(0x06, 1);
    assert!(matches!(channel.close(SECOND), Err(Error::Hypercall(_))));
    assert_eq!(
        (ground.posts_of(7), ground.posts_of(11)),
        (1, 0),
        "no teardown under an open channel"
    );
    assert_eq!(bus.counters().parked_blocks, 1);
    // The end of the connection is the host's word for it. To the model the channel was open until then.
    bus.disconnect(SECOND).unwrap();
    assert_eq!((bus.counters().unparked_blocks, bus.counters().lost_blocks), (1, 0));
    let violations = ground.host.take_violations();
    assert!(
        violations.iter().all(|text| text.contains("UNLOAD with channels")),
        "{violations:?}"
    );
    drop((channel, bus));
    ground.hypervisor.disable_hypercalls().unwrap();
    assert!(ground.host.is_at_rest());
    ground.check();
}

#[test]
fn g6_the_known_limit_is_that_of_the_hosts_version() {
    let known = Config::default();
    assert_eq!(known.gpadl_byte_limit(Version::V4_1), 402_653_184);
    assert_eq!(known.gpadl_byte_limit(Version::V5_0), 1_342_177_280);
    let own = Config {
        gpadl_bytes: Some(7),
        ..Config::default()
    };
    assert_eq!(own.gpadl_byte_limit(Version::V6_0), 7);
}

/// Counts its own end.
struct Watched(Arc<AtomicU32>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn q4_what_a_channel_keeps_besides_its_one_thing_stays_lent_for_good() {
    for is_closed_first in [false, true] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        let (opened, _) = open(&bus, channel);
        let dropped = Arc::new(AtomicU32::new(0));
        let keep = || opened.keep(Kept::new(Box::new(Watched(Arc::clone(&dropped))), 3));
        let close = || {
            ground.host.set_next_replies(11, Reply::Late(Duration::from_secs(5)), 1);
            assert_eq!(opened.close(SECOND), Err(Error::TimedOut));
        };
        if is_closed_first {
            close();
        }
        keep();
        assert_eq!(bus.counters().lost_blocks, 0);
        keep();
        assert_eq!((dropped.load(Ordering::SeqCst), bus.counters().lost_blocks), (0, 3));
        if !is_closed_first {
            close();
        }
        ground.platform.advance(Duration::from_secs(6));
        ground.settle(&bus);
        assert_eq!(dropped.load(Ordering::SeqCst), 1, "the one that was kept");
        keep();
        assert_eq!(dropped.load(Ordering::SeqCst), 2, "the host has given it up");
        assert_eq!(bus.counters().lost_blocks, 3);
        drop(opened);
        ground.finish(bus);
    }
}
