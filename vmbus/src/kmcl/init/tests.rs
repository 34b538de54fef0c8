//! What initialising keeps, and what it refuses.

use super::*;
use crate::testing::Loopback;

const SOON: Deadline = Deadline::seconds(5);

fn is_refused_for_memory(client: DisabledChannel) -> bool {
    let refused = client.enable(SOON).err();
    refused.is_some_and(|refused| matches!(refused.error, Error::OutOfMemory(_)))
}

#[test]
fn a_callback_that_found_no_memory_is_told_of_when_the_channel_is_enabled() {
    let both = Loopback::echo().unwrap();
    let mut client = both.client().unwrap();
    assert!(client.keep::<Notice<()>>(Err(OutOfMemory)).is_none());
    // Others that found some do not make up for it.
    let client = client
        .init_set_process_packet_callback(|_, _| ())
        .init_set_state_change_callbacks(StateChangeCallbacks::new().started(|_| ()));
    assert!(is_refused_for_memory(client));

    let mut states = StateChangeCallbacks::new();
    assert!(states.keep::<Notice<()>>(Err(OutOfMemory)).is_none());
    let states = states.started(|_| ()).clone();
    let client = both.client().unwrap().init_set_state_change_callbacks(states);
    assert!(is_refused_for_memory(
        client.init_set_process_packet_callback(|_, _| ())
    ));
    drop(both.open().unwrap());
}

#[test]
fn sizes_are_taken_up_to_their_limits_and_no_further() {
    let both = Loopback::echo().unwrap();
    let client = || both.client().unwrap();
    let packet = |bytes| {
        let taken = client().init_set_maximum_packet_size(bytes);
        taken
            .map(|client| client.settings.maximum_packet_size)
            .map_err(Error::from)
    };
    for bytes in [1, 1024, 256 * 1024] {
        assert_eq!(packet(bytes), Ok(bytes));
    }
    for bytes in [0, 256 * 1024 + 1, usize::MAX] {
        assert_eq!(packet(bytes), Err(Error::InvalidPacketSize(bytes)));
    }

    let external = |bytes, parts| {
        let taken = client().init_set_maximum_external_data(bytes, parts);
        let limits = |client: &Settings| (client.maximum_external_data, client.maximum_chain_length);
        taken.map(|client| limits(&client.settings)).map_err(Error::from)
    };
    for (bytes, parts) in [(1, 1), (64 << 20, 32)] {
        assert_eq!(external(bytes, parts), Ok((bytes, parts)));
    }
    for bytes in [0, (64 << 20) + 1] {
        assert_eq!(external(bytes, 1), Err(Error::InvalidExternalDataSize));
    }
    for parts in [0, 33] {
        assert_eq!(external(1, parts), Err(Error::InvalidChainLength(parts)));
    }
}

#[test]
fn counts_are_brought_into_their_limits() {
    let both = Loopback::echo().unwrap();
    for (given, kept) in [(0, 1), (1, 1), (7, 7), (u32::MAX, (1 << 30) - 1)] {
        let client = both.client().unwrap();
        let client = client
            .init_set_maximum_packet_count(given)
            .init_set_transaction_quota(given);
        assert_eq!(
            (client.settings.maximum_packet_count, client.settings.quota),
            (kept, kept)
        );
    }
    for (given, kept) in [
        ((0, 3), (1, 3)),
        ((3, 0), (3, 1)),
        ((usize::MAX, 5), (16 * 1024, 5)),
        ((5, usize::MAX), (5, 16 * 1024)),
    ] {
        let client = both.client().unwrap().init_set_ring_buffer_page_count(given.0, given.1);
        assert_eq!((client.settings.incoming_pages, client.settings.outgoing_pages), kept);
    }
    // Buffers of no bytes are none.
    for (bytes, count) in [(0, 0), (1, 9)] {
        let client = both.client().unwrap().init_set_bounce_buffer_sizes(9, bytes);
        assert_eq!(
            (client.settings.bounce_buffers, client.settings.bounce_buffer_size),
            (count, bytes)
        );
    }
}
