//! What may be called when, and what a call in the wrong order leaves as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::support::*;
use crate::Deadline;
use crate::kmcl::{
    Channel, DisabledChannel, Error, Gone, GpadlAccess, IncomingPacket, Level, NtStatus, SendFlags,
    StateChangeCallbacks, SynchronousRequest,
};
use crate::ring::{ExternalToSend, Header};

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;
const WRONG: Result<(), Error> = Err(Error::WrongState);

#[test]
fn after_suspend_nothing_may_be_sent_until_start() {
    let pair = Pair::new(echo);
    pair.client.pause(SOON).unwrap();
    assert_eq!(pair.client.send(b"x"), WRONG);
    let packet = pair.client.packet_allocate().unwrap();
    let refused = packet.send(b"x", Some(pair.mdl(b"mine")), FLAGS).unwrap_err();
    assert_eq!(refused.error, Error::WrongState);
    assert_eq!(bytes_of(&refused.given.1.unwrap()), b"mine");
    drop(refused.given.0);
    let refused = pair
        .client
        .send_synchronous_request(b"x", None, SOON, &mut [])
        .unwrap_err();
    assert_eq!(refused.error.ntstatus(), NtStatus::INVALID_PARAMETER_1);
    assert_eq!(pair.client.counters().packets_sent, 0);
    // Twice is nothing.
    pair.client.pause(SOON).unwrap();
    pair.client.start(SOON).unwrap();
    pair.client.start(SOON).unwrap();
    assert_eq!(pair.client.context().take(), ["suspend", "started", "post-started"]);
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(pair.server.counters().packets_processed, 1);
    pair.close();
}

#[test]
fn what_is_sent_in_opened_and_started_waits_until_started_has_returned() {
    fn send(channel: &End) {
        channel.send(b"early").unwrap();
        let packet = channel.packet_allocate().unwrap();
        packet.send(b"asks", None, FLAGS).unwrap();
        channel
            .context()
            .note(format!("sent {}", channel.counters().packets_sent));
    }
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let callbacks = StateChangeCallbacks::new()
        .opened(|channel| {
            send(channel);
            Ok(())
        })
        .started(send)
        .post_started(|channel: &End| {
            channel
                .context()
                .note(format!("now {}", channel.counters().packets_sent))
        });
    let client = client_with(&host, echo)
        .init_set_state_change_callbacks(callbacks)
        .enable(SOON)
        .unwrap();
    assert_eq!(client.context().take(), ["sent 0", "sent 0", "now 4"]);
    host.process();
    let seen = server.context().take();
    let packets: Vec<&String> = seen.iter().filter(|event| event.starts_with("packet")).collect();
    assert_eq!(packets, ["packet early", "packet asks", "packet early", "packet asks"]);
    // Also where nothing stands in line from before.
    let client = client.disable(SOON).unwrap();
    let callbacks = StateChangeCallbacks::new().started(send);
    let client = client.init_set_state_change_callbacks(callbacks).enable(SOON).unwrap();
    assert_eq!(client.context().take(), ["sent 0"]);
    assert_eq!(client.counters().packets_sent, 2);
    drop((client, server));
}

