//! Packet objects: what is in a fresh one, and what a completion leaves in one.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use super::support::*;
use crate::fallible::Shared;
use crate::host::Misbehaviour;
use crate::kmcl::transport::Sink;
use crate::kmcl::{Counters, Error, Gone, SendFlags};
use crate::memory::Mdl;

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;

#[test]
fn a_packet_from_the_pool_has_nothing_of_its_last_use() {
    let pair = Pair::with(
        |server| server,
        |client| {
            client
                .init_set_inline_packet_context_size(4)
                .init_set_maximum_packet_count(1)
        },
        echo,
        echo,
    );
    let routine = |channel: &End, mut packet: crate::kmcl::OutgoingPacket<_>, _| {
        channel.context().value.fetch_add(1, Ordering::SeqCst);
        packet.inline_context().copy_from_slice(b"mine");
    };
    for _ in 0..2 {
        let mut packet = pair.client.packet_allocate().unwrap();
        assert_eq!((packet.pointer(), packet.completion()), (0, [].as_slice()));
        assert_eq!(packet.inline_context(), [0; 4]);
        packet.set_pointer(42);
        packet.set_completion_routine(routine);
        packet.send(b"first", Some(pair.mdl(b"lent")), FLAGS).unwrap();
        pair.host.process();
    }
    assert_eq!(get(&pair.client), 2);
    // Nor its routine.
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"second", None, FLAGS).unwrap();
    pair.host.process();
    assert_eq!(get(&pair.client), 2);
    pair.close();
}

#[test]
fn a_completion_beyond_the_clients_limit_leaves_its_beginning_and_its_length() {
    for (len, outcome) in [
        (56, "Ok(()) 56"),
        (64, "Ok(()) 64"),
        (72, "Err(CompletionTruncated { len: 72 }) 64"),
    ] {
        let pair = Pair::with(
            |server| server,
            |client| client.init_set_maximum_packet_size(64).unwrap(),
            move |_, packet| packet.complete(&[7; 72][..len]).unwrap(),
            echo,
        );
        let mut packet = pair.client.packet_allocate().unwrap();
        packet.set_completion_routine(|channel, packet, status| {
            assert!(packet.completion().iter().all(|byte| *byte == 7));
            channel
                .context()
                .note(format!("{status:?} {}", packet.completion().len()));
        });
        packet.send(b"x", None, FLAGS).unwrap();
        pair.host.process();
        assert_eq!(pair.client.context().take(), [outcome]);
        let mut answer = [0; 72];
        let sent = pair.client.send_synchronous_request(b"x", None, SOON, &mut answer);
        let expected = if len > 64 {
            Err(Error::CompletionTruncated { len })
        } else {
            Ok(len)
        };
        assert_eq!(sent.map(|sent| sent.len).map_err(|refused| refused.error), expected);
        assert_eq!(answer.iter().filter(|byte| **byte == 7).count(), len.min(64));
        pair.close();
    }
}

#[test]
fn the_list_keeps_an_end_for_who_runs_it_next_and_lets_go_of_one_that_has_changed() {
    let pair = Pair::new(echo);
    let entry = pair.host.find(|_| true).unwrap();
    let (server, client) = (entry.server().unwrap(), entry.client().unwrap());
    let owners = || (Shared::owner_count(&server), Shared::owner_count(&client));
    pair.client.send_request(b"x", None).map(drop).unwrap();
    pair.host.process();
    assert_eq!(owners(), (3, 3), "ours, the offer's, and the list's");
    pair.host.process();
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(owners(), (3, 3));
    pair.host.set_client(&entry, Some(client.clone()));
    assert_eq!(owners(), (2, 2));
    drop((entry, server, client));
    pair.close();
}

/// An end that counts its signals.
#[derive(Default)]
struct Signals(Arc<AtomicUsize>);

impl Sink for Signals {
    fn signalled(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn gone(&self, _: Gone) {}
    fn lent(&self, _: u64) -> Option<Mdl> {
        None
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
    fn ended(&self) -> Option<Gone> {
        None
    }
}

#[test]
fn an_end_that_has_just_been_replaced_is_not_run_though_the_list_still_keeps_it() {
    let pair = Pair::new(echo);
    let entry = pair.host.find(|_| true).unwrap();
    let old = entry.client().unwrap();
    drop(pair.client.send_request(b"x", None).unwrap());
    pair.host.process();
    let before = pair.client.counters().signals_received;
    let seen = Arc::new(AtomicUsize::new(0));
    let new: Box<dyn Sink> = Box::new(Signals(seen.clone()));
    // Whoever does that is about to have the list let go of the old one.
    entry.set_client(Some(Shared::try_new(new).unwrap()));
    pair.host.misbehave(pair.client.id(), Misbehaviour::Signal).unwrap();
    assert!(pair.host.run_clients());
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(pair.client.counters().signals_received, before);
    pair.host.set_client(&entry, Some(old));
    drop(entry);
    pair.close();
}
