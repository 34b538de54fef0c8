//! Several processors: callbacks that run elsewhere, and channels that move.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::testing::model::Reply;

/// A callback that stays until it is let go.
struct Stays {
    is_in: Arc<AtomicBool>,
    may_go: Arc<AtomicBool>,
}

impl ChannelSink for Stays {
    fn signalled(&self, _: &ChannelCore) {
        self.is_in.store(true, Ordering::SeqCst);
        wait_until("leave to end", || self.may_go.load(Ordering::SeqCst));
        self.is_in.store(false, Ordering::SeqCst);
    }

    fn rescinded(&self, _: &ChannelCore) {}
}

#[test]
fn c2_closing_waits_for_the_callback_that_runs_on_another_processor() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    ground.platform.use_real_time();
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = Bus::connect(
        ground.hypervisor,
        ground.platform,
        Config {
            processors: 2,
            ..Config::default()
        },
    )
    .unwrap();
    let (is_in, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    let sink = Stays {
        is_in: is_in.clone(),
        may_go: may_go.clone(),
    };
    let parameters = OpenParameters {
        target: ProcessorIndex(1),
        ..OpenParameters::default()
    };
    let opened = bus.open(channel, &parameters, sink, SECOND).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _there = ground.platform.on_processor(1);
            wait_until("the end of the channel", || {
                bus.process(ProcessorIndex(1));
                is_over.load(Ordering::SeqCst)
            });
        });
        opened.schedule();
        wait_until("the callback", || is_in.load(Ordering::SeqCst));
        let go = may_go.clone();
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            go.store(true, Ordering::SeqCst);
        });
        opened.close(Deadline::seconds(30)).unwrap();
        assert!(!is_in.load(Ordering::SeqCst), "the callback has ended");
        is_over.store(true, Ordering::SeqCst);
    });
    ground.check();
}

#[test]
fn c2_a_callback_that_stays_keeps_the_id_until_it_ends() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    ground.platform.use_real_time();
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = Bus::connect(
        ground.hypervisor,
        ground.platform,
        Config {
            processors: 2,
            ..Config::default()
        },
    )
    .unwrap();
    let (is_in, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    let sink = Stays {
        is_in: is_in.clone(),
        may_go: may_go.clone(),
    };
    let parameters = OpenParameters {
        target: ProcessorIndex(1),
        ..OpenParameters::default()
    };
    let opened = bus.open(channel, &parameters, sink, SECOND).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _there = ground.platform.on_processor(1);
            bus.process(ProcessorIndex(1));
            wait_until("leave to end", || {
                bus.process(ProcessorIndex(1));
                may_go.load(Ordering::SeqCst)
            });
        });
        opened.schedule();
        wait_until("the callback", || is_in.load(Ordering::SeqCst));
        ground.host.rescind(channel.0);
        assert_eq!(opened.close(Deadline::millis(10)), Err(Error::TimedOut));
        bus.poll();
        assert_eq!(ground.posts_of(13), 0, "a callback can still run");
        may_go.store(true, Ordering::SeqCst);
    });
    assert_eq!(ground.posts_of(13), 1);
    ground.check();
}

