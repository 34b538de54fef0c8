//! Packet objects, lines in front of a full ring, futures, and what a peer may do wrong.

use core::future::Future;
use core::pin::pin;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;

use super::support::*;
use crate::Deadline;
use crate::kmcl::{Error, Gone, SendFlags};
use crate::memory::Mdl;
use crate::testing::wait_until;

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;

#[test]
fn a_routine_gets_packet_status_completion_and_memory_back() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_inline_packet_context_size(4),
        echo,
        echo,
    );
    let mut packet = pair.client.packet_allocate().unwrap();
    packet.set_pointer(42);
    packet.inline_context().copy_from_slice(b"mine");
    packet.set_completion_routine(|channel, mut packet, status| {
        let mdl = packet.take_mdl().map(|mdl| bytes_of(&mdl));
        let inline = packet.inline_context().to_vec();
        channel
            .context()
            .note(format!("{status:?} {} {inline:?} {mdl:?}", packet.pointer()));
        if packet.pointer() == 42 {
            // The same packet again, without waiting for a completion.
            packet.set_pointer(43);
            packet.send(b"again", None, SendFlags::empty()).unwrap();
        }
    });
    packet.send(b"first", Some(pair.mdl(b"lent")), FLAGS).unwrap();
    pair.host.process();
    let expected = [
        "Ok(()) 42 [109, 105, 110, 101] Some([108, 101, 110, 116])",
        "Ok(()) 43 [109, 105, 110, 101] None",
    ];
    assert_eq!(pair.client.context().take(), expected);
    assert_eq!(
        pair.server.context().take(),
        ["packet first", "batch 1", "packet again", "batch 1"]
    );
    pair.close();
}

#[test]
fn a_server_knows_whether_a_completion_is_waited_for() {
    let pair = Pair::with(
        |server| server,
        |client| client,
        |channel, packet| {
            channel.context().note(format!("{}", packet.wants_completion()));
            packet.complete(b"").unwrap();
        },
        echo,
    );
    for flags in [FLAGS, SendFlags::empty()] {
        let packet = pair.client.packet_allocate().unwrap();
        packet.send(b"x", None, flags).unwrap();
        pair.host.process();
    }
    let expected = ["packet x", "true", "batch 1", "packet x", "false", "batch 1"];
    assert_eq!(pair.server.context().take(), expected);
    pair.close();
}

#[test]
fn a_server_sees_how_much_memory_it_was_lent_up_to_its_limits() {
    let pair = Pair::with(
        |server| server.init_set_maximum_external_data(5, 2).unwrap(),
        |client| client,
        |channel, mut packet| {
            let data = packet.external_data().unwrap();
            let seen = format!("{} {} {}", data.len(), data.is_empty(), data.chain_len());
            channel.context().note(seen);
            packet.complete(b"").unwrap();
        },
        echo,
    );
    let packet = pair.client.packet_allocate().unwrap();
    let chain = Mdl::chain([pair.mdl(b"to"), pair.mdl(b"two")]).unwrap();
    packet.send(b"x", Some(chain), FLAGS).unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["packet x", "5 false 2", "batch 1"]);
    pair.close();
}

#[test]
fn q3_when_all_ids_are_in_use_a_packet_is_refused_and_goes_later() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(2),
        hold,
        echo,
    );
    let (first, second) = (
        pair.client.packet_allocate().unwrap(),
        pair.client.packet_allocate().unwrap(),
    );
    assert_eq!(pair.client.packet_allocate().unwrap_err(), Error::TooManyPackets);
    drop(first);
    second.send(b"x", None, FLAGS).unwrap();
    let third = pair.client.packet_allocate().unwrap();
    third.send(b"x", None, FLAGS).unwrap();
    // All ids are in use: a packet of one's own does not get further.
    let own = pair.client.packet_initialize().unwrap();
    let refused = own.send(b"x", None, FLAGS).unwrap_err();
    assert_eq!(refused.error, Error::TooManyPackets);
    pair.host.process();
    pair.server.context().held.lock().unwrap().clear();
    pair.host.process();
    refused.given.0.send(b"x", None, FLAGS).unwrap();
    pair.host.process();
    pair.server.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn a_full_ring_makes_packets_wait_in_line_in_their_order_requests_and_completions_alike() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(16),
        echo,
        echo,
    );
    let payload = |number: u8| [b'0' + number; 1000];
    for number in 0..30 {
        let outcome = pair.client.send(&payload(number));
        if outcome == Err(Error::TooManyPackets) {
            assert!(pair.client.counters().ring_full > 0);
            break;
        }
        outcome.unwrap();
    }
    let mut packet = pair.client.packet_allocate();
    while packet.is_err() {
        pair.host.process();
        packet = pair.client.packet_allocate();
    }
    packet.unwrap().send(b"last", None, FLAGS).unwrap();
    while pair.host.process() {}
    let log = pair.server.context().take();
    let order: Vec<&str> = log.iter().filter_map(|event| event.strip_prefix("packet ")).collect();
    assert!(
        order
            .windows(2)
            .all(|pair| pair[1] == "last" || pair[0].as_bytes()[0] < pair[1].as_bytes()[0])
    );
    assert_eq!(order.last(), Some(&"last"));
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    pair.close();
}