#[test]
fn a_paused_channel_is_suspended_once() {
    let pair = Pair::new(echo);
    let (client_log, server_log) = (pair.client.context().clone(), pair.server.context().clone());
    pair.client.pause(SOON).unwrap();
    pair.server.pause(SOON).unwrap();
    drop(pair.client.disable(SOON).unwrap());
    assert_eq!(client_log.take(), ["suspend", "closed"]);
    assert_eq!(server_log.take(), ["suspend", "closed"]);
    drop(pair.server.disable(SOON).unwrap());
    assert!(server_log.take().is_empty(), "nobody had it open");
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn a_server_that_is_paused_while_nobody_has_it_open_pauses_when_it_is_opened() {
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let mut client = client_with(&host, echo);
    for is_paused in [true, false] {
        if is_paused {
            server.pause(Deadline::IMMEDIATE).unwrap();
        } else {
            server.start(SOON).unwrap();
        }
        assert!(server.context().take().is_empty());
        let open = client.enable(SOON).unwrap();
        let expected = ["opened", "started", "post-started"];
        assert_eq!(server.context().take(), expected[..if is_paused { 1 } else { 3 }]);
        assert_eq!(server.is_running(), !is_paused);
        client = open.disable(SOON).unwrap();
        server.context().take();
    }
    drop(server);
}

#[test]
fn starting_while_packets_are_held_back_from_a_pause_is_refused() {
    let pair = Pair::new(hold);
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(pair.server.pause(Deadline::millis(1)), Err(Error::TimedOut));
    assert_eq!(pair.server.start(SOON), WRONG);
    assert_eq!(pair.server.send(b"x"), WRONG);
    pair.client.send(b"y").unwrap();
    pair.host.process();
    drop(pair.server.context().release());
    pair.server.pause(SOON).unwrap();
    pair.server.start(SOON).unwrap();
    let log = pair.server.context().take();
    assert_eq!(
        log,
        [
            "packet x",
            "batch 1",
            "suspend",
            "started",
            "post-started",
            "packet y",
            "batch 1"
        ]
    );
    drop(pair.server.context().release());
    pair.close();
}

#[test]
fn a_server_that_is_disabled_while_its_client_closes_is_disabled_and_not_closed() {
    let pair = Pair::new(hold);
    let log = pair.server.context().clone();
    pair.client.send(b"x").unwrap();
    pair.host.process();
    // The client waits for as long as it likes; the server still holds a packet.
    drop(pair.client.disable(Deadline::millis(1)).unwrap());
    assert_eq!(log.take(), ["packet x", "batch 1", "suspend"]);
    let refused = pair.server.disable(Deadline::millis(1)).unwrap_err();
    assert_eq!(refused.error, Error::TimedOut);
    drop(log.release());
    drop(refused.given.disable(SOON).unwrap());
    assert_eq!(log.take(), ["closed"]);
    assert_eq!(pair.host.offers().count(), 0, "the offer is taken back");
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn a_queue_that_was_stopped_runs_again_when_the_channel_is_opened_again() {
    let pair = Pair::new(|channel, packet| {
        if get(channel) == 0 {
            packet.fail();
        }
    });
    pair.client.send(b"bad").unwrap();
    pair.client.send(b"never").unwrap();
    pair.host.process();
    set(&pair.server, 1);
    let client = pair.client.disable(SOON).unwrap().enable(SOON).unwrap();
    client.send(b"good").unwrap();
    pair.host.process();
    let log = pair.server.context().take();
    assert_eq!(count(&log, "packet"), 2, "{log:?}");
    assert!(log.contains(&"packet good".to_string()), "{log:?}");
    drop((client, pair.server));
}

#[test]
fn a_server_whose_opened_callback_fails_refuses_the_client_and_keeps_nothing() {
    let (host, platform) = host();
    let callbacks = states().opened(|channel: &End| match get(channel) {
        0 => Err(NtStatus(0xc000_0001)),
        _ => Ok(()),
    });
    let server = server_with(&host, echo).init_set_state_change_callbacks(callbacks);
    let server = server.enable(SOON).unwrap();
    let refused = client_with(&host, echo).enable(SOON).unwrap_err();
    assert_eq!(refused.error, Error::Refused(NtStatus(0xc000_0001)));
    assert_eq!(refused.error.ntstatus(), NtStatus(0xc000_0001));
    assert_eq!(platform.pages_in_use(), 0);
    assert!(server.context().take().is_empty(), "not started, and not closed");
    set(&server, 1);
    let client = refused.given.enable(SOON).unwrap();
    assert_eq!(server.context().take(), ["started", "post-started"]);
    drop((client, server));
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn a_completion_for_a_request_that_still_waits_in_line_is_a_guess() {
    let pair = Pair::with(
        |server| server.pause_when_enabled(),
        |client| client.init_set_maximum_packet_count(32),
        echo,
        echo,
    );
    let mut packet = pair.client.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, packet, status| {
        let text = String::from_utf8_lossy(packet.completion()).into_owned();
        channel.context().note(format!("{status:?} {text}"));
    });
    while pair.client.counters().ring_full == 0 {
        pair.client.send(&[b'f'; 1000]).unwrap();
    }
    packet.send(b"in line!", None, FLAGS).unwrap();
    // The first number that a table gives out. A server that has not started sends nothing; this is one that does wrong.
    pair.server.start(SOON).unwrap();
    assert_eq!(pair.server.context().take()[..2], ["started", "post-started"]);
    while pair.host.process() {}
    assert_eq!(pair.client.context().take(), ["Ok(()) in line!"]);
    pair.close();
}

/// A client that has sent until there was no room, to a server that meets each packet so.
fn with_full_ring(handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static) -> Pair {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(32),
        handler,
        echo,
    );
    while pair.client.counters().ring_full == 0 {
        pair.client.send(&[b'f'; 1000]).unwrap();
    }
    pair
}

#[test]
fn guesses_at_a_request_in_line_and_at_one_that_is_completed_change_nothing() {
    let first_id = Header::completion(1 << 32);
    let guess = |pair: &Pair, bytes: &[u8]| {
        assert!(pair.server.send_raw_for_tests(first_id, &[bytes], ExternalToSend::None));
        pair.client.process();
    };
    // In line: what it lends is not the server's to know either.
    let pair = with_full_ring(hold);
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"in line!", Some(pair.mdl(b"lent")), FLAGS).unwrap();
    assert!(pair.client.core().lent(1 << 32).is_none());
    guess(&pair, b"guessed!");
    let counters = pair.client.counters();
    assert_eq!((counters.unknown_completions, counters.outgoing_outstanding), (1, 1));
    while pair.host.process() || pair.server.context().held_count() > 0 {
        pair.server.context().held.lock().unwrap().clear();
    }
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    pair.close();

    // In line, and a future waits for it.
    let mut context = core::task::Context::from_waker(core::task::Waker::noop());
    let pair = with_full_ring(echo);
    let mut request = Box::pin(pair.client.request(b"in line!", None));
    assert!(request.as_mut().poll(&mut context).is_pending());
    guess(&pair, b"guessed!");
    assert_eq!(pair.client.counters().unknown_completions, 1);
    assert!(request.as_mut().poll(&mut context).is_pending());
    while pair.host.process() {}
    let core::task::Poll::Ready(Ok(reply)) = request.as_mut().poll(&mut context) else {
        panic!("completed")
    };
    assert_eq!(reply.payload(), b"in line!");
    drop((reply, request));
    pair.close();

    // Completed, and not looked at yet by the future that waits.
    let pair = Pair::new(hold);
    let mut request = Box::pin(pair.client.request(b"x", None));
    assert!(request.as_mut().poll(&mut context).is_pending());
    pair.host.process();
    guess(&pair, b"first!!!");
    guess(&pair, b"second!!");
    let core::task::Poll::Ready(Ok(reply)) = request.as_mut().poll(&mut context) else {
        panic!("completed")
    };
    assert_eq!(reply.payload(), b"first!!!");
    assert_eq!(pair.client.counters().unknown_completions, 1);
    drop((reply, request));
    drop(pair.server.context().release());
    pair.close();
}

