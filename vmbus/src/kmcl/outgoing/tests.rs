//! The line in front of the ring, and what is waited for.

use std::sync::Mutex;
use std::vec::Vec;

use super::*;
use crate::Deadline;
use crate::kmcl::packet::Body;
use crate::kmcl::{Channel, IncomingPacket, SendFlags};
use crate::testing::Loopback;

const SOON: Deadline = Deadline::seconds(5);

/// A channel whose ring has room for 1016 bytes more.
fn almost_full(both: &Loopback) -> Channel {
    let client = both.client().unwrap().init_set_ring_buffer_page_count(4, 4);
    let client = client.enable(SOON).unwrap();
    let mut count = 0;
    while client.core().send_plain(&[0; 1000], IfFull::Refuse).is_ok() {
        count += 1;
    }
    assert_eq!(count, (4 * 4096 - 8) / 1024);
    client
}

/// How often the server signals when it makes room.
fn signals(both: &Loopback) -> u64 {
    let before = both.server().counters().signals_sent;
    both.server().process();
    both.server().counters().signals_sent - before
}

#[test]
fn who_waits_for_room_is_told_of_it_if_there_was_too_little() {
    for (len, expected) in [(992, 0), (993, 1)] {
        let both = Loopback::new(|_, _| ()).unwrap();
        let client = almost_full(&both);
        let core = client.core();
        core.outgoing().await_room(len);
        assert_eq!(signals(&both), expected, "{len}");
    }
    // Who waits no more is not told.
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    let core = client.core();
    core.outgoing().await_room(1000);
    core.outgoing().stop_waiting();
    assert_eq!(signals(&both), 0);
}

#[test]
fn who_waits_for_room_is_told_of_it_although_others_send_and_process() {
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    let core = client.core();
    core.outgoing().await_room(1000);
    // A small one fits, and is handed back to its routine.
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(|_, _, _| ());
    packet.send(b"small", None, SendFlags::empty()).unwrap();
    client.process();
    assert_eq!(signals(&both), 1);
}

#[test]
fn who_wants_least_of_those_that_wait_is_told_first() {
    for lens in [[100, 2000], [2000, 100]] {
        let both = Loopback::new(|_, _| ()).unwrap();
        let client = almost_full(&both);
        let core = client.core();
        while core.send_plain(&[0; 100], IfFull::Refuse).is_ok() {}
        for len in lens {
            core.outgoing().begin_waiting();
            core.outgoing().await_room(len);
        }
        assert_eq!(signals(&both), 1, "{lens:?}");
    }
}

#[test]
fn who_leaves_others_waiting_for_what_is_there_has_them_look_again() {
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    both.host().process();
    let core = client.core();
    for len in [1000, 2000] {
        core.outgoing().begin_waiting();
        core.outgoing().await_room(len);
    }
    core.outgoing().stop_waiting();
    assert!(both.host().run_clients());
    // The last one leaves nobody waiting, and what was wanted least is forgotten.
    core.outgoing().stop_waiting();
    assert!(!both.host().run_clients());
    let outgoing = core.outgoing();
    assert_eq!((outgoing.waiting, outgoing.least_room), (0, u32::MAX));
}

#[test]
fn what_waited_in_line_for_nothing_has_its_routine_called_soon() {
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = both.open().unwrap();
    both.host().process();
    let core = client.core();
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, _, status| {
        status.unwrap();
        channel.process();
    });
    core.outgoing().flowing = false;
    packet.send(b"x", None, SendFlags::empty()).unwrap();
    assert!(!both.host().run_clients());
    // The peer has made room between the first look and this one.
    {
        let mut outgoing = core.outgoing();
        outgoing.flowing = true;
        outgoing.watch_room(&core.counters);
        assert!(outgoing.stock.has_placed());
    }
    assert!(both.host().run_clients());
    assert!(!core.outgoing().stock.has_placed());
}

#[test]
fn what_stands_in_line_is_waited_for_by_itself() {
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    client.send(&[0; 1000]).unwrap();
    // Others neither wait for less nor end the wait.
    let core = client.core();
    core.outgoing().await_room(1);
    core.outgoing().stop_waiting();
    assert_eq!(signals(&both), 1);
    client.process();
    both.server().process();
    assert_eq!(both.server().counters().packets_processed, 16);
}

#[test]
fn nothing_overtakes_the_line_and_nothing_is_sent_before_the_start() {
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    client.send(&[0; 1000]).unwrap();
    // There is room for these, and somebody in front of them.
    assert_eq!(client.send_transfer_pages(1, &[(0, 8)], b"x"), Err(Error::RingFull));
    assert_eq!(client.send_stray_completion(7, b"x"), Ok(false));
    both.server().process();
    client.process();
    client.send_transfer_pages(1, &[(0, 8)], b"x").unwrap();
    assert_eq!(client.send_stray_completion(7, b"x"), Ok(true));
    both.server().process();
    let counters = both.server().counters();
    assert_eq!((counters.packets_processed, counters.unknown_completions), (17, 1));

    let both = Loopback::new(|_, _| ()).unwrap();
    let states = crate::kmcl::StateChangeCallbacks::new().opened(|channel: &Channel| {
        assert_eq!(channel.send_transfer_pages(1, &[(0, 8)], b"x"), Err(Error::RingFull));
        Ok(())
    });
    let client = both.client().unwrap().init_set_state_change_callbacks(states);
    let client = client.enable(SOON).unwrap();
    assert_eq!(client.counters().packets_sent, 0);
}

