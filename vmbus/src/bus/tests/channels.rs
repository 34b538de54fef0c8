//! Opening, using and closing channels.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::hyperv::{HypercallError, HypercallStatus};
use crate::ring::{Header, ReadError};
use crate::testing::model::{Echo, Reply, When};

const fn header(transaction: u64) -> Header {
    Header::in_band(transaction)
}

#[test]
fn a_channel_opens_with_what_was_asked_for() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 3));
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect_with(Config {
        processors: 3,
        ..Config::default()
    });
    {
        let _there = ground.platform.on_processor(1);
        bus.processor_online(ProcessorIndex(1)).unwrap();
    }
    let parameters = OpenParameters {
        outgoing_pages: 3,
        incoming_pages: 7,
        target: ProcessorIndex(1),
        user_data: [0xc3; 120],
        ..OpenParameters::default()
    };
    let opened = bus.open(channel, &parameters, Recorder::default(), SECOND).unwrap();
    let end = ground.host.channel(channel.0);
    assert!(end.is_open());
    assert_eq!(end.user_data(), Some([0xc3; 120]));
    // B6: the hypervisor's number of the processor, which is another than ours.
    assert_eq!(end.target_vp(), Some(2));
    assert_eq!(opened.state(), ChannelState::Open);
    assert_eq!(bus.shared_bytes(), (4 + 8) * 4096);
    opened.close(SECOND).unwrap();
    assert!(!end.is_open());
    assert_eq!(bus.shared_bytes(), 0);
    ground.finish(bus);
}

#[test]
fn b6_a_processor_that_is_not_on_line_is_no_target() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect_with(Config {
        processors: 2,
        ..Config::default()
    });
    for target in [1, 2, 99] {
        let parameters = OpenParameters {
            target: ProcessorIndex(target),
            ..OpenParameters::default()
        };
        let error = bus.open(channel, &parameters, Recorder::default(), SECOND).unwrap_err();
        assert_eq!(error, Error::NoSuchProcessor(ProcessorIndex(target)));
    }
    assert_eq!(ground.posts_of(8), 0);
    ground.finish(bus);
}

/// The control page of the ring that sends says what its producer does; so it is seen whether it is made.
#[test]
fn r14_the_rings_are_made_before_the_host_hears_of_their_memory() {
    const FEATURES: u64 = 64;
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let platform = ground.platform;
    let announced = move || {
        let mut word = [0; 4];
        let pages = platform.page_addresses().into_iter();
        pages
            .filter(|page| platform.guest_read(page + FEATURES, &mut word).is_ok() && word == [1, 0, 0, 0])
            .count()
    };
    let before = announced();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at_post = seen.clone();
    ground
        .host
        .at_step(ground.host.step_count(), When::Before, move |_, action| {
            at_post.lock().unwrap().push((action, announced()));
        });
    let (opened, _) = open(&bus, channel);
    let seen = seen.lock().unwrap().clone();
    assert!(
        matches!(seen[..], [(Action::Post { message_type: 8, .. }, rings)] if rings == before + 1),
        "{seen:?}"
    );
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn b6_a_channel_is_opened_and_moved_to_the_hypervisors_number_of_its_processor() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 4));
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect_with(Config {
        processors: 4,
        ..Config::default()
    });
    for index in [1, 3] {
        let _there = ground.platform.on_processor(index);
        bus.processor_online(ProcessorIndex(index)).unwrap();
    }
    let parameters = OpenParameters {
        target: ProcessorIndex(1),
        ..OpenParameters::default()
    };
    let opened = bus.open(channel, &parameters, Recorder::default(), SECOND).unwrap();
    let target = || ground.host.channel(channel.0).target_vp();
    assert_eq!(target(), Some(3));
    opened.retarget(ProcessorIndex(3), SECOND).unwrap();
    assert_eq!(target(), Some(1));
    opened.close(SECOND).unwrap();
    ground.check();
}