#[test]
fn whoever_processes_at_passive_is_woken_when_there_is_something() {
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    let pair = Pair::with(
        |server| {
            server
                .init_set_incoming_processing_at_passive(Level::Passive)
                .init_set_passive_wake(|_| {
                    WOKEN.fetch_add(1, Ordering::SeqCst);
                })
        },
        |client| client,
        echo,
        echo,
    );
    pair.host.process();
    assert_eq!(WOKEN.load(Ordering::SeqCst), 0, "nothing to do");
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(WOKEN.load(Ordering::SeqCst), 1);
    pair.server.process_at_passive();
    assert!(!pair.server.needs_passive());
    assert_eq!(pair.server.context().take(), ["packet x", "batch 1"]);
    // Nothing is held back: neither when a packet was delivered, nor from a look in vain.
    pair.server.set_incoming_processing_at_passive(Level::Dispatch);
    pair.client.send(b"y").unwrap();
    pair.host.process();
    pair.server.process();
    assert_eq!(pair.server.context().take(), ["packet y", "batch 1"]);
    assert_eq!((WOKEN.load(Ordering::SeqCst), pair.server.needs_passive()), (1, false));
    pair.close();
}

#[test]
fn a_packet_is_put_back_only_by_the_callback_that_got_it() {
    let pair = Pair::new(hold);
    pair.client.send(b"x").unwrap();
    pair.host.process();
    let refused = pair.server.context().release().defer_to_passive().unwrap_err();
    assert_eq!(refused.error, Error::WrongState);
    let refused = refused.given.wait_for_external_data().unwrap_err();
    assert_eq!(refused.error, Error::WrongState);
    refused.given.complete(&[]).unwrap();
    assert_eq!(pair.server.counters().incoming_outstanding, 0);
    pair.close();
}

