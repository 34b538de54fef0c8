//! What is set before a channel is enabled, and the packets and buffers that follow from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::support::*;
use crate::Deadline;
use crate::kmcl::{Channel, Error, GpadlAccess, Instance, NtStatus, SendFlags};
use crate::memory::DmaBuffer;
use crate::protocol::Guid;

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;

#[test]
fn unknown_flags_and_empty_limits_are_refused_with_their_status() {
    let (host, _) = host();
    let channel = || server_with(&host, echo);
    let status = |error: Error| error.ntstatus();
    assert_eq!(
        status(channel().init_set_flags(1).unwrap_err().error),
        NtStatus(0xc000_00f0)
    );
    assert_eq!(
        status(channel().init_set_server_flags(8).unwrap_err().error),
        NtStatus(0xc000_00f0)
    );
    assert_eq!(
        status(channel().init_set_maximum_packet_size(0).unwrap_err().error),
        NtStatus(0xc000_00f0)
    );
    assert_eq!(
        status(channel().init_set_maximum_external_data(0, 1).unwrap_err().error),
        NtStatus(0xc000_00f0)
    );
    assert_eq!(
        status(channel().init_set_maximum_external_data(1, 0).unwrap_err().error),
        NtStatus(0xc000_00f1)
    );
    assert_eq!(
        status(channel().init_set_mmio_megabytes(0, 0).unwrap_err().error),
        NtStatus(0xc000_000d)
    );
    assert_eq!(
        status(channel().init_set_target_vtl(1).unwrap_err().error),
        NtStatus(0xc000_00f0)
    );
    // The channel comes back each time, and the right values are taken.
    let channel = channel()
        .init_set_flags(1)
        .unwrap_err()
        .given
        .init_set_flags(0)
        .unwrap();
    let channel = channel
        .init_set_server_flags(0)
        .unwrap()
        .init_set_target_vtl(0)
        .unwrap();
    drop(channel.enable(SOON).unwrap());
}

#[test]
fn an_offer_says_how_much_mmio_space_it_wants() {
    let (host, _) = host();
    let instance = Guid::literal("5a17e5a1-0000-4000-8000-00000000abcd");
    let server = server_with(&host, echo).init_set_target_interface_id(CLASS, instance);
    let server = server
        .init_set_mmio_megabytes(0, 16)
        .unwrap()
        .init_set_offer_data([3; 120])
        .enable(SOON)
        .unwrap();
    let client = client_with(&host, echo)
        .init_set_target(CLASS, Instance::Only(instance))
        .enable(SOON)
        .unwrap();
    assert_eq!((client.mmio_megabytes(), client.interface_instance()), (16, instance));
    assert_eq!(client.offer_user_defined(), [3; 120]);
    // The same offer twice is refused.
    let twin = server_with(&host, echo)
        .init_set_target_interface_id(CLASS, instance)
        .enable(SOON);
    assert!(matches!(twin.unwrap_err().error, Error::Refused(_)));
    drop((client, server));
}

#[test]
fn each_incoming_packet_has_bytes_of_its_own() {
    let pair = Pair::with(
        |server| server.init_set_client_context_size(4),
        |client| client,
        |channel, mut packet| {
            assert_eq!(packet.client_context(), [0; 4]);
            let first = packet.payload()[0];
            packet.client_context().fill(first);
            hold(channel, packet);
        },
        echo,
    );
    for payload in [b"a", b"b"] {
        pair.client.send(payload).unwrap();
    }
    pair.host.process();
    let (mut first, mut second) = (pair.server.context().release(), pair.server.context().release());
    assert_eq!(
        (first.client_context(), second.client_context()),
        (&mut [b'a'; 4][..], &mut [b'b'; 4][..])
    );
    drop((first, second));
    pair.close();
}

#[test]
fn a_friendly_name_is_copied_and_cut_between_characters() {
    let (host, _) = host();
    let name = "ä".repeat(40);
    let server = server_with(&host, echo)
        .init_set_friendly_name(&name)
        .enable(SOON)
        .unwrap();
    assert_eq!(server.friendly_name(), "ä".repeat(24));
    drop(name);
}

