//! What a disk may answer instead of success.

use vmbus::device::storage::{Error, Lba};
use vmbus::host::storage::{
    Config, Effect, Fault, Filter, Outcome, PowerCut, Reset, Sense, WriteCache, opcode, srb_status,
};

use crate::ground::{Ground, MIB, PATIENT, disk_config, only, pattern, read};

#[test]
fn statuses_that_contradict_each_other_have_an_order() {
    let sense = |key, code, qualifier| Outcome::check(Sense::fixed(key, code, qualifier));
    let with = |outcome: Outcome, srb_status, scsi_status| Outcome {
        srb_status,
        scsi_status,
        ..outcome
    };
    let medium = Error::Medium { lba: Some(5) };
    let (ground, client, disk, _) = Ground::with_disk();
    for (outcome, expected) in [
        (Outcome::medium_error(5), medium),
        (sense(3, 0x11, 0), Error::Medium { lba: None }),
        // Several bits of a request's status at once, as Hyper-V sets them: sense data tells.
        (with(Outcome::medium_error(5), 0x86, 2), medium),
        (with(Outcome::medium_error(5), 0xC4, 2), medium),
        (Outcome::reservation_conflict(), Error::Reserved),
        (Outcome::write_protected(), Error::WriteProtected),
        (Outcome::no_space(), Error::NoSpace),
        (sense(2, 0x3A, 0), Error::NotReady),
        (sense(5, 0x21, 0), Error::OutOfRange),
        (Outcome::illegal(0x20), Error::Unsupported),
        (Outcome::illegal(0x24), Error::Unsupported),
        // A request's error with a good SCSI status is an error.
        (
            with(Outcome::good(512), srb_status::ERROR, 0),
            Error::Failed {
                srb: vmbus::device::storage::protocol::SrbStatus::ERROR,
                scsi: vmbus::device::storage::protocol::ScsiStatus::GOOD,
            },
        ),
        // The adapter knows no such device, whatever else is said. The last one: it is believed.
        (with(Outcome::medium_error(5), 0xA0, 2), Error::DiskGone),
    ] {
        ground.inject(Fault::new(Filter::reads(), Effect::Answer(outcome)).always());
        assert_eq!(read(&disk, 5, 1).unwrap_err(), expected, "{outcome:?}");
        ground.server.clear_faults();
        assert_eq!(disk.is_present(), expected != Error::DiskGone);
    }
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_request_whose_status_is_no_error_is_none() {
    let (ground, client, disk, memory) = Ground::with_disk();
    memory.write_at(0, &[4; 512]).unwrap();
    // Recovered by the disk; a frozen queue that is of no concern here; old sense data beside success.
    for outcome in [
        Outcome::check(Sense::fixed(1, 0x17, 0)).with_transferred(512),
        Outcome {
            srb_status: srb_status::SUCCESS | srb_status::QUEUE_FROZEN,
            ..Outcome::good(512)
        },
        Outcome {
            srb_status: srb_status::SUCCESS | srb_status::AUTOSENSE_VALID,
            sense: Some(Sense::fixed(3, 0x11, 0)),
            ..Outcome::good(512)
        },
    ] {
        ground.inject(Fault::new(Filter::reads(), Effect::ExecuteAndAnswer(outcome)));
        assert_eq!(read(&disk, 0, 1).unwrap(), [4; 512], "{outcome:?}");
    }
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_success_whose_packet_is_an_error_is_reported_as_none() {
    let (ground, client, disk, memory) = Ground::with_disk();
    memory.write_at(0, &[4; 512]).unwrap();
    let contradiction = Outcome::good(512).with_status(0xC000_0001);
    ground.inject(Fault::new(Filter::reads(), Effect::Answer(contradiction)).times(8));
    let error = Error::Contradicted { status: 0xC000_0001 };
    assert_eq!(read(&disk, 0, 1).unwrap_err(), error);
    // It was sent again as often as that may help.
    ground.inject(Fault::new(Filter::reads(), Effect::Answer(contradiction)).times(7));
    assert_eq!(read(&disk, 0, 1).unwrap(), [4; 512]);
    drop((client, disk));
    ground.finish();
}

#[test]
fn unit_attentions_in_the_middle_are_no_errors() {
    let (ground, client, disk, _) = Ground::with_disk();
    let bytes = pattern(7, 512);
    for attention in [
        Outcome::unit_attention(0x29, 0),
        Outcome::aborted_attention(0x2A, 9),
        Outcome::check(Sense::descriptor(6, 0x29, 2)),
        // A deferred error is told in the same way.
        Outcome::unit_attention(0x3F, 0x0E),
    ] {
        ground.inject(Fault::new(Filter::any(), Effect::Answer(attention)).times(2));
        disk.write_from(Lba(1), &bytes, PATIENT).unwrap();
        ground.answer(Filter::flushes(), attention);
        disk.flush(PATIENT).unwrap();
        ground.answer(Filter::reads(), attention);
        assert!(read(&disk, 1, 1).unwrap() == bytes);
    }
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_medium_error_names_its_block_beyond_32_bits_too() {
    let ground = Ground::new(Config::default());
    ground.add(0, 3 << 40);
    let client = ground.drive();
    let disk = only(&client);
    let bad = (1_u64 << 32) + 0x1234_5678;
    // The descriptor format, with the information descriptor: the only one that has room for the number.
    let mut sense = [0; 20];
    sense[..4].copy_from_slice(&[0x72, 3, 0x11, 0]);
    sense[7..11].copy_from_slice(&[12, 0x00, 0x0A, 0x80]);
    sense[12..].copy_from_slice(&bad.to_be_bytes());
    let damaged = Filter::reads().blocks(bad..bad + 1);
    ground.inject(Fault::new(damaged, Effect::Answer(Outcome::check(Sense::raw(sense)))).always());
    assert_eq!(read(&disk, bad - 1, 4).unwrap_err(), Error::Medium { lba: Some(bad) });
    assert_eq!(
        read(&disk, bad + 1, 4).unwrap(),
        [0; 4 * 512],
        "the others are as good as before"
    );
    // Not sent again: a disk has tried for long before it says so.
    let before = ground.server.commands(opcode::READ_16);
    assert!(read(&disk, bad, 1).is_err());
    assert_eq!(ground.server.commands(opcode::READ_16) - before, 1);
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_busy_disk_is_waited_for_but_not_for_ever() {
    for outcome in [
        Outcome::busy(),
        Outcome::task_set_full(),
        Outcome::of(srb_status::BUSY, 0),
    ] {
        let (ground, client, disk, _) = Ground::with_disk();
        ground.inject(Fault::new(Filter::any(), Effect::Answer(outcome)).times(6));
        let began = ground.platform.time();
        assert_eq!(read(&disk, 0, 1).unwrap(), [0; 512]);
        assert!(ground.platform.time() - began >= 10_000, "with pauses between");
        ground.inject(Fault::new(Filter::any(), Effect::Answer(outcome)).always());
        let began = ground.platform.time();
        assert_eq!(read(&disk, 0, 1).unwrap_err(), Error::Busy);
        assert!(ground.platform.time() - began < 100_000_000, "less than 10 s");
        ground.server.clear_faults();
        read(&disk, 0, 1).unwrap();
        drop((client, disk));
        ground.finish();
    }
}

#[test]
fn a_reserved_disk_is_told_at_once_and_usable_when_it_is_free() {
    let (ground, client, disk, _) = Ground::with_disk();
    let reserved = Fault::new(Filter::any(), Effect::Answer(Outcome::reservation_conflict())).always();
    ground.inject(reserved);
    let before = client.counters().commands;
    assert_eq!(read(&disk, 0, 1).unwrap_err(), Error::Reserved);
    assert_eq!(disk.write_from(Lba(0), &[0; 512], PATIENT), Err(Error::Reserved));
    assert_eq!(disk.flush(PATIENT), Err(Error::Reserved));
    assert_eq!(client.counters().commands - before, 3, "nothing was sent twice");
    ground.server.clear_faults();
    read(&disk, 0, 1).unwrap();
    assert!(disk.is_present());
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_flush_reaches_the_disk_or_fails_loudly() {
    let ground = Ground::new(Config::default());
    let config = vmbus::host::storage::DiskConfig {
        write_cache: WriteCache::Volatile,
        ..disk_config(0)
    };
    let (memory, _) = ground.add_as(vmbus::host::storage::Address::lun(0), MIB, config);
    let client = ground.drive();
    let disk = only(&client);
    disk.write_from(Lba(0), &[1; 512], PATIENT).unwrap();
    disk.flush(PATIENT).unwrap();
    assert_eq!((memory.flushes(), memory.has_unflushed()), (1, false));
    disk.write_from(Lba(0), &[2; 512], PATIENT).unwrap();
    for (outcome, expected) in [
        (Outcome::illegal(0x20), Error::Unsupported),
        (Outcome::of(srb_status::INVALID_REQUEST, 0), Error::Unsupported),
        (Outcome::write_protected(), Error::WriteProtected),
        (Outcome::check(Sense::fixed(3, 0x0C, 0)), Error::Medium { lba: None }),
    ] {
        ground.answer(Filter::flushes(), outcome);
        assert_eq!(disk.flush(PATIENT), Err(expected));
    }
    assert_eq!(memory.flushes(), 1);
    memory.cut_power(PowerCut::LosesAll);
    assert_eq!(read(&disk, 0, 1).unwrap(), [1; 512]);
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_disk_that_becomes_write_protected_says_so() {
    let (ground, client, disk, memory) = Ground::with_disk();
    let server = ground.server.disk(vmbus::host::storage::Address::lun(0)).unwrap();
    server.set_write_protected(true);
    assert!(!disk.is_write_protected(), "nobody has told yet");
    assert_eq!(disk.write_from(Lba(0), &[1; 512], PATIENT), Err(Error::WriteProtected));
    client.rescan(PATIENT).unwrap();
    assert!(disk.is_write_protected());
    let before = client.counters().commands;
    assert_eq!(disk.write_from(Lba(0), &[1; 512], PATIENT), Err(Error::WriteProtected));
    assert_eq!(client.counters().commands, before, "not even asked");
    assert_eq!(memory.allocated_bytes(), 0);
    server.set_write_protected(false);
    client.rescan(PATIENT).unwrap();
    disk.write_from(Lba(0), &[1; 512], PATIENT).unwrap();
    drop((client, disk, server));
    ground.finish();
}

#[test]
fn a_stopped_disk_is_not_ready_and_a_reset_ends_nothing_for_good() {
    let ground = Ground::new(Config {
        reset: Reset::Aborts,
        ..Config::default()
    });
    ground.add(0, MIB);
    let client = ground.drive();
    let disk = only(&client);
    ground.inject(Fault::new(Filter::reads(), Effect::Answer(Outcome::not_ready(4, 1))).times(4));
    read(&disk, 0, 1).unwrap();
    ground.inject(Fault::new(Filter::reads(), Effect::Answer(Outcome::not_ready(4, 2))).always());
    assert_eq!(read(&disk, 0, 1).unwrap_err(), Error::NotReady);
    ground.server.clear_faults();
    // In flight when the bus is reset: sent again, through the unit attention that follows.
    ground.inject(Fault::new(Filter::writes(), Effect::Hold).times(3));
    let bytes = pattern(1, 512);
    let writes: Vec<_> = (0..3)
        .map(|block| disk.start_write(Lba(block), ground.buffer(&bytes)))
        .collect();
    ground.host.process();
    assert_eq!(ground.server.held_count(), 3);
    client.reset(PATIENT).unwrap();
    assert_eq!(ground.server.resets(), 1);
    for write in writes {
        write.wait(PATIENT).unwrap();
    }
    assert!(read(&disk, 2, 1).unwrap() == bytes);
    drop((client, disk));
    ground.finish();
}
