//! Offers of this kernel beside the host's.

use super::*;
use crate::testing::services::{Told, host_for, service};

#[test]
fn each_offer_of_this_kernel_is_found_by_its_number_and_seen_once_in_order() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let host = host_for(&bus);
    bus.attach_host(&host);
    let services = [(); 3].map(|()| service(&host).enable(SECOND).unwrap());
    for service in &services {
        let offer = bus.offer(service.id()).unwrap();
        assert_eq!((offer.origin, offer.channel), (Origin::Local, service.id()));
    }
    let never = services[2].id().0 + 1;
    assert!(bus.offer(ChannelId(never)).is_none());
    let mut cursor = OfferCursor::default();
    let seen: Vec<ChannelId> = std::iter::from_fn(|| bus.next_offer(&mut cursor))
        .take(9)
        .map(|offer| offer.channel)
        .collect();
    let expected = [channel, services[0].id(), services[1].id(), services[2].id()];
    assert_eq!(seen, expected);
    let listed: Vec<ChannelId> = bus.offers().map(|offer| offer.channel).collect();
    assert_eq!(listed, expected);
    drop(services);
    ground.finish(bus);
}

#[test]
fn one_host_is_attached_and_its_offers_are_told_of() {
    static TOLD: Told = Told::never();
    let ground = Ground::hyper_v();
    let bus = ground.connect_with(Config {
        offer_events: Some(&TOLD),
        ..Config::default()
    });
    let (host, other) = (host_for(&bus), host_for(&bus));
    let (before, generation) = (TOLD.count(), bus.offer_generation());
    assert!(bus.attach_host(&host));
    assert_eq!(TOLD.count(), before + 1);
    assert_ne!(bus.offer_generation(), generation);
    assert!(!bus.attach_host(&other), "there is one");
    let _unseen = service(&other).enable(SECOND).unwrap();
    assert_eq!((TOLD.count(), bus.offers().count()), (before + 1, 0));
    assert!(bus.attach_host(&host), "the same one");
    let seen = service(&host).enable(SECOND).unwrap();
    assert_eq!(bus.offers().map(|offer| offer.channel).collect::<Vec<_>>(), [seen.id()]);
    assert!(TOLD.count() > before + 2);
    drop(seen);
    ground.finish(bus);
}