#[test]
fn completions_that_find_the_ring_full_wait_in_line() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(32),
        |client| client.init_set_maximum_packet_count(32),
        |_, packet| packet.complete(&[1; 1024]).unwrap(),
        echo,
    );
    for _ in 0..32 {
        let mut packet = pair.client.packet_allocate().unwrap();
        packet.set_completion_routine(|_, packet, status| {
            assert_eq!((status, packet.completion()), (Ok(()), [1; 1024].as_slice()));
        });
        packet.send(b"x", None, FLAGS).unwrap();
    }
    pair.server.process();
    assert!(pair.server.counters().ring_full > 0);
    while pair.host.process() {}
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    assert_eq!(pair.server.counters().packets_sent, 32);
    pair.close();
}

fn poll<F: Future>(future: core::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_future_gets_its_completion_and_its_memory() {
    let pair = Pair::new(echo);
    let mdl = pair.mdl(b"memory");
    let mut request = Box::pin(pair.client.request(b"question", Some(mdl)));
    assert!(poll(request.as_mut()).is_pending());
    pair.host.process();
    let Poll::Ready(Ok(mut reply)) = poll(request.as_mut()) else {
        panic!("completed")
    };
    assert_eq!(reply.payload(), b"question");
    assert_eq!(bytes_of(&reply.take_mdl().unwrap()), b"memory");
    drop(reply);
    assert_eq!(pair.client.counters().outgoing_outstanding, 0);
    assert!(poll(request.as_mut()).is_pending(), "and nothing happens any more");
    drop(request);
    pair.close();
}

struct Flag(std::sync::atomic::AtomicBool);
impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_completion_wakes_the_future() {
    let pair = Pair::new(echo);
    let flag = Arc::new(Flag(Default::default()));
    let waker = Waker::from(flag.clone());
    let mut request = Box::pin(pair.client.request(b"question", None));
    assert!(request.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(!flag.0.load(Ordering::SeqCst));
    pair.host.process();
    assert!(flag.0.load(Ordering::SeqCst));
    assert!(poll(request.as_mut()).is_ready());
    drop(request);
    pair.close();
}

#[test]
fn q4_a_dropped_future_keeps_its_memory_lent_until_the_late_completion() {
    let pair = Pair::new(hold);
    let mdl = pair.mdl(b"lent");
    let buffer = mdl.clone().into_dma_buffer().unwrap();
    {
        let mut request = pin!(pair.client.request(b"x", Some(mdl)));
        assert!(poll(request.as_mut()).is_pending());
    }
    pair.host.process();
    assert!(!buffer.is_sole_owner(), "the peer has it still");
    pair.server.context().release().complete(&[]).unwrap();
    pair.host.process();
    assert!(buffer.is_sole_owner());
    assert_eq!(
        (
            pair.client.counters().cancelled,
            pair.client.counters().late_completions
        ),
        (1, 1)
    );
    drop(buffer);
    pair.close();
}

#[test]
fn q4_a_timed_out_request_keeps_its_memory_lent_until_the_channel_ends() {
    let pair = Pair::new(|channel, packet| {
        // Never completed while the channel is open.
        if get(channel) == 0 {
            channel.context().hold(packet);
        }
    });
    let mdl = pair.mdl(b"lent");
    let buffer = mdl.clone().into_dma_buffer().unwrap();
    let refused = pair
        .client
        .send_synchronous_request(b"x", Some(mdl), Deadline::millis(1), &mut [])
        .unwrap_err();
    assert!(refused.given.is_none());
    assert!(!buffer.is_sole_owner());
    pair.server.context().held.lock().unwrap().clear();
    drop(pair.client.disable(SOON).unwrap());
    assert!(buffer.is_sole_owner());
    drop(pair.server);
}

#[test]
fn revoking_ends_requests_of_all_kinds_and_gives_their_memory_back() {
    // A server that never answers: it is gone before it reads.
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, echo, echo);
    let mut packet = pair.client.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, mut packet, status| {
        channel
            .context()
            .note(format!("{status:?} {:?}", packet.take_mdl().map(|mdl| bytes_of(&mdl))));
    });
    packet.send(b"routine", Some(pair.mdl(b"r")), FLAGS).unwrap();
    let mut request = pin!(pair.client.request(b"future", Some(pair.mdl(b"f"))));
    assert!(poll(request.as_mut()).is_pending());
    std::thread::scope(|scope| {
        let (client, platform) = (&pair.client, pair.platform);
        let blocked = scope.spawn(move || {
            let mdl = mdl_of(platform, b"b");
            client
                .send_synchronous_request(b"blocked", Some(mdl), Deadline::Never, &mut [])
                .unwrap_err()
        });
        wait_until("three requests", || pair.client.counters().outgoing_outstanding == 3);
        drop(pair.server.disable(SOON).unwrap());
        let refused = blocked.join().unwrap();
        assert_eq!(refused.error, Error::Gone(Gone::Rescinded));
        assert_eq!(bytes_of(&refused.given.unwrap()), b"b");
    });
    let Poll::Ready(Err(refused)) = poll(request.as_mut()) else {
        panic!("ended")
    };
    assert_eq!(
        (refused.error, bytes_of(&refused.given.unwrap())),
        (Error::Gone(Gone::Rescinded), b"f".to_vec())
    );
    assert_eq!(
        pair.client.context().take(),
        ["suspend", "Err(Gone(Rescinded)) Some([114])", "closed"]
    );
    drop(pair.client);
    assert_eq!(pair.platform.pages_in_use(), 0);
}

