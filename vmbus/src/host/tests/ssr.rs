//! `VmbChannelSendSynchronousRequest`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::support::*;
use crate::kmcl::{Error, Gone, NtStatus, SendFlags, StateChangeCallbacks, SynchronousRequest};
use crate::testing::wait_until;
use crate::{Deadline, Instant};

fn without_waiting(payload: &[u8], deadline: Deadline) -> SynchronousRequest<'_> {
    SynchronousRequest {
        payload,
        mdl: None,
        flags: SendFlags::empty(),
        completion: None,
        deadline,
    }
}

/// Fills the ring to the server, which does not read.
fn fill(pair: &Pair) -> usize {
    let mut sent = 0;
    while pair
        .client
        .send_synchronous(without_waiting(&[b'f'; 512], Deadline::IMMEDIATE))
        .is_ok()
    {
        sent += 1;
    }
    sent
}

#[test]
fn ssr_1_all_parameters_can_be_given() {
    let pair = Pair::new(echo);
    let mut completion = [0; 8];
    let sent = pair
        .client
        .send_synchronous(SynchronousRequest {
            payload: b"payload!",
            mdl: Some(pair.mdl(b"memory")),
            flags: SendFlags::WAIT_FOR_COMPLETION | SendFlags::PAGED_BUFFER,
            completion: Some(&mut completion),
            deadline: SOON,
        })
        .unwrap();
    assert_eq!(
        (sent.len, completion, sent.mdl.map(|mdl| bytes_of(&mdl))),
        (8, *b"payload!", Some(b"memory".to_vec()))
    );
    assert_refused("SSR-1", "E0063", "position in an interface table");
    pair.close();
}

#[test]
fn ssr_2_the_peer_sees_one_packet_with_the_payload() {
    let pair = Pair::new(echo);
    pair.client
        .send_synchronous_request(b"sixteen bytes in", None, SOON, &mut [0; 16])
        .unwrap();
    assert_eq!(pair.server.context().take(), ["packet sixteen bytes in", "batch 1"]);
    pair.close();
}

#[test]
fn ssr_3_the_completion_is_copied_and_its_length_returned() {
    let pair = Pair::new(|_, packet| packet.complete(b"an answer of 24 bytes...").unwrap());
    let mut answer = [0; 32];
    let sent = pair
        .client
        .send_synchronous_request(b"x", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(sent.len, 24);
    assert_eq!(&answer, b"an answer of 24 bytes...\0\0\0\0\0\0\0\0");
    pair.close();
}

#[test]
fn ssr_4_it_does_not_return_before_the_peer_completes() {
    let pair = Pair::new(hold);
    let (client, server) = (&pair.client, &pair.server);
    let returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.send_synchronous_request(b"x", None, SOON, &mut []).unwrap();
            returned.store(true, Ordering::SeqCst);
        });
        wait_until("the packet", || server.context().held_count() != 0);
        std::thread::sleep(Duration::from_millis(30));
        assert!(!returned.load(Ordering::SeqCst));
        server.context().release().complete(&[]).unwrap();
    });
    assert!(returned.load(Ordering::SeqCst));
    pair.close();
}

#[test]
fn ssr_5_a_capacity_that_is_no_multiple_of_eight_fails_and_nothing_is_sent() {
    let pair = Pair::new(echo);
    for capacity in [1, 7, 9, 63] {
        let refused = pair
            .client
            .send_synchronous_request(b"x", None, SOON, &mut vec![0; capacity])
            .unwrap_err();
        assert_eq!(refused.error, Error::InvalidCapacity(capacity));
        assert!(!refused.error.ntstatus().is_success());
    }
    pair.host.process();
    assert_eq!(pair.client.counters().packets_sent, 0);
    pair.close();
}

#[test]
fn ssr_6_capacities_that_are_multiples_of_eight_and_suffice_succeed() {
    let pair = Pair::new(echo);
    for capacity in [8, 16, 64] {
        let mut answer = vec![0; capacity];
        let sent = pair
            .client
            .send_synchronous_request(b"eight by", None, SOON, &mut answer)
            .unwrap();
        assert_eq!((sent.len, &answer[..8]), (8, b"eight by".as_slice()));
    }
    // An empty completion fits an empty buffer.
    let pair = Pair::new(|_, packet| packet.complete(&[]).unwrap());
    assert_eq!(
        pair.client
            .send_synchronous_request(b"x", None, SOON, &mut [])
            .unwrap()
            .len,
        0
    );
    pair.close();
}

