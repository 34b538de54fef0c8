//! Large disks, large blocks, transfers of nothing and of less than was asked for.

use vmbus::device::storage::{Error, Lba};
use vmbus::host::storage::{Address, Config, DiskConfig, Effect, Fault, Filter, Outcome, Provisioning, opcode};
use vmbus::memory::DmaBuffer;

use crate::ground::{Ground, MIB, PATIENT, disk_config, only, pattern, read};

const TIB: u64 = 1 << 40;

#[test]
fn disks_of_2_tib_and_more_are_used_to_their_last_block() {
    for (block_bytes, len) in [
        (512, 2 * TIB - 512),
        (512, 2 * TIB),
        (512, 2 * TIB + 512),
        (512, 64 * TIB),
        (4096, 16 * TIB),
        (4096, 64 * TIB),
    ] {
        let ground = Ground::new(Config::default());
        let config = DiskConfig {
            block_bytes,
            provisioning: Provisioning::THIN,
            ..disk_config(0)
        };
        let (memory, _) = ground.add_as(Address::lun(0), len, config);
        let client = ground.drive();
        let disk = only(&client);
        assert_eq!((disk.size_bytes(), disk.block_len()), (len, block_bytes));
        let (last, size) = (disk.blocks() - 1, block_bytes as usize);
        // Across each limit that a command's fields have: 2^21, 2^32 blocks, and the end.
        for first in [(1 << 21) - 1, (1 << 32) - 1, last - 1] {
            if first >= last {
                continue;
            }
            let bytes = pattern(u8::try_from(first % 200).unwrap(), 2 * size);
            disk.write_from(Lba(first), &bytes, PATIENT).unwrap();
            let mut stored = vec![0; 2 * size];
            memory.read_at(first * u64::from(block_bytes), &mut stored).unwrap();
            assert!(stored == bytes, "written at block {first}");
            assert!(read(&disk, first, 2).unwrap() == bytes, "read at block {first}");
            disk.discard(Lba(first), 2, PATIENT).unwrap();
            assert!(
                read(&disk, first, 2).unwrap() == vec![0; 2 * size],
                "discarded at block {first}"
            );
        }
        assert_eq!(read(&disk, 0, 2).unwrap(), vec![0; 2 * size], "no wrapping");
        // All of it at once.
        disk.discard(Lba(0), disk.blocks(), PATIENT).unwrap();
        // Beyond the end nothing is sent.
        let before = client.counters().commands;
        for (first, blocks) in [(last, 2), (last + 1, 1), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            assert_eq!(read(&disk, first, blocks).unwrap_err(), Error::OutOfRange);
        }
        assert_eq!(disk.discard(Lba(1), disk.blocks(), PATIENT), Err(Error::OutOfRange));
        assert_eq!(client.counters().commands, before);
        drop((client, disk));
        ground.finish();
    }
}

#[test]
fn transfers_of_nothing_succeed_and_are_not_sent() {
    let (ground, client, disk, _) = Ground::with_disk();
    let before = client.counters().commands;
    let empty = || DmaBuffer::allocate(ground.platform, 512).unwrap().slice(0, 0).unwrap();
    assert_eq!(disk.read(Lba(0), empty(), PATIENT).unwrap().len(), 0);
    assert_eq!(disk.write(Lba(0), empty(), PATIENT).unwrap().len(), 0);
    // At the end there is room for nothing; beyond it there is not.
    assert!(disk.read(Lba(2048), empty(), PATIENT).is_ok());
    let failed = disk.read(Lba(2049), empty(), PATIENT).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_some()), (Error::OutOfRange, true));
    drop(failed);
    disk.read_into(Lba(2048), &mut [], PATIENT).unwrap();
    disk.write_from(Lba(0), &[], PATIENT).unwrap();
    assert_eq!(client.counters().commands, before);
    drop((client, disk));
    ground.finish();
}

