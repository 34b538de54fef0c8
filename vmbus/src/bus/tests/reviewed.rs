//! What a review by breaking the code found that nothing showed.

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
