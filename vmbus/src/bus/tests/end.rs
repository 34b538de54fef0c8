//! The end of a connection.

use std::time::Duration;

use super::*;
use crate::testing::model::{Pace, Reply, When};

#[test]
fn c8_everything_is_given_back_and_the_bus_can_be_connected_again() {
    let (ground, channel) = Ground::with_channel();
    for _ in 0..3 {
        let bus = ground.connect();
        let (opened, recorder) = open(&bus, channel);
        bus.disconnect(Deadline::seconds(100)).unwrap();
        assert!(!bus.is_connected());
        assert_eq!(bus.disconnect(SECOND), Err(Error::Disconnected));
        bus.poll();
        assert_eq!(recorder.count(&Told::Rescinded), 1, "an open channel is told");
        assert_eq!(opened.signal(), Err(Error::Rescinded(channel)));
        opened.close(SECOND).unwrap();
        assert_eq!(bus.offers().count(), 0);
        assert_eq!(
            bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
                .err(),
            Some(Error::Disconnected)
        );
    }
    ground.hypervisor.disable_hypercalls().unwrap();
    assert!(ground.host.is_at_rest());
    ground.check();
}

#[test]
fn c8_nothing_is_posted_between_unload_and_its_answer() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    ground.host.set_reply(16, Reply::Late(Duration::from_secs(60)));
    let step = ground.host.step_count() + 1;
    // While the host takes its time it withdraws the offer: no release is posted.
    ground
        .host
        .at_step(step, When::After, move |host, _| host.rescind(channel.0));
    let start = ground.hypervisor.now();
    bus.disconnect(Deadline::Never).unwrap();
    assert!(ground.hypervisor.elapsed_since(start) >= Duration::from_secs(60));
    let posts = ground.posts();
    assert_eq!(posts.last().map(|(kind, _)| *kind), Some(16));
    drop(opened);
    ground.check();
}

#[test]
fn c8_the_wait_for_the_end_is_bounded_and_silence_is_told() {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    ground.host.set_reply(16, Reply::Silent);
    let start = ground.hypervisor.now();
    assert_eq!(bus.disconnect(Deadline::Never), Err(Error::TimedOut));
    let waited = ground.hypervisor.elapsed_since(start);
    assert!(
        waited >= Duration::from_secs(100) && waited < Duration::from_secs(102),
        "{waited:?}"
    );
    assert!(!bus.is_connected());
}

#[test]
fn c8_the_answer_is_found_in_another_processors_slot() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 3));
    let bus = Bus::connect(
        ground.hypervisor,
        ground.platform,
        Config {
            processors: 3,
            ..Config::default()
        },
    )
    .unwrap();
    {
        let _there = ground.platform.on_processor(2);
        bus.processor_online(ProcessorIndex(2)).unwrap();
    }
    // That processor never looks.
    ground.host.set_message_processor(Some(2));
    let result = bus.disconnect(Deadline::seconds(10));
    assert_eq!(
        result,
        Err(Error::ProcessorInUse(ProcessorIndex(2))),
        "its controller is on until it works"
    );
    ground.platform.run_deferred(|processor| {
        bus.process(processor);
    });
    assert!(bus.end_of_interrupt(ProcessorIndex(2)).is_none());
    drop(bus);
    assert_eq!(ground.platform.live_pages(), 1, "only the hypercall page");
    ground.check();
}