#[test]
fn lengths_and_places_that_are_no_blocks_are_refused_before_anything_is_sent() {
    let (ground, client, disk, _) = Ground::with_disk();
    let before = client.counters().commands;
    for len in [1, 511, 513, 4095] {
        let failed = disk.read(Lba(0), ground.buffer(&vec![0; len]), PATIENT).unwrap_err();
        assert_eq!((failed.error, failed.buffer.unwrap().len()), (Error::Unaligned, len));
        assert_eq!(disk.write_from(Lba(0), &vec![0; len], PATIENT), Err(Error::Unaligned));
    }
    assert_eq!(client.counters().commands, before);
    drop((client, disk));
    ground.finish();
}

#[test]
fn less_than_was_asked_for_is_asked_for_again_and_never_taken_for_all() {
    let (ground, client, disk, memory) = Ground::with_disk();
    let bytes = pattern(1, 8 * 512);
    memory.write_at(0, &bytes).unwrap();
    for short in [0, 1, 512, 4095] {
        ground.inject(Fault::new(Filter::reads(), Effect::Short(short)));
        assert!(read(&disk, 0, 8).unwrap() == bytes);
        ground.inject(Fault::new(Filter::writes(), Effect::Short(short)));
        disk.write_from(Lba(100), &bytes, PATIENT).unwrap();
        assert!(read(&disk, 100, 8).unwrap() == bytes);
    }
    // Whoever is always short fails, and says how far it came.
    ground.inject(Fault::new(Filter::reads(), Effect::Short(512)).always());
    assert_eq!(read(&disk, 0, 8).unwrap_err(), Error::Short { transferred: 512 });
    ground.server.clear_faults();
    drop((client, disk));
    ground.finish();
}

#[test]
fn more_than_was_asked_for_is_never_believed() {
    let (ground, client, disk, memory) = Ground::with_disk();
    let bytes = pattern(2, 512);
    memory.write_at(0, &bytes).unwrap();
    let transferred = |count: u32| Effect::rewrite(move |answer| answer.put(24, &count.to_le_bytes())).unwrap();
    let retries = client.counters().retries;
    for count in [513, 1 << 20, u32::MAX] {
        ground.inject(Fault::new(Filter::reads(), transferred(count)));
        assert!(read(&disk, 0, 1).unwrap() == bytes);
    }
    assert_eq!((client.counters().malformed, client.counters().retries), (3, retries));
    // The same of what the driver asks for itself: a list of disks, or a page, that claims to be longer than its buffer.
    ground.inject(Fault::new(Filter::command(opcode::REPORT_LUNS), transferred(u32::MAX)));
    ground.inject(Fault::new(Filter::command(opcode::INQUIRY), transferred(u32::MAX)).times(3));
    assert!(client.rescan(PATIENT).unwrap().is_empty());
    assert!(disk.is_present());
    // "Overrun" with all that was asked for is success.
    let overrun = Outcome::of(0x12, 0).with_transferred(512);
    ground.inject(Fault::new(Filter::reads(), Effect::ExecuteAndAnswer(overrun)));
    assert!(read(&disk, 0, 1).unwrap() == bytes);
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_host_s_limit_splits_transfers() {
    for max_transfer_bytes in [4096, 5000, 65536] {
        let ground = Ground::new(Config {
            max_transfer_bytes,
            ..Config::default()
        });
        ground.add(0, MIB);
        let client = ground.drive();
        let disk = only(&client);
        let bytes = pattern(3, 200 * 512);
        let buffer = disk.write(Lba(9), ground.buffer(&bytes), PATIENT).unwrap();
        buffer.write_at(0, &[0; 200 * 512]).unwrap();
        let buffer = disk.read(Lba(9), buffer, PATIENT).unwrap();
        let mut back = vec![0; bytes.len()];
        buffer.read_at(0, &mut back).unwrap();
        assert!(back == bytes);
        let expected = (200 * 512_u32).div_ceil(max_transfer_bytes / 4096 * 4096);
        assert_eq!(
            ground.server.commands(opcode::WRITE_10) + ground.server.commands(opcode::WRITE_16),
            expected
        );
        drop((client, disk, buffer));
        ground.finish();
    }
}