#[test]
fn an_answer_beyond_the_channels_limit_is_refused_and_another_one_may_be_given() {
    let pair = Pair::new(|_, packet| {
        let refused = packet.complete(&[0; 1025]).unwrap_err();
        assert_eq!(refused.error, Error::PacketTooLarge { len: 1025, limit: 1024 });
        refused.given.complete(b"shorter!").unwrap();
    });
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"x", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"shorter!");
    assert_eq!(pair.server.counters().packets_sent, 1);
    pair.close();
}

/// Everything that waits for the channel's own callbacks, called from one: each is refused at once.
fn refused_in_callback(channel: &End) {
    let start = std::time::Instant::now();
    let never = Deadline::Never;
    let mdl = crate::memory::Mdl::empty();
    let outcomes = [
        channel.pause(never),
        channel.start(never),
        channel
            .clone()
            .disable(never)
            .map(drop)
            .map_err(|refused| refused.error),
        channel
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, never)
            .map(drop),
        channel.save_begin().map(drop),
        channel.restore_from_buffer(&[]).map(drop),
        channel
            .clone()
            .hand_over(never)
            .map(drop)
            .map_err(|refused| refused.error),
    ];
    assert_eq!(outcomes, [Err(Error::WouldDeadlock); 7]);
    let gpadl = channel.context().gpadl.lock().unwrap().take();
    if let Some(gpadl) = gpadl {
        let refused = gpadl.delete(never).unwrap_err();
        assert_eq!(refused.error, Error::WouldDeadlock);
        *channel.context().gpadl.lock().unwrap() = Some(refused.given);
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
    channel.context().note("refused");
}