#[test]
fn rings_have_the_pages_that_were_asked_for() {
    let (host, platform) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    for (incoming, outgoing) in [(1, 1), (3, 5), (16, 2)] {
        let client = client_with(&host, echo)
            .init_set_maximum_external_data(4096, 1)
            .unwrap();
        let client = client.init_set_target_processor_index(crate::platform::ProcessorIndex(0));
        let client = client
            .init_set_ring_buffer_page_count(incoming, outgoing)
            .enable(SOON)
            .unwrap();
        assert_eq!(
            platform.pages_in_use(),
            incoming + outgoing + 2,
            "and two control pages"
        );
        drop(client.disable(SOON).unwrap());
    }
    // Too few for the largest packet are made enough.
    let client = client_with(&host, echo).init_set_maximum_packet_size(30_000).unwrap();
    let client = client.init_set_ring_buffer_page_count(1, 1).enable(SOON).unwrap();
    client.send(&[1; 30_000]).unwrap();
    drop((client, server));
}

#[test]
fn packets_of_ones_own_do_not_come_from_the_pool() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(1),
        echo,
        echo,
    );
    assert!(pair.client.sizeof_packet() > 1024);
    let pooled = pair.client.packet_allocate().unwrap();
    let mut own = pair.client.packet_initialize().unwrap();
    assert_eq!(own.channel().id(), pair.client.id());
    own.set_completion_routine(|channel, packet, status| {
        channel
            .context()
            .note(format!("{status:?} {}", packet.completion().len()));
    });
    own.send(b"from my memory", None, FLAGS).unwrap();
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["Ok(()) 16"]);
    drop(pooled);
    assert!(pair.client.packet_allocate().is_ok());
    pair.close();
}

#[test]
fn bounce_buffers_come_from_a_reserve_and_go_back_to_it() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_bounce_buffer_sizes(2, 5000),
        echo,
        echo,
    );
    let pages = pair.platform.pages_in_use();
    let first = pair.client.allocate_bounce_buffer(100).unwrap();
    let second = pair.client.allocate_bounce_buffer(5000).unwrap();
    assert_eq!((first.len(), second.len()), (100, 5000));
    assert_eq!(
        pair.client.allocate_bounce_buffer(1).unwrap_err(),
        Error::TooManyPackets
    );
    assert_eq!(
        pair.client.allocate_bounce_buffer(5001).unwrap_err(),
        Error::InvalidExternalData { len: 5001, ranges: 1 }
    );
    drop(first);
    drop(pair.client.allocate_bounce_buffer(1).unwrap());
    assert_eq!(pair.platform.pages_in_use(), pages, "nothing is allocated");
    drop(second);
    pair.close();
}

#[test]
fn a_buffer_is_shared_whole() {
    let pair = Pair::new(echo);
    let buffer = DmaBuffer::allocate(pair.platform, 10).unwrap();
    buffer.write_at(0, b"0123456789").unwrap();
    let gpadl = pair
        .client
        .create_gpadl_from_buffer(GpadlAccess::ReadWrite, buffer, SOON)
        .unwrap();
    let mapped = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite).unwrap();
    let mut bytes = [0; 10];
    mapped.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"0123456789");
    drop(mapped);
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn a_failure_to_connect_is_told_to_the_driver() {
    static TOLD: AtomicU32 = AtomicU32::new(0);
    let (host, platform) = host();
    let server = server_with(&host, echo).enable(SOON).unwrap();
    let client = client_with(&host, echo).init_set_pnp_failure_callback(|_: &Arc<Log>, error| {
        TOLD.store(error.ntstatus().0, Ordering::SeqCst);
    });
    platform.refuse_pages(true);
    let refused = client.enable(SOON).unwrap_err();
    assert!(matches!(refused.error, Error::OutOfPages(_)));
    assert_eq!(TOLD.load(Ordering::SeqCst), refused.error.ntstatus().0);
    platform.refuse_pages(false);
    drop(refused.given.enable(SOON).unwrap());
    // Not there at all is no failure to connect.
    TOLD.store(0, Ordering::SeqCst);
    let absent = Channel::allocate_client_with(&host, Arc::<Log>::default()).unwrap();
    let absent = absent.init_set_pnp_failure_callback(|_, _| TOLD.store(1, Ordering::SeqCst));
    assert_eq!(
        absent.enable(Deadline::IMMEDIATE).unwrap_err().error,
        Error::NoSuchOffer
    );
    assert_eq!(TOLD.load(Ordering::SeqCst), 0);
    drop(server);
}

#[test]
fn enabling_tells_what_was_reserved_and_packets_take_no_more() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(4).init_set_transaction_quota(4),
        echo,
        echo,
    );
    assert!(pair.client.reserved_bytes() > 4 * 1024 + 4 * 1024);
    assert!(pair.client.reserved_bytes() < 20 * 1024);
    pair.close();
}