#[test]
fn packets_go_both_ways_and_signals_reach_the_sink() {
    for personality in [Personality::HyperV, Personality::OpenVmm, Personality::Qemu] {
        let ground = Ground::new(model::Config::new(personality));
        let channel = ChannelId(ground.host.offer_with(model::Offer::new(CLASS, INSTANCE), Echo));
        let bus = ground.connect();
        let (opened, recorder) = open(&bus, channel);
        ground.settle(&bus);
        let before = recorder.count(&Told::Signalled);
        outgoing(&opened).send(header(42), b"twelve bytes").unwrap();
        if outgoing(&opened).commit().is_needed() {
            opened.signal().unwrap();
        }
        ground.settle(&bus);
        assert!(recorder.count(&Told::Signalled) > before, "{personality:?}");
        {
            let mut incoming = opened.incoming();
            let packet = incoming.next().unwrap();
            assert_eq!(packet.payload().get(..12), Some(&b"twelve bytes"[..]));
            assert!(matches!(incoming.next(), Err(ReadError::Empty)));
            let _ = incoming.commit();
        }
        assert_eq!(opened.counters().signals_sent, 1);
        assert!(opened.counters().signals_received >= 1);
        opened.close(SECOND).unwrap();
        assert!(matches!(opened.signal(), Err(Error::NotOpen(_))));
        ground.finish(bus);
    }
}

#[test]
fn signals_before_5_0_set_the_bit_of_a_channel_that_shares_its_interrupt() {
    for (version, is_dedicated, expected) in [
        (0x4_0000, false, true),
        (0x4_0000, true, false),
        (0x5_0000, false, false),
    ] {
        let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(version));
        let mut offer = model::Offer::new(CLASS, INSTANCE);
        offer.is_dedicated = is_dedicated;
        let channel = ChannelId(ground.host.offer(offer));
        let bus = ground.connect();
        let (opened, _) = open(&bus, channel);
        opened.signal().unwrap();
        assert_eq!(
            ground.host.has_interrupt_bit(channel.0),
            expected,
            "{version:#x}, dedicated: {is_dedicated}"
        );
        opened.close(SECOND).unwrap();
        ground.finish(bus);
    }
}

#[test]
fn a_channel_can_be_opened_again_and_again() {
    let rounds = if cfg!(miri) { 3 } else { 500 };
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    let mut last = None;
    for _ in 0..rounds {
        let (opened, _) = open(&bus, channel);
        assert_ne!(Some(opened.open_id()), last);
        last = Some(opened.open_id());
        opened.close(SECOND).unwrap();
        drop(opened);
        assert_eq!(ground.platform.live_pages(), pages);
    }
    ground.finish(bus);
}

#[test]
fn an_open_channel_is_in_use_and_a_closed_one_is_not_open() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    let error = bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND);
    assert_eq!(error.err(), Some(Error::InUse(channel)));
    opened.close(SECOND).unwrap();
    assert_eq!(opened.close(SECOND), Err(Error::NotOpen(channel)));
    ground.finish(bus);
}

#[test]
fn a_dropped_channel_is_closed() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    let (opened, _) = open(&bus, channel);
    drop(opened);
    ground.settle(&bus);
    assert!(!ground.host.channel(channel.0).is_open());
    assert_eq!(ground.platform.live_pages(), pages);
    ground.finish(bus);
}

