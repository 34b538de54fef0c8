//! Offers and withdrawals.

use std::string::ToString;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::protocol::offer::OfferChannel;
use crate::protocol::{ChannelMessage, Guid};

fn rescind_message(channel: u32) -> Vec<u8> {
    let mut message = vec![0; 12];
    message[0] = 2;
    message[8..12].copy_from_slice(&channel.to_le_bytes());
    message
}

/// An offer's message, by hand.
pub(super) fn offer_message(channel: u32, instance: u8) -> Vec<u8> {
    let mut message = vec![0; 196];
    message[0] = 1;
    message[8..24].fill(0x77);
    message[24..40].fill(instance);
    message[184..188].copy_from_slice(&channel.to_le_bytes());
    message[190] = 1;
    message
}

#[test]
fn an_offer_is_shown_with_everything_that_the_host_said() {
    let ground = Ground::hyper_v();
    let mut offer = model::Offer::new(CLASS, INSTANCE);
    offer.flags = 0x2010;
    offer.mmio_megabytes = 8;
    offer.user_defined = [0x5a; 120];
    offer.monitor = Some(7);
    offer.connection = Some(0x1_2345);
    let channel = ground.host.offer(offer);
    let bus = ground.connect();
    let shown = bus.offer(ChannelId(channel)).unwrap();
    assert_eq!(shown.class, crate::protocol::class::DYNAMIC_MEMORY);
    assert_eq!(
        (shown.mmio_megabytes, shown.monitor, shown.connection.0),
        (8, Some(7), 0x1_2345)
    );
    assert_eq!((shown.flags.bits(), shown.user_defined), (0x2010, [0x5a; 120]));
    assert_eq!((shown.origin, shown.subchannel_index), (Origin::Host, 0));
    assert_eq!(
        shown.to_string(),
        "dynamic memory   525074dc-8985-46e2-8057-a307dc18a502  {1eccfd72-4b41-45ef-b73a-4a6e44c12924}  channel 1"
    );
    ground.finish(bus);
}

#[test]
fn m10_late_offers_come_at_any_time_and_each_observer_sees_each_once() {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    let mut early = OfferCursor::default();
    assert!(bus.next_offer(&mut early).is_none());
    let generation = bus.offer_generation();
    let first = ground.host.offer(model::Offer::new(CLASS, INSTANCE));
    ground.settle(&bus);
    assert_ne!(bus.offer_generation(), generation);
    assert_eq!(bus.next_offer(&mut early).unwrap().channel.0, first);
    assert!(bus.next_offer(&mut early).is_none());
    let second = ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE));
    ground.settle(&bus);
    assert_eq!(bus.next_offer(&mut early).unwrap().channel.0, second);
    let mut late = OfferCursor::default();
    assert_eq!(bus.next_offer(&mut late).unwrap().channel.0, first);
    assert_eq!(bus.next_offer(&mut late).unwrap().channel.0, second);
    ground.finish(bus);
}

struct Hook(std::sync::atomic::AtomicU32);

impl OfferEvents for Hook {
    fn offers_changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_operating_system_is_told_of_offers_that_come_and_go() {
    static HOOK: Hook = Hook(std::sync::atomic::AtomicU32::new(0));
    let ground = Ground::hyper_v();
    let bus = ground.connect_with(Config {
        offer_events: Some(&HOOK),
        ..Config::default()
    });
    assert_eq!(HOOK.0.load(Ordering::SeqCst), 0);
    let channel = ground.host.offer(model::Offer::new(CLASS, INSTANCE));
    ground.settle(&bus);
    assert_eq!(HOOK.0.load(Ordering::SeqCst), 1);
    ground.host.rescind(channel);
    ground.settle(&bus);
    assert_eq!(HOOK.0.load(Ordering::SeqCst), 2);
    // The end of the connection is the end of all of them.
    ground.finish(bus);
    assert_eq!(HOOK.0.load(Ordering::SeqCst), 3);
}

#[test]
fn c1_the_id_of_a_withdrawn_offer_is_released_once() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    assert_eq!(bus.offers().count(), 0);
    assert_eq!(ground.posts_of(13), 1);
    ground.settle(&bus);
    assert_eq!(ground.posts_of(13), 1);
    assert_eq!(bus.counters().released_ids, 1);
    assert_eq!(
        bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
            .err(),
        Some(Error::NoSuchChannel(channel))
    );
    ground.finish(bus);
}