#[test]
fn ssr_7_without_a_buffer_the_response_is_dropped() {
    let pair = Pair::new(echo);
    let request = SynchronousRequest {
        flags: SendFlags::WAIT_FOR_COMPLETION,
        ..without_waiting(b"response", SOON)
    };
    assert_eq!(pair.client.send_synchronous(request).unwrap().len, 0);
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    pair.close();
}

#[test]
fn ssr_8_without_memory_the_peer_sees_no_external_data() {
    let pair = Pair::new(|channel, packet| set(channel, 1 + u64::from(packet.has_external_data())));
    pair.client.send_synchronous_request(b"x", None, SOON, &mut []).unwrap();
    assert_eq!(get(&pair.server), 1);
    pair.close();
}

#[test]
fn ssr_9_the_peer_gets_the_memory_that_is_given() {
    let pair = Pair::new(|_, mut packet| {
        let data = packet.external_data().unwrap();
        let mut bytes = [0; 8];
        data.read_at(8, &mut bytes).unwrap();
        packet.complete(&bytes).unwrap();
    });
    let mut answer = [0; 8];
    let mdl = pair.mdl(b"________external");
    let sent = pair
        .client
        .send_synchronous_request(b"x", Some(mdl), SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"external");
    assert!(
        sent.mdl.unwrap().into_dma_buffer().unwrap().is_sole_owner(),
        "nobody holds it any more"
    );
    pair.close();
}

#[test]
fn ssr_10_without_a_limit_it_waits() {
    let pair = Pair::new(hold);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            wait_until("the packet", || pair.server.context().held_count() != 0);
            pair.server.context().release().complete(&[]).unwrap();
        });
        pair.client
            .send_synchronous_request(b"x", None, Deadline::Never, &mut [])
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
    });
    pair.close();
}

#[test]
fn ssr_11_timeouts_are_relative_or_absolute() {
    let pair = Pair::new(hold);
    let start = Instant::from_reference_units(1);
    for deadline in [Deadline::millis(5), Deadline::At(start)] {
        let refused = pair
            .client
            .send_synchronous_request(b"x", None, deadline, &mut [])
            .unwrap_err();
        assert_eq!(refused.error, Error::Cancelled);
    }
    pair.server.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn ssr_12_time_up_is_status_cancelled_and_not_early() {
    let pair = Pair::new(hold);
    let before = std::time::Instant::now();
    let refused = pair
        .client
        .send_synchronous_request(b"x", None, Deadline::millis(30), &mut [])
        .unwrap_err();
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert_eq!(refused.error.ntstatus(), NtStatus(0xc000_0120));
    assert_eq!(pair.client.counters().cancelled, 1);
    // Its late completion is dropped and counted.
    pair.server.context().release().complete(b"too late").unwrap();
    pair.host.process();
    assert_eq!(
        (
            pair.client.counters().late_completions,
            pair.client.counters().outgoing_outstanding
        ),
        (1, 0)
    );
    pair.close();
}

#[test]
fn ssr_13_without_room_and_without_waiting_nothing_is_queued() {
    let pair = Pair::new(|_, _| ());
    let sent = fill(&pair);
    for flags in [SendFlags::empty(), SendFlags::WAIT_FOR_COMPLETION] {
        let request = SynchronousRequest {
            flags,
            ..without_waiting(&[b'!'; 512], Deadline::IMMEDIATE)
        };
        let refused = pair.client.send_synchronous(request).unwrap_err();
        assert_eq!(refused.error.ntstatus(), NtStatus(0x8000_0005));
    }
    while pair.host.process() {}
    let log = pair.server.context().take();
    assert_eq!(count(&log, "packet f"), sent);
    assert_eq!(
        count(&log, "packet !"),
        0,
        "never seen, not even after the ring has drained"
    );
    pair.close();
}

#[test]
fn ssr_14_without_waiting_it_succeeds_at_once_and_asks_for_no_completion() {
    let pair = Pair::new(|channel, packet| set(channel, 1 + u64::from(packet.wants_completion())));
    pair.client
        .send_synchronous(without_waiting(b"x", Deadline::IMMEDIATE))
        .unwrap();
    pair.host.process();
    assert_eq!(get(&pair.server), 1);
    pair.close();
}

#[test]
fn ssr_15_with_time_a_full_ring_is_waited_for() {
    let pair = Pair::new(echo);
    fill(&pair);
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"in line!", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"in line!");
    // And without waiting for the completion.
    fill(&pair);
    pair.client
        .send_synchronous(without_waiting(&[b'w'; 512], SOON))
        .unwrap();
    while pair.host.process() {}
    assert_eq!(count(&pair.server.context().take(), "packet w"), 1);
    pair.close();
}