#[test]
fn c3_a_signal_before_the_answer_to_the_opening_is_kept() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (host, id) = (ground.host, channel.0);
    let flag = u16::try_from(id).unwrap();
    // Before the host even looks at OPENCHANNEL: the GPADL's header is the step before.
    let step = host.step_count() + 1;
    host.at_step(step, When::Before, move |host, _| {
        host.set_event_flag(0, 2, flag);
    });
    host.at_step(step, When::After, move |host, _| {
        host.channel(id).send_in_band(1, 0, b"early").unwrap();
    });
    let (opened, recorder) = open(&bus, channel);
    ground.settle(&bus);
    assert!(recorder.count(&Told::Signalled) >= 1);
    assert_eq!(
        opened.incoming().next().unwrap().payload().get(..5),
        Some(&b"early"[..])
    );
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn a_refused_opening_leaves_nothing_behind() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    ground.host.set_next_replies(5, Reply::Status(0xc000_0001), 1);
    let error = bus
        .open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
        .unwrap_err();
    assert_eq!(error, Error::Refused { status: 0xc000_0001 });
    assert_eq!((ground.platform.live_pages(), bus.shared_bytes()), (pages, 0));
    assert_eq!(ground.posts_of(7), 0, "what is not open is not closed");
    let (opened, _) = open(&bus, channel);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn m4_silence_at_each_request_of_an_opening_times_out_and_keeps_the_memory() {
    for request in [5, 8, 11] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        let pages = ground.platform.live_pages();
        ground.host.set_reply(request, Reply::Silent);
        let start = ground.hypervisor.now();
        let result = bus
            .open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
            .and_then(|channel| channel.close(SECOND));
        assert_eq!(result.err(), Some(Error::TimedOut), "request {request}");
        let waited = ground.hypervisor.elapsed_since(start);
        assert!(
            waited >= Duration::from_secs(1) && waited < Duration::from_secs(3),
            "{waited:?}"
        );
        if request == 11 {
            // G4: the host has not given it up.
            assert_eq!(ground.platform.live_pages(), pages + 10);
            assert_eq!(bus.counters().parked_blocks, 1);
        }
        ground.host.set_reply(request, Reply::Normal);
        ground.settle(&bus);
        bus.disconnect(Deadline::seconds(10)).unwrap();
        drop(bus);
        ground.host.assert_no_violations();
        ground.platform.assert_no_faults();
    }
}

#[test]
fn m4_a_late_answer_unparks_the_memory() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    let (opened, _) = open(&bus, channel);
    ground.host.set_next_replies(11, Reply::Late(Duration::from_secs(5)), 1);
    assert_eq!(opened.close(SECOND), Err(Error::TimedOut));
    drop(opened);
    assert_eq!(ground.platform.live_pages(), pages + 10);
    // It can be opened anew meanwhile, with other memory.
    let (again, _) = open(&bus, channel);
    again.close(SECOND).unwrap();
    drop(again);
    ground.platform.advance(Duration::from_secs(5));
    ground.settle(&bus);
    assert_eq!(ground.platform.live_pages(), pages);
    let counters = bus.counters();
    assert_eq!((counters.parked_blocks, counters.unparked_blocks), (1, 1));
    ground.finish(bus);
}

#[test]
fn c1_a_withdrawal_at_each_step_of_open_and_close_ends_the_wait_and_leaks_nothing() {
    // Count the steps of a life without trouble.
    let life = |bus: &Bus, channel| {
        let recorder = Recorder::default();
        let opened = bus.open(channel, &OpenParameters::default(), recorder.clone(), Deadline::Never);
        let result = opened.and_then(|opened| opened.close(Deadline::Never));
        (result, recorder)
    };
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let first = ground.host.step_count();
    life(&bus, channel).0.unwrap();
    let steps = ground.host.step_count() - first;
    assert!(steps >= 4, "{steps}");
    for step in (0..steps).step_by(if cfg!(miri) { 3 } else { 1 }) {
        for when in [When::Before, When::After] {
            let (ground, channel) = Ground::with_channel();
            let bus = ground.connect();
            let pages = ground.platform.live_pages();
            let at = ground.host.step_count() + step;
            ground.host.at_step(at, when, move |host, _| host.rescind(channel.0));
            let start = ground.hypervisor.now();
            let (result, _) = life(&bus, channel);
            assert!(
                matches!(result, Ok(()) | Err(Error::Rescinded(_))),
                "step {step}, {when:?}: {result:?}"
            );
            assert!(ground.hypervisor.elapsed_since(start) < Duration::from_secs(1));
            ground.settle(&bus);
            assert_eq!(ground.posts_of(13), 1, "step {step}, {when:?}");
            assert_eq!(bus.offers().count(), 0);
            // Without the host's word the memory rests for the time of grace.
            ground.platform.advance(Duration::from_secs(11));
            ground.settle(&bus);
            assert_eq!(ground.platform.live_pages(), pages, "step {step}, {when:?}");
            assert_eq!(bus.shared_bytes(), 0);
            ground.finish(bus);
        }
    }
}

