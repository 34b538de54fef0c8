//! Channels on platforms that promise who calls. All of these tests call from one thread, one call at a time, so each promise is
//! kept.

use std::sync::Arc;

use super::support::*;
use crate::fallible::Shared;
use crate::kmcl::{Error, Gone, OutgoingPacket, SendFlags};
use crate::platform::Callers;
use crate::test_platform::TestPlatform;

const ALL: [Callers; 3] = [Callers::Anywhere, Callers::OneProcessor, Callers::OneAtATime];

fn pair(callers: Callers) -> Pair {
    Pair::on(
        TestPlatform::leak_promising(callers),
        |server| server.init_set_transaction_quota(3),
        |client| client.init_set_maximum_packet_count(8),
        hold,
        echo,
    )
}

fn note(channel: &End, packet: OutgoingPacket<Arc<Log>>, outcome: Result<(), Error>) {
    let completion = String::from_utf8_lossy(packet.completion())
        .trim_end_matches('\0')
        .to_string();
    channel.context().note(format!("{completion} {outcome:?}"));
}

fn ask(pair: &Pair, text: &str) {
    let mut packet = pair.client.packet_allocate().unwrap();
    packet.set_completion_routine(note);
    let sent = packet.send(text.as_bytes(), None, SendFlags::WAIT_FOR_COMPLETION);
    sent.unwrap();
}

#[test]
fn the_quota_holds_and_a_completion_brings_the_reader_back() {
    for callers in ALL {
        let pair = pair(callers);
        for text in ["a", "b", "c", "d", "e"] {
            ask(&pair, text);
        }
        pair.host.process();
        assert_eq!(pair.server.context().held_count(), 3, "{callers:?}");
        assert_eq!(pair.server.counters().incoming_outstanding, 3);
        for (text, held) in [("a", 3), ("b", 3), ("c", 2), ("d", 1), ("e", 0)] {
            pair.server.context().release().complete(text.as_bytes()).unwrap();
            pair.host.process();
            assert_eq!(
                pair.server.context().held_count(),
                held,
                "{callers:?}, {text} completed"
            );
            assert_eq!(pair.client.context().take(), [format!("{text} Ok(())")]);
        }
        assert_eq!(pair.server.counters().incoming_outstanding, 0);
        pair.close();
    }
}

#[test]
fn a_channel_that_ended_stays_until_its_last_packet_is_home() {
    for callers in ALL {
        let pair = pair(callers);
        let owners = |pair: &Pair| {
            (
                Arc::strong_count(pair.client.context()),
                Arc::strong_count(pair.server.context()),
            )
        };
        let log = pair.client.context().clone();
        let mut unsent = pair.client.packet_allocate().unwrap();
        unsent.set_pointer(7);
        let own = pair.client.packet_initialize().unwrap();
        ask(&pair, "never answered");
        pair.host.process();
        assert_eq!(owners(&pair), (2, 1), "{callers:?}");
        let Pair {
            host,
            platform,
            server,
            client,
        } = pair;
        // The packet that the server holds is home when it is dropped.
        let held = server.context().release();
        drop(held);
        host.process();
        assert_eq!(log.take(), [" Ok(())"]);
        drop(client.disable(SOON).unwrap());
        // Only the packets are left of the client: they can be used, and say that it is gone.
        assert_eq!(unsent.pointer(), 7);
        assert_eq!(unsent.channel().friendly_name(), "");
        assert_eq!(Arc::strong_count(&log), 2, "{callers:?}: kept by its packets");
        let refused = unsent.send(b"late", None, SendFlags::empty()).unwrap_err();
        assert_eq!(refused.error, Error::Gone(Gone::Disabled));
        drop(refused);
        drop(own);
        assert_eq!(Arc::strong_count(&log), 1, "{callers:?}: nothing keeps it any more");
        drop(server.disable(SOON).unwrap());
        host.process();
        assert_eq!(platform.pages_in_use(), 0);
        assert_eq!(Shared::owner_count(&host.inner), 1);
    }
}