#[test]
fn ssr_16_a_channel_that_shuts_down_releases_who_waits() {
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, echo, echo);
    std::thread::scope(|scope| {
        let client = &pair.client;
        let waiting = scope.spawn(move || {
            client
                .send_synchronous_request(b"x", None, Deadline::Never, &mut [])
                .unwrap_err()
                .error
        });
        wait_until("the request", || pair.client.counters().outgoing_outstanding != 0);
        drop(pair.client.clone().disable(SOON).unwrap());
        assert_eq!(waiting.join().unwrap().ntstatus(), NtStatus(0xc000_02b6));
    });
    let refused = pair
        .client
        .send_synchronous_request(b"x", None, SOON, &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::Gone(Gone::Disabled));
    drop(pair.server);
}

#[test]
fn ssr_17_clients_may_combine_everything() {
    let pair = Pair::new(echo);
    for waits in [false, true] {
        for memory in [false, true] {
            for buffer in [false, true] {
                for deadline in [Deadline::Never, SOON, Deadline::IMMEDIATE] {
                    let mut completion = [0; 8];
                    let outcome = pair.client.send_synchronous(SynchronousRequest {
                        payload: b"combined",
                        mdl: memory.then(|| pair.mdl(b"memory")),
                        flags: if waits {
                            SendFlags::WAIT_FOR_COMPLETION
                        } else {
                            SendFlags::empty()
                        },
                        completion: buffer.then_some(completion.as_mut_slice()),
                        deadline,
                    });
                    match outcome {
                        Ok(_) => assert!(waits || !memory),
                        // Memory cannot come back without a completion.
                        Err(refused) => {
                            assert_eq!((refused.error, waits, memory), (Error::CompletionNeeded, false, true))
                        }
                    }
                }
            }
        }
    }
    pair.close();
}

#[test]
fn ssr_18_a_server_may_only_send_without_waiting() {
    let pair = Pair::new(echo);
    let refused = pair
        .server
        .send_synchronous_request(b"x", None, SOON, &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::ServerMayNotWait);
    let refused = pair.server.send_synchronous(without_waiting(b"x", SOON)).unwrap_err();
    assert_eq!(refused.error, Error::ServerMayNotWait);
    pair.server
        .send_synchronous(without_waiting(b"allowed", Deadline::IMMEDIATE))
        .unwrap();
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["packet allowed", "batch 1"]);
    pair.close();
}

fn in_callback(started: bool) -> Vec<String> {
    let (host, _) = host();
    let _server = server_with(&host, echo).enable(SOON).unwrap();
    let ask = move |channel: &End| {
        let mut answer = [0; 8];
        match channel.send_synchronous_request(b"question", None, SOON, &mut answer) {
            Ok(_) => channel.context().note(String::from_utf8_lossy(&answer)),
            Err(refused) => channel.context().note(format!("{:?}", refused.error)),
        }
    };
    let callbacks = StateChangeCallbacks::new();
    let callbacks = if started {
        callbacks.started(ask)
    } else {
        callbacks.post_started(ask)
    };
    let client = client_with(&host, echo)
        .init_set_state_change_callbacks(callbacks)
        .enable(SOON)
        .unwrap();
    client.context().take()
}

#[test]
fn ssr_19_in_started_waiting_is_refused_at_once() {
    assert_eq!(in_callback(true), ["WouldDeadlock"]);
}

#[test]
fn ssr_20_in_post_started_waiting_works() {
    assert_eq!(in_callback(false), ["question"]);
}

#[test]
fn ssr_21_without_waiting_success_means_placed_in_the_ring() {
    let pair = Pair::new(echo);
    pair.client.send_synchronous(without_waiting(b"placed", SOON)).unwrap();
    assert_eq!(pair.client.counters().packets_sent, 1);
    assert!(pair.server.context().take().is_empty(), "nobody has read it");
    pair.host.process();
    pair.close();
}

