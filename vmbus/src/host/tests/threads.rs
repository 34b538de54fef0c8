//! The statements about blocking and order once more, with real threads: one does the deferred work, others send, wait and
//! complete.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::support::*;
use crate::Deadline;
use crate::host::Host;
use crate::kmcl::{Error, GpadlAccess, Level, SendFlags, StateChangeCallbacks, SynchronousRequest};
use crate::testing::wait_until;

/// Runs `body` while another thread does the deferred work of both ends.
fn with_threads<T>(host: &Host, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (host, flag) = (host.clone(), &done);
        scope.spawn(move || {
            while !flag.load(Ordering::SeqCst) {
                if !host.process() {
                    std::thread::yield_now();
                }
            }
        });
        // The other thread ends, whatever happens here.
        let _end = End(&done);
        body()
    })
}

struct End<'a>(&'a AtomicBool);
impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const PACKETS: u64 = 600;

/// What the server sees of packets that are sent in bursts while others process.
fn stream() -> Vec<String> {
    let pair = Pair::new(echo);
    let log = with_threads(&pair.host, || {
        for number in 0..PACKETS {
            wait_until("room for a packet", || {
                pair.client.send(format!("{number:08}").as_bytes()) != Err(Error::TooManyPackets)
            });
            if number % 100 == 99 {
                // Empty: the batch ends.
                wait_until("the end of the batch", || {
                    pair.server.counters().packets_processed == number + 1
                });
            }
        }
        let mut log = Vec::new();
        wait_until("the last batch", || {
            log.extend(pair.server.context().take());
            log.last().is_some_and(|last| last.starts_with("batch"))
        });
        log
    });
    pair.close();
    log
}

fn packets(log: &[String]) -> Vec<&str> {
    log.iter().filter_map(|event| event.strip_prefix("packet ")).collect()
}

fn batches(log: &[String]) -> Vec<usize> {
    log.iter()
        .filter_map(|event| event.strip_prefix("batch ")?.parse().ok())
        .collect()
}

#[test]
fn ppc_8_each_packet_is_indicated_once_with_threads() {
    let log = stream();
    let mut seen = packets(&log);
    assert_eq!(seen.len() as u64, PACKETS);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len() as u64, PACKETS);
}

#[test]
fn ppc_9_the_batch_ends_each_time_the_ring_runs_empty_with_threads() {
    let log = stream();
    assert!(batches(&log).len() as u64 >= PACKETS / 100, "{:?}", batches(&log));
    assert!(
        !log.windows(2)
            .any(|two| two[0].starts_with("batch") && two[1].starts_with("batch"))
    );
}

#[test]
fn ppc_10_the_end_comes_after_the_last_packet_of_the_batch_with_threads() {
    let log = stream();
    let mut since = 0;
    for event in &log {
        match event.strip_prefix("batch ") {
            Some(count) => assert_eq!(count.parse::<usize>().unwrap(), std::mem::take(&mut since)),
            None => since += 1,
        }
    }
}

#[test]
fn ppc_11_the_counts_sum_up_to_the_deliveries_with_threads() {
    let log = stream();
    assert_eq!(batches(&log).iter().sum::<usize>() as u64, PACKETS);
}

#[test]
fn epp_20_every_batch_has_its_end_with_threads() {
    let log = stream();
    assert!(log.last().unwrap().starts_with("batch"));
}

#[test]
fn epp_21_packets_come_in_their_order_with_threads() {
    let log = stream();
    let expected: Vec<String> = (0..PACKETS).map(|number| format!("{number:08}")).collect();
    assert_eq!(packets(&log), expected);
}

fn without_waiting(payload: &[u8], deadline: Deadline) -> SynchronousRequest<'_> {
    SynchronousRequest {
        payload,
        mdl: None,
        flags: SendFlags::empty(),
        completion: None,
        deadline,
    }
}

#[test]
fn ssr_12_time_up_while_others_work_with_threads() {
    let pair = Pair::new(hold);
    with_threads(&pair.host, || {
        let before = std::time::Instant::now();
        let refused = pair
            .client
            .send_synchronous_request(b"x", None, Deadline::millis(30), &mut [])
            .unwrap_err();
        assert!(before.elapsed() >= Duration::from_millis(30));
        assert_eq!(refused.error, Error::Cancelled);
        // On a slow machine it comes after that.
        wait_until("the request", || pair.server.context().held_count() == 1);
        pair.server.context().release().complete(b"late").unwrap();
        wait_until("the late completion", || pair.client.counters().late_completions == 1);
    });
    pair.close();
}