#[test]
fn each_callback_is_refused_what_would_wait_for_it() {
    let every = |channel: DisabledChannel<Arc<Log>>| {
        channel
            .init_set_process_packet_callbacks(
                |channel, _: IncomingPacket<Arc<Log>>| refused_in_callback(channel),
                |channel, _| refused_in_callback(channel),
            )
            .init_set_state_change_callbacks(
                StateChangeCallbacks::new()
                    .opened(|channel| {
                        refused_in_callback(channel);
                        Ok(())
                    })
                    .started(refused_in_callback)
                    .post_started(refused_in_callback)
                    .suspend(refused_in_callback)
                    .closed(refused_in_callback),
            )
    };
    let (host, platform) = host();
    let server = every(server_with(&host, echo)).enable(SOON).unwrap();
    let client = every(client_with(&host, echo)).enable(SOON).unwrap();
    let gpadl = client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl_of(platform, b"x"), 0, 0, SOON)
        .unwrap();
    *client.context().gpadl.lock().unwrap() = Some(gpadl);
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, _, _| refused_in_callback(channel));
    packet.send(b"x", None, FLAGS).unwrap();
    server.send(b"x").unwrap();
    while host.process() {}
    // Opened, started, post-started, packet, batch; and the client's routine.
    assert_eq!(server.context().take().len(), 5);
    assert_eq!(client.context().take().len(), 6);
    let gpadl = client.context().gpadl.lock().unwrap().take().unwrap();
    drop(gpadl.delete(SOON).unwrap());
    let logs = [client.context().clone(), server.context().clone()];
    drop(client.disable(SOON).unwrap());
    drop(server.disable(SOON).unwrap());
    // Suspend and closed.
    assert_eq!(logs.map(|log| log.take().len()), [2, 2]);
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn a_channel_that_has_ended_answers_so_to_everything() {
    let pair = Pair::new(echo);
    let (server, client) = (pair.server.clone(), pair.client.clone());
    let gpadl = client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &pair.mdl(b"x"), 0, 0, SOON)
        .unwrap();
    let handle = gpadl.handle();
    drop(pair.client.disable(SOON).unwrap());
    drop(pair.server.disable(SOON).unwrap());
    let gone = Error::Gone(Gone::Disabled);
    for end in [&server, &client] {
        assert_eq!(end.send(b"x"), Err(gone));
        assert_eq!(end.send_transfer_pages(1, &[(0, 8)], b"x"), Err(gone));
        assert_eq!(end.pause(SOON), Err(gone));
        assert_eq!(end.start(SOON), Err(gone));
        assert_eq!(end.map_gpadl(handle, GpadlAccess::ReadOnly).unwrap_err(), gone);
        assert!(!end.is_running());
        let packet = end.packet_allocate().unwrap();
        assert_eq!(packet.send(b"x", None, FLAGS).unwrap_err().error, gone);
        // Again is nothing.
        drop(end.clone().disable(SOON).unwrap());
    }
    let refused = client.send_synchronous_request(b"x", None, SOON, &mut []).unwrap_err();
    assert_eq!(refused.error.ntstatus(), NtStatus::DEVICE_REMOVED);
    assert_eq!(bytes_of(&gpadl.delete(SOON).unwrap()), b"x");
    drop((server, client));
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn a_server_may_not_await_a_future() {
    let pair = Pair::new(echo);
    let mut context = core::task::Context::from_waker(core::task::Waker::noop());
    let mut request = Box::pin(pair.server.request(b"x", Some(pair.mdl(b"mine"))));
    let core::task::Poll::Ready(Err(refused)) = request.as_mut().poll(&mut context) else {
        panic!("refused")
    };
    assert_eq!(refused.error, Error::ServerMayNotWait);
    assert_eq!(bytes_of(&refused.given.unwrap()), b"mine");
    drop(request);
    pair.close();
}

#[test]
fn one_offer_has_one_client_at_a_time() {
    let pair = Pair::new(echo);
    let second = client_with(&pair.host, echo).enable(Deadline::millis(1));
    let refused = second.unwrap_err();
    assert_eq!(refused.error, Error::NoSuchOffer);
    let by_number = Channel::allocate_client(&pair.host)
        .unwrap()
        .init_set_target_channel(pair.server.id());
    assert_eq!(
        by_number.enable(Deadline::millis(1)).unwrap_err().error,
        Error::NoSuchOffer
    );
    drop(pair.client.disable(SOON).unwrap());
    drop(refused.given.enable(SOON).unwrap());
    drop(pair.server);
}