#[test]
fn c8_before_3_0_nothing_is_unloaded_but_everything_is_closed() {
    for (pace, has_memory) in [(Pace::AtOnce, true), (Pace::Later, true), (Pace::Later, false)] {
        let config = model::Config::new(Personality::HyperV).max_version(0x2_0004);
        let ground = Ground::new(config.pace(pace));
        let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
        let bus = ground.connect();
        let opened = has_memory.then(|| open(&bus, channel).0);
        let start = ground.hypervisor.now();
        bus.disconnect(SECOND).unwrap();
        // What there is to wait for comes, and nothing else is waited for.
        assert!(ground.hypervisor.elapsed_since(start) < Duration::from_millis(900));
        let count = usize::from(has_memory);
        assert_eq!(
            (ground.posts_of(16), ground.posts_of(7), ground.posts_of(11)),
            (0, count, count)
        );
        assert_eq!(ground.host.gpadl_count(), 0);
        // The memory is ours: the host has said so.
        if let Some(opened) = opened {
            opened.close(SECOND).unwrap();
        }
        assert_eq!(bus.counters().parked_blocks, 0);
        ground.check();
    }
}

#[test]
fn m4_the_end_of_the_connection_ends_waits() {
    let (ground, channel) = Ground::with_channel();
    ground.platform.use_real_time();
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    ground.host.set_reply(5, Reply::Silent);
    let result = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            bus.open(
                channel,
                &OpenParameters::default(),
                Recorder::default(),
                Deadline::Never,
            )
            .err()
        });
        wait_until("the request to open", || {
            ground.posts_of(5) != 0 || opening.is_finished()
        });
        bus.disconnect(Deadline::seconds(30)).unwrap();
        opening.join().unwrap()
    });
    assert_eq!(result, Some(Error::Disconnected));
    ground.platform.assert_no_faults();
}

#[test]
fn c9_an_emergency_ends_the_connection_with_every_lock_held() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let allocations = ground.platform.allocations();
    ground.host.expect_crash();
    let outgoing = outgoing(&opened);
    let incoming = opened.incoming();
    let answered = bus.0.with_all_locks_for_test(|| bus.emergency_unload());
    assert!(answered);
    drop((outgoing, incoming));
    assert_eq!(ground.platform.allocations(), allocations);
    assert_eq!(ground.host.version(), None);
    assert!(!bus.emergency_unload(), "once");
    ground.host.assert_no_violations();
}

/// A crash in the middle of posting a message: the area that messages are posted from is in use.
#[test]
fn c9_an_emergency_in_the_middle_of_posting_has_an_area_of_its_own() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.expect_crash();
    let (crashing, outcome) = (bus.clone(), Arc::new(Mutex::new(None)));
    let answered = outcome.clone();
    ground
        .host
        .at_step(ground.host.step_count(), When::Before, move |_, action| {
            assert!(matches!(action, Action::Post { .. }), "{action:?}");
            let is_answered = crashing.emergency_unload();
            *answered.lock().unwrap() = Some(is_answered);
        });
    // In a crash nothing comes after it.
    let opened = bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND);
    assert!(opened.is_err());
    assert_eq!(*outcome.lock().unwrap(), Some(true));
}

/// A host may be too busy to take the message because it waits for us to take its own.
#[test]
fn c9_an_emergency_takes_what_a_busy_host_has_sent_before_it_asks_again() {
    let (ground, _) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.expect_crash();
    // One lies in the slot, the other waits for it.
    ground.host.send_raw(&[0x55; 8]);
    ground.host.send_raw(&[0x55; 8]);
    assert_eq!(ground.host.waiting_messages(0), 1);
    ground.host.fail_posts(0x13, 1);
    let waiting = Arc::new(Mutex::new(None));
    // At the second attempt, whether there is an end of message before it or not.
    for later in [1, 2] {
        let seen = waiting.clone();
        let step = ground.host.step_count() + later;
        ground.host.at_step(step, When::Before, move |host, action| {
            if matches!(action, Action::Post { .. }) {
                seen.lock().unwrap().get_or_insert(host.waiting_messages(0));
            }
        });
    }
    assert!(bus.emergency_unload());
    assert_eq!(*waiting.lock().unwrap(), Some(0));
}