#[test]
fn ssr_13_two_that_find_the_ring_full_queue_nothing_with_threads() {
    let pair = Pair::new(|_, _| ());
    while pair
        .client
        .send_synchronous(without_waiting(&[b'f'; 512], Deadline::IMMEDIATE))
        .is_ok()
    {}
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let request = without_waiting(&[b'!'; 512], Deadline::IMMEDIATE);
                assert_eq!(
                    pair.client.send_synchronous(request).unwrap_err().error,
                    Error::RingFull
                );
            });
        }
    });
    with_threads(&pair.host, || {
        let sent = pair.client.counters().packets_sent;
        wait_until("all packets", || pair.server.counters().packets_processed == sent);
        pair.client.send(b"last").unwrap();
        wait_until("the last packet", || {
            pair.server.counters().packets_processed == sent + 1
        });
    });
    assert_eq!(count(&pair.server.context().take(), "packet !"), 0);
    pair.close();
}

#[test]
fn ssr_14_and_21_several_place_packets_without_waiting_with_threads() {
    let pair = Pair::new(echo);
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let client = &pair.client;
            scope.spawn(move || {
                for _ in 0..5 {
                    client.send_synchronous(without_waiting(&[number; 8], SOON)).unwrap();
                }
            });
        }
    });
    // Nobody has looked at the ring: placed, not processed.
    assert_eq!(pair.client.counters().packets_sent, 20);
    assert_eq!(pair.server.counters().packets_processed, 0);
    with_threads(&pair.host, || {
        wait_until("the packets", || pair.server.counters().packets_processed == 20);
    });
    assert_eq!(pair.server.counters().packets_sent, 0, "no completion was asked for");
    pair.close();
}

#[test]
fn ssr_15_a_full_ring_is_waited_for_until_another_thread_makes_room_with_threads() {
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, echo, echo);
    // A paused end takes as many out of the ring as it may hold.
    let mut is_full = false;
    while !is_full {
        is_full = pair
            .client
            .send_synchronous(without_waiting(&[b'f'; 512], Deadline::IMMEDIATE))
            .is_err()
            && !pair.host.process();
    }
    std::thread::scope(|scope| {
        let placing = scope.spawn(|| pair.client.send_synchronous(without_waiting(&[b'w'; 512], SOON)));
        let asking = scope.spawn(|| {
            let mut answer = [0; 8];
            let sent = pair
                .client
                .send_synchronous_request(b"question", None, SOON, &mut answer)
                .map(drop);
            (sent, answer)
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!placing.is_finished() && !asking.is_finished());
        pair.server.start(SOON).unwrap();
        placing.join().unwrap().unwrap();
        let (sent, answer) = asking.join().unwrap();
        sent.unwrap();
        assert_eq!(&answer, b"question");
    });
    while pair.host.process() {}
    assert_eq!(count(&pair.server.context().take(), "packet w"), 1);
    pair.close();
}

#[test]
fn ssr_18_a_server_does_not_wait_whoever_asks_with_threads() {
    let pair = Pair::new(echo);
    with_threads(&pair.host, || {
        let before = std::time::Instant::now();
        let refused = pair
            .server
            .send_synchronous_request(b"x", None, Deadline::Never, &mut [])
            .unwrap_err();
        assert_eq!(refused.error, Error::ServerMayNotWait);
        assert!(before.elapsed() < Duration::from_secs(5));
        pair.server
            .send_synchronous(without_waiting(b"allowed", Deadline::IMMEDIATE))
            .unwrap();
        wait_until("the packet", || pair.client.counters().packets_processed == 1);
    });
    pair.close();
}