#[test]
fn what_a_packet_describes_is_what_is_lent_with_it() {
    let pair = Pair::new(|channel, mut packet| {
        let outcome = packet.external_data().map(|data| data.len());
        channel.context().note(format!("{outcome:?}"));
        hold(channel, packet);
    });
    let (lent, other) = (pair.mdl(&[1; 4096]), pair.mdl(&[2; 4096]));
    let page_of = |mdl: &crate::memory::Mdl| mdl.page_spans().next().unwrap().pfn.get();
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"lends", Some(lent.clone()), FLAGS).unwrap();
    // The same number, with another page, with another length, with one page more, and as it is.
    let (mine, theirs) = (page_of(&lent), page_of(&other));
    let ranges: [(&[u64], u32, u32); 4] = [
        (&[theirs], 4096, 0),
        (&[mine], 4095, 0),
        (&[mine, theirs], 4096, 8),
        (&[mine], 4096, 0),
    ];
    for (pfns, byte_count, byte_offset) in ranges {
        let range = crate::ring::GpaRangeToSend {
            byte_count,
            byte_offset,
            pfns,
        };
        let external = ExternalToSend::GpaDirect(core::slice::from_ref(&range));
        assert!(
            pair.client
                .send_raw_for_tests(Header::gpa_direct(1 << 32), &[b"says"], external)
        );
    }
    pair.host.process();
    let log = pair.server.context().take();
    let seen: Vec<&str> = log.iter().map(String::as_str).collect();
    let expected = [
        "packet lends",
        "Ok(4096)",
        "packet says",
        "Err(NotLent)",
        "packet says",
        "Err(NotLent)",
        "packet says",
        "Err(NotLent)",
        "packet says",
        "Ok(4096)",
        "batch 5",
    ];
    assert_eq!(seen, expected);
    pair.server.context().held.lock().unwrap().clear();
    pair.host.process();
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    drop((lent, other));
    pair.close();
}

#[test]
fn a_request_that_is_given_up_in_line_is_never_seen_and_its_memory_is_back_at_once() {
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, echo, echo);
    let mut is_full = false;
    while !is_full {
        let request = SynchronousRequest {
            payload: &[b'f'; 512],
            mdl: None,
            flags: SendFlags::empty(),
            completion: None,
            deadline: Deadline::IMMEDIATE,
        };
        is_full = pair.client.send_synchronous(request).is_err() && !pair.host.process();
    }
    let refused = pair
        .client
        .send_synchronous_request(&[b'g'; 512], Some(pair.mdl(b"mine")), Deadline::millis(5), &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::Cancelled);
    assert_eq!(bytes_of(&refused.given.unwrap()), b"mine");
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    pair.server.start(SOON).unwrap();
    while pair.host.process() {}
    assert_eq!(count(&pair.server.context().take(), "packet g"), 0);
    pair.close();
}

#[test]
fn what_a_client_shared_ends_when_it_closes_although_it_was_not_withdrawn() {
    let pair = Pair::new(echo);
    let gpadl = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &pair.mdl(b"x"), 0, 0, SOON)
        .unwrap();
    let handle = gpadl.handle();
    drop(gpadl);
    drop(pair.server.map_gpadl(handle, GpadlAccess::ReadOnly).unwrap());
    let client = pair.client.disable(SOON).unwrap();
    assert_eq!(pair.platform.pages_in_use(), 0);
    let client = client.enable(SOON).unwrap();
    assert_eq!(
        pair.server.map_gpadl(handle, GpadlAccess::ReadOnly).unwrap_err(),
        Error::UnknownGpadl
    );
    drop((client, pair.server));
}

#[test]
fn a_handle_that_a_callback_drops_before_enable_returns_is_not_the_last_one() {
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let callbacks = StateChangeCallbacks::new().opened(|channel: &End| {
        let clone = channel.clone();
        // By another thread: from the callback itself it would be refused.
        std::thread::spawn(move || drop(clone)).join().unwrap();
        Ok(())
    });
    let client = client_with(&host, echo)
        .init_set_state_change_callbacks(callbacks)
        .enable(SOON)
        .unwrap();
    let mut answer = [0; 8];
    client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"question");
    drop((client, server));
}
