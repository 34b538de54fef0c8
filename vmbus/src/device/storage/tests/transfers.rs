//! Data: straight from and to lent memory, cut, many in flight, in any order.

use super::fake::{Fake, FakeDisk, SOON, bytes_of, ending, pattern};
use crate::Deadline;
use crate::device::storage::{Config, Error, Lba};
use crate::memory::Mdl;

fn fake() -> Fake {
    Fake::new([(0, FakeDisk::new(4096, 512))])
}

#[test]
fn memory_is_lent_and_comes_back_and_nothing_is_copied() {
    let fake = fake();
    let disk = fake.disk();
    let buffer = disk.read(Lba(7), fake.buffer(8192), SOON).unwrap();
    assert_eq!(bytes_of(&buffer), fake.script().disks[&0].data[7 * 512..23 * 512]);
    assert!(buffer.is_sole_owner());
    let buffer = fake.pattern(8192, 3);
    let buffer = disk.write(Lba(100), buffer, SOON).unwrap();
    assert!(buffer.is_sole_owner());
    assert_eq!(fake.script().disks[&0].data[100 * 512..116 * 512], pattern(8192, 3));
    assert!(fake.script().seen.iter().all(|seen| seen.time_out >= 180), "q10");
}

#[test]
fn long_transfers_are_cut_by_the_hosts_limit() {
    let fake = fake();
    fake.script().max_transfer = 64 * 1024 + 100;
    let disk = fake.disk();
    let parts = if cfg!(miri) { 2 } else { 16 };
    let len = parts * 64 * 1024;
    let data = disk.read(Lba(0), fake.buffer(len), SOON).unwrap();
    assert_eq!(bytes_of(&data), fake.script().disks[&0].data[..len]);
    let reads = fake.seen(0x28);
    assert_eq!(reads.len(), parts);
    assert!(reads.iter().all(|seen| seen.transfer == 64 * 1024));
    let data = disk.write(Lba(1), fake.pattern(len, 1), SOON).unwrap();
    assert_eq!(fake.script().disks[&0].data[512..512 + len], bytes_of(&data));
}

#[test]
fn memory_may_begin_anywhere_in_a_page() {
    let fake = fake();
    let disk = fake.disk();
    for offset in [0, 1, 511, 512, 4095] {
        let whole = fake.buffer(16384);
        let buffer = whole.slice(offset, 8192).unwrap();
        disk.read(Lba(2), buffer, SOON).unwrap();
        let bytes = bytes_of(&whole);
        assert_eq!(
            bytes[offset..offset + 8192],
            fake.script().disks[&0].data[1024..1024 + 8192]
        );
        assert!(
            bytes[..offset]
                .iter()
                .chain(&bytes[offset + 8192..])
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn chains_of_memory_are_cut_where_one_range_ends_and_that_has_to_be_at_a_block() {
    let fake = fake();
    let disk = fake.disk();
    let part = |offset: usize, len: usize| Mdl::from(fake.buffer(8192).slice(offset, len).unwrap());
    // Parts that do not meet at pages: three commands.
    let chain = Mdl::chain([part(0, 1024), part(512, 512), part(100, 1536)]).unwrap();
    let chain = disk.read(Lba(9), chain, SOON).unwrap();
    let mut bytes = vec![0; chain.len()];
    chain.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, fake.script().disks[&0].data[9 * 512..15 * 512]);
    assert_eq!(fake.seen(0x28).len(), 3);
    disk.write(Lba(20), chain, SOON).unwrap();
    assert_eq!(fake.script().disks[&0].data[20 * 512..26 * 512], bytes);
    // Parts that meet at pages are one range.
    let chain = Mdl::chain([part(0, 8192), part(0, 4096)]).unwrap();
    disk.read(Lba(0), chain, SOON).unwrap();
    assert_eq!(fake.seen(0x28).len(), 4);
    // A block across two ranges cannot be told.
    let chain = Mdl::chain([part(0, 100), part(0, 412)]).unwrap();
    let failed = disk.read(Lba(0), chain, SOON).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_some()), (Error::Unaligned, true));
}

#[test]
fn ranges_and_lengths_are_checked_before_anything_is_sent() {
    let fake = fake();
    let disk = fake.disk();
    for (lba, len, error) in [
        (0, 100, Error::Unaligned),
        (4096, 512, Error::OutOfRange),
        (4095, 1024, Error::OutOfRange),
        (u64::MAX, 512, Error::OutOfRange),
    ] {
        let failed = disk.read(Lba(lba), fake.buffer(len), SOON).unwrap_err();
        assert_eq!((failed.error, failed.buffer.unwrap().len()), (error, len));
        assert_eq!(disk.read_into(Lba(lba), &mut vec![0; len], SOON).unwrap_err(), error);
        assert_eq!(disk.write_from(Lba(lba), &vec![0; len], SOON).unwrap_err(), error);
    }
    disk.read(Lba(4096), Mdl::empty(), SOON).unwrap();
    disk.read_into(Lba(0), &mut [], SOON).unwrap();
    assert_eq!(
        disk.read(Lba(4097), Mdl::empty(), SOON).unwrap_err().error,
        Error::OutOfRange
    );
    assert!(fake.script().seen.is_empty());
}