#[test]
fn c6_c11_moving_a_channel_waits_for_the_answer_where_there_is_one() {
    for (version, expected) in [
        (Version::V6_0, Ok(Retargeted::Confirmed)),
        (Version::V5_3, Ok(Retargeted::Confirmed)),
        (Version::V5_2, Ok(Retargeted::Unconfirmed)),
        (Version::V4_1, Ok(Retargeted::Unconfirmed)),
        (Version::V4_0, Err(Error::NotSupported { version: Version::V4_0 })),
    ] {
        let config = model::Config::with_processors(Personality::HyperV, 3).max_version(version.to_wire());
        let ground = Ground::new(config);
        let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
        let bus = ground.connect_with(Config {
            processors: 3,
            ..Config::default()
        });
        {
            let _there = ground.platform.on_processor(1);
            bus.processor_online(ProcessorIndex(1)).unwrap();
        }
        let (opened, recorder) = open(&bus, channel);
        ground.settle(&bus);
        let before = recorder.count(&Told::Signalled);
        assert_eq!(
            opened.retarget(ProcessorIndex(2), SECOND),
            Err(Error::NoSuchProcessor(ProcessorIndex(2)))
        );
        assert_eq!(opened.retarget(ProcessorIndex(1), SECOND), expected);
        if expected.is_ok() {
            assert_eq!(
                (opened.target(), ground.host.channel(channel.0).target_vp()),
                (ProcessorIndex(1), Some(2))
            );
            // A flag that the earlier processor gets is honoured there.
            ground.host.set_event_flag(0, 2, u16::try_from(channel.0).unwrap());
            bus.process(ProcessorIndex(0));
            assert!(recorder.count(&Told::Signalled) > before);
            // C11: a processor with a channel does not go.
            let _there = ground.platform.on_processor(1);
            assert_eq!(
                bus.processor_offline(ProcessorIndex(1)),
                Err(Error::ProcessorInUse(ProcessorIndex(1)))
            );
        }
        opened.close(SECOND).unwrap();
        {
            let _there = ground.platform.on_processor(1);
            bus.processor_offline(ProcessorIndex(1)).unwrap();
        }
        assert_eq!(
            bus.processor_offline(ProcessorIndex(0)),
            Err(Error::ProcessorInUse(ProcessorIndex(0)))
        );
        ground.finish(bus);
    }
}

/// What came to the earlier processor until then is looked at there, and what came before the callbacks moved on the new one.
#[test]
fn c6_both_processors_look_when_a_channel_has_moved() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let config = Config {
        processors: 2,
        ..Config::default()
    };
    // Nobody runs what is deferred but this test.
    let bus = Bus::connect(ground.hypervisor, ground.platform, config).unwrap();
    let there = ground.platform.on_processor(1);
    bus.processor_online(ProcessorIndex(1)).unwrap();
    drop(there);
    let (opened, _) = open(&bus, channel);
    ground.platform.run_deferred(|index| {
        bus.process(index);
    });
    opened.retarget(ProcessorIndex(1), SECOND).unwrap();
    let deferred = ground.platform.take_deferred();
    assert!(
        deferred.contains(&ProcessorIndex(0)) && deferred.contains(&ProcessorIndex(1)),
        "{deferred:?}"
    );
    opened.close(SECOND).unwrap();
    ground.check();
}