#[test]
fn c1_a_busy_host_gets_the_release_later_and_once() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    ground.host.fail_posts(0x13, 3);
    ground.host.rescind(channel.0);
    for _ in 0..10 {
        bus.poll();
    }
    assert_eq!((ground.posts_of(13), bus.counters().released_ids), (4, 1));
    ground.finish(bus);
}

/// Two processors that look at the same time do not tell the host twice.
#[test]
fn c1_an_id_is_handed_out_for_release_once_until_it_could_not_be_told() {
    let (ground, channel) = Ground::with_channel();
    let table = table::Table::new(ground.platform, 4, 64).unwrap();
    let bus = ground.connect();
    let (_, offer) = table.admit(bus.offer(channel).unwrap());
    assert_eq!(table.next_release(), None);
    table.withdraw(channel);
    let release = table.next_release();
    assert_eq!(release.map(|(_, id)| id), Some(channel));
    assert_eq!(table.next_release(), None, "somebody is about to tell");
    let (place, _) = release.unwrap();
    table.release_later(place);
    assert_eq!(table.next_release(), release);
    table.released(place);
    assert!(table.next_release().is_none() && table.shown(offer.channel).is_none());
    ground.finish(bus);
}

/// What is held back may have the largest id of all: its signals arrive when it is opened.
#[test]
fn c4_signals_of_what_was_held_back_arrive_whatever_its_id() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (old, _) = open(&bus, channel);
    let new = ChannelId(2000);
    ground.host.offer_as(new.0, model::Offer::new(CLASS, INSTANCE));
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    old.close(SECOND).unwrap();
    ground.settle(&bus);
    let (opened, recorder) = open(&bus, new);
    ground.settle(&bus);
    let before = recorder.count(&Told::Signalled);
    ground.host.set_event_flag(0, 2, 2000);
    ground.settle(&bus);
    assert_eq!(recorder.count(&Told::Signalled), before + 1);
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}

/// Looks at the bus as soon as it is told, which may find more.
#[derive(Default)]
struct Curious {
    bus: Mutex<Option<Bus>>,
    calls: AtomicUsize,
}

impl OfferEvents for Curious {
    fn offers_changed(&self) {
        assert!(self.calls.fetch_add(1, Ordering::SeqCst) < 9, "told again and again");
        let bus = self.bus.lock().unwrap().clone();
        if let Some(bus) = bus {
            // Looks at messages, as every wait does.
            bus.wait_for_offers(Deadline::IMMEDIATE).unwrap();
        }
    }
}

#[test]
fn who_is_told_of_an_offer_may_look_at_once_and_is_told_once() {
    let curious: &'static Curious = Box::leak(Box::default());
    let ground = Ground::hyper_v();
    let bus = ground.connect_with(Config {
        offer_events: Some(curious),
        ..Config::default()
    });
    *curious.bus.lock().unwrap() = Some(bus.clone());
    curious.calls.store(0, Ordering::SeqCst);
    ground.host.offer(model::Offer::new(CLASS, INSTANCE));
    ground.settle(&bus);
    assert_eq!((curious.calls.load(Ordering::SeqCst), bus.offers().count()), (1, 1));
    *curious.bus.lock().unwrap() = None;
    ground.finish(bus);
}

/// A table with these offers: each a channel, a device of the class, and nothing else.
fn table_of(ground: &Ground, offers: &[(u32, u8)]) -> table::Table {
    let table = table::Table::new(ground.platform, 8, 64).unwrap();
    for &(channel, instance) in offers {
        let message = OfferChannel::decode(&offer_message(channel, instance)).unwrap();
        table.admit(Offer::new(&message));
    }
    table
}

/// Which of the channels 1 to 7 are shown.
fn shown(table: &table::Table) -> Vec<u32> {
    (1..8).filter(|id| table.shown(ChannelId(*id)).is_some()).collect()
}

/// Withdraws a channel and gives its id back; returns whether another one is shown for it.
fn release(table: &table::Table, channel: u32) -> bool {
    table.withdraw(ChannelId(channel));
    let (place, id) = table.next_release().unwrap();
    assert_eq!(id, ChannelId(channel));
    table.released(place)
}

#[test]
fn c4_of_several_that_are_held_back_the_oldest_comes_first() {
    let table = table_of(&Ground::hyper_v(), &[(1, 1), (2, 1), (3, 1)]);
    assert_eq!(shown(&table), [1]);
    assert!(release(&table, 1));
    assert_eq!(shown(&table), [2]);
    assert!(release(&table, 2));
    assert_eq!(shown(&table), [3]);
    assert!(!release(&table, 3));
}

