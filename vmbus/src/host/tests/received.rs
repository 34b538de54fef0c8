//! Packets that were received: what is in their memory, what they describe, and those that are given up.

use core::sync::atomic::Ordering;

use super::support::*;
use crate::kmcl::SendFlags;
use crate::memory::{Mdl, PAGE_SIZE};
use crate::ring::{ExternalToSend, GpaRangeToSend, Header};

const FLAGS: SendFlags = SendFlags::WAIT_FOR_COMPLETION;

#[test]
fn the_bytes_for_the_drivers_use_are_zero_in_each_packet() {
    let pair = Pair::with(
        |server| server.init_set_client_context_size(8).init_set_transaction_quota(1),
        |client| client,
        |channel, mut packet| {
            assert_eq!(packet.client_context(), [0; 8]);
            packet.client_context().fill(1);
            channel.context().value.fetch_add(1, Ordering::SeqCst);
            packet.complete(&[]).unwrap();
        },
        echo,
    );
    for _ in 0..3 {
        pair.client.send(b"x").unwrap();
        pair.host.process();
    }
    assert_eq!(get(&pair.server), 3);
    pair.close();
}

#[test]
fn memory_of_many_pages_is_described_page_by_page() {
    let pair = Pair::with(
        |server| server.init_set_maximum_external_data(1 << 20, 8).unwrap(),
        |client| client.init_set_maximum_external_data(1 << 20, 8).unwrap(),
        |channel, mut packet| {
            let data = packet.external_data().unwrap();
            let mut last = [0; 2];
            data.read_at(data.len() - 2, &mut last).unwrap();
            channel.context().note(format!("{} {last:?}", data.len()));
            packet.complete(&[]).unwrap();
        },
        echo,
    );
    // Fewer page numbers than are written together, as many, one more, and some more than twice as many.
    for pages in [3, 16, 17, 40] {
        let mut bytes = vec![0; pages * PAGE_SIZE];
        *bytes.last_mut().unwrap() = 9;
        let packet = pair.client.packet_allocate().unwrap();
        packet.send(b"x", Some(pair.mdl(&bytes)), FLAGS).unwrap();
        pair.host.process();
        assert_eq!(
            pair.server.context().take(),
            ["packet x", &format!("{} [0, 9]", bytes.len()), "batch 1"]
        );
    }
    pair.close();
}

#[test]
fn ranges_behind_the_first_count_where_one_piece_is_lent() {
    let pair = Pair::new(|channel, mut packet| {
        let outcome = packet.external_data().map(|data| data.len());
        channel.context().note(format!("{outcome:?}"));
        hold(channel, packet);
    });
    let (lent, other) = (pair.mdl(&[1; 4096]), pair.mdl(&[2; 4096]));
    let page_of = |mdl: &Mdl| mdl.page_spans().next().unwrap().pfn.get();
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"lends", Some(lent.clone()), FLAGS).unwrap();
    // As many bytes as were lent, and its page, but another one behind it.
    let pages = [page_of(&lent), page_of(&other)];
    let range = |at: usize, byte_count| GpaRangeToSend {
        byte_count,
        byte_offset: 0,
        pfns: &pages[at..=at],
    };
    let ranges = [range(0, 4000), range(1, 96)];
    let header = Header::gpa_direct(1 << 32);
    assert!(
        pair.client
            .send_raw_for_tests(header, &[b"says"], ExternalToSend::GpaDirect(&ranges))
    );
    pair.host.process();
    assert_eq!(
        pair.server.context().take(),
        ["packet lends", "Ok(4096)", "packet says", "Err(NotLent)", "batch 2"]
    );
    pair.server.context().held.lock().unwrap().clear();
    pair.host.process();
    drop((lent, other));
    pair.close();
}

#[test]
fn a_packet_that_is_given_up_is_never_answered() {
    let pair = Pair::new(hold);
    for payload in [b"one", b"two"] {
        let packet = pair.client.packet_allocate().unwrap();
        packet.send(payload, None, FLAGS).unwrap();
    }
    pair.host.process();
    let (first, second) = (pair.server.context().release(), pair.server.context().release());
    assert_eq!(
        (first.transaction_id(), second.transaction_id()),
        (1 << 32, 1 << 32 | 1)
    );
    first.abandon();
    pair.host.process();
    let server = pair.server.counters();
    assert_eq!(
        (server.dropped, server.incoming_outstanding, server.packets_sent),
        (0, 1, 0)
    );
    assert_eq!(pair.client.counters().outgoing_outstanding, 2);
    second.abandon_and_stop();
    // Nothing more is delivered.
    pair.client.send(b"three").unwrap();
    pair.host.process();
    let server = pair.server.counters();
    assert_eq!(
        (
            server.dropped,
            server.failed,
            server.incoming_outstanding,
            server.packets_sent
        ),
        (0, 1, 0, 0)
    );
    assert_eq!(
        (
            pair.client.counters().outgoing_outstanding,
            pair.server.context().held_count()
        ),
        (2, 0)
    );
    pair.close();
}
