//! A server's end is saved, left to the next server, and restored there, while the client goes on.

use std::sync::Arc;

use super::support::*;
use crate::kmcl::{Channel, Error, IncomingPacket, NtStatus, OutgoingPacket, Restored, Save, Saved, SendFlags};

const NEEDED: usize = 13;

/// The routine of the second server notes what it gets.
fn restored(channel: &End, packet: OutgoingPacket<Arc<Log>>, status: Result<(), Error>) {
    let answer = String::from_utf8_lossy(packet.completion())
        .trim_end_matches('\0')
        .to_string();
    channel
        .context()
        .note(format!("{} {status:?} {answer}", packet.pointer()));
}

fn not_here(channel: &End, _: OutgoingPacket<Arc<Log>>, _: Result<(), Error>) {
    channel.context().note("routine of the first server");
}

/// A server that saves 13 bytes with each packet: its number as text.
pub(super) fn saving(server: DisabledEnd) -> DisabledEnd {
    server
        .init_set_inline_packet_context_size(3)
        .init_set_save_restore_packet_callbacks(
            |channel, packet, buffer| {
                channel
                    .context()
                    .note(format!("save {} into {}", packet.pointer, buffer.len()));
                assert_eq!(packet.inline_context, [7; 3]);
                if buffer.len() < NEEDED {
                    return Err(Error::BufferTooSmall { required: NEEDED });
                }
                buffer.copy_from_slice(format!("packet {:6}", packet.pointer).as_bytes());
                Ok(NEEDED)
            },
            |channel, library, driver| {
                channel
                    .context()
                    .note(format!("restore {}", String::from_utf8_lossy(driver)));
                let mut packet = channel.packet_allocate()?;
                packet.set_completion_routine(restored);
                packet.restore(library)?;
                Ok(())
            },
        )
}

