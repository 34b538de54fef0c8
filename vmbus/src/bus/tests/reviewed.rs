//! What a review by breaking the code found that nothing showed.

use core::time::Duration;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::testing::model::When;

#[test]
fn c3_a_signal_that_is_taken_while_the_channel_is_still_opening_is_told_once_it_is_open() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (host, id) = (ground.host, channel.0);
    let handle = bus.clone();
    let taken = Arc::new(AtomicU32::new(0));
    let counter = taken.clone();
    // The step after the GPADL's header is OPENCHANNEL. The host has answered, but the opener has not looked yet.
    host.at_step(host.step_count() + 1, When::After, move |host, _| {
        host.channel(id).signal();
        let progress = handle.process(ProcessorIndex(0));
        counter.fetch_add(u32::try_from(progress.signals).unwrap(), Ordering::SeqCst);
    });
    let (opened, recorder) = open(&bus, channel);
    assert!(
        taken.load(Ordering::SeqCst) >= 1,
        "the flag was still set when the channel was opened"
    );
    ground.settle(&bus);
    assert_eq!(recorder.count(&Told::Signalled), 1);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn g4_memory_that_is_parked_when_a_bus_goes_that_the_host_has_not_let_go_of_is_lost() {
    let (ground, channel) = Ground::with_channel();
    // A handle in interrupt entry or deferred work would keep the bus.
    let bus = Bus::connect(ground.hypervisor, ground.platform, Config::default()).unwrap();
    let (opened, _) = open(&bus, channel);
    ground.host.set_reply(11, model::Reply::Silent);
    ground.host.set_reply(16, model::Reply::Ignore);
    assert_eq!(opened.close(SECOND), Err(Error::TimedOut));
    drop(opened);
    assert_eq!(bus.counters().parked_blocks, 1);
    assert_eq!(bus.disconnect(SECOND), Err(Error::TimedOut));
    assert_eq!(bus.counters().lost_blocks, 1);
    drop(bus);
    ground.hypervisor.disable_hypercalls().unwrap();
    // The rings, ten pages, and the three of the contact: nobody else may ever have them.
    assert_eq!(ground.platform.live_pages(), 13);
    ground.platform.assert_no_faults();
}

#[test]
fn m4_a_withdrawal_ends_the_posting_to_a_host_that_is_busy() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.fail_posts(0x13, 40);
    let step = ground.host.step_count() + 4;
    ground
        .host
        .at_step(step, When::After, move |host, _| host.rescind(channel.0));
    let start = ground.hypervisor.now();
    let error = bus
        .open(
            channel,
            &OpenParameters::default(),
            Recorder::default(),
            Deadline::seconds(60),
        )
        .unwrap_err();
    assert_eq!(error, Error::Rescinded(channel));
    // Some pauses of milliseconds, and not the 35 attempts that were left.
    assert!(ground.host.step_count() <= step + 8, "{:?}", ground.host.steps());
    assert!(ground.hypervisor.elapsed_since(start) < Duration::from_secs(1));
    ground.host.fail_posts(0, 0);
    ground.platform.advance(Duration::from_secs(20));
    for _ in 0..40 {
        ground.settle(&bus);
    }
    assert_eq!(ground.host.counters().refused_posts, 40);
    ground.settle(&bus);
    ground.finish(bus);
}