#[test]
fn a_larger_quota_has_room_in_line_for_all_its_answers() {
    const COUNT: u32 = 100;
    static HELD: Mutex<Vec<IncomingPacket<()>>> = Mutex::new(Vec::new());
    let both = Loopback::new(|_, packet| HELD.lock().unwrap().push(packet)).unwrap();
    both.server().set_transaction_quota(COUNT).unwrap();
    let client = both.client().unwrap().init_set_maximum_packet_count(COUNT);
    let client = client.enable(SOON).unwrap();
    for _ in 0..COUNT {
        let packet = client.packet_allocate().unwrap();
        packet.send(b"x", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
        both.server().process();
    }
    let held = std::mem::take(&mut *HELD.lock().unwrap());
    assert_eq!(held.len(), COUNT as usize);
    for packet in held {
        packet.complete(&[1; 1000]).unwrap();
    }
    both.host().process();
    let counters = client.counters();
    assert_eq!(
        (counters.outgoing_outstanding, counters.bytes_received),
        (0, 1000 * u64::from(COUNT))
    );
}

#[test]
fn a_line_without_room_refuses_and_gives_the_packet_back() {
    let counters = LiveCounters::default();
    let settings = crate::kmcl::settings::Settings::new();
    let body = || Body::<()>::new(&settings, true).unwrap();
    // One that is not open, whose line has no place; and one that has one.
    for (packets, completions, is_taken) in [(0, 0, false), (0, 1, true)] {
        let mut outgoing = Outgoing::<()>::new(packets, completions).unwrap();
        let sent = outgoing.send_notice(body(), b"x", IfFull::Queue, &counters);
        assert_eq!(sent.is_ok(), is_taken);
        if let Err((error, body)) = sent {
            assert_eq!((error, body.len), (Error::RingFull, 0));
        }
        let sent = outgoing.send_notice(body(), b"x", IfFull::Refuse, &counters);
        assert!(matches!(sent, Err((Error::RingFull, _))));
        // And no request without a place in the table.
        let sent = outgoing.send_request(body(), Waiter::Nobody, b"x", IfFull::Queue, &counters);
        assert!(matches!(sent, Err((Error::TooManyPackets, _))));
    }
    let mut outgoing = Outgoing::<()>::new(1, 0).unwrap();
    outgoing.line = Line::with_room(0).unwrap();
    for if_full in [IfFull::Queue, IfFull::Refuse] {
        let sent = outgoing.send_request(body(), Waiter::Nobody, b"x", if_full, &counters);
        assert!(matches!(sent, Err((Error::RingFull, _))));
    }
    assert_eq!(counters.snapshot().outgoing_outstanding, 0);
}

#[test]
fn what_cannot_be_written_is_an_error_and_breaks_the_channel_only_if_the_peer_did_it() {
    for (error, expected, is_broken) in [
        (
            WriteError::TooLarge { needed: 9, limit: 8 },
            Error::PacketTooLarge { len: 7, limit: 8 },
            false,
        ),
        (
            WriteError::PageList { index: 0 },
            Error::InvalidExternalData { len: 7, ranges: 0 },
            false,
        ),
        (WriteError::OutOfBounds { excess: 1 }, Error::Corrupt, true),
    ] {
        let mut outgoing = Outgoing::<()>::new(0, 0).unwrap();
        assert_eq!(
            (outgoing.fail(&error, 7, &LiveCounters::default()), outgoing.broken),
            (expected, is_broken)
        );
    }
}

#[test]
fn whoever_processes_is_told_of_each_kind_of_work_and_of_no_other() {
    let settings = crate::kmcl::settings::Settings::new();
    let counters = LiveCounters::default();
    let is_work = || counters.outgoing_work.load(Ordering::Relaxed);
    let mut outgoing = Outgoing::<()>::new(1, 1).unwrap();
    outgoing.note_work(&counters);
    assert!(!is_work());
    // Memory that came back is work only for a reader that waits for it, and once.
    let slot = crate::kmcl::receive::new_slots(&settings, 1).unwrap().pop().unwrap();
    outgoing.returned.put(slot);
    outgoing.note_work(&counters);
    assert!(!is_work() && !outgoing.returned.take_news());
    outgoing.returned.set_reader_waits(true);
    outgoing.note_work(&counters);
    assert!(is_work());
    assert!(outgoing.returned.take_news());
    assert!(!outgoing.returned.take_news());
    outgoing.note_work(&counters);
    assert!(!is_work());
    // A packet to be handed back.
    outgoing.hand_back(Body::new(&settings, true).unwrap(), &counters);
    assert!(is_work());
    assert!(outgoing.take_placed(&counters).is_some());
    assert!(!is_work());
    // A line, until it is given up.
    let sent = outgoing.send_notice(Body::new(&settings, true).unwrap(), b"x", IfFull::Queue, &counters);
    assert!(matches!(sent, Ok(None)) && is_work() && outgoing.has_line());
    outgoing.drop_queue(Gone::Closed);
    assert!(outgoing.take_placed(&counters).is_some());
    assert!(!is_work());
    // A ring that the peer broke.
    outgoing.broken = true;
    outgoing.note_work(&counters);
    assert!(is_work());
}

#[test]
fn a_ring_that_the_peer_broke_ends_the_channel_at_the_next_look_and_says_how() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let broken = crate::host::Misbehaviour::ReadIndex(0xffff_fff8);
    both.host().misbehave(client.id(), broken).unwrap();
    let error = (0..10_000).find_map(|_| client.send(&[0; 1000]).err());
    assert_eq!(error, Some(Error::Corrupt));
    let core = client.core();
    assert!(core.outgoing().fault().is_some());
    assert_eq!(client.gone(), None);
    client.process();
    assert_eq!(client.gone(), Some(Gone::Corrupt));
}

