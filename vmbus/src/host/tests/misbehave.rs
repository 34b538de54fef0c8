//! A server that breaks the rules: each way ends that client's channel and no other.

use super::support::*;
use crate::Deadline;
use crate::fallible::Shared;
use crate::host::Misbehaviour;
use crate::kmcl::{Error, Gone};
use crate::protocol::ChannelId;

fn echo_works(host: &crate::host::Host, client: &End) -> Result<(), Error> {
    let mut answer = [0; 8];
    let sent = client.send_synchronous_request(b"question", None, SOON, &mut answer);
    host.process();
    sent.map(drop).map_err(|refused| refused.error)
}

#[test]
fn each_way_to_break_a_ring_ends_that_channel_and_no_other() {
    for how in [
        Misbehaviour::WriteIndex(7),
        Misbehaviour::WriteIndex(0xffff_fff8),
        Misbehaviour::Packet {
            data_offset8: 0,
            length8: 3,
        },
        Misbehaviour::Packet {
            data_offset8: 2,
            length8: 0xffff,
        },
    ] {
        let (host, platform) = host();
        let servers = [(); 2].map(|()| server_with(&host, echo).enable(SOON).unwrap());
        let [broken, calm] = [(); 2].map(|()| client_with(&host, echo).enable(SOON).unwrap());
        echo_works(&host, &broken).unwrap();
        host.misbehave(broken.id(), how).unwrap();
        host.process();
        let outcome = echo_works(&host, &broken);
        assert_eq!(outcome, Err(Error::Gone(Gone::Corrupt)), "{how:?}");
        echo_works(&host, &calm).unwrap();
        let gone = |id: ChannelId| {
            let status = host.statuses().find(|status| status.offer.channel == id);
            status.and_then(|status| status.client_gone)
        };
        assert_eq!(
            (gone(broken.id()), gone(calm.id())),
            (Some(Gone::Corrupt), None),
            "{how:?}"
        );
        drop([broken, calm].map(|client| client.disable(SOON).unwrap()));
        drop(servers.map(|server| server.disable(SOON).unwrap()));
        host.process();
        assert_eq!(platform.pages_in_use(), 0, "{how:?}");
        assert_eq!(Shared::owner_count(&host.inner), 1, "{how:?}");
    }
}

/// The client looks there when it wants to know whether the server sleeps, and concludes that it does not: nothing but time ends
/// the request, and then it ends. It notices when it needs room.
#[test]
fn a_broken_read_index_costs_no_more_than_the_deadline() {
    let (host, _) = host();
    let servers = [(); 2].map(|()| server_with(&host, echo).enable(SOON).unwrap());
    let [broken, calm] = [(); 2].map(|()| client_with(&host, echo).enable(SOON).unwrap());
    host.misbehave(broken.id(), Misbehaviour::ReadIndex(0xffff_fff8))
        .unwrap();
    let mut answer = [0; 8];
    let refused = broken
        .send_synchronous_request(b"question", None, Deadline::millis(20), &mut answer)
        .unwrap_err();
    assert_eq!(refused.error, Error::Cancelled);
    echo_works(&host, &calm).unwrap();
    let full = (0..10_000).find_map(|_| broken.send(&[0; 1000]).err());
    assert_eq!(full, Some(Error::Corrupt));
    echo_works(&host, &calm).unwrap();
    drop(servers);
}

#[test]
fn a_signal_without_news_runs_nothing_and_breaks_nothing() {
    let (host, _) = host();
    let _server = server_with(&host, echo).enable(SOON).unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    let before = client.counters();
    for _ in 0..1000 {
        host.misbehave(client.id(), Misbehaviour::Signal).unwrap();
        assert!(host.process());
    }
    let after = client.counters();
    assert_eq!(after.signals_received - before.signals_received, 1000);
    assert_eq!(
        (after.packets_received, after.packets_processed),
        (before.packets_received, before.packets_processed)
    );
    echo_works(&host, &client).unwrap();
}

#[test]
fn nobody_to_misbehave_to() {
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let to = |channel| host.misbehave(channel, Misbehaviour::Signal);
    assert_eq!(to(ChannelId(1)), Err(Error::NoSuchOffer));
    assert_eq!(to(server.id()), Err(Error::WrongState));
}