#[test]
fn a_server_that_fails_to_lend_is_told_so() {
    // A packet whose page list was made up: the client does not lend that.
    let pair = Pair::new(|channel, mut packet| {
        channel
            .context()
            .note(format!("{:?}", packet.external_data().map(|data| data.len())));
    });
    let mdl = pair.mdl(b"lent");
    let header = crate::ring::Header::gpa_direct(0x7777);
    let pfns: Vec<u64> = mdl.page_spans().map(|span| span.pfn.get()).collect();
    let range = crate::ring::GpaRangeToSend {
        byte_count: 4,
        byte_offset: 0,
        pfns: &pfns,
    };
    let external = crate::ring::ExternalToSend::GpaDirect(core::slice::from_ref(&range));
    assert!(pair.client.send_raw_for_tests(header, &[b"x"], external));
    pair.host.process();
    assert_eq!(
        pair.server.context().take()[1],
        format!("{:?}", Err::<usize, _>(Error::NotLent))
    );
    drop(mdl);
    assert_eq!(
        pair.client.counters().unknown_completions,
        1,
        "its completion answers no request"
    );
    pair.close();
}

#[test]
fn r3_a_payload_beyond_the_limit_breaks_the_channel_though_a_slot_has_room_for_page_lists() {
    let limit = |end: DisabledEnd| end.init_set_maximum_packet_size(64).unwrap();
    for (len, is_taken) in [(64, true), (65, false)] {
        let pair = Pair::with(limit, limit, hold, echo);
        let header = crate::ring::Header::in_band(7);
        let none = crate::ring::ExternalToSend::None;
        assert!(pair.client.send_raw_for_tests(header, &[&[1; 65][..len]], none));
        pair.host.process();
        assert_eq!(pair.server.context().held_count() == 1, is_taken, "{len} bytes");
        assert_eq!(pair.server.is_running(), is_taken, "{len} bytes");
        pair.server.context().held.lock().unwrap().clear();
        // The server first: a client waits for one that was broken until its driver has let go of it.
        let Pair {
            platform,
            client,
            server,
            ..
        } = pair;
        drop(server.disable(SOON).unwrap());
        drop(client.disable(SOON).unwrap());
        assert_eq!(platform.pages_in_use(), 0, "{len} bytes");
    }
}

#[test]
fn q3_packets_of_the_callers_own_beyond_the_limit_are_refused_and_all_others_end_once() {
    let few = |end: DisabledEnd| end.init_set_maximum_packet_count(2);
    let pair = Pair::with(few, few, echo, echo);
    let (mut sent, mut refused) = (0, 0);
    for round in 0..8 {
        // In the ring at once, while nobody processes; then waiting for an answer.
        let flags = if round % 2 == 0 { SendFlags::empty() } else { FLAGS };
        for _ in 0..4 {
            let mut packet = pair.client.packet_initialize().unwrap();
            packet.set_completion_routine(|channel, _, _| {
                channel.context().value.fetch_add(1, Ordering::SeqCst);
            });
            match packet.send(b"own", None, flags) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.error, Error::TooManyPackets);
                    refused += 1;
                }
            }
            // A wait moves what is done into line, and calls no routine.
            let _ = pair.client.send_synchronous_request(b"asked", None, SOON, &mut [0; 8]);
        }
        pair.host.process();
    }
    assert_eq!((get(&pair.client), sent), (sent, 16));
    assert_eq!(refused, 16);
    pair.close();
}