#[test]
fn what_waits_in_line_when_the_channel_ends_was_not_sent_and_its_routines_are_told_so() {
    static TOLD: Mutex<Vec<(usize, Result<(), Error>)>> = Mutex::new(Vec::new());
    let both = Loopback::new(|_, _| ()).unwrap();
    let client = almost_full(&both);
    for (number, flags) in [
        (1, SendFlags::empty()),
        (2, SendFlags::WAIT_FOR_COMPLETION),
        (3, SendFlags::empty()),
    ] {
        let mut packet = client.packet_allocate().unwrap();
        packet.set_pointer(number);
        packet.set_completion_routine(|_, packet, status| TOLD.lock().unwrap().push((packet.pointer(), status)));
        packet.send(&[0; 1000], None, flags).unwrap();
    }
    let watch = client.uncounted();
    drop(client.disable(SOON).unwrap());
    let mut told = TOLD.lock().unwrap();
    told.sort_by_key(|(number, _)| *number);
    assert_eq!(
        *told,
        [1, 2, 3].map(|number| (number, Err(Error::Gone(Gone::Disabled))))
    );
    // All are home.
    let core = watch.core();
    let outgoing = core.outgoing();
    assert_eq!((outgoing.stock.is_whole(), outgoing.has_line()), (true, false));
}

#[test]
fn a_request_that_is_given_up_in_line_leaves_the_others_there() {
    static SEEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let both = Loopback::new(|_, packet| SEEN.lock().unwrap().extend(&packet.payload()[..1])).unwrap();
    let client = almost_full(&both);
    client.send(&[b'a'; 1000]).unwrap();
    let request = client.send_request(&[b'b'; 1000], None).unwrap();
    client.send(&[b'c'; 1000]).unwrap();
    drop(request);
    both.host().process();
    assert_eq!(SEEN.lock().unwrap()[15..], *b"ac");
    assert_eq!(client.counters().outgoing_outstanding, 0);
}

#[test]
fn a_packet_that_waited_in_line_is_answered_when_it_is_sent_again_as_a_request() {
    static ANSWERS: Mutex<Vec<Result<(), Error>>> = Mutex::new(Vec::new());
    let both = Loopback::echo().unwrap();
    let client = almost_full(&both);
    client.send(&[0; 1000]).unwrap();
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(|_, mut packet, status| {
        status.unwrap();
        packet.set_completion_routine(|_, _, status| ANSWERS.lock().unwrap().push(status));
        packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    });
    packet.send(&[0; 1000], None, SendFlags::empty()).unwrap();
    both.host().process();
    let answers = ANSWERS.lock().unwrap().clone();
    assert_eq!(answers, [Ok(())]);
    assert_eq!(client.counters().unknown_completions, 0);
}

#[test]
fn requests_that_waited_in_line_when_their_client_went_are_answered_when_they_are_sent_to_the_next() {
    type Told = (crate::kmcl::OutgoingPacket<()>, Result<(), Error>);
    static LATER: Mutex<Vec<Told>> = Mutex::new(Vec::new());
    let both = Loopback::with(|server| server.init_set_maximum_packet_count(100)).unwrap();
    let client = both.client().unwrap().init_set_transaction_quota(1);
    let client = client.enable(SOON).unwrap();
    while let Ok(mut packet) = both.server().packet_allocate() {
        packet.set_completion_routine(|_, packet, status| LATER.lock().unwrap().push((packet, status)));
        packet.send(&[0; 1000], None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    }
    drop(client.disable(SOON).unwrap());
    both.host().process();
    let client = both.open().unwrap();
    let packets = std::mem::take(&mut *LATER.lock().unwrap());
    let count = packets.len();
    for (packet, status) in packets {
        assert_eq!(status, Err(Error::Gone(Gone::Closed)));
        packet.send(b"again", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
        both.host().process();
    }
    let told = std::mem::take(&mut *LATER.lock().unwrap());
    let answered = told.iter().filter(|(_, status)| status.is_ok()).count();
    drop((told, client));
    assert_eq!((count, answered), (100, 100));
}
