//! Which of the host's offers a client gets, and what becomes of the bus's errors.

use super::*;
use crate::fallible::OutOfMemory;
use crate::platform::OutOfPages;
use crate::protocol::{ChannelId, GpadlId};

const OTHER_CLASS: &str = "5a17e5a1-0000-4000-8000-00000000c1a6";
const SECOND: &str = "5a17e5a1-0000-4000-8000-000000000002";

#[test]
fn a_client_gets_an_offer_of_its_class_its_instance_and_its_primary() {
    let ground = Ground::new();
    let offer = |class, instance, subchannel| {
        let mut offer = model::Offer::new(class, instance);
        offer.subchannel_index = subchannel;
        ground.host.offer_with(offer, Peer(ground.control.clone()))
    };
    let first = ground.channel;
    let other_class = offer(OTHER_CLASS, INSTANCE, 0);
    let sub_of_second = offer(CLASS, SECOND, 1);
    let sub_of_first = offer(CLASS, INSTANCE, 1);
    let second = offer(CLASS, SECOND, 0);
    ground.settle();
    let of_primary = |primary| ground.client().init_set_primary_channel(ChannelId(primary));
    let only = |instance| {
        ground
            .client()
            .init_set_target(Guid::literal(CLASS), Instance::Only(Guid::literal(instance)))
    };
    let number = |client: DisabledChannel<_>| {
        let enabled = client.enable(Deadline::millis(1));
        enabled.map(|channel| channel.id().0).map_err(|refused| refused.error)
    };
    assert_eq!(number(only(INSTANCE)), Ok(first));
    assert_eq!(number(only(SECOND)), Ok(second));
    assert_eq!(number(only(OTHER_CLASS)), Err(Error::NoSuchOffer));
    assert_eq!(number(of_primary(first)), Ok(sub_of_first));
    assert_eq!(number(of_primary(second)), Ok(sub_of_second));
    // One has the instance and not the class, one is not there.
    for primary in [other_class, 999] {
        assert_eq!(number(of_primary(primary)), Err(Error::NoSuchOffer));
    }
    let by_number = ground.client().init_set_target_channel(ChannelId(other_class));
    assert_eq!(number(by_number), Ok(other_class));
    // Of any instance there are two.
    let any = [(); 2].map(|()| ground.client().enable(SOON).unwrap());
    let mut numbers = any.each_ref().map(|channel| channel.id().0);
    numbers.sort_unstable();
    let mut expected = [first, second];
    expected.sort_unstable();
    assert_eq!(numbers, expected);
    assert_eq!(number(ground.client()), Err(Error::NoSuchOffer));
    drop(any);
    ground.finish();
}

#[test]
fn errors_of_the_bus_become_the_channels_own() {
    let channel = ChannelId(7);
    for (error, expected) in [
        (bus::Error::NoSuchChannel(channel), Error::NoSuchOffer),
        (bus::Error::Rescinded(channel), Error::Gone(Gone::Rescinded)),
        (bus::Error::Disconnected, Error::Gone(Gone::Rescinded)),
        (bus::Error::NotOpen(channel), Error::Gone(Gone::Closed)),
        (bus::Error::TimedOut, Error::TimedOut),
        (bus::Error::WouldDeadlock, Error::WouldDeadlock),
        (bus::Error::Refused { status: 9 }, Error::Refused(NtStatus(9))),
        (bus::Error::OutOfMemory(OutOfMemory), Error::OutOfMemory(OutOfMemory)),
        (bus::Error::TooManyGpadls, Error::Bus),
    ] {
        assert_eq!(Error::from(error), expected);
    }
    let pages = OutOfPages { page_count: 3 };
    assert_eq!(Error::from(bus::Error::OutOfPages(pages)), Error::OutOfPages(pages));
}

#[test]
fn the_bus_takes_no_offers_and_maps_no_memory() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let core = channel.core();
    let sink = lifecycle::server_sink(&channel.shared()).unwrap();
    let offered = core.provider.offer(&core.settings, sink);
    assert_eq!(offered.map(drop), Err(Error::WrongState));
    let outgoing = core.outgoing();
    let transport = outgoing.transport.clone().unwrap();
    drop(outgoing);
    let id = GpadlId(1);
    assert_eq!(
        transport.map_gpadl(id, GpadlAccess::ReadWrite).map(drop),
        Err(Error::WrongState)
    );
    assert_eq!(transport.unmap_gpadl(id), Err(Error::WrongState));
    assert!(transport.lent_by_peer(1 << 32).is_none());
    drop((transport, channel));
    ground.finish();
}
