//! The table of offers by itself, and what comes between two looks at it.

use super::*;
use crate::bus::table::{Admission, Table};
use crate::protocol::offer::OfferChannel;
use crate::protocol::{ConnectionId, Guid};

fn offer(channel: u32, instance: Guid) -> Offer {
    Offer::new(&OfferChannel::new(
        Guid::ZERO,
        instance,
        ChannelId(channel),
        ConnectionId(1),
    ))
}

#[test]
fn c4_what_is_held_back_is_not_opened_by_who_looked_for_another_with_its_id() {
    const SECOND_DEVICE: Guid = Guid::literal(INSTANCE);
    let platform = FakePlatform::new();
    let table: &Table = Box::leak(Box::new(Table::new(platform, 4, 64).unwrap()));
    let (admission, first) = table.admit(offer(5, Guid::ZERO));
    assert_eq!(admission, Admission::Shown);
    table.admit(offer(6, SECOND_DEVICE));
    let (old, _) = table.claim(ChannelId(6)).unwrap();
    table.withdraw(ChannelId(6));
    // Between the look for the place and the look at it.
    platform.before_lock(0, move || {
        table.withdraw(first.channel);
        let (place, _) = table.next_release().unwrap();
        table.released(place);
        assert_eq!(table.admit(offer(5, SECOND_DEVICE)).0, Admission::Held);
    });
    assert_eq!(
        table.claim(ChannelId(5)).err(),
        Some(Error::NoSuchChannel(ChannelId(5)))
    );
    // It is there when the other one is gone.
    table.closed(old);
    let (place, _) = table.next_release().unwrap();
    assert!(table.released(place));
    assert!(table.claim(ChannelId(5)).is_ok());
}

#[test]
fn c1_nobody_begins_to_use_an_offer_of_which_the_host_is_being_told_that_it_is_free() {
    let table = Table::new(FakePlatform::new(), 4, 64).unwrap();
    let (_, offered) = table.admit(offer(5, Guid::ZERO));
    assert!(table.add_user(0, &offered));
    table.withdraw(ChannelId(5));
    // Somebody who shared memory on it in time, and not behind.
    table.remove_user(0);
    let (place, _) = table.next_release().unwrap();
    assert!(!table.add_user(place, &offered));
    table.released(place);
}

#[test]
fn m4_an_answer_ends_the_posting_of_what_it_answers() {
    for status in [0xc000_0001_u32, 0] {
        let (ground, id) = Ground::with_channel();
        let bus = ground.connect();
        let (opened, _) = open(&bus, id);
        // The host answers as soon as it has seen the first of several messages, and is busy then.
        let step = ground.host.step_count();
        ground.host.at_step(step, model::When::After, move |host, _| {
            let words = [10, 0, id.0, 2, status];
            host.send_raw(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
            host.fail_posts(0x13, 5000);
        });
        let memory = crate::memory::SharedPages::allocate(ground.platform, 60).unwrap();
        let result = opened.create_gpadl(memory, Deadline::seconds(5)).map(drop);
        assert!(bus.counters().busy_posts < 100, "{}", bus.counters().busy_posts);
        let expected = if status == 0 {
            Ok(())
        } else {
            Err(Error::Refused { status })
        };
        assert_eq!(result, expected);
    }
}
