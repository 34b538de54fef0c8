//! Messages that nobody expects, and those that are none.

use super::*;
use crate::testing::model::Reply;

/// A message of `len` bytes with these words.
fn message(len: usize, words: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for &(offset, word) in words {
        bytes[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[test]
fn m5_answers_that_nobody_waits_for_are_counted_and_change_nothing() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, recorder) = open(&bus, channel);
    let stray = [
        message(12, &[(0, 15), (8, 1)]),
        message(20, &[(0, 6), (8, channel.0), (12, 1)]),
        message(20, &[(0, 6), (8, channel.0), (12, 99), (16, 5)]),
        message(20, &[(0, 10), (8, channel.0), (12, 1)]),
        message(20, &[(0, 10), (8, 77), (12, 77), (16, 1)]),
        // The ring's GPADL: nobody asked to tear it down.
        message(12, &[(0, 12), (8, 1)]),
        message(12, &[(0, 12), (8, 0xffff_ffff)]),
        message(16, &[(0, 24), (8, channel.0)]),
        message(8, &[(0, 17)]),
        message(8, &[(0, 4)]),
    ];
    for bytes in &stray {
        ground.host.send_raw(bytes);
        ground.settle(&bus);
    }
    assert_eq!(bus.counters().stray_replies, stray.len() as u64);
    assert_eq!(opened.state(), ChannelState::Open);
    assert!(bus.is_connected());
    assert_eq!(recorder.count(&Told::Rescinded), 0);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn m5_every_answer_twice_changes_nothing() {
    let (ground, channel) = Ground::with_channel();
    for request in [14, 3, 5, 8, 11, 22] {
        ground.host.set_reply(request, Reply::Twice);
    }
    let bus = ground.connect();
    for _ in 0..3 {
        let (opened, _) = open(&bus, channel);
        opened.retarget(ProcessorIndex(0), SECOND).unwrap();
        opened.close(SECOND).unwrap();
    }
    ground.settle(&bus);
    // Contact, offers; and for each opening a GPADL, the opening, the move, the teardown.
    assert_eq!(bus.counters().stray_replies, 2 + 3 * 4);
    ground.finish(bus);
}

#[test]
fn m2_unknown_and_short_messages_are_counted_and_their_slot_is_freed() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    for kind in 0..40_u32 {
        for len in [0, 1, 7, 8, 9, 11, 12, 19, 195, 240] {
            let mut bytes = message(len.max(4), &[(0, kind)]);
            bytes.truncate(len);
            ground.host.send_raw(&bytes);
        }
    }
    ground.settle(&bus);
    let counters = bus.counters();
    assert!(
        counters.short_messages > 100 && counters.unknown_messages > 100,
        "{counters:?}"
    );
    assert_eq!(ground.host.waiting_messages(0), 0, "every slot was freed");
    // The bus still works.
    let (opened, _) = open(&bus, channel);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn m2_messages_of_other_ports_and_false_lengths_are_ignored() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.send_slot(2, 8, &message(8, &[(0, 17)]));
    ground.host.send_slot(0x8000_0010, 24, &[0; 24]);
    ground.host.send_slot(1, 255, &message(240, &[(0, 99)]));
    ground.host.send_slot(1, 0, &message(12, &[(0, 2), (8, channel.0)]));
    ground.settle(&bus);
    assert_eq!(bus.offers().count(), 1, "a withdrawal without length is none");
    assert_eq!(bus.counters().unknown_messages, 3);
    assert_eq!(bus.counters().short_messages, 1);
    ground.finish(bus);
}

#[test]
fn m4_an_answer_with_another_key_is_not_taken_for_ours() {
    for request in [5, 8, 11] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        ground.host.set_next_replies(request, Reply::OtherKey, 1);
        let result = bus
            .open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
            .and_then(|channel| channel.close(SECOND));
        assert_eq!(result.err(), Some(Error::TimedOut), "request {request}");
        assert_eq!(bus.counters().stray_replies, 1);
        ground.settle(&bus);
        ground.host.assert_no_violations();
    }
}

#[test]
fn m1_a_slot_that_changes_after_it_was_read_does_not_matter() {
    // The slot is copied once: the host rewrites it at the guest's write to the end-of-message register.
    let (ground, _) = Ground::with_channel();
    let bus = ground.connect();
    let slot = ground.host.slot_address(0, 2).unwrap();
    ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE));
    // A second message waits, so that the guest writes that register.
    ground
        .host
        .offer(model::Offer::new(CLASS, "1eccfd72-4b41-45ef-b73a-4a6e44c12926"));
    let step = ground.host.step_count();
    let platform = ground.platform;
    ground.host.at_step(step, model::When::Before, move |_, _| {
        platform.guest_write(slot + 16, &[0xff; 240]).unwrap();
    });
    ground.settle(&bus);
    assert_eq!(bus.offers().count(), 3);
    assert_eq!(bus.counters().unknown_messages, 0);
}
