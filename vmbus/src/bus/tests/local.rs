//! Offers of this kernel beside the host's.

use std::sync::atomic::AtomicU32;

use super::*;
use crate::kmcl;
use crate::protocol::Guid;

const SERVICE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000005e7");

struct Told(AtomicU32);

impl OfferEvents for Told {
    fn offers_changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn host_of(ground: &Ground) -> crate::host::Host {
    let hypervisor = ground.hypervisor;
    crate::host::Host::new(ground.platform, || hypervisor.now()).unwrap()
}

fn service(host: &crate::host::Host) -> kmcl::Channel {
    kmcl::Channel::allocate_server(host)
        .unwrap()
        .init_set_target(SERVICE, kmcl::Instance::Any)
        .enable(SECOND)
        .unwrap()
}

#[test]
fn each_offer_of_this_kernel_is_found_by_its_number_and_seen_once_in_order() {
    let (ground, channel) = Ground::with_channel();
    let bus = ground.connect();
    let host = host_of(&ground);
    bus.attach_host(&host);
    let services = [service(&host), service(&host), service(&host)];
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
    static TOLD: Told = Told(AtomicU32::new(0));
    let told = || TOLD.0.load(Ordering::SeqCst);
    let ground = Ground::hyper_v();
    let bus = ground.connect_with(Config {
        offer_events: Some(&TOLD),
        ..Config::default()
    });
    let (host, other) = (host_of(&ground), host_of(&ground));
    let (before, generation) = (told(), bus.offer_generation());
    assert!(bus.attach_host(&host));
    assert_eq!(told(), before + 1);
    assert_ne!(bus.offer_generation(), generation);
    assert!(!bus.attach_host(&other), "there is one");
    let _unseen = service(&other);
    assert_eq!((told(), bus.offers().count()), (before + 1, 0));
    assert!(bus.attach_host(&host), "the same one");
    let seen = service(&host);
    assert_eq!(bus.offers().map(|offer| offer.channel).collect::<Vec<_>>(), [seen.id()]);
    assert!(told() > before + 2);
    drop(seen);
    ground.finish(bus);
}
