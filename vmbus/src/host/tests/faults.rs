//! The server takes its offer back at each step, and numbers of another channel are given to this one.

use std::sync::{Arc, Mutex};

use super::support::*;
use crate::Deadline;
use crate::fallible::Shared;
use crate::kmcl::{Error, Gone, GpadlAccess, SendFlags, StateChangeCallbacks};

type Revoke = Arc<Mutex<Option<End>>>;

fn revoke(server: &Revoke) {
    if let Some(server) = server.lock().unwrap().take() {
        drop(server.disable(SOON).unwrap());
    }
}

/// Opens a channel to a server that revokes at `step`; the client goes on as it can, and nothing is left.
fn revoked_at(step: &'static str) -> Result<(), Error> {
    let (host, platform) = host();
    let release = states().suspend(|channel: &End| {
        let held = std::mem::take(&mut *channel.context().held.lock().unwrap());
        drop(held);
    });
    let server = server_with(&host, hold).init_set_state_change_callbacks(release);
    let server = server.enable(SOON).unwrap();
    let to_revoke: Revoke = Arc::new(Mutex::new(Some(server)));
    let at = |this: &'static str| {
        let server = to_revoke.clone();
        move |channel: &End| {
            channel.context().note(this);
            if this == step {
                revoke(&server);
            }
        }
    };
    let opened = at("opened");
    let callbacks = StateChangeCallbacks::new()
        .opened(move |channel| {
            opened(channel);
            Ok(())
        })
        .started(at("started"))
        .post_started(at("post-started"))
        .suspend(at("suspend"))
        .closed(at("closed"));
    let outcome = client_with(&host, echo)
        .init_set_state_change_callbacks(callbacks)
        .enable(SOON)
        .map_err(|refused| refused.error)
        .and_then(|client| {
            let result = use_channel(&host, platform, &client, step, &to_revoke);
            let log = client.context().clone();
            drop(client.disable(SOON).unwrap());
            let seen = log.take();
            assert_eq!(count(&seen, "closed"), 1, "{step}: {seen:?}");
            assert_eq!(count(&seen, "suspend"), 1, "{step}: {seen:?}");
            result
        });
    revoke(&to_revoke);
    host.process();
    assert_eq!(platform.pages_in_use(), 0, "{step}: {outcome:?}");
    assert_eq!(Shared::owner_count(&host.inner), 1, "{step}: {outcome:?}");
    outcome
}

fn use_channel(
    host: &crate::host::Host,
    platform: &'static crate::test_platform::TestPlatform,
    client: &End,
    step: &'static str,
    server: &Revoke,
) -> Result<(), Error> {
    let at = |this: &str| {
        if this == step {
            revoke(server);
        }
    };
    let packet = client.packet_allocate()?;
    packet
        .send(
            b"lent",
            Some(mdl_of(platform, &[1; 100])),
            SendFlags::WAIT_FOR_COMPLETION,
        )
        .map_err(Error::from)?;
    at("sent");
    client.send(b"notice")?;
    let mdl = mdl_of(platform, &[2; 5000]);
    let gpadl = client.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)?;
    at("shared");
    let mapped = match &*server.lock().unwrap() {
        Some(server) => Some(server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite)?),
        None => None,
    };
    at("mapped");
    // What was mapped is still memory.
    if let Some(mapped) = &mapped {
        mapped.write_at(0, b"later").unwrap();
    }
    if step != "mapped" {
        drop(mapped);
    }
    let returned = gpadl.delete(SOON).map_err(Error::from)?;
    assert_eq!(returned.len(), 5000);
    at("withdrawn");
    client.send(b"last")?;
    host.process();
    Ok(())
}

#[test]
fn an_offer_that_is_taken_back_at_any_step_ends_the_client_and_leaves_nothing() {
    assert_eq!(revoked_at("never"), Ok(()));
    // Closing, there is nothing more to be refused.
    for step in ["suspend", "closed"] {
        assert_eq!(revoked_at(step), Ok(()), "{step}");
    }
    for step in [
        "opened",
        "started",
        "post-started",
        "sent",
        "shared",
        "mapped",
        "withdrawn",
    ] {
        assert_eq!(revoked_at(step), Err(Error::Gone(Gone::Rescinded)), "{step}");
    }
}

#[test]
fn numbers_of_another_channel_mean_nothing_to_this_one() {
    let pair = Pair::new(hold);
    let other = Pair::new(hold);
    let mdl = other.mdl(&[1; 4096]);
    // Handles are counted by their host, so that these are the same number only by chance: take the second one.
    let first = other
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)
        .unwrap();
    let gpadl = other
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)
        .unwrap();
    let foreign = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite);
    assert_eq!(foreign.err(), Some(Error::UnknownGpadl));
    drop(first.delete(SOON).unwrap());
    drop(gpadl.delete(SOON).unwrap());
    // A request of the other channel is in flight; its id completes nothing here, where the place is free.
    let request = other.client.packet_allocate().unwrap();
    request.send(b"held", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    other.host.process();
    let held = other.server.context().release();
    let header = crate::ring::Header::completion(1 << 32);
    assert!(
        pair.server
            .send_raw_for_tests(header, &[b"foreign!"], crate::ring::ExternalToSend::None)
    );
    pair.host.process();
    assert_eq!(pair.client.counters().unknown_completions, 1);
    assert_eq!(other.client.counters().outgoing_outstanding, 1);
    held.complete(&[]).unwrap();
    other.host.process();
    assert_eq!(other.client.counters().outgoing_outstanding, 0);
    assert_eq!(other.client.counters().unknown_completions, 0);
    drop(mdl);
    // A packet object goes out on the channel that it is of, whoever sends it.
    let packet = other.client.packet_allocate().unwrap();
    assert!(Shared::is_same(&packet.channel().shared(), &other.client.shared()));
    drop(packet);
    assert_eq!(pair.client.pause(Deadline::seconds(1)), Ok(()));
    pair.close();
    other.close();
}
