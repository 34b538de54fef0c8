//! Order of callbacks, and what becomes of things at each end of a channel's life.

use super::support::*;
use crate::Deadline;
use crate::kmcl::{Error, Gone, NtStatus, StateChangeCallbacks};

#[test]
fn enable_runs_opened_started_and_post_started_on_both_ends() {
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    assert!(server.context().take().is_empty(), "nobody has opened it yet");
    let client = client_with(&host, echo).enable(SOON).unwrap();
    let order = ["opened", "started", "post-started"];
    assert_eq!(server.context().take(), order);
    assert_eq!(client.context().take(), order);
    assert!(client.is_running() && server.is_running());
}

#[test]
fn disabling_the_client_suspends_and_closes_both_and_leaves_nothing() {
    let pair = Pair::new(echo);
    let (client_log, server_log) = (pair.client.context().clone(), pair.server.context().clone());
    drop(pair.client.disable(SOON).unwrap());
    assert_eq!(client_log.take(), ["suspend", "closed"]);
    assert_eq!(server_log.take(), ["suspend", "closed"]);
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn a_server_can_be_opened_again_by_several_clients_in_turn() {
    let (host, platform) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let mut client = client_with(&host, echo);
    for round in 0..3 {
        let open = client.enable(SOON).unwrap();
        let mut answer = [0; 8];
        open.send_synchronous_request(&[round; 8], None, SOON, &mut answer)
            .unwrap();
        assert_eq!(answer, [round; 8]);
        client = open.disable(SOON).unwrap();
        assert_eq!(platform.pages_in_use(), 0);
    }
    assert_eq!(count(&server.context().take(), "opened"), 3);
}

#[test]
fn revoking_ends_the_client() {
    let pair = Pair::new(echo);
    drop(pair.server.disable(SOON).unwrap());
    assert_eq!(pair.client.context().take(), ["suspend", "closed"]);
    assert_eq!(pair.client.send(b"late"), Err(Error::Gone(Gone::Rescinded)));
    let disabled = pair.client.disable(SOON).unwrap();
    let refused = disabled.enable(Deadline::millis(1)).unwrap_err();
    assert_eq!(refused.error, Error::NoSuchOffer);
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn an_opened_callback_that_fails_undoes_the_opening() {
    let (host, platform) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let fails = StateChangeCallbacks::new().opened(|_| Err(NtStatus(0xc000_0001)));
    let client = client_with(&host, echo).init_set_state_change_callbacks(fails);
    let refused = client.enable(SOON).unwrap_err();
    assert_eq!(refused.error, Error::OpenedFailed(NtStatus(0xc000_0001)));
    assert_eq!(platform.pages_in_use(), 0);
    // The disabled channel came back: with other callbacks it opens.
    let client = refused
        .given
        .init_set_state_change_callbacks(states())
        .enable(SOON)
        .unwrap();
    assert!(client.is_running());
    drop(server);
}

#[test]
fn pause_and_start_call_suspend_started_and_post_started() {
    let pair = Pair::new(echo);
    pair.server.pause(SOON).unwrap();
    assert_eq!(pair.server.context().take(), ["suspend"]);
    pair.client.send(b"waiting").unwrap();
    pair.host.process();
    assert!(pair.server.context().take().is_empty(), "paused");
    pair.server.start(SOON).unwrap();
    assert_eq!(
        pair.server.context().take(),
        ["started", "post-started", "packet waiting", "batch 1"]
    );
    pair.close();
}

#[test]
fn a_channel_paused_before_it_is_enabled_stays_paused_until_start() {
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, echo, echo);
    assert!(!pair.server.is_running());
    pair.client.send(b"early").unwrap();
    pair.host.process();
    assert!(pair.server.context().take().is_empty());
    pair.server.start(SOON).unwrap();
    assert_eq!(
        pair.server.context().take(),
        ["started", "post-started", "packet early", "batch 1"]
    );
    pair.close();
}

#[test]
fn waiting_for_ones_own_callback_is_refused_at_once() {
    let pair = Pair::new(|channel, packet| {
        assert_eq!(channel.pause(Deadline::Never), Err(Error::WouldDeadlock));
        assert_eq!(channel.start(Deadline::Never), Err(Error::WouldDeadlock));
        let refused = channel.clone().disable(Deadline::Never).unwrap_err();
        assert_eq!(refused.error, Error::WouldDeadlock);
        packet.complete(b"refused\0").unwrap();
    });
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"refused\0");
    pair.close();
}

#[test]
fn dropping_the_last_handle_closes_the_channel() {
    let pair = Pair::new(echo);
    let other = pair.client.clone();
    drop(pair.client);
    assert!(other.is_running());
    drop(other);
    assert_eq!(pair.server.context().take(), ["suspend", "closed"]);
    assert_eq!(pair.platform.pages_in_use(), 0);
}
