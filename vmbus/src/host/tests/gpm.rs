//! `VmbChannelCreateGpadlFromMdl`.

use super::support::*;
use crate::Deadline;
use crate::kmcl::{Error, Gpadl, GpadlAccess, MappedGpadl};
use crate::memory::Mdl;

use std::sync::Arc;

fn share(pair: &Pair, mdl: &Mdl, offset: usize, len: usize) -> Gpadl<Arc<Log>> {
    pair.client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, mdl, offset, len, SOON)
        .unwrap()
}

fn map(pair: &Pair, gpadl: &Gpadl<Arc<Log>>) -> MappedGpadl {
    pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite).unwrap()
}

fn bytes(mapped: &MappedGpadl) -> Vec<u8> {
    let mut bytes = vec![0; mapped.len()];
    mapped.read_at(0, &mut bytes).unwrap();
    bytes
}

/// What the server sees of a range of `mdl`.
fn seen(pair: &Pair, mdl: &Mdl, offset: usize, len: usize) -> Vec<u8> {
    let gpadl = share(pair, mdl, offset, len);
    let seen = bytes(&map(pair, &gpadl));
    gpadl.delete(SOON).unwrap();
    seen
}

#[test]
fn gpm_1_the_call_takes_access_memory_and_range_and_returns_a_handle() {
    let pair = Pair::new(echo);
    let mdl = pair.mdl(b"memory");
    let gpadl: Gpadl<Arc<Log>> = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadOnly, &mdl, 1, 2, Deadline::Never)
        .unwrap();
    let _: u32 = gpadl.handle();
    let mapped = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly).unwrap();
    assert_eq!((mapped.len(), mapped.is_empty()), (2, false));
    drop(mapped);
    assert_refused("GPM-1", "E0061", "position in an interface table");
    gpadl.delete(SOON).unwrap();
    drop(mdl);
    pair.close();
}

#[test]
fn gpm_2_handles_of_live_gpadls_are_distinct() {
    let pair = Pair::new(echo);
    let gpadls: Vec<_> = (0..10).map(|_| share(&pair, &pair.mdl(b"x"), 0, 0)).collect();
    let mut handles: Vec<u32> = gpadls.iter().map(Gpadl::handle).collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), 10);
    for gpadl in gpadls {
        gpadl.delete(SOON).unwrap();
    }
    pair.close();
}

#[test]
fn gpm_3_on_return_the_server_can_map_at_once() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"at once"), 0, 0);
    // Without anything being processed in between.
    assert_eq!(bytes(&map(&pair, &gpadl)), b"at once");
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_4_the_server_sees_exactly_the_bytes() {
    let pair = Pair::new(echo);
    for len in [1, 8, 4095, 4096, 4097, 10_000] {
        let content: Vec<u8> = (0..=252).cycle().take(len).collect();
        assert_eq!(seen(&pair, &pair.mdl(&content), 0, len), content);
    }
    pair.close();
}

#[test]
fn gpm_5_a_chain_is_seen_in_its_order() {
    let pair = Pair::new(echo);
    let chain = Mdl::chain([pair.mdl(b"one,"), pair.mdl(b"two,"), pair.mdl(b"three")]).unwrap();
    assert_eq!(seen(&pair, &chain, 0, 0), b"one,two,three");
    drop(chain);
    pair.close();
}

#[test]
fn gpm_6_the_mapping_begins_at_the_offset() {
    let pair = Pair::new(echo);
    let chain = Mdl::chain([pair.mdl(b"one,"), pair.mdl(b"two")]).unwrap();
    assert_eq!(seen(&pair, &chain, 2, 0), b"e,two");
    assert_eq!(seen(&pair, &chain, 5, 0), b"wo", "past the first part");
    drop(chain);
    pair.close();
}

#[test]
fn gpm_7_a_length_limits_what_is_described() {
    let pair = Pair::new(echo);
    let chain = Mdl::chain([pair.mdl(b"one,"), pair.mdl(b"two")]).unwrap();
    assert_eq!(seen(&pair, &chain, 1, 4), b"ne,t");
    drop(chain);
    pair.close();
}

#[test]
fn gpm_8_a_length_of_zero_means_to_the_end_of_the_chain() {
    let pair = Pair::new(echo);
    assert_eq!(seen(&pair, &pair.mdl(b"to the end"), 3, 0), b"the end");
    pair.close();
}

