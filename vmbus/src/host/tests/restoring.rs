//! What comes out of a saved state: packets with all that they say, and nothing from one that cannot be.

use core::ops::Range;

use super::saving::*;
use super::support::*;
use crate::kmcl::{Error, Restored, Saved, SendFlags};

/// Fields of the state that is saved here: each chunk has its length and kind in front.
const MAGIC: Range<usize> = 8..16;
const INSTANCE: Range<usize> = 16..32;
const LIST_LEN: Range<usize> = 32 + 8 + 12..32 + 8 + 16;
const LEN: Range<usize> = 32 + 8 + 16..32 + 8 + 20;

/// A server that is paused and has taken three packets of its client from the ring: a request that is all page list, a request
/// without memory, and a notice.
fn paused() -> Pair {
    let pair = pair();
    pair.server.pause(SOON).unwrap();
    for (payload, memory) in [(b"".as_slice(), Some(pair.mdl(b"lent"))), (b"request", None)] {
        let mut packet = pair.client.packet_allocate().unwrap();
        packet.set_completion_routine(|channel, mut packet, status| {
            let memory = packet.take_mdl().map(|mdl| bytes_of(&mdl));
            channel.context().note(format!("{status:?} {memory:?}"));
        });
        packet.send(payload, memory, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    }
    pair.client.send(b"notice").unwrap();
    pair.host.process();
    pair
}

/// Lets a server take over that looks at memory and completes with nothing.
fn restored() -> (Pair, Vec<u8>) {
    let pair = paused();
    let next = server_with(&pair.host, |channel, mut packet| {
        let wants = packet.wants_completion();
        let written = packet.external_data().and_then(|data| data.write_at(1, b"ack"));
        channel.context().note(format!("{wants} {written:?}"));
        packet.complete(&[]).unwrap();
    });
    let next = next.init_set_target_interface_id(CLASS, pair.server.interface_instance());
    let (pair, state) = hand_over_to(pair, next);
    (pair, state.concat())
}

#[test]
fn packets_that_had_left_the_ring_are_restored_with_all_that_they_say() {
    let (pair, state) = restored();
    assert_eq!(pair.server.restore_from_buffer(&state), Ok(Restored::All));
    pair.server.start(SOON).unwrap();
    pair.host.process();
    let log = pair.server.context().take();
    let seen: Vec<&str> = log.iter().map(String::as_str).skip(2).collect();
    let none = "Err(NoExternalData)";
    let expected = [
        "packet ",
        "true Ok(())",
        "packet request",
        &format!("true {none}"),
        "packet notice",
        &format!("false {none}"),
        "batch 3",
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        pair.client.context().take(),
        ["Ok(()) Some([108, 97, 99, 107])", "Ok(()) None"]
    );
    assert_eq!(
        (
            pair.server.counters().packets_sent,
            pair.client.counters().unknown_completions
        ),
        (2, 0)
    );
    pair.close();
}

#[test]
fn a_state_of_another_channel_or_with_a_list_that_cannot_be_is_refused() {
    let number = |state: &[u8], field: Range<usize>| u32::from_le_bytes(state[field].try_into().unwrap());
    let (list_len, len) = {
        let (pair, state) = restored();
        let found = (number(&state, LIST_LEN), number(&state, LEN));
        pair.close();
        found
    };
    // A page list of one range of one page, and nothing else.
    assert_eq!((list_len, len), (24, 24));
    for (field, bytes) in [
        (MAGIC, b"kmclsav2".as_slice()),
        (INSTANCE, &[9; 16]),
        (LIST_LEN, &32_u32.to_le_bytes()),
        (LIST_LEN, &20_u32.to_le_bytes()),
        (LEN, &16_u32.to_le_bytes()),
    ] {
        let (pair, mut state) = restored();
        state[field.clone()].copy_from_slice(bytes);
        assert_eq!(
            pair.server.restore_from_buffer(&state),
            Err(Error::Corrupt),
            "{field:?}"
        );
        assert_eq!(pair.server.start(SOON), Err(Error::WrongState));
        pair.close();
    }
}

#[test]
fn a_driver_that_has_nothing_to_save_is_asked_once() {
    let asked = |server: DisabledEnd| {
        server.init_set_save_restore_packet_callbacks(
            |channel, packet, buffer| {
                channel
                    .context()
                    .note(format!("save {} into {}", packet.pointer, buffer.len()));
                Ok(0)
            },
            |_, _, _| Err(Error::Corrupt),
        )
    };
    let pair = Pair::with(asked, |client| client, echo, hold);
    let mut packet = pair.server.packet_allocate().unwrap();
    packet.set_pointer(7);
    packet.send(b"held", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    pair.host.process();
    pair.server.pause(SOON).unwrap();
    pair.server.context().take();
    let mut saving = pair.server.save_begin().unwrap();
    let all = saving.save_continue(&mut [0; 200]);
    assert_eq!(all, Ok(Saved::All { filled: 32 + 32 + 8 }));
    assert_eq!(pair.server.context().take(), ["save 7 into 0"]);
    drop(saving);
    pair.client.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn a_saving_that_is_given_up_lets_completions_in_again() {
    let pair = pair();
    send(&pair, 1);
    pair.server.pause(SOON).unwrap();
    let save = pair.server.save_begin().unwrap();
    drop(pair.client.context().release());
    pair.host.process();
    pair.server.context().take();
    assert_eq!(pair.server.counters().outgoing_outstanding, 1, "its end is not read");
    drop(save);
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["routine of the first server"]);
    // The same where it is disabled meanwhile.
    let save = pair.server.save_begin().unwrap();
    let watch = pair.server.uncounted();
    drop(pair.server.disable(SOON).unwrap());
    drop(save);
    assert!(!watch.core().incoming.lock(watch.core().platform).sealed);
    drop((watch, pair.client));
}