#[test]
fn a_packet_that_is_taken_from_a_channel_that_has_ended_keeps_it() {
    for callers in ALL {
        let pair = pair(callers);
        let log = pair.client.context().clone();
        let late = pair.client.clone();
        drop(pair.client.disable(SOON).unwrap());
        let packet = late.packet_allocate().unwrap();
        drop(late);
        assert_eq!(Arc::strong_count(&log), 2, "{callers:?}: kept by its packet");
        assert_eq!(packet.channel().gone(), Some(Gone::Disabled));
        let refused = packet.send(b"late", None, SendFlags::empty()).unwrap_err();
        assert_eq!(refused.error, Error::Gone(Gone::Disabled));
        drop(refused);
        assert_eq!(Arc::strong_count(&log), 1, "{callers:?}");
        drop(pair.server.disable(SOON).unwrap());
        pair.host.process();
        assert_eq!(Shared::owner_count(&pair.host.inner), 1);
    }
}

#[test]
fn a_handle_that_a_callback_kept_of_a_channel_that_was_not_enabled_is_of_one_that_has_ended() {
    for callers in ALL {
        let (host, platform) = host_on(TestPlatform::leak_promising(callers));
        let server = server_with(&host, echo).enable(SOON).unwrap();
        let opened = |channel: &End| {
            *channel.context().peer.lock().unwrap() = Some(channel.clone());
            Err(crate::kmcl::NtStatus::INVALID_DEVICE_STATE)
        };
        let states = crate::kmcl::StateChangeCallbacks::new().opened(opened);
        let client = client_with(&host, echo).init_set_state_change_callbacks(states);
        let log = client.context().clone();
        drop(client.enable(SOON).unwrap_err());
        let kept = log.peer.lock().unwrap().take().unwrap();
        assert_eq!(kept.gone(), Some(Gone::Disabled), "{callers:?}");
        assert_eq!(kept.send(b"x"), Err(Error::Gone(Gone::Disabled)));
        drop(kept);
        assert_eq!(Arc::strong_count(&log), 1);
        drop(server.disable(SOON).unwrap());
        host.process();
        assert_eq!(platform.pages_in_use(), 0);
    }
}

#[test]
fn a_channel_of_one_call_at_a_time_keeps_itself_as_long_as_it_has_not_ended() {
    for callers in ALL {
        let pair = pair(callers);
        let expected = callers == Callers::OneAtATime;
        let keep = |pair: &Pair| {
            [&pair.client, &pair.server].map(|end| end.core().outgoing.lock(pair.platform).keeper.is_some())
        };
        assert_eq!(keep(&pair), [expected; 2], "{callers:?}");
        // All packets are home again, on both sides.
        ask(&pair, "a");
        pair.host.process();
        drop(pair.server.context().release());
        pair.host.process();
        drop(pair.client.packet_allocate().unwrap());
        assert_eq!(keep(&pair), [expected; 2], "{callers:?}");
        pair.close();
    }
}

#[test]
fn a_server_whose_client_goes_while_it_holds_packets_ends_with_the_last_one() {
    for callers in ALL {
        let pair = pair(callers);
        ask(&pair, "a");
        ask(&pair, "b");
        pair.host.process();
        let Pair {
            host,
            platform,
            server,
            client,
        } = pair;
        let log = server.context().clone();
        let (first, second) = (log.release(), log.release());
        // The client cannot wait for the server: the same thread has to complete the packets.
        let refused = client.disable(crate::Deadline::IMMEDIATE).err();
        first.complete(&[]).unwrap();
        drop(second);
        host.process();
        drop(refused);
        drop(server.disable(SOON).unwrap());
        host.process();
        assert_eq!(Arc::strong_count(&log), 1, "{callers:?}");
        assert_eq!(platform.pages_in_use(), 0);
        assert_eq!(Shared::owner_count(&host.inner), 1);
    }
}

#[test]
fn an_end_that_could_not_be_enabled_leaves_nothing_behind() {
    for callers in ALL {
        let (host, platform) = host_on(TestPlatform::leak_promising(callers));
        let client = client_with(&host, echo);
        let refused = client.enable(crate::Deadline::IMMEDIATE).unwrap_err();
        assert_eq!(refused.error, Error::NoSuchOffer);
        drop(refused);
        let server = server_with(&host, echo);
        let refusing = client_with(&host, echo).init_set_state_change_callbacks(
            crate::kmcl::StateChangeCallbacks::new().opened(|_| Err(crate::kmcl::NtStatus::INVALID_DEVICE_STATE)),
        );
        let server = server.enable(SOON).unwrap();
        drop(refusing.enable(SOON).unwrap_err());
        drop(server.disable(SOON).unwrap());
        host.process();
        assert_eq!(platform.pages_in_use(), 0, "{callers:?}");
        assert_eq!(Shared::owner_count(&host.inner), 1);
    }
}
