//! What one `process` does, seen from inside: others would come again soon and hide what it left.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

use super::*;
use crate::Deadline;
use crate::kmcl::{CompletionRoutine, DisabledChannel, SendFlags};
use crate::testing::Loopback;

const SOON: Deadline = Deadline::seconds(5);

fn open(both: &Loopback, init: impl FnOnce(DisabledChannel) -> DisabledChannel) -> Channel {
    init(both.client().unwrap()).enable(SOON).unwrap()
}

#[test]
fn after_four_packets_in_a_row_the_peer_is_asked_not_to_signal() {
    let seen: &Mutex<Vec<bool>> = Box::leak(Box::default());
    let both = Loopback::new(|channel, _| {
        let core = channel.core();
        let masked = core.incoming().masked;
        seen.lock().unwrap().push(masked);
    })
    .unwrap();
    let client = both.open().unwrap();
    for _ in 0..7 {
        client.send(b"x").unwrap();
    }
    both.server().process();
    // With the last one the batch has ended.
    assert_eq!(*seen.lock().unwrap(), [false, false, false, false, true, true, false]);
}

#[test]
fn what_comes_while_the_peer_is_not_to_signal_is_looked_for() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    client.send(b"x").unwrap();
    let (server, core) = (both.server(), both.server().core());
    let end = |is_blocked| {
        let mut incoming = core.incoming();
        incoming.ring.as_mut().unwrap().mask();
        incoming.masked = true;
        core.end_of_reading(incoming, is_blocked).again
    };
    assert!(end(false));
    // There is no memory for it.
    assert!(!end(true));
    server.process();
    assert!(!end(false));
}

/// Sends notices of which the last one has to wait in line; returns how many.
fn fill(client: &Channel, routine: CompletionRoutine<()>) -> usize {
    let mut count = 0;
    while client.counters().ring_full == 0 {
        let mut packet = client.packet_allocate().unwrap();
        packet.set_completion_routine(routine);
        packet.send(&[0; 1000], None, SendFlags::empty()).unwrap();
        count += 1;
    }
    count
}

#[test]
fn who_sends_what_waited_in_line_tells_its_routine_too() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = open(&both, |client| {
        client
            .init_set_maximum_packet_count(64)
            .init_set_process_packet_callback(|_, _| {
                SEEN.fetch_add(1, SeqCst);
            })
    });
    // With nothing else to do, and with a packet in front of it.
    for round in 0..2 {
        let count = fill(&client, |_, _, _| {
            TOLD.fetch_add(1, SeqCst);
        });
        client.process();
        assert_eq!(TOLD.swap(0, SeqCst), count - 1);
        both.server().process();
        if round == 1 {
            both.server().send(b"in front").unwrap();
        }
        client.process();
        assert_eq!((TOLD.swap(0, SeqCst), SEEN.load(SeqCst)), (1, round));
        client.core().counters.ring_full.store(0, SeqCst);
    }
}

#[test]
fn memory_that_comes_back_with_what_waited_in_line_is_read_into_at_once() {
    let both = Loopback::new(|_, packet| packet.complete(&[0; 1000]).unwrap()).unwrap();
    let client = open(&both, |client| client.init_set_maximum_packet_count(64));
    for _ in 0..40 {
        let packet = client.packet_allocate().unwrap();
        packet.send(b"x", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    }
    let server = both.server();
    server.process();
    let first = server.counters().packets_processed;
    assert!(
        (16..40).contains(&first),
        "held up by answers that wait in line: {first}"
    );
    client.process();
    server.process();
    assert_eq!(server.counters().packets_processed, 40);
    both.host().process();
    assert_eq!(client.counters().outgoing_outstanding, 0);
}

#[test]
fn a_wait_that_puts_packets_in_line_leaves_a_note_and_otherwise_none() {
    let both = Loopback::new(|channel, packet| {
        if packet.payload().first() == Some(&b'2') {
            channel.send(b"in front").unwrap();
        }
        packet.complete(&[]).unwrap();
    })
    .unwrap();
    let client = both.open().unwrap();
    let core = client.core();
    let has_note = || {
        let task = core.platform.current_task();
        core.gate.try_enter(task, Inside::Callback).unwrap().leave()
    };
    for (payload, expected) in [(b"1", false), (b"2", true)] {
        client.send_synchronous_request(payload, None, SOON, &mut []).unwrap();
        assert_eq!(has_note(), expected);
        client.process();
        assert!(!has_note());
    }
}

/// Does something before each lock from now on, as long as it returns true.
fn before_each_lock(platform: &'static crate::testing::FakePlatform, mut work: impl FnMut() -> bool + Send + 'static) {
    platform.before_lock(0, move || {
        if work() {
            before_each_lock(platform, work);
        }
    });
}

/// Brings a client whose last notice waits in line, for which there is room by now.
fn with_room_for_the_line(
    told: &'static AtomicUsize,
    routine: CompletionRoutine<()>,
) -> (&'static Loopback, Channel, usize) {
    told.store(0, SeqCst);
    let both: &'static Loopback = Box::leak(Box::new(Loopback::new(|_, _| ()).unwrap()));
    let client = open(both, |client| client.init_set_maximum_packet_count(64));
    let count = fill(&client, routine);
    client.process();
    assert_eq!(told.load(SeqCst), count - 1);
    both.server().process();
    (both, client, count)
}

#[test]
fn a_routine_is_called_once_whatever_others_do_while_a_wait_takes_it_from_the_line() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    for ends in [true, false] {
        for later in 0.. {
            let (both, client, count) = with_room_for_the_line(&TOLD, |_, _, _| {
                TOLD.fetch_add(1, SeqCst);
            });
            let other = client.clone();
            both.platform().before_lock(later, move || {
                if ends {
                    drop(other.disable(SOON).unwrap());
                } else {
                    both.host().run_clients();
                }
            });
            client.core().look();
            let was_last = both.platform().forget_meanwhile();
            while both.host().run_clients() {}
            assert_eq!(TOLD.load(SeqCst), count, "{ends} {later}");
            if was_last {
                break;
            }
        }
    }
}

#[test]
fn what_a_wait_sends_from_the_line_has_its_routine_called_soon() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    let (both, client, count) = with_room_for_the_line(&TOLD, |_, _, _| {
        TOLD.fetch_add(1, SeqCst);
    });
    // The room was there when it was asked for, and nobody has signalled.
    both.host().forget_signals(client.id());
    client.core().look();
    assert!(both.host().run_clients());
    assert_eq!(TOLD.load(SeqCst), count);
}

#[test]
fn a_callers_turn_ends_although_others_come_without_end() {
    let both: &'static Loopback = Box::leak(Box::new(Loopback::echo().unwrap()));
    let client = both.open().unwrap();
    let (other, count): (_, &AtomicUsize) = (client.clone(), Box::leak(Box::default()));
    before_each_lock(both.platform(), move || {
        other.process();
        count.fetch_add(1, SeqCst) < 10_000
    });
    client.process();
    assert!(count.load(SeqCst) < 1_000);
    both.platform().forget_meanwhile();
}