#[test]
fn q1_guessed_double_and_late_completions_are_dropped_and_counted() {
    let pair = Pair::new(hold);
    pair.client.packet_allocate().unwrap().send(b"x", None, FLAGS).unwrap();
    pair.host.process();
    let packet = pair.server.context().release();
    for guess in [0, 1, 2, u64::MAX, 1 << 32 | 7, 2 << 32] {
        let header = crate::ring::Header::completion(guess);
        assert!(
            pair.server
                .send_raw_for_tests(header, &[b"guessed!"], crate::ring::ExternalToSend::None)
        );
    }
    pair.host.process();
    assert_eq!(pair.client.counters().unknown_completions, 6);
    assert_eq!(pair.client.counters().outgoing_outstanding, 1);
    packet.complete(&[]).unwrap();
    pair.host.process();
    let again = crate::ring::Header::completion(1 << 32);
    assert!(
        pair.server
            .send_raw_for_tests(again, &[b"doubled!"], crate::ring::ExternalToSend::None)
    );
    pair.host.process();
    assert_eq!(
        (
            pair.client.counters().unknown_completions,
            pair.client.counters().outgoing_outstanding
        ),
        (7, 0)
    );
    pair.close();
}

#[test]
fn transfer_pages_are_checked_against_the_buffer() {
    let pair = Pair::with(
        |server| server,
        |client| client,
        echo,
        |channel, packet| {
            let text = match packet.transfer_pages(100) {
                Ok((set, ranges)) => format!("{set} {:?}", ranges.collect::<Vec<_>>()),
                Err(error) => format!("{error:?}"),
            };
            channel.context().note(text);
        },
    );
    pair.server.send_transfer_pages(7, &[(0, 10), (90, 10)], b"t").unwrap();
    pair.server.send_transfer_pages(7, &[(91, 10)], b"u").unwrap();
    pair.server.send(b"v").unwrap();
    pair.host.process();
    let log = pair.client.context().take();
    assert_eq!(
        log,
        [
            "packet t",
            "7 [(0, 10), (90, 10)]",
            "packet u",
            "Corrupt",
            "packet v",
            "NoExternalData",
            "batch 3"
        ]
    );
    pair.close();
}

#[test]
fn forced_lengths_reach_to_the_end_of_the_page_and_no_further() {
    let pair = Pair::new(hold);
    let force = FLAGS | SendFlags::FORCE_MDL_LENGTH;
    pair.client
        .packet_allocate()
        .unwrap()
        .send_with_external_mdl(b"x", pair.mdl(b"short"), 0, 4096, force)
        .unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().release().external_data().unwrap().len(), 4096);
    let packet = pair.client.packet_allocate().unwrap();
    let refused = packet
        .send_with_external_mdl(b"x", pair.mdl(b"short"), 0, 4097, force)
        .unwrap_err();
    assert_eq!(refused.error, Error::InvalidExternalData { len: 4097, ranges: 0 });
    assert_eq!(bytes_of(&refused.given.1), b"short");
    drop(refused);
    pair.close();
}

#[test]
fn signals_are_sent_once_a_batch() {
    let pair = Pair::new(echo);
    for _ in 0..10 {
        for _ in 0..8 {
            pair.client.send(&[0; 64]).unwrap();
        }
        pair.host.process();
    }
    assert_eq!(pair.client.counters().signals_sent, 10);
    assert_eq!(pair.server.counters().signals_received, 10);
    pair.close();
}

#[test]
fn a_peer_that_never_stops_sending_does_not_keep_a_processor_busy() {
    // As if the peer filled the ring whenever there is room.
    let refill = |channel: &End, _| {
        if let Some(client) = channel.context().peer.lock().unwrap().as_ref() {
            client.send(b"more").unwrap();
        }
    };
    // A ring that holds more than a batch, or its end would be the batch's.
    let large = |client: DisabledEnd| client.init_set_ring_buffer_page_count(16, 16);
    let pair = Pair::with(|server| server, large, refill, echo);
    *pair.server.context().peer.lock().unwrap() = Some(pair.client.uncounted());
    // Two, so that the ring is not empty while one of them is delivered.
    pair.client.send(b"first").unwrap();
    pair.client.send(b"second").unwrap();
    pair.server.process();
    let processed = pair.server.counters().packets_processed;
    assert_eq!(processed, 1024, "a batch has an end");
    *pair.server.context().peer.lock().unwrap() = None;
    pair.host.process();
    assert_eq!(pair.server.counters().packets_processed, processed + 2);
    pair.close();
}