#[test]
fn c1_the_sink_is_told_once_of_a_withdrawal_and_the_id_is_released_after_closing() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, recorder) = open(&bus, channel);
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    ground.settle(&bus);
    assert_eq!(recorder.count(&Told::Rescinded), 1);
    assert_eq!(opened.state(), ChannelState::Rescinded);
    assert_eq!(opened.signal(), Err(Error::Rescinded(channel)));
    assert_eq!(ground.posts_of(13), 0, "still in use");
    opened.close(SECOND).unwrap();
    assert_eq!((ground.posts_of(7), ground.posts_of(13)), (0, 1));
    ground.finish(bus);
}

/// Closes its own channel when signalled, and remembers what it got.
#[derive(Clone, Default)]
struct ClosesItself {
    slot: Arc<Mutex<Option<Channel>>>,
    result: Arc<Mutex<Option<Result<(), Error>>>>,
    drops: Arc<AtomicBool>,
}

impl ChannelSink for ClosesItself {
    fn signalled(&self, channel: &ChannelCore) {
        assert!(channel.is_in_callback());
        let mut slot = self.slot.lock().unwrap();
        let Some(owner) = slot.as_ref() else { return };
        *self.result.lock().unwrap() = Some(owner.close(Deadline::Never));
        if self.drops.load(Ordering::SeqCst) {
            *slot = None;
        }
    }

    fn rescinded(&self, _: &ChannelCore) {}
}

#[test]
fn closing_from_the_channels_own_callback_would_deadlock() {
    for drops in [false, true] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        let pages = ground.platform.live_pages();
        let sink = ClosesItself::default();
        sink.drops.store(drops, Ordering::SeqCst);
        let opened = bus
            .open(channel, &OpenParameters::default(), sink.clone(), SECOND)
            .unwrap();
        *sink.slot.lock().unwrap() = Some(opened);
        ground.host.channel(channel.0).signal();
        ground.settle(&bus);
        assert_eq!(*sink.result.lock().unwrap(), Some(Err(Error::WouldDeadlock)));
        // A handle that is dropped there closes when the callback has ended.
        assert_eq!(ground.host.channel(channel.0).is_open(), !drops);
        if let Some(owner) = sink.slot.lock().unwrap().take() {
            owner.close(SECOND).unwrap();
        }
        ground.settle(&bus);
        assert_eq!(ground.platform.live_pages(), pages);
        ground.finish(bus);
    }
}

#[test]
fn rings_that_are_none_are_refused_before_anything_is_sent() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    for (outgoing_pages, incoming_pages) in [(0, 4), (4, 0), (u32::MAX, 4), (4, u32::MAX), (8190, 4)] {
        let parameters = OpenParameters {
            outgoing_pages,
            incoming_pages,
            ..OpenParameters::default()
        };
        let error = bus.open(channel, &parameters, Recorder::default(), SECOND).unwrap_err();
        assert!(matches!(error, Error::InvalidRing(_)), "{error}");
    }
    // Ten thousand pages are too many for Miri.
    if !cfg!(miri) {
        let parameters = OpenParameters {
            outgoing_pages: 5000,
            incoming_pages: 5000,
            ..OpenParameters::default()
        };
        let error = bus.open(channel, &parameters, Recorder::default(), SECOND).unwrap_err();
        assert!(matches!(error, Error::BadRange(_)), "{error}");
    }
    assert_eq!(ground.posts_of(8), 0);
    ground.finish(bus);
}

#[test]
fn allocation_failing_at_each_step_of_opening_leaves_nothing_behind() {
    for nth in 0..10 {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        let pages = ground.platform.live_pages();
        ground.platform.fail_allocation(nth);
        let result = bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND);
        ground.platform.stop_failing();
        let is_done = result.is_ok();
        match result {
            Ok(opened) => opened.close(SECOND).unwrap(),
            Err(error) => assert!(matches!(error, Error::OutOfPages(_)), "{error}"),
        }
        assert_eq!(ground.platform.live_pages(), pages);
        ground.finish(bus);
        if is_done {
            assert!(nth > 0);
            return;
        }
    }
    panic!("never opened");
}