/// A processor that was stopped while its controller came or went is left out, not waited for.
#[test]
fn c9_an_emergency_does_not_wait_for_who_changes_a_controller() {
    let (ground, _) = Ground::with_channel();
    let bus = ground.connect_with(Config {
        emergency_timeout: Duration::from_millis(100),
        ..Config::default()
    });
    ground.host.expect_crash();
    let changing = bus.0.processor(ProcessorIndex(0)).unwrap().synic.write();
    assert!(!bus.emergency_unload(), "nobody could look for the answer");
    drop(changing);
}

#[test]
fn c9_an_emergency_looks_at_every_processors_slot() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 3));
    let bus = ground.connect_with(Config {
        processors: 3,
        ..Config::default()
    });
    {
        let _there = ground.platform.on_processor(2);
        bus.processor_online(ProcessorIndex(2)).unwrap();
    }
    ground.host.expect_crash();
    ground.host.set_message_processor(Some(2));
    assert!(bus.emergency_unload());
    ground.host.assert_no_violations();
}

#[test]
fn c9_messages_in_the_way_do_not_hide_the_answer_from_an_emergency() {
    let ground = Ground::hyper_v();
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    ground.host.expect_crash();
    for kind in 90..99 {
        ground.host.send_raw(&[kind, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert!(bus.emergency_unload());
    ground.host.assert_no_violations();
}

#[test]
fn c9_an_emergency_with_a_silent_or_busy_host_ends() {
    for is_busy in [false, true] {
        let ground = Ground::new(model::Config::new(Personality::HyperV).pace(Pace::AtOnce));
        // The clock of the test hardly moves while nobody waits.
        let timeout = Duration::from_micros(if cfg!(miri) { 20 } else { 1000 });
        let bus = ground.connect_with(Config {
            emergency_timeout: timeout,
            ..Config::default()
        });
        ground.host.expect_crash();
        if is_busy {
            ground.host.fail_posts(0x13, u32::MAX);
        } else {
            ground.host.set_reply(16, Reply::Silent);
        }
        let start = ground.hypervisor.now();
        assert!(!bus.emergency_unload());
        let waited = ground.hypervisor.elapsed_since(start);
        assert!(waited >= timeout && waited < 2 * timeout, "{waited:?}");
    }
}

#[test]
fn c9_an_emergency_before_3_0_or_after_the_end_does_nothing() {
    let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(0x2_0004));
    let bus = ground.connect();
    assert!(!bus.emergency_unload());
    assert_eq!(ground.posts_of(16), 0);
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    bus.disconnect(SECOND).unwrap();
    assert!(!bus.emergency_unload());
    assert_eq!(ground.posts_of(16), 1);
    ground.check();
}

#[test]
fn c9_only_the_answer_to_the_end_is_taken_for_it_in_an_emergency() {
    let ground = Ground::hyper_v();
    let config = Config {
        emergency_timeout: Duration::from_millis(1),
        ..Config::default()
    };
    let bus = Bus::connect(ground.hypervisor, ground.platform, config).unwrap();
    ground.host.expect_crash();
    ground.host.set_reply(16, Reply::Silent);
    // Another message of the bus, and the words of the answer from somewhere else.
    ground.host.send_raw(&[4, 0, 0, 0, 0, 0, 0, 0]);
    ground.host.send_slot(2, 8, &[17, 0, 0, 0, 0, 0, 0, 0]);
    assert!(!bus.emergency_unload());
    assert_eq!(ground.host.waiting_messages(0), 0, "both were looked at");
}

#[test]
fn c9_an_emergency_works_from_3_0_on_and_insists_only_where_that_may_help() {
    // No refusal, no such connection, no room, access denied.
    for (status, times, posts, expected) in [
        (0, 0, 1, true),
        (0x12, 3, 4, true),
        (0x13, 3, 4, true),
        (0x06, 3, 1, false),
    ] {
        let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(0x3_0000));
        let bus = ground.connect();
        ground.host.expect_crash();
        ground.host.fail_posts(status, times);
        assert_eq!(bus.emergency_unload(), expected, "{status:#x}");
        assert_eq!(ground.posts_of(16), posts, "{status:#x}");
    }
}