#[test]
fn c4_all_that_one_offer_held_back_are_shown_when_it_goes() {
    let ground = Ground::hyper_v();
    let table = table_of(&ground, &[(1, 1), (2, 1)]);
    // Withdrawn, and its id not given back yet: another device gets the id.
    table.withdraw(ChannelId(1));
    let message = OfferChannel::decode(&offer_message(1, 9)).unwrap();
    assert_eq!(table.admit(Offer::new(&message)).0, table::Admission::Held);
    assert_eq!(shown(&table), []);
    let (place, _) = table.next_release().unwrap();
    assert!(table.released(place));
    assert_eq!(shown(&table), [1, 2]);
}

#[test]
fn c4_what_is_withdrawn_while_held_back_is_not_told_of_though_its_id_is_not_given_back_yet() {
    let table = table_of(&Ground::hyper_v(), &[(1, 1), (2, 1)]);
    table.withdraw(ChannelId(1));
    table.withdraw(ChannelId(2));
    let (place, id) = table.next_release().unwrap();
    assert_eq!(id, ChannelId(1));
    assert!(!table.released(place), "nobody has anything to look at");
    assert_eq!(shown(&table), []);
}

#[test]
fn c5_subchannels_are_those_of_the_device_and_nobody_elses() {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    let (class, other_class) = (Guid::parse(CLASS).unwrap(), Guid::from_wire([7; 16]));
    let (instance, other_instance) = (Guid::from_wire([1; 16]), Guid::from_wire([2; 16]));
    let offers = [
        (1, class, instance, 0),
        (2, class, instance, 1),
        (3, class, other_instance, 1),
        (4, other_class, instance, 1),
        (5, class, instance, 2),
    ];
    for (id, class, instance, index) in offers {
        let offer = OfferChannel::new(class, instance, ChannelId(id), ConnectionId(id)).with_subchannel_index(index);
        bus.0.accept_for_test(offer.encode().as_slice());
    }
    let primary = bus.offer(ChannelId(1)).unwrap();
    let ids = |primary: &Offer| {
        bus.subchannels(primary)
            .map(|offer| offer.channel.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&primary), [2, 5]);
    // A device of this kernel's own is another one, whatever it is called.
    #[cfg(feature = "host")]
    let local = Offer::local(ChannelId(LOCAL_CHANNEL_IDS), class, instance);
    #[cfg(feature = "host")]
    assert_eq!(ids(&local), []);
    ground.check();
}

/// A callback of an old opening that ends late does not end the next one.
#[test]
fn c1_an_entry_is_given_back_once_for_each_opening() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (old, _) = open(&bus, channel);
    old.close(SECOND).unwrap();
    let (new, _) = open(&bus, channel);
    old.enter();
    old.leave();
    assert_eq!(
        bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND)
            .err(),
        Some(Error::InUse(channel))
    );
    new.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn c4_a_device_offered_anew_while_in_use_is_held_back_until_the_old_channel_is_closed() {
    for is_rescinded_first in [true, false] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        let (old, recorder) = open(&bus, channel);
        let mut cursor = OfferCursor::default();
        assert!(bus.next_offer(&mut cursor).is_some());
        if is_rescinded_first {
            ground.host.rescind(channel.0);
        }
        let new = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
        if !is_rescinded_first {
            // Out of order: the new offer first.
            ground.host.rescind(channel.0);
        }
        ground.settle(&bus);
        assert_ne!(new, channel);
        assert_eq!(recorder.count(&Told::Rescinded), 1);
        assert!(bus.next_offer(&mut cursor).is_none(), "held back");
        assert_eq!(
            bus.open(new, &OpenParameters::default(), Recorder::default(), SECOND)
                .err(),
            Some(Error::NoSuchChannel(new))
        );
        old.close(SECOND).unwrap();
        ground.settle(&bus);
        assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, new);
        let (opened, _) = open(&bus, new);
        opened.close(SECOND).unwrap();
        assert_eq!(ground.posts_of(13), 1);
        ground.finish(bus);
    }
}