#[test]
fn a_channel_in_any_place_of_the_table_is_called_when_it_asks_for_it() {
    let ground = Ground::hyper_v();
    let offer = |number: u32| model::Offer::new(CLASS, &std::format!("1eccfd72-4b41-45ef-b73a-4a6e44c1{number:04}"));
    let ids: Vec<u32> = (0..5).map(|number| ground.host.offer(offer(number))).collect();
    let bus = ground.connect();
    for id in ids {
        let (opened, recorder) = open(&bus, ChannelId(id));
        let before = recorder.count(&Told::Signalled);
        opened.schedule();
        ground.settle(&bus);
        assert_eq!(recorder.count(&Told::Signalled), before + 1, "channel {id}");
        opened.close(SECOND).unwrap();
    }
    ground.finish(bus);
}

/// The channel that the table has, open or being opened.
fn entered(bus: &Bus, channel: ChannelId) -> Option<Shared<ChannelCore>> {
    bus.0.table.enter_channel(channel).inspect(|core| core.leave())
}

#[test]
fn a_channel_is_opening_until_the_answer_and_closing_until_the_end() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |expected, core: Option<Shared<ChannelCore>>| {
        let (bus, seen) = (bus.clone(), seen.clone());
        move |_: &Host, action| {
            assert!(matches!(action, Action::Post { message_type, .. } if message_type == expected));
            let core = core.or_else(|| entered(&bus, channel)).unwrap();
            seen.lock().unwrap().push(core.state());
        }
    };
    // The step after the GPADL's header is OPENCHANNEL.
    let step = ground.host.step_count() + 1;
    ground.host.at_step(step, When::Before, note(5, None));
    let (opened, _) = open(&bus, channel);
    assert_eq!(opened.state(), ChannelState::Open);
    // Nothing finds it in the table once the end has begun.
    let core = entered(&bus, channel);
    ground
        .host
        .at_step(ground.host.step_count(), When::Before, note(7, core));
    opened.close(SECOND).unwrap();
    assert_eq!(opened.state(), ChannelState::Closed);
    assert_eq!(*seen.lock().unwrap(), [ChannelState::Opening, ChannelState::Closing]);
    ground.finish(bus);
}

#[test]
fn what_is_asked_of_a_channel_that_is_gone_says_so() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    let pages = || crate::memory::SharedPages::allocate(ground.platform, 1).unwrap();
    let refused = |opened: &Channel| opened.create_gpadl(pages(), SECOND).err();
    assert_eq!(refused(&opened), Some(Error::Rescinded(channel)));
    opened.close(SECOND).unwrap();
    assert_eq!(refused(&opened), Some(Error::NotOpen(channel)));
    ground.finish(bus);
}

#[test]
fn a_host_that_stays_busy_is_given_up_at_the_callers_deadline_or_after_the_configured_time() {
    let busy = HypercallError::Retry(HypercallStatus::INSUFFICIENT_BUFFERS);
    // A second of tries takes Miri long.
    let configured = Duration::from_secs(if cfg!(miri) { 1 } else { 10 });
    for (seconds, expected, took) in [
        (1, Error::TimedOut, 1),
        (60, Error::Hypercall(busy), configured.as_secs()),
    ] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect_with(Config {
            post_timeout: configured,
            ..Config::default()
        });
        ground.host.fail_posts(0x13, u32::MAX);
        let start = ground.hypervisor.now();
        let deadline = Deadline::seconds(seconds);
        let result = bus.open(channel, &OpenParameters::default(), Recorder::default(), deadline);
        assert_eq!(result.err(), Some(expected));
        let waited = ground.hypervisor.elapsed_since(start).as_secs();
        assert!((took..=took + 1).contains(&waited), "{waited} s");
    }
}

#[test]
fn a_host_is_not_told_of_a_channel_that_it_has_withdrawn_while_it_was_being_closed() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    // As in the middle of a closing: nobody tells the channel of anything any more.
    bus.0.table.clear_open(0);
    ground.host.rescind(channel.0);
    bus.look_at_messages();
    opened.close(SECOND).unwrap();
    assert_eq!(ground.posts_of(7), 0);
}

#[test]
fn what_is_lost_elsewhere_is_counted_with_the_rest() {
    let (ground, _) = Ground::with_channel();
    let bus = ground.connect();
    bus.note_lost(3);
    assert_eq!(bus.counters().lost_blocks, 3);
    ground.finish(bus);
}
