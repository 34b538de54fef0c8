//! Disks and controllers that appear, change, vanish.

use vmbus::Deadline;
use vmbus::device::storage::{self, Change, Controller, Disk, Error, Lba};
use vmbus::host::storage::{Address, Config, Effect, Fault, Filter, Outcome, Version, operation};
use vmbus::memory::DmaBuffer;
use vmbus::testing::wait_until;

use crate::ground::{Ground, MIB, PATIENT, disk_config, luns, only, read};

/// What a look has found, in short.
fn changes(client: &Controller) -> Vec<(char, u8)> {
    let changes = client.rescan(PATIENT).unwrap();
    let mut short = Vec::new();
    for change in &changes {
        short.push(match change {
            Change::Added(disk) => ('+', disk.address().lun),
            Change::Removed(disk) => ('-', disk.address().lun),
            Change::Resized(disk) => ('=', disk.address().lun),
            _ => panic!("{change:?}"),
        });
    }
    short
}

#[test]
fn disks_are_added_and_removed_while_others_work() {
    for max_version in [Version::V6_2, Version::V4_2] {
        let ground = Ground::new(Config {
            max_version,
            ..Config::default()
        });
        ground.add(1, MIB);
        let client = ground.drive();
        let first = only(&client);
        ground.add(0, MIB);
        ground.add(2, MIB);
        client.wait_for_news(PATIENT).unwrap();
        assert_eq!(client.counters().notices, 2);
        assert_eq!(changes(&client), [('+', 0), ('+', 2)]);
        let second = client.disks().unwrap().remove(2);
        read(&second, 0, 1).unwrap();
        let taken = ground.server.detach(Address::lun(2)).unwrap();
        client.wait_for_news(PATIENT).unwrap();
        assert_eq!(changes(&client), [('-', 2)]);
        assert!(!second.is_present());
        assert_eq!(read(&second, 0, 1).unwrap_err(), Error::DiskGone);
        assert_eq!(read(&first, 0, 1).unwrap(), [0; 512]);
        // Back again: another object, and the old one stays gone.
        ground.server.attach(Address::lun(2), taken).unwrap();
        assert_eq!(changes(&client), [('+', 2)]);
        assert_eq!(read(&second, 0, 1).unwrap_err(), Error::DiskGone);
        assert_eq!(luns(&client), [0, 1, 2]);
        drop((client, first, second));
        ground.finish();
    }
}

#[test]
fn another_disk_in_the_same_place_is_another_disk() {
    let (ground, client, disk, _) = Ground::with_disk();
    drop(ground.server.detach(Address::lun(0)));
    ground.add_as(Address::lun(0), MIB, disk_config(9));
    assert_eq!(changes(&client), [('-', 0), ('+', 0)]);
    assert_eq!(disk.write_from(Lba(0), &[1; 512], PATIENT), Err(Error::DiskGone));
    assert_eq!(read(&only(&client), 0, 1).unwrap(), [0; 512]);
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_disk_that_grows_or_shrinks_is_the_same_disk() {
    let (ground, client, disk, memory) = Ground::with_disk();
    let server = ground.server.disk(Address::lun(0)).unwrap();
    memory.resize(2 * MIB);
    server.capacity_changed();
    // The next command hears of it, is sent again, and says that there is news.
    assert_eq!(read(&disk, 0, 1).unwrap(), [0; 512]);
    assert!(client.needs_rescan());
    assert_eq!(changes(&client), [('=', 0)]);
    assert_eq!(disk.blocks(), 4096);
    read(&disk, 4095, 1).unwrap();
    memory.resize(MIB);
    // Nobody has told: the disk itself says that the block is not there.
    assert_eq!(read(&disk, 4095, 1).unwrap_err(), Error::OutOfRange);
    assert!(client.needs_rescan());
    assert_eq!(changes(&client), [('=', 0)]);
    assert_eq!(disk.blocks(), 2048);
    drop((client, disk, server));
    ground.finish();
}

#[test]
fn a_disk_that_vanishes_silently_is_found_out_by_the_next_request() {
    let (ground, client, disk, _) = Ground::with_disk();
    ground.answer(Filter::reads(), Outcome::no_such_unit());
    let failed = disk.read(Lba(0), ground.buffer(&[0; 512]), PATIENT).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_some()), (Error::DiskGone, true));
    assert!(client.needs_rescan());
    drop((client, disk, failed));
    ground.finish();
}