#[test]
fn slices_are_copied_through_buffers_of_the_controller() {
    let fake = fake();
    let disk = fake
        .attach_with(Config {
            copy_buffer_len: 8192,
            ..Config::default()
        })
        .wait_for_disk(SOON)
        .unwrap();
    let source = pattern(100 * 512, 5);
    disk.write_from(Lba(11), &source, SOON).unwrap();
    let mut target = vec![0; 100 * 512];
    disk.read_into(Lba(11), &mut target, SOON).unwrap();
    assert_eq!(source, target);
    assert_eq!(fake.seen(0x28).len(), 7);
}

#[test]
fn blocks_longer_than_those_buffers_are_copied_all_the_same() {
    let fake = Fake::new([(0, FakeDisk::new(16, 16384))]);
    let config = Config {
        copy_buffer_len: 4096,
        ..Config::default()
    };
    let disk = fake.attach_with(config).wait_for_disk(SOON).unwrap();
    let source = pattern(3 * 16384, 5);
    disk.write_from(Lba(2), &source, SOON).unwrap();
    let mut target = vec![0; 3 * 16384];
    disk.read_into(Lba(2), &mut target, SOON).unwrap();
    assert_eq!(source, target);
}

#[test]
fn many_are_in_flight_and_end_in_any_order() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let reads: Vec<_> = (0..64)
        .map(|index| disk.start_read(Lba(index * 3), fake.buffer(1024)))
        .collect();
    fake.host.process();
    assert_eq!(fake.held(), 64);
    fake.release(|held| held.reverse());
    for (index, read) in reads.into_iter().enumerate() {
        let buffer = read.wait(SOON).unwrap();
        let from = index * 3 * 512;
        assert_eq!(bytes_of(&buffer), fake.script().disks[&0].data[from..from + 1024]);
    }
}

#[test]
fn more_than_the_channel_has_packets_for_wait_their_turn() {
    let fake = fake();
    let disk = fake
        .attach_with(Config {
            commands: 3,
            ring_pages: 1,
            ..Config::default()
        })
        .wait_for_disk(SOON)
        .unwrap();
    let writes: Vec<_> = (0..20)
        .map(|index| disk.start_write(Lba(index * 2), fake.pattern(1024, index as u8)))
        .collect();
    let results = futures(writes, &fake);
    assert_eq!(results.len(), 20);
    for (index, result) in results.into_iter().enumerate() {
        assert_eq!(bytes_of(&result.unwrap()), pattern(1024, index as u8));
        assert_eq!(
            fake.script().disks[&0].data[index * 1024..][..1024],
            pattern(1024, index as u8)
        );
    }
}

/// Runs futures as an executor does: each is polled when it was woken, and the host's turn comes in between.
fn futures<F: Future + Unpin>(futures: Vec<F>, fake: &Fake) -> Vec<F::Output> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake};
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let mut tasks: Vec<_> = futures
        .into_iter()
        .map(|future| (Some(future), Arc::new(Flag(AtomicBool::new(true))), None))
        .collect();
    for _ in 0..100_000 {
        for (future, flag, result) in &mut tasks {
            if flag.0.swap(false, Ordering::SeqCst)
                && let Some(running) = future
            {
                let waker = flag.clone().into();
                if let Poll::Ready(output) = std::pin::Pin::new(running).poll(&mut Context::from_waker(&waker)) {
                    (*future, *result) = (None, Some(output));
                }
            }
        }
        if tasks.iter().all(|(future, ..)| future.is_none()) {
            break;
        }
        fake.host.process();
    }
    tasks
        .into_iter()
        .map(|(.., result)| result.expect("woken until it is over"))
        .collect()
}

#[test]
fn futures_are_woken_and_one_that_finds_the_disk_busy_comes_again() {
    let fake = fake();
    let disk = fake.disk();
    for _ in 0..6 {
        fake.fault(0x28, ending(4, 0x08));
    }
    let reads: Vec<_> = (0..3)
        .map(|index| disk.start_read(Lba(index), fake.buffer(512)))
        .collect();
    for (index, result) in futures(reads, &fake).into_iter().enumerate() {
        assert_eq!(
            bytes_of(&result.unwrap()),
            fake.script().disks[&0].data[index * 512..][..512]
        );
    }
    let flushed = futures(vec![disk.start_flush()], &fake);
    assert!(matches!(flushed[..], [Ok(())]));
}

#[test]
fn one_failing_part_fails_the_whole_once_the_others_have_ended() {
    let fake = fake();
    fake.script().max_transfer = 4096;
    let disk = fake.disk();
    fake.fault(0x28, ending(1, 0x18));
    let failed = disk.read(Lba(0), fake.buffer(64 * 1024), SOON).unwrap_err();
    assert_eq!(failed.error, Error::Reserved);
    assert!(failed.buffer.unwrap().is_sole_owner(), "nothing is in flight any more");
    assert!(fake.seen(0x28).len() < 16);
}

#[test]
fn an_immediate_deadline_looks_once() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let failed = disk.read(Lba(0), fake.buffer(512), Deadline::IMMEDIATE).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_none()), (Error::TimedOut, true));
}