#[test]
fn gpm_9_what_the_server_writes_appears_in_the_clients_memory() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(&[b'.'; 8]), 0, 0);
    map(&pair, &gpadl).write_at(2, b"ok").unwrap();
    assert_eq!(bytes_of(gpadl.mdl()), b"..ok....");
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_10_read_only_memory_is_mapped_only_to_be_read() {
    let pair = Pair::new(echo);
    let mdl = pair.mdl(b"read");
    let gpadl = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadOnly, &mdl, 0, 0, SOON)
        .unwrap();
    assert_eq!(
        pair.server
            .map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite)
            .unwrap_err(),
        Error::ReadOnly
    );
    let mapped = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly).unwrap();
    assert_eq!(bytes(&mapped), b"read");
    assert_eq!(mapped.write_at(0, b"x"), Err(Error::ReadOnly));
    drop((mapped, mdl));
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_11_read_only_protects_nothing() {
    // A server that has memory mapped writable by another way changes it: nothing here depends on a write that faults.
    let pair = Pair::new(echo);
    let mdl = pair.mdl(b"....");
    let readable = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadOnly, &mdl, 0, 0, SOON)
        .unwrap();
    let writable = share(&pair, &mdl, 0, 0);
    let view = pair.server.map_gpadl(readable.handle(), GpadlAccess::ReadOnly).unwrap();
    map(&pair, &writable).write_at(0, b"new!").unwrap();
    assert_eq!(bytes(&view), b"new!");
    drop((view, mdl));
    readable.delete(SOON).unwrap();
    writable.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_12_the_handle_is_not_sent_to_the_server() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    pair.host.process();
    assert!(pair.server.context().take().is_empty());
    assert_eq!(pair.server.counters().packets_received, 0);
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_13_deleting_waits_until_the_server_has_unmapped() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    let mapped = map(&pair, &gpadl);
    let refused = gpadl.delete(Deadline::millis(10)).unwrap_err();
    assert_eq!(refused.error, Error::TimedOut);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| refused.given.delete(SOON).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!deleting.is_finished());
        drop(mapped);
        deleting.join().unwrap().unwrap();
    });
    pair.close();
}

#[test]
fn gpm_14_at_most_one_mapping_at_a_time() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    let mapped = map(&pair, &gpadl);
    let again = pair.server.map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly);
    assert_eq!(again.unwrap_err(), Error::AlreadyMapped);
    drop(mapped);
    drop(map(&pair, &gpadl));
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpm_15_a_failure_leaves_nothing_behind() {
    let pair = Pair::new(echo);
    let mdl = pair.mdl(b"four");
    for (offset, len) in [(5, 0), (0, 5), (4, 0), (usize::MAX, 1)] {
        let error = pair
            .client
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, offset, len, SOON)
            .unwrap_err();
        assert!(!error.ntstatus().is_success());
    }
    assert!(mdl.into_dma_buffer().unwrap().is_sole_owner());
    assert_eq!(
        pair.server
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &pair.mdl(b"x"), 0, 0, SOON)
            .unwrap_err(),
        Error::WrongState
    );
    pair.close();
}

#[test]
fn gpm_16_memory_stays_as_long_as_it_is_shared() {
    // What Windows leaves to the caller, locked pages, is in the type: the GPADL owns the memory.
    assert_refused("GPM-16", "E0382", "owns");
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"still there"), 0, 0);
    assert_eq!(bytes(&map(&pair, &gpadl)), b"still there");
    drop(gpadl.delete(SOON).unwrap());
    pair.close();
}

#[test]
fn gpm_17_after_deletion_the_handle_is_unknown() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    let handle = gpadl.handle();
    gpadl.delete(SOON).unwrap();
    assert_eq!(
        pair.server.map_gpadl(handle, GpadlAccess::ReadWrite).unwrap_err(),
        Error::UnknownGpadl
    );
    pair.close();
}

#[test]
fn gpm_18_it_waits_so_not_from_a_callback_of_the_channel() {
    let pair = Pair::with(
        |server| server,
        |client| client,
        echo,
        |channel, _| {
            let empty = Mdl::empty();
            let error = channel
                .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &empty, 0, 0, SOON)
                .unwrap_err();
            channel.context().note(format!("{error:?}"));
        },
    );
    pair.server.send(b"x").unwrap();
    pair.host.process();
    assert!(pair.client.context().take().contains(&"WouldDeadlock".to_string()));
    pair.close();
}

#[test]
fn a_client_maps_nothing() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    assert_eq!(
        pair.client
            .map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly)
            .unwrap_err(),
        Error::WrongState
    );
    gpadl.delete(SOON).unwrap();
    pair.close();
}

#[test]
fn gpadls_end_with_their_channel() {
    let pair = Pair::new(echo);
    let gpadl = share(&pair, &pair.mdl(b"x"), 0, 0);
    let mapped = map(&pair, &gpadl);
    drop(pair.server.disable(SOON).unwrap());
    drop(mapped);
    assert_eq!(bytes_of(&gpadl.delete(SOON).unwrap()), b"x");
    drop(pair.client);
    assert_eq!(pair.platform.pages_in_use(), 0);
}