#[test]
fn requests_in_flight_to_a_removed_disk_end_with_gone_and_give_their_memory_back() {
    let ground = Ground::new(Config::default());
    ground.add(0, MIB);
    ground.add(1, MIB);
    let client = ground.drive();
    let disks = client.disks().unwrap();
    ground.server.hold();
    let start = |disk: &Disk| disk.start_read(Lba(0), ground.buffer(&[0; 4096]));
    let (doomed, safe) = (start(&disks[0]), start(&disks[1]));
    ground.host.process();
    drop(ground.server.detach(Address::lun(0)));
    ground.server.resume();
    let failed = doomed.wait(PATIENT).unwrap_err();
    assert_eq!(failed.error, Error::DiskGone);
    assert!(failed.buffer.unwrap().is_sole_owner());
    safe.wait(PATIENT).unwrap();
    drop((client, disks));
    ground.finish();
}

#[test]
fn a_revoked_controller_ends_each_request_in_flight_with_gone() {
    let ground = Ground::new(Config {
        queue_depth: 8,
        ..Config::default()
    });
    ground.add(0, MIB);
    let client = ground.drive();
    let disk = only(&client);
    ground.server.hold();
    // More than the host takes from the ring at a time: some are held, some wait there.
    let reads: Vec<_> = (0..20)
        .map(|block| disk.start_read(Lba(block), ground.buffer(&[0; 512])))
        .collect();
    let writes: Vec<_> = (0..20)
        .map(|block| disk.start_write(Lba(block), ground.buffer(&[1; 512])))
        .collect();
    let flush = disk.start_flush();
    ground.host.process();
    assert_eq!(ground.server.held_count(), 8);
    ground.server.revoke(PATIENT).unwrap();
    for transfer in reads.into_iter().chain(writes) {
        let failed = transfer.wait(PATIENT).unwrap_err();
        assert_eq!(failed.error, Error::ControllerGone);
        assert!(failed.buffer.unwrap().is_sole_owner(), "the host has let go of it");
    }
    assert_eq!(flush.wait(PATIENT).unwrap_err().error, Error::ControllerGone);
    // The disk stays a valid object, and says so.
    assert!(!disk.is_present() && !client.is_present());
    assert_eq!((disk.blocks(), disk.info().vendor.as_str()), (2048, "Msft"));
    assert_eq!(read(&disk, 0, 1).unwrap_err(), Error::ControllerGone);
    assert_eq!(disk.flush(PATIENT), Err(Error::ControllerGone));
    assert_eq!(client.rescan(PATIENT).unwrap_err(), Error::ControllerGone);
    assert_eq!(client.wait_for_news(PATIENT), Err(Error::ControllerGone));
    // Offered anew, it is another one.
    ground.server.resume();
    let again = ground.drive();
    assert_eq!(read(&only(&again), 0, 1).unwrap(), [0; 512]);
    assert!(!disk.is_present());
    drop((client, disk, again));
    ground.finish();
}

#[test]
fn a_controller_that_is_revoked_at_each_step_of_attaching_is_gone() {
    for step in [
        operation::BEGIN_INITIALIZATION,
        operation::QUERY_PROTOCOL_VERSION,
        operation::QUERY_PROPERTIES,
        operation::END_INITIALIZATION,
    ] {
        let ground = Ground::new(Config::default());
        ground.inject(Fault::new(Filter::operation(step), Effect::Hold));
        ground.server.offer().unwrap();
        let (host, server) = (&ground.host, &ground.server);
        ground.platform.use_real_time();
        std::thread::scope(|scope| {
            let attaching = scope.spawn(|| storage::attach(host, storage::SCSI, PATIENT).map(drop));
            wait_until("the operation", || server.held_count() != 0);
            server.revoke(PATIENT).unwrap();
            assert_eq!(
                attaching.join().unwrap(),
                Err(Error::ControllerGone),
                "operation {step}"
            );
        });
        ground.finish();
    }
}

#[test]
fn memory_of_a_request_that_was_given_up_stays_lent_until_the_host_is_done_with_it() {
    let (ground, client, disk, _) = Ground::with_disk();
    for effect in [Effect::Hold, Effect::NeverAnswer] {
        let is_lost = matches!(effect, Effect::NeverAnswer);
        ground.inject(Fault::new(Filter::reads(), effect));
        let buffer = ground.buffer(&[0; 512]);
        let watched = buffer.clone();
        let failed = disk.read(Lba(0), buffer, Deadline::seconds(1)).unwrap_err();
        assert_eq!((failed.error, failed.buffer.is_none()), (Error::TimedOut, true));
        assert!(!watched.is_sole_owner());
        read(&disk, 1, 1).unwrap();
        if is_lost {
            ground.server.revoke(PATIENT).unwrap();
        } else {
            ground.server.resume();
        }
        ground.host.process();
        assert!(watched.is_sole_owner(), "lost: {is_lost}");
    }
    drop((client, disk));
    ground.finish();
}

