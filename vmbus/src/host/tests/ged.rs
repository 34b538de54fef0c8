//! `VmbChannelPacketGetExternalData`.

use std::sync::Arc;

use super::support::*;
use crate::kmcl::{Error, IncomingPacket, SendFlags};
use crate::memory::{Mdl, PAGE_SIZE};

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;

/// A server that is told that the data is not there, the first time.
pub(super) fn pending_once(channel: &End, mut packet: IncomingPacket<Arc<Log>>) {
    if get(channel) == 0 {
        set(channel, 1);
        packet.pretend_pending();
    }
    let outcome = packet.external_data().map(|data| data.len());
    match outcome {
        Ok(len) => channel.context().note(format!("{:?} {len}", packet.level())),
        Err(error) => {
            channel.context().note(format!("{:?} {error:?}", packet.level()));
            packet.wait_for_external_data().unwrap();
        }
    }
}

fn send(pair: &Pair, mdl: Mdl) {
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"x", Some(mdl), FLAGS).unwrap();
    pair.host.process();
}

fn data(packet: &mut IncomingPacket<Arc<Log>>) -> Vec<u8> {
    let data = packet.external_data().unwrap();
    let mut bytes = vec![0; data.len()];
    data.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn ged_1_the_call_takes_a_packet_and_returns_memory_or_a_status() {
    let pair = Pair::new(hold);
    send(&pair, pair.mdl(b"data"));
    let mut packet = pair.server.context().release();
    let data: Result<crate::kmcl::ExternalData<'_>, Error> = packet.external_data();
    assert_eq!(data.unwrap().len(), 4);
    assert_refused("GED-1", "E0599", "position in an interface table");
    drop(packet);
    pair.close();
}

#[test]
fn ged_2_a_packet_with_the_flag_has_data_or_has_it_pending() {
    let pair = Pair::new(|channel, mut packet| {
        assert!(packet.has_external_data());
        channel
            .context()
            .note(format!("{}", packet.external_data().unwrap().len()));
    });
    send(&pair, pair.mdl(&[0; 77]));
    assert_eq!(pair.server.context().take()[1], "77");
    pair.close();
}

#[test]
fn ged_3_the_content_is_the_senders_and_only_the_range_that_it_named() {
    let pair = Pair::new(hold);
    let bytes: Vec<u8> = (0..9000).map(|index| (index % 249) as u8).collect();
    for (offset, len) in [(0, 0), (5, 0), (5, 4000), (4096, 100), (8999, 1), (0, 9000)] {
        let packet = pair.client.packet_allocate().unwrap();
        packet
            .send_with_external_mdl(b"x", pair.mdl(&bytes), offset, len, FLAGS)
            .unwrap();
        pair.host.process();
        let end = if len == 0 { 9000 } else { offset + len };
        assert_eq!(
            data(&mut pair.server.context().release()),
            bytes[offset..end],
            "{offset} {len}"
        );
    }
    let chain = Mdl::chain([pair.mdl(b"one"), pair.mdl(&[7; PAGE_SIZE + 1]), pair.mdl(b"three")]).unwrap();
    let expected = bytes_of(&chain);
    send(&pair, chain);
    let mut packet = pair.server.context().release();
    assert_eq!(data(&mut packet), expected);
    drop(packet);
    pair.close();
}

#[test]
fn ged_4_pending_is_told_apart_and_the_packet_is_not_completed() {
    let pair = Pair::new(pending_once);
    send(&pair, pair.mdl(b"data"));
    assert!(pair.server.context().take().contains(&"Dispatch Pending".to_string()));
    assert!(Error::Pending.ntstatus().is_success(), "so it must be compared for");
    assert_eq!(pair.client.counters().outgoing_outstanding, 1, "the sender still waits");
    pair.server.process_at_passive();
    pair.close();
}

#[test]
fn ged_5_after_pending_the_packet_comes_again_perhaps_at_another_level() {
    let pair = Pair::new(pending_once);
    send(&pair, pair.mdl(b"data"));
    pair.server.context().take();
    pair.server.process_at_passive();
    assert_eq!(pair.server.context().take(), ["packet x", "Passive 4", "batch 1"]);
    pair.close();
}

#[test]
fn ged_6_in_the_second_invocation_the_data_is_there() {
    let pair = Pair::new(|channel, packet| {
        if packet.level() == crate::kmcl::Level::Passive {
            hold(channel, packet);
        } else {
            pending_once(channel, packet);
        }
    });
    send(&pair, pair.mdl(b"now here"));
    pair.server.process_at_passive();
    assert_eq!(data(&mut pair.server.context().release()), b"now here");
    pair.close();
}

#[test]
fn ged_7_the_memory_is_usable_as_it_is() {
    assert_refused("GED-7", "E0277", "no locking step");
    let pair = Pair::new(hold);
    send(&pair, pair.mdl(b"data"));
    let mut packet = pair.server.context().release();
    packet.external_data().unwrap().write_at(0, b"done").unwrap();
    drop(packet);
    pair.close();
}

#[test]
fn ged_8_the_memory_has_no_address_only_copies() {
    // No method returns a pointer or a slice: all access is by `read_at` and `write_at`.
    assert_refused("GED-8", "E0599", "no address");
    assert_no_slice("src/kmcl/incoming/external.rs", "impl ExternalData");
}

#[test]
fn ged_9_the_memory_stays_until_the_packet_is_completed() {
    let pair = Pair::new(hold);
    let mdl = pair.mdl(b"still here");
    send(&pair, mdl);
    let pages = pair.platform.pages_in_use();
    let mut packet = pair.server.context().release();
    for _ in 0..3 {
        pair.host.process();
        assert_eq!(data(&mut packet), b"still here");
    }
    assert_eq!(pair.platform.pages_in_use(), pages);
    packet.complete(&[]).unwrap();
    pair.host.process();
    assert_eq!(pair.platform.pages_in_use(), pages - 1, "freed with the completion");
    pair.close();
}

#[test]
fn ged_10_the_driver_does_not_release_the_memory() {
    let pair = Pair::new(|_, mut packet| {
        let _ = packet.external_data().unwrap();
        packet.complete(&[]).unwrap();
    });
    let before = pair.platform.pages_in_use();
    send(&pair, pair.mdl(b"data"));
    pair.host.process();
    assert_eq!(pair.platform.pages_in_use(), before);
    pair.close();
}

#[test]
fn ged_11_after_completion_the_memory_cannot_be_named() {
    assert_refused("GED-11", "E0505", "borrowed from the packet");
    // And the sender has it alone again.
    let pair = Pair::new(|_, mut packet| {
        assert_eq!(packet.external_data().unwrap().len(), 4);
        packet.complete(&[]).unwrap();
    });
    let mdl = pair.mdl(b"data");
    let buffer = mdl.clone().into_dma_buffer().unwrap();
    send(&pair, mdl);
    pair.host.process();
    assert!(buffer.is_sole_owner());
    drop(buffer);
    pair.close();
}

#[test]
fn ged_12_read_only_refuses_writes_and_otherwise_the_sender_sees_them() {
    let pair = Pair::new(|_, mut packet| {
        let data = packet.external_data_read_only().unwrap();
        assert_eq!(data.write_at(0, b"x"), Err(Error::ReadOnly));
        packet.external_data().unwrap().write_at(4, b"written").unwrap();
        packet.complete(&[]).unwrap();
    });
    let sent = pair
        .client
        .send_synchronous_request(b"x", Some(pair.mdl(&[b'.'; 12])), SOON, &mut [])
        .unwrap();
    assert_eq!(bytes_of(&sent.mdl.unwrap()), b"....written.");
    pair.close();
}

#[test]
fn ged_13_only_the_call_pins_the_memory() {
    let pair = Pair::new(hold);
    let mdl = pair.mdl(b"data");
    let buffer = mdl.clone().into_dma_buffer().unwrap();
    send(&pair, mdl);
    let owners = buffer.owner_count();
    let mut packet = pair.server.context().release();
    assert_eq!(buffer.owner_count(), owners, "not pinned by being received");
    packet.external_data().unwrap();
    assert_eq!(buffer.owner_count(), owners + 1);
    drop(packet);
    assert_eq!(buffer.owner_count(), owners);
    drop(buffer);
    pair.close();
}

#[test]
fn ged_14_data_beyond_the_channels_limits_is_refused() {
    let limited = |channel: DisabledEnd| channel.init_set_maximum_external_data(8192, 2).unwrap();
    let pair = Pair::with(limited, |client| client, hold, echo);
    send(&pair, pair.mdl(&[0; 8192]));
    assert!(pair.server.context().release().external_data().is_ok());
    send(&pair, pair.mdl(&[0; 8193]));
    let error = pair.server.context().release().external_data().unwrap_err();
    assert_eq!(error, Error::InvalidExternalData { len: 8193, ranges: 1 });
    let chain = Mdl::chain([1, 2, 3].map(|len| pair.mdl(&vec![0; len]))).unwrap();
    send(&pair, chain);
    let error = pair.server.context().release().external_data().unwrap_err();
    assert_eq!(error, Error::InvalidExternalData { len: 6, ranges: 3 });
    pair.close();
}

#[test]
fn ged_15_two_packets_have_two_memories() {
    let pair = Pair::new(hold);
    send(&pair, pair.mdl(b"first"));
    send(&pair, pair.mdl(b"second"));
    let (mut first, mut second) = (pair.server.context().release(), pair.server.context().release());
    assert_eq!(
        (data(&mut first), data(&mut second)),
        (b"first".to_vec(), b"second".to_vec())
    );
    first.complete(&[]).unwrap();
    assert_eq!(data(&mut second), b"second");
    drop(second);
    pair.close();
}