#[test]
fn c4_an_offer_that_was_held_back_is_told_of_and_seen_when_the_old_channel_closes() {
    static HOOK: Hook = Hook(std::sync::atomic::AtomicU32::new(0));
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect_with(Config {
        offer_events: Some(&HOOK),
        ..Config::default()
    });
    let (old, _) = open(&bus, channel);
    let mut cursor = OfferCursor::default();
    assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, channel);
    ground.host.rescind(channel.0);
    let new = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    // A younger offer of another device, which is shown and seen first.
    let other = ChannelId(ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE)));
    ground.settle(&bus);
    assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, other);
    assert!(bus.next_offer(&mut cursor).is_none(), "held back");
    let told = HOOK.0.load(Ordering::SeqCst);
    old.close(SECOND).unwrap();
    // No message of the host comes after this one: nobody else would tell.
    assert_eq!(HOOK.0.load(Ordering::SeqCst), told + 1);
    assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, new);
    assert!(bus.next_offer(&mut cursor).is_none());
    ground.finish(bus);
}

#[test]
fn c1_a_withdrawn_offer_is_shown_to_nobody_while_its_channel_is_still_open() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, _) = open(&bus, channel);
    assert_eq!(bus.offer(channel).map(|offer| offer.channel), Some(channel));
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    let mut cursor = OfferCursor::default();
    assert!(bus.offer(channel).is_none() && bus.offers().next().is_none() && bus.next_offer(&mut cursor).is_none());
    let again = bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND);
    assert_eq!(again.err(), Some(Error::Rescinded(channel)));
    opened.close(SECOND).unwrap();
    drop(opened);
    ground.finish(bus);
}

#[test]
fn c4_the_same_id_offered_anew_while_in_use_is_held_back() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (old, _) = open(&bus, channel);
    ground.host.rescind(channel.0);
    ground.host.send_raw(&offer_message(channel.0, 9));
    ground.settle(&bus);
    assert_eq!(bus.offers().count(), 0);
    assert_eq!(bus.counters().refused_offers, 0);
    old.close(SECOND).unwrap();
    ground.settle(&bus);
    let offers: Vec<Offer> = bus.offers().collect();
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].channel, channel);
    assert_eq!(offers[0].instance.to_wire(), [9; 16]);
}

#[test]
fn c4_what_is_held_back_stays_so_when_another_device_goes() {
    // By the id, and by the device: either is enough.
    for has_same_id in [true, false] {
        let (ground, channel) = Ground::with_channel();
        let other = ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE));
        let bus = ground.connect();
        let (old, _) = open(&bus, channel);
        ground.host.rescind(channel.0);
        if has_same_id {
            ground.host.send_raw(&offer_message(channel.0, 9));
        } else {
            ground.host.offer(model::Offer::new(CLASS, INSTANCE));
        }
        ground.settle(&bus);
        assert_eq!(bus.offers().count(), 1, "the other one");
        ground.host.rescind(other);
        ground.settle(&bus);
        assert_eq!(bus.offers().count(), 0);
        old.close(SECOND).unwrap();
        ground.settle(&bus);
        assert_eq!(bus.offers().count(), 1);
    }
}

#[test]
fn c4_an_offer_that_is_withdrawn_while_held_back_is_never_shown() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (old, _) = open(&bus, channel);
    ground.host.rescind(channel.0);
    let new = ground.host.offer(model::Offer::new(CLASS, INSTANCE));
    ground.settle(&bus);
    ground.host.rescind(new);
    ground.settle(&bus);
    assert_eq!(ground.posts_of(13), 1, "only the one that nobody uses");
    old.close(SECOND).unwrap();
    ground.settle(&bus);
    assert_eq!((bus.offers().count(), ground.posts_of(13)), (0, 2));
    ground.finish(bus);
}

#[test]
fn c4_an_id_that_is_withdrawn_while_held_back_stays_that_of_the_open_channel() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (old, recorder) = open(&bus, channel);
    for message in [
        rescind_message(channel.0),
        offer_message(channel.0, 9),
        rescind_message(channel.0),
    ] {
        ground.host.send_raw(&message);
    }
    ground.settle(&bus);
    assert_eq!((bus.counters().released_ids, recorder.count(&Told::Rescinded)), (1, 1));
    let open_again = || {
        let again = bus.open(channel, &OpenParameters::default(), Recorder::default(), SECOND);
        again.err()
    };
    assert_eq!(open_again(), Some(Error::Rescinded(channel)));
    drop(old);
    ground.settle(&bus);
    assert_eq!(bus.counters().released_ids, 2);
    assert_eq!(open_again(), Some(Error::NoSuchChannel(channel)));
}

