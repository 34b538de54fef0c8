//! Numbers of the phases, and looks from inside and outside of callbacks.

use super::*;
use crate::kmcl::{Channel, StateChangeCallbacks};
use crate::testing::Loopback;

const SOON: Deadline = Deadline::seconds(5);

#[test]
fn a_phase_goes_through_a_number() {
    for phase in [
        Phase::Closed,
        Phase::Opening,
        Phase::Paused,
        Phase::Starting,
        Phase::Receiving,
        Phase::Running,
        Phase::Suspending,
        Phase::Ended,
    ] {
        assert_eq!(Phase::from(phase as u8), phase);
    }
}

/// Sends the largest packet and one that is larger.
fn send_around_the_limit(channel: &Channel) -> [Result<(), Error>; 2] {
    let limit = channel.core().settings.maximum_packet_size;
    let bytes = std::vec![1; limit + 1];
    [channel.send(&bytes[..limit]), channel.send(&bytes)]
}

#[test]
fn what_is_sent_before_the_first_start_is_checked_and_waits_in_line() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let too_large = Err(Error::PacketTooLarge { len: 1025, limit: 1024 });
    let both = Loopback::with(|server| server.pause_when_enabled()).unwrap();
    // Of a server that nobody has opened, of one that is opened and paused, and of a client that is being opened.
    assert_eq!(send_around_the_limit(both.server()), [Ok(()), too_large]);
    let states = StateChangeCallbacks::new().opened(move |channel: &Channel| {
        assert_eq!(send_around_the_limit(channel), [Ok(()), too_large]);
        Ok(())
    });
    let client = both.client().unwrap().init_set_state_change_callbacks(states);
    let client = client.init_set_process_packet_callback(|_, packet| {
        assert_eq!(packet.payload(), [1; 1024]);
        SEEN.fetch_add(1, Ordering::Relaxed);
    });
    let client = client.enable(SOON).unwrap();
    assert_eq!(send_around_the_limit(both.server()), [Ok(()), too_large]);
    both.host().process();
    assert_eq!(SEEN.load(Ordering::Relaxed), 0);
    both.server().start(SOON).unwrap();
    both.host().process();
    assert_eq!(SEEN.load(Ordering::Relaxed), 2);
    assert_eq!(both.server().counters().packets_processed, 1);
    // Later pauses refuse instead.
    both.server().pause(SOON).unwrap();
    assert_eq!(both.server().send(b"x"), Err(Error::WrongState));
    drop(client);
}

#[test]
fn a_client_that_ends_sends_no_more_and_a_server_keeps_what_it_sends_for_the_next_one() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    client.core().end(Gone::Closed);
    both.server().core().end(Gone::Closed);
    assert_eq!(client.send(b"x"), Err(Error::Gone(Gone::Closed)));
    assert_eq!(both.server().send(b"x"), Ok(()));
}

#[test]
fn a_packet_whose_routine_is_to_be_called_leaves_a_note_for_whoever_processes() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let core = client.core();
    let has_note = || {
        let task = core.platform.current_task();
        core.gate.try_enter(task, Inside::Callback).unwrap().leave()
    };
    client.send(b"x").unwrap();
    assert!(!has_note());
    let mut packet = client.packet_allocate().unwrap();
    packet.set_completion_routine(|_, _, _| ());
    packet.send(b"x", None, SendFlags::empty()).unwrap();
    assert!(has_note());
    client.process();
    assert!(!has_note());
}