#[test]
fn answers_to_nobody_and_packets_that_say_nothing_harm_nobody() {
    let (ground, client, disk, _) = Ground::with_disk();
    for bytes in [&[][..], &[11], &[11, 0, 0, 0], &[1; 64], &[0xFF; 64], &[11; 64]] {
        ground.server.send_unasked_bytes(bytes);
        for id in [0, 1, 1 << 32, u64::MAX] {
            assert!(ground.server.send_stray_answer(id, &[1; 64]));
        }
        ground.host.process();
    }
    ground.server.send_unasked(operation::REMOVE_DEVICE);
    ground.host.process();
    assert!(client.needs_rescan());
    for effect in [
        Effect::AnswerTwice,
        Effect::StrayAnswer(7),
        Effect::rewrite(|answer| answer.set_len(64)).unwrap(),
    ] {
        ground.inject(Fault::new(Filter::reads(), effect));
        assert_eq!(read(&disk, 0, 1).unwrap(), [0; 512]);
    }
    assert!(changes(&client).is_empty());
    drop((client, disk));
    ground.finish();
}

#[test]
fn answers_that_are_cut_or_scrambled_end_their_request_and_no_other() {
    let (ground, client, disk, memory) = Ground::with_disk();
    memory.write_at(0, &[6; 512]).unwrap();
    for len in [0, 4, 8, 12, 16, 24, 28, 40] {
        ground.inject(Fault::new(
            Filter::reads(),
            Effect::rewrite(move |answer| answer.set_len(len)).unwrap(),
        ));
        let outcome = read(&disk, 0, 1);
        assert!(matches!(outcome, Ok(_) | Err(Error::Protocol)), "{len}: {outcome:?}");
        assert_eq!(read(&disk, 0, 1).unwrap(), [6; 512]);
    }
    // Each byte of the answer, of which nothing but "good" may be taken for success with the data that was there before.
    for at in 0..64 {
        let scramble = Effect::rewrite(move |answer| answer.put(at, &[0xFF])).unwrap();
        ground.inject(Fault::new(Filter::reads(), scramble));
        let buffer = DmaBuffer::allocate(ground.platform, 512).unwrap();
        // Whatever comes of it: the memory comes back, and the next request is as good as ever.
        let owner = match disk.read(Lba(0), buffer, PATIENT) {
            Ok(buffer) => buffer,
            Err(failed) => failed.buffer.unwrap(),
        };
        assert!(owner.is_sole_owner(), "byte {at}");
        assert!(disk.is_present(), "byte {at}");
        assert_eq!(read(&disk, 0, 1).unwrap(), [6; 512], "byte {at}");
    }
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_packet_longer_than_the_protocol_has_ends_the_channel_and_nothing_else() {
    let (ground, client, disk, _) = Ground::with_disk();
    ground.server.hold();
    let transfer = disk.start_read(Lba(0), ground.buffer(&[0; 512]));
    ground.host.process();
    ground.server.send_unasked_bytes(&[11; 128]);
    ground.host.process();
    assert_eq!(transfer.wait(PATIENT).unwrap_err().error, Error::ControllerGone);
    assert_eq!(read(&disk, 0, 1).unwrap_err(), Error::ControllerGone);
    assert!(!client.is_present());
    drop((client, disk));
    ground.finish();
}

#[test]
fn what_is_written_through_survives_a_power_cut_without_a_flush() {
    let (ground, client, disk, memory) = Ground::with_disk();
    assert!(disk.can_write_through());
    disk.write(Lba(0), ground.buffer(&[1; 512]), PATIENT).unwrap();
    disk.write_through(Lba(1), ground.buffer(&[2; 512]), PATIENT).unwrap();
    memory.cut_power(vmbus::host::storage::PowerCut::LosesAll);
    assert_eq!(read(&disk, 0, 1).unwrap(), [0; 512], "it was in the cache");
    assert_eq!(read(&disk, 1, 1).unwrap(), [2; 512]);
    drop((client, disk));
    ground.finish();
}