#[test]
fn c4_what_was_withdrawn_while_held_back_is_not_shown_by_the_end_of_the_old_channel() {
    let table = table::Table::new(FakePlatform::new(), 4, 2048).unwrap();
    let offer = |channel| {
        let (class, instance) = (Guid::ZERO, Guid::ZERO);
        Offer::new(&OfferChannel::new(class, instance, ChannelId(channel), ConnectionId(1)))
    };
    assert_eq!(table.admit(offer(7)).0, table::Admission::Shown);
    let (old, _) = table.claim(ChannelId(7)).unwrap();
    assert_eq!(table.withdraw(ChannelId(7)), table::Withdrawal::Shown(old));
    assert_eq!(table.admit(offer(8)).0, table::Admission::Held);
    assert_eq!(table.withdraw(ChannelId(8)), table::Withdrawal::Held);
    // Nobody has told the host of either yet.
    table.closed(old);
    let generation = table.generation();
    assert_eq!(table.next_release(), Some((old, ChannelId(7))));
    assert!(!table.released(old));
    assert_eq!(table.generation(), generation);
    assert!(table.claim(ChannelId(8)).is_err() && table.shown_from(0).is_none());
}

#[test]
fn m9_a_second_offer_of_an_id_is_refused_and_changes_nothing() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let before = bus.offer(channel).unwrap();
    ground.host.send_raw(&offer_message(channel.0, 9));
    ground.settle(&bus);
    let after = bus.offer(channel).unwrap();
    assert_eq!(
        (after.class, after.instance, after.sequence),
        (before.class, before.instance, before.sequence)
    );
    assert_eq!((bus.offers().count(), bus.counters().refused_offers), (1, 1));
    ground.finish(bus);
}

#[test]
fn m9_ids_out_of_range_are_refused() {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    for id in [0, 2048, 4096, 0x7fff_ffff, LOCAL_CHANNEL_IDS, u32::MAX] {
        ground.host.send_raw(&offer_message(id, 1));
        ground.settle(&bus);
        ground.host.send_raw(&rescind_message(id));
        ground.settle(&bus);
    }
    assert_eq!((bus.offers().count(), bus.counters().refused_offers), (0, 6));
    assert_eq!(bus.counters().stray_rescinds, 6);
    assert_eq!(ground.posts_of(13), 0);
    ground.host.send_raw(&offer_message(2047, 1));
    ground.settle(&bus);
    assert!(bus.offer(ChannelId(2047)).is_some());
}

#[test]
fn m10_a_withdrawal_before_its_offer_or_twice_is_ignored() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let (opened, recorder) = open(&bus, channel);
    ground.host.send_raw(&rescind_message(5));
    ground.host.send_raw(&offer_message(5, 1));
    ground.settle(&bus);
    assert_eq!((bus.offers().count(), bus.counters().stray_rescinds), (2, 1));
    ground.host.send_raw(&rescind_message(5));
    ground.host.send_raw(&rescind_message(5));
    ground.settle(&bus);
    assert_eq!((bus.offers().count(), bus.counters().stray_rescinds), (1, 2));
    assert_eq!(bus.counters().released_ids, 1);
    // Nobody else is concerned.
    assert_eq!(
        (opened.state(), recorder.count(&Told::Rescinded)),
        (ChannelState::Open, 0)
    );
    opened.close(SECOND).unwrap();
}

#[test]
fn m11_a_flood_of_offers_and_withdrawals_takes_no_memory() {
    let rounds = if cfg!(miri) { 20 } else { 20_000_u32 };
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    let pages = ground.platform.live_pages();
    // More than the table holds.
    for round in 0..rounds {
        let id = 1 + round % 2047;
        bus.0
            .accept_for_test(&offer_message(id, u8::try_from(round % 251).unwrap()));
        if round % 2 == 1 {
            bus.0.accept_for_test(&rescind_message(id));
        }
    }
    bus.poll();
    assert!(bus.offers().count() <= 128);
    let counters = bus.counters();
    if !cfg!(miri) {
        assert!(counters.excess_offers > 0, "{counters:?}");
    }
    assert_eq!(counters.messages, u64::from(rounds + rounds / 2) + 2);
    assert_eq!(ground.platform.live_pages(), pages);
}