#[test]
fn c11_what_has_come_to_a_processor_is_honoured_before_it_leaves() {
    let (ground, bus, channel) = two_processors();
    let (opened, recorder) = open(&bus, channel);
    ground.settle(&bus);
    // Only the processor itself can leave.
    assert_eq!(
        bus.processor_offline(ProcessorIndex(1)),
        Err(Error::NoSuchProcessor(ProcessorIndex(1)))
    );
    let before = recorder.count(&Told::Signalled);
    ground.host.disable_interrupts();
    ground.host.set_event_flag(1, 2, u16::try_from(channel.0).unwrap());
    let there = ground.platform.on_processor(1);
    bus.processor_offline(ProcessorIndex(1)).unwrap();
    drop(there);
    assert!(recorder.count(&Told::Signalled) > before);
    ground.host.enable_interrupts();
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

/// A bus on two processors, and a channel that is offered.
fn two_processors() -> (Ground, Bus, ChannelId) {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect_with(Config {
        processors: 2,
        ..Config::default()
    });
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    (ground, bus, channel)
}

#[test]
fn c6_a_silent_host_keeps_the_earlier_target() {
    let (ground, bus, channel) = two_processors();
    let (opened, _) = open(&bus, channel);
    ground.host.set_next_replies(22, Reply::Silent, 1);
    assert_eq!(opened.retarget(ProcessorIndex(1), SECOND), Err(Error::TimedOut));
    assert_eq!(opened.target(), ProcessorIndex(0));
    opened.close(SECOND).unwrap();
}

#[test]
fn c6_an_answer_to_a_move_that_was_never_asked_for_moves_nothing() {
    let (ground, bus, channel) = two_processors();
    let (opened, _) = open(&bus, channel);
    // Invalid parameter: for good.
    ground.host.fail_posts(0x05, 1);
    opened.retarget(ProcessorIndex(1), SECOND).unwrap_err();
    let [a, b, c, d] = channel.0.to_le_bytes();
    ground.host.send_raw(&[24, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    ground.settle(&bus);
    assert_eq!(opened.target(), ProcessorIndex(0));
    opened.close(SECOND).unwrap();
}

/// An interrupt comes while a callback runs, and the work that it asks for is done at once, by another worker of the same
/// processor.
struct Interrupted {
    bus: Bus,
    platform: &'static FakePlatform,
    has_run: AtomicBool,
}

impl ChannelSink for Interrupted {
    fn signalled(&self, _: &ChannelCore) {
        if !self.has_run.swap(true, Ordering::SeqCst) {
            self.platform.take_deferred();
            self.bus.acknowledge_interrupt(ProcessorIndex(0));
            assert_eq!(self.platform.take_deferred(), [ProcessorIndex(0)]);
            let progress = self.bus.process(ProcessorIndex(0));
            assert_eq!(progress, Progress::default(), "somebody is at work already");
        }
    }

    fn rescinded(&self, _: &ChannelCore) {}
}

#[test]
fn an_interrupt_whose_work_found_another_call_under_way_is_not_forgotten() {
    let (ground, channel) = Ground::with_channel();
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    let sink = Interrupted {
        bus: bus.clone(),
        platform: ground.platform,
        has_run: AtomicBool::new(false),
    };
    let opened = bus.open(channel, &OpenParameters::default(), sink, SECOND).unwrap();
    let progress = bus.process(ProcessorIndex(0));
    assert!(progress.is_more, "the mark stands, so there may be more to do");
    assert_eq!(ground.platform.take_deferred(), [ProcessorIndex(0)]);
    bus.process(ProcessorIndex(0));
    ground.platform.take_deferred();
    // The next interrupt is as good as the first.
    bus.acknowledge_interrupt(ProcessorIndex(0));
    assert_eq!(ground.platform.take_deferred(), [ProcessorIndex(0)]);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn messages_that_were_left_are_worked_on_without_another_interrupt() {
    let ground = Ground::hyper_v();
    // Nobody marks anything: interrupts go nowhere.
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    ground.platform.take_deferred();
    while bus.poll().is_more {}
    ground.platform.take_deferred();
    for _ in 0..1000 {
        ground.host.send_raw(&[99, 0, 0, 0, 0, 0, 0, 0]);
    }
    ground.host.run();
    let before = bus.counters().unknown_messages;
    let mut calls = 0;
    loop {
        let progress = bus.poll();
        calls += 1;
        if !progress.is_more {
            break;
        }
        assert_eq!(ground.platform.take_deferred(), [ProcessorIndex(0)], "scheduled again");
    }
    assert!(calls > 2, "a call's work is bounded: {calls}");
    assert_eq!(bus.counters().unknown_messages - before, 1000);
    ground.finish(bus);
}

#[test]
fn c8_an_end_that_is_asked_for_elsewhere_does_not_stall_the_message_processor() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let bus = ground.connect_with(Config {
        processors: 2,
        ..Config::default()
    });
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    // More messages than the slot of processor 0 holds: the others wait for it to say that the slot is free.
    for instance in [INSTANCE, OTHER_INSTANCE, "1eccfd72-4b41-45ef-b73a-4a6e44c12926"] {
        ground.host.offer(model::Offer::new(CLASS, instance));
    }
    ground.host.run();
    {
        let _there = ground.platform.on_processor(1);
        bus.disconnect(Deadline::seconds(20)).unwrap();
    }
    ground.hypervisor.disable_hypercalls().unwrap();
    assert!(ground.host.is_at_rest());
    ground.check();
}

#[test]
fn another_task_of_the_same_processor_is_not_taken_for_the_callback() {
    let (ground, channel) = Ground::with_channel();
    ground.platform.use_real_time();
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    let (is_in, may_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let sink = Stays {
        is_in: is_in.clone(),
        may_go: may_go.clone(),
    };
    let opened = bus.open(channel, &OpenParameters::default(), sink, SECOND).unwrap();
    std::thread::scope(|scope| {
        let bus = &bus;
        opened.schedule();
        scope.spawn(|| bus.process(ProcessorIndex(0)));
        wait_until("the callback", || is_in.load(Ordering::SeqCst));
        assert!(!opened.is_in_callback());
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            may_go.store(true, Ordering::SeqCst);
        });
        assert_eq!(opened.close(Deadline::seconds(30)), Ok(()), "it waits for the callback");
        assert!(!is_in.load(Ordering::SeqCst));
    });
    ground.finish(bus);
}

#[test]
fn a_signal_reaches_the_channel_with_the_largest_number_that_was_offered() {
    for number in [63, 64, 2047] {
        let ground = Ground::hyper_v();
        ground.host.offer_as(number, model::Offer::new(CLASS, INSTANCE));
        let bus = ground.connect();
        let (opened, recorder) = open(&bus, ChannelId(number));
        ground.settle(&bus);
        let before = recorder.count(&Told::Signalled);
        ground.host.set_event_flag(0, 2, u16::try_from(number).unwrap());
        ground.settle(&bus);
        assert_eq!(recorder.count(&Told::Signalled), before + 1, "channel {number}");
        opened.close(SECOND).unwrap();
        ground.finish(bus);
    }
}

#[test]
fn a_processor_takes_part_only_where_it_runs_and_where_there_is_one() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 3));
    let bus = ground.connect_with(Config {
        processors: 2,
        ..Config::default()
    });
    let not = |index| Err(Error::NoSuchProcessor(ProcessorIndex(index)));
    assert_eq!(bus.processor_online(ProcessorIndex(1)), not(1), "another one's");
    {
        let _there = ground.platform.on_processor(2);
        assert_eq!(
            bus.processor_online(ProcessorIndex(2)),
            not(2),
            "not in the configuration"
        );
    }
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
        bus.processor_online(ProcessorIndex(1)).unwrap();
        assert_eq!(bus.processor_offline(ProcessorIndex(0)), not(0));
    }
    assert_eq!(bus.processor_offline(ProcessorIndex(1)), not(1));
    let _there = ground.platform.on_processor(1);
    bus.processor_offline(ProcessorIndex(1)).unwrap();
    assert!(bus.end_of_interrupt(ProcessorIndex(1)).is_none());
}