#[test]
fn ssr_22_a_failure_inside_the_completion_is_none_of_the_transports() {
    let pair = Pair::new(|_, packet| packet.complete(&0xc000_0001_u64.to_le_bytes()).unwrap());
    let mut answer = [0; 8];
    assert_eq!(
        pair.client
            .send_synchronous_request(b"x", None, SOON, &mut answer)
            .unwrap()
            .len,
        8
    );
    assert_eq!(u64::from_le_bytes(answer), 0xc000_0001);
    pair.close();
}

#[test]
fn ssr_23_whoever_may_not_wait_asks_with_a_deadline_of_zero() {
    // The level is the caller's to know; what the library can tell is its own callback.
    let pair = Pair::new(|channel, packet| {
        let sent = channel.send_synchronous(without_waiting(b"from the callback", Deadline::IMMEDIATE));
        set(channel, u64::from(sent.is_ok()));
        packet.complete(&[]).unwrap();
    });
    pair.client.send_synchronous_request(b"x", None, SOON, &mut []).unwrap();
    assert_eq!(get(&pair.server), 1);
    assert_row("SSR-23", "not applicable", "IRQL");
    pair.close();
}

#[test]
fn ssr_24_after_return_the_buffers_are_the_callers_alone() {
    let pair = Pair::new(hold);
    let mut answer = [7; 8];
    let mut payload = *b"payload.";
    pair.client
        .send_synchronous_request(&payload, None, Deadline::millis(1), &mut answer)
        .unwrap_err();
    payload.fill(0);
    pair.host.process();
    let packet = pair.server.context().release();
    assert_eq!(packet.payload(), b"payload.");
    packet.complete(b"too late").unwrap();
    pair.host.process();
    assert_eq!((payload, answer), ([0; 8], [7; 8]));
    pair.close();
}

#[test]
fn ssr_25_concurrent_requests_get_each_their_own_response() {
    let pair = Pair::new(|channel, packet| {
        channel.context().hold(packet);
        if channel.context().held_count() == 4 {
            let mut held = std::mem::take(&mut *channel.context().held.lock().unwrap());
            // Completed in the other order.
            held.reverse();
            for packet in held {
                let payload = packet.payload().to_vec();
                packet.complete(&payload).unwrap();
            }
        }
    });
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let client = &pair.client;
            scope.spawn(move || {
                let mut answer = [0; 8];
                client
                    .send_synchronous_request(&number.to_le_bytes(), None, SOON, &mut answer)
                    .unwrap();
                assert_eq!(u64::from_le_bytes(answer), number);
            });
        }
    });
    pair.close();
}

#[test]
fn a_completion_longer_than_the_buffer_leaves_its_beginning_and_an_error() {
    let pair = Pair::new(|_, packet| packet.complete(b"0123456789abcdef").unwrap());
    let mut answer = [0; 8];
    let mdl = pair.mdl(b"comes back");
    let refused = pair
        .client
        .send_synchronous_request(b"x", Some(mdl), SOON, &mut answer)
        .unwrap_err();
    assert_eq!(
        (refused.error, &answer),
        (Error::CompletionTruncated { len: 16 }, b"01234567")
    );
    assert_eq!(bytes_of(&refused.given.unwrap()), b"comes back");
    pair.close();
}

#[test]
fn an_oversized_packet_is_refused_before_anything_is_sent() {
    let pair = Pair::new(echo);
    let refused = pair
        .client
        .send_synchronous_request(&[0; 1025], None, SOON, &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::PacketTooLarge { len: 1025, limit: 1024 });
    assert_eq!(pair.client.send(&[0; 1025]), Err(refused.error));
    assert_eq!(pair.client.counters().packets_sent, 0);
    pair.close();
}

#[test]
fn with_no_time_a_completion_that_is_not_there_after_one_look_cancels() {
    let pair = Pair::new(hold);
    let refused = pair
        .client
        .send_synchronous_request(b"x", None, Deadline::IMMEDIATE, &mut [])
        .unwrap_err();
    assert_eq!(refused.error, Error::Cancelled);
    pair.server.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn waiting_from_the_packet_callback_is_refused_at_once() {
    let pair = Pair::with(
        |server| server,
        |client| client,
        echo,
        |channel, _| {
            let refused = channel
                .send_synchronous_request(b"x", None, Deadline::Never, &mut [])
                .unwrap_err();
            channel.context().note(format!("{:?}", refused.error));
        },
    );
    pair.server.send(b"x").unwrap();
    pair.host.process();
    assert!(pair.client.context().take().contains(&"WouldDeadlock".to_string()));
    pair.close();
}