#[test]
fn m11_a_million_offers_and_withdrawals_leave_the_table_empty() {
    let rounds = if cfg!(miri) { 20 } else { 1_000_000_u32 };
    let platform = FakePlatform::new();
    let table = table::Table::new(platform, 4, 2048).unwrap();
    let message = OfferChannel::new(Guid::ZERO, Guid::ZERO, ChannelId(7), ConnectionId(1));
    for _ in 0..rounds {
        let (admission, offer) = table.admit(Offer::new(&message));
        assert_eq!(admission, table::Admission::Shown);
        table.withdraw(offer.channel);
        let (place, _) = table.next_release().unwrap();
        assert!(table.next_release().is_none());
        table.released(place);
    }
    assert!(table.shown_from(0).is_none());
    assert_eq!(table.generation(), 2 * u64::from(rounds));
}

#[test]
fn subchannels_are_found_by_their_primary() {
    let ground = Ground::hyper_v();
    let primary = ground.host.offer(model::Offer::new(CLASS, INSTANCE));
    for index in 1..=3 {
        let mut offer = model::Offer::new(CLASS, INSTANCE);
        offer.subchannel_index = index;
        ground.host.offer(offer);
    }
    ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE));
    let bus = ground.connect();
    let primary = bus.offer(ChannelId(primary)).unwrap();
    let indices: Vec<u16> = bus.subchannels(&primary).map(|offer| offer.subchannel_index).collect();
    assert_eq!(indices, [1, 2, 3]);
    ground.finish(bus);
}

#[test]
fn c5_a_host_may_grant_any_number_of_subchannels_at_any_time_and_nobody_waits_for_them() {
    for granted in [0, 1, 3] {
        let ground = Ground::hyper_v();
        let primary = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
        let bus = ground.connect();
        let (opened, _) = open(&bus, primary);
        let primary = bus.offer(primary).unwrap();
        let mut cursor = OfferCursor::default();
        assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, primary.channel);
        assert_eq!(bus.subchannels(&primary).count(), 0);
        for index in 1..=granted {
            let mut offer = model::Offer::new(CLASS, INSTANCE);
            offer.subchannel_index = index;
            let channel = ChannelId(ground.host.offer(offer));
            ground.settle(&bus);
            // An observer sees each once, as it comes.
            assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, channel);
            let (subchannel, _) = open(&bus, channel);
            subchannel.close(SECOND).unwrap();
        }
        assert!(bus.next_offer(&mut cursor).is_none());
        assert_eq!(bus.subchannels(&primary).count(), usize::from(granted));
        // One that goes again leaves the others and the primary alone.
        if let Some(first) = bus.subchannels(&primary).next() {
            ground.host.rescind(first.channel.0);
            ground.settle(&bus);
            assert_eq!(bus.subchannels(&primary).count(), usize::from(granted) - 1);
        }
        assert_eq!(opened.state(), ChannelState::Open);
        opened.close(SECOND).unwrap();
        ground.finish(bus);
    }
}

#[test]
fn offers_before_they_were_asked_for_are_ignored() {
    let ground = Ground::hyper_v();
    let reply = model::Reply::After(offer_message(3, 1));
    ground.host.set_reply(14, reply);
    let bus = ground.connect();
    assert_eq!((bus.offers().count(), bus.counters().refused_offers), (0, 1));
    ground.finish(bus);
}

#[test]
fn c1_memory_is_not_counted_for_an_offer_that_took_the_place_of_its_own() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let old = bus.offer(channel).unwrap();
    ground.host.rescind(channel.0);
    ground.settle(&bus);
    ground.host.send_raw(&offer_message(channel.0, 9));
    ground.settle(&bus);
    let new = bus.offer(channel).unwrap();
    let place = bus.0.table.shown_from(0).unwrap().0;
    assert!(!bus.0.table.add_user(place, &old));
    assert!(bus.0.table.add_user(place, &new));
    bus.0.table.remove_user(place);
}

#[test]
fn c1_a_release_that_is_refused_for_good_is_not_posted_again_and_one_that_may_pass_is() {
    // Access denied, no such connection, and no room.
    for (status, posts, released) in [(0x06, 1, 0), (0x12, 3, 1), (0x13, 3, 1)] {
        let (ground, channel) = Ground::with_channel();
        let bus = ground.connect();
        ground.host.fail_posts(status, 2);
        ground.host.rescind(channel.0);
        for _ in 0..10 {
            bus.poll();
        }
        assert_eq!(
            (ground.posts_of(13), bus.counters().released_ids),
            (posts, released),
            "{status:#x}"
        );
        assert_eq!(bus.counters().busy_posts, u64::from(status != 0x06) * 2);
    }
}
