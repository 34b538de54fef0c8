//! What others do between a check and the lock behind it. A test's platform does it before a lock is taken, so that no test depends on
//! who is faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::*;
use crate::Deadline;
use crate::host::Misbehaviour;
use crate::kmcl::{Error, Gone, Level, OutgoingPacket, SendFlags, StateChangeCallbacks, SynchronousRequest};

/// Has the client disabled by another task, before the next lock is taken.
fn disable_meanwhile(pair: &Pair) {
    let mut other = Some(pair.client.clone());
    pair.platform.before_lock(0, move || {
        drop(other.take().unwrap().disable(SOON).unwrap());
        false
    });
}

fn note(channel: &End, _: OutgoingPacket<Arc<Log>>, outcome: Result<(), Error>) {
    channel.context().note(format!("{outcome:?}"));
}

#[test]
fn what_is_sent_while_the_channel_ends_is_refused_and_does_not_wait_for_ever() {
    const GONE: Error = Error::Gone(Gone::Disabled);
    for flags in [SendFlags::empty(), SendFlags::WAIT_FOR_COMPLETION] {
        let pair = Pair::new(echo);
        let mut packet = pair.client.packet_allocate().unwrap();
        packet.set_completion_routine(note);
        disable_meanwhile(&pair);
        assert_eq!(packet.send(b"late", None, flags).unwrap_err().error, GONE);
        pair.close();
    }
    let pair = Pair::new(echo);
    disable_meanwhile(&pair);
    let waited = pair
        .client
        .send_synchronous_request(b"late", None, Deadline::millis(50), &mut []);
    assert_eq!(waited.unwrap_err().error, GONE);
    pair.close();

    let pair = Pair::new(echo);
    disable_meanwhile(&pair);
    assert_eq!(pair.client.send(b"late"), Err(GONE));
    pair.close();
}

#[test]
fn a_channel_that_somebody_starts_again_while_it_is_paused_runs() {
    let pair = Pair::new(echo);
    let other = pair.client.clone();
    // The suspend callback has run; the next lock is that of the look for packets that are still out.
    pair.platform.before_lock(0, move || {
        other.pause(SOON).unwrap();
        other.start(SOON).unwrap();
        false
    });
    pair.client.pause(SOON).unwrap();
    assert_eq!(pair.client.context().take(), ["suspend", "started", "post-started"]);
    assert!(pair.client.is_running());
    pair.close();
}

#[test]
fn what_comes_while_a_channel_is_being_paused_is_looked_at() {
    let (host, platform) = host();
    let server = server_with(&host, hold).enable(SOON).unwrap();
    let (log, others) = (server.context().clone(), host.clone());
    let states = StateChangeCallbacks::new().suspend(move |_: &End| {
        // On another processor, say.
        log.release().complete(b"answer").unwrap();
        others.process();
    });
    let client = client_with(&host, echo).init_set_state_change_callbacks(states);
    let client = client.enable(SOON).unwrap();
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(note);
    packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    host.process();
    client.pause(SOON).unwrap();
    host.process();
    assert_eq!(client.context().take(), ["Ok(())"]);
    let pair = Pair {
        host,
        platform,
        server,
        client,
    };
    pair.close();
}

#[test]
fn two_that_raise_the_quota_at_the_same_time_do_not_make_slots_twice() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(2),
        |client| client,
        hold,
        echo,
    );
    let other = pair.server.clone();
    // Between the look at how many there are and the making of more.
    pair.platform.before_lock(1, move || {
        other.set_transaction_quota(8).unwrap();
        false
    });
    pair.server.set_transaction_quota(6).unwrap();
    assert_eq!(pair.server.core().incoming().slots(), 8);
    assert_eq!(pair.server.core().incoming().quota, 6);
    pair.close();
}

#[test]
fn who_gives_up_waiting_for_room_leaves_the_others_waiting() {
    let request = |deadline| SynchronousRequest {
        payload: &[b'x'; 512],
        mdl: None,
        flags: SendFlags::empty(),
        completion: None,
        deadline,
    };
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(1),
        |client| client,
        hold,
        echo,
    );
    pair.server.set_incoming_processing_at_passive(Level::Dispatch);
    pair.host.process();
    while pair.client.send_synchronous(request(Deadline::IMMEDIATE)).is_ok() {}
    pair.host.process();
    while pair.client.send_synchronous(request(Deadline::IMMEDIATE)).is_ok() {}
    assert_eq!(pair.server.context().held_count(), 1);
    let woken = Arc::new(AtomicUsize::new(0));
    let (other, log, host, seen) = (
        pair.client.clone(),
        pair.server.context().clone(),
        pair.host.clone(),
        woken.clone(),
    );
    // The first one has found the ring full twice, and has asked for a signal.
    pair.platform.before_lock(3, move || {
        host.run_clients();
        let late = other.send_synchronous(request(Deadline::millis(1))).unwrap_err();
        assert_eq!(late.error, Error::Cancelled);
        host.run_clients();
        // Room: is the client told?
        log.release().complete(&[]).unwrap();
        host.run_servers();
        seen.store(1 + usize::from(host.run_clients()), Ordering::SeqCst);
        false
    });
    pair.client.send_synchronous(request(SOON)).unwrap();
    assert_eq!(woken.load(Ordering::SeqCst), 2);
    while pair.server.context().held_count() > 0 {
        pair.server.context().release().complete(&[]).unwrap();
        pair.host.process();
    }
    pair.close();
}

#[test]
fn a_ring_that_breaks_while_somebody_waits_ends_the_channel_soon() {
    let pair = Pair::new(hold);
    let id = pair.client.id();
    let (host, mut once) = (pair.host.clone(), true);
    pair.platform.before_lock(4, move || {
        if std::mem::take(&mut once) {
            host.misbehave(id, Misbehaviour::WriteIndex(7)).unwrap();
            // That signal finds others at work.
            host.forget_signals(id);
        }
        false
    });
    let refused = pair
        .client
        .send_synchronous_request(b"x", None, SOON, &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::Gone(Gone::Corrupt));
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["suspend"]);
    drop(pair.server.context().release());
    pair.close();
}

#[test]
fn a_ring_that_a_sender_finds_broken_ends_the_channel_soon() {
    for raw in [false, true] {
        let pair = Pair::new(hold);
        pair.host
            .misbehave(pair.client.id(), Misbehaviour::ReadIndex(3))
            .unwrap();
        pair.host.process();
        let mut outcome = Ok(());
        for _ in 0..100 {
            outcome = if raw {
                pair.client.send_transfer_pages(1, &[(0, 8)], &[b'x'; 512])
            } else {
                pair.client.send(&[b'x'; 512])
            };
            if outcome.is_err() {
                break;
            }
        }
        assert_eq!(outcome, Err(Error::Corrupt), "{raw}");
        pair.host.run_clients();
        assert_eq!(pair.client.gone(), Some(Gone::Corrupt), "{raw}");
        assert_eq!(pair.client.context().take(), ["suspend"]);
        pair.server.context().held.lock().unwrap().clear();
        pair.close();
    }
}