#[test]
fn who_asks_for_its_callback_is_called_on_its_own_processor_and_nobody_else_is() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let channels = [INSTANCE, OTHER_INSTANCE, "1eccfd72-4b41-45ef-b73a-4a6e44c12926"]
        .map(|instance| ChannelId(ground.host.offer(model::Offer::new(CLASS, instance))));
    // Nobody's work is done but by the calls below.
    let config = Config {
        processors: 2,
        ..Config::default()
    };
    let bus = Bus::connect(ground.hypervisor, ground.platform, config).unwrap();
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    let [(asks, first), (asks_there, second), (_silent, third)] = [0, 1, 2].map(|index| {
        let parameters = OpenParameters {
            target: ProcessorIndex(u32::from(index == 1)),
            ..OpenParameters::default()
        };
        let recorder = Recorder::default();
        let channel = channels[index];
        let opened = bus.open(channel, &parameters, recorder.clone(), SECOND).unwrap();
        (opened, recorder)
    });
    let process = |index| {
        let _there = ground.platform.on_processor(index);
        while bus.process(ProcessorIndex(index)).is_more {}
    };
    let told = || [&first, &second, &third].map(|recorder| recorder.count(&Told::Signalled));
    process(0);
    process(1);
    let before = told();
    asks.schedule();
    asks_there.schedule();
    process(0);
    assert_eq!(told(), [before[0] + 1, before[1], before[2]]);
    process(1);
    assert_eq!(told(), [before[0] + 1, before[1] + 1, before[2]]);
    ground.check();
}