/// Sends `count` packets from the server, which the client holds.
pub(super) fn send(pair: &Pair, count: usize) {
    for number in 1..=count {
        let mut packet = pair.server.packet_allocate().unwrap();
        packet.set_pointer(number);
        packet.inline_context().fill(7);
        packet.set_completion_routine(not_here);
        packet.send(b"held", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    }
    pair.host.process();
    assert_eq!(pair.client.context().held_count(), count);
}

pub(super) fn pair() -> Pair {
    Pair::with(saving, |client| client, echo, hold)
}

/// Saves all with a buffer that grows as it is asked to.
fn save(save: &mut Save<Arc<Log>>) -> Vec<Vec<u8>> {
    let (mut chunks, mut buffer) = (Vec::new(), Vec::new());
    loop {
        match save.save_continue(&mut buffer) {
            Err(Error::BufferTooSmall { required }) => {
                assert!(required > buffer.len());
                buffer = vec![0xaa; required];
            }
            Ok(saved) => {
                chunks.push(buffer[..saved.filled()].to_vec());
                match saved {
                    Saved::All { .. } => return chunks,
                    Saved::More { filled, required } => assert!(filled > 0 && required + filled > buffer.len()),
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) fn next_server(pair: &Pair) -> DisabledEnd {
    saving(server_with(&pair.host, echo)).init_set_target_interface_id(CLASS, pair.server.interface_instance())
}

/// Pauses and saves the server and lets the next one take over.
fn hand_over(pair: Pair) -> (Pair, Vec<Vec<u8>>) {
    let next = next_server(&pair);
    hand_over_to(pair, next)
}

/// The same with a server of the test's.
pub(super) fn hand_over_to(pair: Pair, next: DisabledEnd) -> (Pair, Vec<Vec<u8>>) {
    pair.server.pause(SOON).unwrap();
    let mut saving = pair.server.save_begin().unwrap();
    let chunks = save(&mut saving);
    saving.save_end();
    let Pair {
        host,
        platform,
        server,
        client,
    } = pair;
    drop(server.hand_over(SOON).unwrap());
    let server = next.enable(SOON).unwrap();
    server.context().take();
    let pair = Pair {
        host,
        platform,
        server,
        client,
    };
    (pair, chunks)
}

#[test]
fn a_server_is_saved_and_restored_and_its_client_goes_on() {
    let pair = pair();
    send(&pair, 3);
    pair.server.pause(SOON).unwrap();
    // Two that leave the ring before the saving, two that stay in it.
    pair.client.send(b"one").unwrap();
    pair.client.send(b"two").unwrap();
    pair.host.process();
    assert_eq!(count(&pair.server.context().take(), "packet"), 0);
    let first = pair.server.context().clone();
    let (pair, chunks) = hand_over(pair);
    let seen = first.take();
    assert_eq!(&seen[..2], ["save 1 into 0", "save 1 into 13"]);
    assert_eq!(count(&seen, "closed") + count(&seen, "routine"), 0);
    assert_eq!(
        pair.client.context().take(),
        ["packet held"; 3]
            .into_iter()
            .map(String::from)
            .chain(["batch 3".into()])
            .collect::<Vec<_>>()
    );
    pair.client.send(b"three").unwrap();
    pair.client.context().release().complete(b"first").unwrap();
    pair.host.process();
    assert_eq!(
        pair.server.context().take(),
        [""; 0],
        "before all is restored nothing is delivered"
    );
    let (last, parts) = chunks.split_last().unwrap();
    for part in parts {
        assert_eq!(pair.server.restore_from_buffer(part), Ok(Restored::More));
        assert_eq!(pair.server.start(SOON), Err(Error::WrongState));
    }
    assert_eq!(pair.server.restore_from_buffer(last), Ok(Restored::All));
    assert_eq!(
        pair.server.context().take(),
        [
            "restore packet      1",
            "restore packet      2",
            "restore packet      3"
        ]
    );
    assert_eq!(pair.server.counters().outgoing_outstanding, 3);
    pair.server.start(SOON).unwrap();
    pair.client.context().release().complete(b"second").unwrap();
    pair.client.context().release().complete(b"third").unwrap();
    pair.host.process();
    let seen = pair.server.context().take();
    let packets: Vec<_> = seen.iter().filter(|event| event.starts_with("packet")).collect();
    assert_eq!(packets, ["packet one", "packet two", "packet three"]);
    for event in ["1 Ok(()) first", "2 Ok(()) second", "3 Ok(()) third"] {
        assert_eq!(count(&seen, event), 1, "{seen:?}");
    }
    assert_eq!(pair.server.counters().outgoing_outstanding, 0);
    // And on as before.
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"question");
    drop(first);
    pair.close();
}

#[test]
fn saving_says_how_much_it_needs_and_goes_on_where_it_stopped() {
    let pair = pair();
    send(&pair, 2);
    pair.server.pause(SOON).unwrap();
    let mut save = pair.server.save_begin().unwrap();
    let refused = save.save_continue(&mut []).unwrap_err();
    assert_eq!(refused, Error::BufferTooSmall { required: 32 });
    assert_eq!(refused.ntstatus(), NtStatus::BUFFER_TOO_SMALL);
    // Room for the beginning and a part of the first packet.
    let mut buffer = [0; 40];
    let some = save.save_continue(&mut buffer).unwrap();
    let packet = 8 + 8 + 16 + 16;
    assert_eq!(
        some,
        Saved::More {
            filled: 32,
            required: packet
        }
    );
    assert_eq!(some.ntstatus(), NtStatus::BUFFER_OVERFLOW);
    assert_eq!(
        (some.filled(), some.to_string()),
        (32, "32 bytes, and 48 or more remain".into())
    );
    assert_eq!(
        save.save_continue(&mut buffer),
        Err(Error::BufferTooSmall { required: packet })
    );
    let mut buffer = [0; 200];
    let all = save.save_continue(&mut buffer).unwrap();
    assert_eq!(all, Saved::All { filled: 2 * packet + 8 });
    assert_eq!(all.ntstatus(), NtStatus::SUCCESS);
    assert_eq!((all.filled(), all.to_string()), (104, "all, 104 bytes".into()));
    let of = |restored: Restored| restored.ntstatus();
    assert_eq!(
        (of(Restored::All), of(Restored::More)),
        (NtStatus::SUCCESS, NtStatus::MORE_PROCESSING_REQUIRED)
    );
    assert_eq!(save.save_continue(&mut buffer), Ok(Saved::All { filled: 0 }));
    drop(save);
    // A server that was saved may go on itself.
    pair.server.start(SOON).unwrap();
    drop(pair.client.context().release());
    drop(pair.client.context().release());
    pair.host.process();
    assert_eq!(count(&pair.server.context().take(), "routine"), 2);
    pair.close();
}

#[test]
fn saving_in_the_wrong_order_is_refused_and_changes_nothing() {
    let pair = Pair::new(echo);
    assert_eq!(pair.client.save_begin().err(), Some(Error::WrongState));
    assert_eq!(pair.server.save_begin().err(), Some(Error::WrongState));
    assert_eq!(pair.server.restore_from_buffer(&[]), Err(Error::WrongState));
    let packet = pair.server.packet_allocate().unwrap();
    assert_eq!(packet.restore(&[0; 16]).unwrap_err().error, Error::WrongState);
    pair.server.pause(SOON).unwrap();
    let refused = pair.server.clone().hand_over(SOON).unwrap_err();
    assert_eq!(refused.error, Error::WrongState);
    let save = pair.server.save_begin().unwrap();
    assert_eq!(pair.server.save_begin().err(), Some(Error::WrongState));
    assert_eq!(pair.server.start(SOON), Err(Error::WrongState));
    drop(save);
    drop(refused);
    pair.server.start(SOON).unwrap();
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    pair.close();
}

#[test]
fn a_server_that_has_left_keeps_the_client_waiting_and_may_never_come_back() {
    let (pair, _) = hand_over(pair());
    // The second server leaves without having restored: it cannot save what it does not have.
    assert_eq!(pair.server.save_begin().err(), Some(Error::WrongState));
    let Pair {
        host,
        platform,
        server,
        client,
    } = pair;
    drop(server.disable(SOON).unwrap());
    host.process();
    assert_eq!(client.send(b"late"), Err(Error::Gone(crate::kmcl::Gone::Rescinded)));
    drop(client.disable(SOON).unwrap());
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn a_client_that_closes_while_there_is_no_server_leaves_nothing() {
    let pair = pair();
    pair.server.pause(SOON).unwrap();
    let mut saving = pair.server.save_begin().unwrap();
    save(&mut saving);
    drop(saving);
    let next = next_server(&pair);
    let Pair {
        host,
        platform,
        server,
        client,
    } = pair;
    drop(server.hand_over(SOON).unwrap());
    drop(client.disable(SOON).unwrap());
    assert_eq!(platform.pages_in_use(), 0);
    // The next server has an offer that is free, and the next client gets it.
    let server = next.enable(SOON).unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    let mut answer = [0; 8];
    client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    Pair {
        host,
        platform,
        server,
        client,
    }
    .close();
}

#[test]
fn a_saved_state_that_was_tampered_with_is_refused_or_harmless() {
    let whole = {
        let pair = pair();
        send(&pair, 2);
        pair.server.pause(SOON).unwrap();
        pair.client.send(b"one").unwrap();
        pair.host.process();
        let mut saving = pair.server.save_begin().unwrap();
        let whole = save(&mut saving).concat();
        drop(saving);
        pair.client.context().held.lock().unwrap().clear();
        drop(pair.client.disable(SOON).unwrap());
        whole
    };
    let mut refused = 0;
    let step = if cfg!(miri) { 101 } else { 1 };
    for at in (0..whole.len()).step_by(step) {
        for change in [0xff, 0x01, 0x80] {
            let (pair, _) = hand_over(pair());
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            match pair.server.restore_from_buffer(&bytes) {
                Ok(_) => {}
                Err(error) => {
                    refused += 1;
                    assert!(
                        matches!(
                            error,
                            Error::Corrupt | Error::TooManyPackets | Error::PacketTooLarge { .. }
                        ),
                        "{at}: {error}"
                    );
                }
            }
            let _ = pair.server.start(SOON);
            pair.host.process();
            pair.server.context().held.lock().unwrap().clear();
            pair.close();
        }
        let (pair, _) = hand_over(pair());
        let cut = pair.server.restore_from_buffer(&whole[..at]);
        assert!(matches!(cut, Ok(Restored::More) | Err(Error::Corrupt)), "{at}: {cut:?}");
        pair.close();
    }
    assert!(
        refused > whole.len() / step,
        "{refused} of {} changes were refused",
        3 * whole.len()
    );
}

#[test]
fn packets_without_callbacks_are_restored_without_a_routine() {
    let pair = Pair::with(|server| server, |client| client, echo, hold);
    let packet = pair.server.packet_allocate().unwrap();
    packet.send(b"held", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    pair.host.process();
    pair.server.pause(SOON).unwrap();
    let mut saving = pair.server.save_begin().unwrap();
    let chunks = save(&mut saving).concat();
    drop(saving);
    let next = server_with(&pair.host, echo).init_set_target_interface_id(CLASS, pair.server.interface_instance());
    let Pair {
        host,
        platform,
        server,
        client,
    } = pair;
    drop(server.hand_over(SOON).unwrap());
    let server: Channel<_> = next.enable(SOON).unwrap();
    assert_eq!(server.restore_from_buffer(&chunks), Ok(Restored::All));
    server.start(SOON).unwrap();
    assert_eq!(server.counters().outgoing_outstanding, 1);
    let held: IncomingPacket<_> = client.context().release();
    held.complete(&[]).unwrap();
    host.process();
    assert_eq!(server.counters().outgoing_outstanding, 0);
    Pair {
        host,
        platform,
        server,
        client,
    }
    .close();
}

#[test]
fn what_cannot_be_saved_yet_refuses_the_saving_until_the_client_has_seen_to_it() {
    let many = |server: DisabledEnd| saving(server).init_set_maximum_packet_count(64);
    let pair = Pair::with(many, |client| client, echo, hold);
    // It lends memory.
    let mut packet = pair.server.packet_allocate().unwrap();
    packet.set_completion_routine(not_here);
    let memory = Some(pair.mdl(b"lent"));
    packet.send(b"held", memory, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    pair.host.process();
    pair.server.pause(SOON).unwrap();
    assert_eq!(pair.server.save_begin().err(), Some(Error::WrongState));
    drop(pair.client.context().release());
    pair.host.process();
    drop(pair.server.save_begin().unwrap());
    pair.server.start(SOON).unwrap();
    // It has something in line for room in the ring.
    while pair.server.counters().ring_full == 0 {
        pair.server.send(&[0; 1000]).unwrap();
    }
    pair.server.pause(SOON).unwrap();
    assert_eq!(pair.server.save_begin().err(), Some(Error::WrongState));
    pair.client.process();
    drop(pair.server.save_begin().unwrap());
    pair.client.context().held.lock().unwrap().clear();
    pair.server.start(SOON).unwrap();
    pair.close();
}