/// What a client gets that asks in a callback, while another thread does the server's work.
fn asked_in(callbacks: impl FnOnce(fn(&End2)) -> StateChangeCallbacks<std::sync::Arc<Log>>) -> Vec<String> {
    fn ask(channel: &End2) {
        let mut answer = [0; 8];
        match channel.send_synchronous_request(b"question", None, SOON, &mut answer) {
            Ok(_) => channel.context().note(String::from_utf8_lossy(&answer)),
            Err(refused) => channel.context().note(format!("{:?}", refused.error)),
        }
    }
    let (host, _) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    with_threads(&host, || {
        let client = client_with(&host, echo).init_set_state_change_callbacks(callbacks(ask));
        let client = client.enable(SOON).unwrap();
        let log = client.context().take();
        drop((client, server));
        log
    })
}

type End2 = super::support::End;

#[test]
fn ssr_19_no_completion_is_waited_for_in_started_with_threads() {
    let log = asked_in(|ask| StateChangeCallbacks::new().started(ask));
    assert_eq!(log, ["WouldDeadlock"]);
}

#[test]
fn ssr_20_post_started_may_wait_with_threads() {
    let log = asked_in(|ask| StateChangeCallbacks::new().post_started(ask));
    assert_eq!(log, ["question"]);
}

#[test]
fn ssr_24_a_late_completion_of_another_thread_writes_nothing_with_threads() {
    let pair = Pair::new(hold);
    let mut answer = [7; 8];
    with_threads(&pair.host, || {
        pair.client
            .send_synchronous_request(b"payload.", None, Deadline::millis(5), &mut answer)
            .unwrap_err();
        wait_until("the packet", || pair.server.context().held_count() == 1);
        let packet = pair.server.context().release();
        std::thread::scope(|scope| {
            scope.spawn(|| packet.complete(b"too late").unwrap());
        });
        wait_until("the late completion", || pair.client.counters().late_completions == 1);
    });
    assert_eq!(answer, [7; 8]);
    pair.close();
}

#[test]
fn gpm_14_of_two_that_map_one_gets_it_with_threads() {
    let pair = Pair::new(echo);
    let gpadl = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &pair.mdl(b"x"), 0, 0, SOON)
        .unwrap();
    for _ in 0..50 {
        let barrier = Barrier::new(2);
        let map = || {
            barrier.wait();
            let mapped = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite);
            barrier.wait();
            mapped.map(drop)
        };
        let outcomes = std::thread::scope(|scope| {
            let other = scope.spawn(map);
            [map(), other.join().unwrap()]
        });
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            1,
            "{outcomes:?}"
        );
        assert!(outcomes.contains(&Err(Error::AlreadyMapped)), "{outcomes:?}");
    }
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_18_it_is_refused_in_a_callback_of_any_thread_with_threads() {
    let pair = Pair::with(
        |server| server,
        |client| client,
        echo,
        |channel, _| {
            let mdl = crate::memory::Mdl::empty();
            let error = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, Deadline::Never);
            channel.context().note(format!("{:?}", error.unwrap_err()));
        },
    );
    with_threads(&pair.host, || {
        pair.server.send(b"x").unwrap();
        let mut log = Vec::new();
        wait_until("the refusal", || {
            log.extend(pair.client.context().take());
            log.contains(&"WouldDeadlock".to_string())
        });
        // And meanwhile not to others.
        let mdl = pair.mdl(b"x");
        let gpadl = pair
            .client
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)
            .unwrap();
        drop(mdl);
        assert_eq!(gpadl.delete(SOON).unwrap().len(), 1);
    });
    pair.close();
}

/// A thread at `PASSIVE`, for as long as `body` runs.
fn with_passive<T>(end: &End2, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if end.needs_passive() {
                    end.process_at_passive();
                }
                std::thread::yield_now();
            }
        });
        let _end = End(&done);
        body()
    })
}

#[test]
fn epp_12_a_deferred_packet_is_not_overtaken_with_threads() {
    let pair = Pair::new(|channel, packet| {
        channel.context().note(format!("{:?}", packet.level()));
        if packet.payload()[0] == b'd' && packet.level() == Level::Dispatch {
            packet.defer_to_passive().unwrap();
        }
    });
    with_threads(&pair.host, || {
        with_passive(&pair.server, || {
            for number in 0..90 {
                let kind = if number % 3 == 0 { 'd' } else { 'n' };
                wait_until("room for a packet", || {
                    pair.client.send(format!("{kind}{number:07}").as_bytes()).is_ok()
                });
            }
            wait_until("the last packet", || {
                pair.server.counters().incoming_outstanding == 0 && pair.server.counters().dropped == 90
            });
        });
    });
    let log = pair.server.context().take();
    // Each time that a packet is met for good, it is the next one.
    let mut next = 0;
    for two in log.windows(2).filter(|two| two[0].starts_with("packet ")) {
        let number: usize = two[0][8..].parse().unwrap();
        assert_eq!(number, next, "{log:?}");
        if !(two[0].starts_with("packet d") && two[1] == "Dispatch") {
            next += 1;
        }
    }
    assert_eq!(next, 90);
    pair.close();
}

