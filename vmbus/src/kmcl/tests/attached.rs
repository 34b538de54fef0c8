//! Offers of this kernel on the bus, beside those of the host.

use super::*;
use crate::bus::{OfferCursor, OpenParameters, Origin};
use crate::kmcl::Channel;
use crate::testing::services::{SERVICE, Told, host_for, service};

struct Nothing;
impl ChannelSink for Nothing {
    fn signalled(&self, _: &ChannelCore) {}
    fn rescinded(&self, _: &ChannelCore) {}
}

#[test]
fn a_driver_that_asks_the_bus_finds_a_server_of_this_kernel() {
    static TOLD: Told = Told::never();
    let ground = Ground::with(Config {
        offer_events: Some(&TOLD),
        ..Config::default()
    });
    let bus = ground.bus.clone();
    let host = host_for(&ground.bus);
    let of_this_kernel = || bus.offers().filter(|offer| offer.origin == Origin::Local).count();
    let server = service(&host).enable(SOON).unwrap();
    assert_eq!(of_this_kernel(), 0, "not attached");
    let before = (TOLD.count(), bus.offer_generation());
    assert!(bus.attach_host(&host));
    assert!(bus.attach_host(&host), "the same once more");
    assert!(!bus.attach_host(&host_for(&ground.bus)), "another one");
    assert!(TOLD.count() > before.0);
    assert_ne!(bus.offer_generation(), before.1);

    // Everybody who looks at offers sees it.
    assert_eq!(of_this_kernel(), 1);
    let offer = bus.offers().last().unwrap();
    assert_eq!((offer.class, offer.channel), (SERVICE, server.id()));
    assert_eq!(bus.offer(offer.channel).unwrap().instance, offer.instance);
    assert!(offer.to_string().ends_with("of this kernel"), "{offer}");
    let mut cursor = OfferCursor::default();
    let seen: Vec<u32> = std::iter::from_fn(|| bus.next_offer(&mut cursor))
        .take(9)
        .map(|offer| offer.channel.0)
        .collect();
    assert_eq!(seen, [ground.channel, offer.channel.0]);

    // It is opened as the host's are, and not past the callback API.
    let raw = bus.open(offer.channel, &OpenParameters::default(), Nothing, SOON);
    assert_eq!(raw.unwrap_err(), bus::Error::NoSuchChannel(offer.channel));
    let client = Channel::allocate_client(&bus)
        .unwrap()
        .init_set_target(SERVICE, Instance::Any)
        .enable(SOON)
        .unwrap();
    assert_eq!(client.id(), server.id());
    let mut answer = [0; 8];
    client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"question");
    // Without a wait, it is the bus that runs the callbacks.
    client.send(b"notice").unwrap();
    bus.poll();
    assert_eq!(server.counters().packets_processed, 2);
    let status = host.statuses().next().unwrap();
    assert_eq!(
        (status.name(), status.server, status.client),
        ("a service", server.counters(), Some(client.counters()))
    );

    // Withdrawn, and offered again: each observer is told.
    let before = (TOLD.count(), bus.offer_generation());
    let disabled = server.disable(SOON).unwrap();
    assert_eq!(client.send(b"late"), Err(Error::Gone(Gone::Rescinded)));
    assert_eq!((of_this_kernel(), bus.offer(offer.channel).is_none()), (0, true));
    let server = disabled.enable(SOON).unwrap();
    assert_eq!(bus.next_offer(&mut cursor).unwrap().channel, server.id());
    assert!(bus.next_offer(&mut cursor).is_none());
    assert_eq!(TOLD.count(), before.0 + 2);
    assert_ne!(bus.offer_generation(), before.1);
    drop((client, server, host, bus));
    ground.finish();
}

#[test]
fn the_hosts_offers_come_first_and_each_is_taken_once() {
    let ground = Ground::new();
    let host = host_for(&ground.bus);
    ground.bus.attach_host(&host);
    let server = service(&host)
        .init_set_target(Guid::literal(CLASS), Instance::Any)
        .enable(SOON)
        .unwrap();
    let first = ground.client().enable(SOON).unwrap();
    let second = ground.client().enable(SOON).unwrap();
    assert_eq!((first.id().0, second.id()), (ground.channel, server.id()));
    assert_eq!(
        ground.client().enable(Deadline::millis(1)).unwrap_err().error,
        Error::NoSuchOffer
    );
    // Each answers for itself.
    for (channel, expected) in [(&first, 1), (&second, 2)] {
        let mut answer = [0; 8];
        let question = [expected; 8];
        channel
            .send_synchronous_request(&question, None, SOON, &mut answer)
            .unwrap();
        assert_eq!(answer, question);
    }
    // A number says which, whoever offers it; and there are no subchannels here.
    drop(second.disable(SOON).unwrap());
    let by_number = ground
        .client()
        .init_set_target_channel(server.id())
        .enable(SOON)
        .unwrap();
    assert_eq!(by_number.id(), server.id());
    drop(by_number.disable(SOON).unwrap());
    let subchannel = ground.client().init_set_primary_channel(server.id());
    assert_eq!(
        subchannel.enable(Deadline::millis(1)).unwrap_err().error,
        Error::NoSuchOffer
    );
    drop((first, server, host));
    ground.finish();
}

#[test]
fn what_this_kernel_offers_outlives_the_connection() {
    let ground = Ground::new();
    let host = host_for(&ground.bus);
    ground.bus.attach_host(&host);
    let server = service(&host).enable(SOON).unwrap();
    let client = Channel::allocate_client(&ground.bus)
        .unwrap()
        .init_set_target(SERVICE, Instance::Any)
        .enable(SOON)
        .unwrap();
    ground.bus.disconnect(Deadline::seconds(100)).unwrap();
    let mut answer = [0; 8];
    client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"question");
    assert_eq!(ground.bus.offers().count(), 1);
    drop((client, server));
    assert_eq!(ground.bus.offers().count(), 0);
    ground.host.assert_no_violations();
    ground.platform.assert_no_faults();
}