#[test]
fn epp_13_and_ged_5_pending_data_comes_again_to_a_task_with_threads() {
    let pair = Pair::new(super::ged::pending_once);
    with_threads(&pair.host, || {
        with_passive(&pair.server, || {
            let sent = pair
                .client
                .send_synchronous_request(b"x", Some(pair.mdl(b"pending data")), SOON, &mut [])
                .unwrap();
            assert_eq!(bytes_of(&sent.mdl.unwrap()), b"pending data");
        });
    });
    let log = pair.server.context().take();
    assert_eq!(count(&log, "packet x"), 2, "{log:?}");
    assert!(log.contains(&"Passive 12".to_string()), "{log:?}");
    pair.close();
}

#[test]
fn ged_5_after_pending_a_task_gets_the_packet_with_threads() {
    let pair = Pair::new(super::ged::pending_once);
    let packet = pair.client.packet_allocate().unwrap();
    packet
        .send(b"x", Some(pair.mdl(b"data")), SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    with_threads(&pair.host, || {
        wait_until("work for a task", || pair.server.needs_passive());
        assert_eq!(pair.client.counters().outgoing_outstanding, 1, "not completed");
        with_passive(&pair.server, || {
            wait_until("the completion", || pair.client.counters().outgoing_outstanding == 0);
        });
    });
    pair.close();
}

#[test]
fn epp_14_a_failed_packet_stops_the_queue_while_others_send_with_threads() {
    let pair = Pair::new(|_, packet| packet.fail());
    with_threads(&pair.host, || {
        for _ in 0..100 {
            // At some point the ring is full.
            let _ = pair.client.send(b"never");
        }
        wait_until("the failed packet", || pair.server.counters().failed == 1);
        std::thread::sleep(Duration::from_millis(10));
    });
    assert_eq!(count(&pair.server.context().take(), "packet"), 1);
    pair.close();
}

/// Sends for as long as `body` runs.
fn while_sending<T>(pair: &Pair, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let _ = pair.client.send(b"x");
                std::thread::yield_now();
            }
        });
        let _end = End(&done);
        body()
    })
}

#[test]
fn epp_15_no_packet_comes_before_post_started_while_others_send_with_threads() {
    let pair = Pair::with(|server| server.pause_when_enabled(), |client| client, |_, _| (), echo);
    with_threads(&pair.host, || {
        while_sending(&pair, || {
            std::thread::sleep(Duration::from_millis(5));
            pair.server.context().note("start");
            pair.server.start(SOON).unwrap();
            wait_until("packets", || pair.server.counters().packets_processed > 10);
        });
    });
    let log = pair.server.context().take();
    assert_eq!(log[..3], ["start", "started", "post-started"], "{:?}", &log[..5]);
    pair.close();
}

#[test]
fn epp_16_from_suspend_on_no_packet_comes_while_others_send_with_threads() {
    let pair = Pair::new(|_, _| ());
    with_threads(&pair.host, || {
        while_sending(&pair, || {
            for _ in 0..if cfg!(miri) { 2 } else { 20 } {
                wait_until("packets", || pair.server.counters().packets_processed > 10);
                pair.server.pause(SOON).unwrap();
                std::thread::yield_now();
                let log = pair.server.context().take();
                let suspended = log.iter().position(|event| event == "suspend").unwrap();
                // The end of its batch may be told.
                assert_eq!(count(&log[suspended..], "packet"), 0, "{:?}", &log[suspended..]);
                pair.server.start(SOON).unwrap();
            }
        });
    });
    pair.close();
}

#[test]
fn epp_17_and_18_the_quota_holds_while_others_send_and_complete_with_threads() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(4),
        |client| client,
        hold,
        echo,
    );
    with_threads(&pair.host, || {
        while_sending(&pair, || {
            for quota in [4, 2, 7, 1] {
                pair.server.set_transaction_quota(quota).unwrap();
                for _ in 0..200 {
                    wait_until("a held packet", || pair.server.context().held_count() > 0);
                    drop(pair.server.context().release());
                }
                // Those of a larger quota are gone by now.
                for _ in 0..50 {
                    let held = pair.server.counters().incoming_outstanding;
                    assert!(held <= u64::from(quota), "{held} of {quota}");
                    std::thread::yield_now();
                }
            }
        });
    });
    pair.server.context().held.lock().unwrap().clear();
    await_empty(&pair);
    pair.close();
}

fn await_empty(pair: &Pair) {
    loop {
        let worked = pair.host.process();
        let held = std::mem::take(&mut *pair.server.context().held.lock().unwrap());
        if !worked && held.is_empty() {
            return;
        }
    }
}

#[test]
fn epp_9_pausing_waits_until_another_thread_completes_with_threads() {
    let pair = Pair::new(hold);
    with_threads(&pair.host, || {
        pair.client.send(b"x").unwrap();
        wait_until("the packet", || pair.server.context().held_count() == 1);
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| pair.server.pause(Deadline::Never));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!pausing.is_finished());
            pair.server.context().release().complete(&[]).unwrap();
            assert_eq!(pausing.join().unwrap(), Ok(()));
        });
    });
    pair.close();
}

#[test]
fn epp_9_pausing_waits_for_a_callback_that_runs_on_another_thread() {
    let pair = Pair::new(|channel, packet| {
        set(channel, 1);
        wait_until("leave to end", || get(channel) == 2);
        packet.complete(&[]).unwrap();
    });
    with_threads(&pair.host, || {
        pair.client.send(b"x").unwrap();
        wait_until("the callback", || get(&pair.server) == 1);
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| pair.server.pause(SOON));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!pausing.is_finished());
            set(&pair.server, 2);
            assert_eq!(pausing.join().unwrap(), Ok(()));
        });
    });
    pair.close();
}

#[test]
fn of_two_clients_that_want_an_offer_one_gets_it() {
    let (host, platform) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    for _ in 0..30 {
        let barrier = Barrier::new(2);
        let enable = || {
            let client = client_with(&host, echo);
            barrier.wait();
            let enabled = client.enable(Deadline::IMMEDIATE);
            barrier.wait();
            enabled
                .map(|client| drop(client.disable(SOON).unwrap()))
                .map_err(|refused| refused.error)
        };
        let outcomes = std::thread::scope(|scope| {
            let other = scope.spawn(enable);
            [enable(), other.join().unwrap()]
        });
        assert!(outcomes.contains(&Ok(())), "{outcomes:?}");
        assert!(outcomes.contains(&Err(Error::NoSuchOffer)), "{outcomes:?}");
    }
    drop(server);
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn r7_a_packet_that_comes_while_room_is_given_back_is_not_left_lying_with_threads() {
    let pair = Pair::new(|_, _| ());
    let rounds = if cfg!(miri) { 20 } else { 60_000 };
    with_threads(&pair.host, || {
        for round in 0..rounds {
            pair.client.send(b"first").unwrap();
            for _ in 0..round % 300 {
                std::hint::spin_loop();
            }
            pair.client.send(b"second").unwrap();
            wait_until("both packets", || {
                pair.server.counters().packets_processed == 2 * (round + 1)
            });
            pair.server.context().take();
        }
    });
    pair.close();
}

#[test]
fn r9_what_waits_in_line_goes_out_when_there_is_room_with_threads() {
    let pair = Pair::new(|_, _| ());
    let rounds = if cfg!(miri) { 3 } else { 2_000 };
    with_threads(&pair.host, || {
        let mut sent = 0;
        for round in 0..rounds {
            let full = pair.client.counters().ring_full;
            while pair.client.counters().ring_full == full {
                pair.client.send(&[b'x'; 1000]).unwrap();
                sent += 1;
            }
            wait_until(&format!("all packets of round {round}"), || {
                pair.server.counters().packets_processed == sent
            });
            pair.server.context().take();
        }
    });
    pair.close();
}
