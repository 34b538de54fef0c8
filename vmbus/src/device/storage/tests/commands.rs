//! How commands end, and what a caller is told.

use super::fake::{Ending, Fake, FakeDisk, SOON, bytes_of, ending, sense};
use crate::device::storage::protocol::{ScsiStatus, SrbStatus};
use crate::device::storage::{Error, Lba};

fn fake() -> Fake {
    Fake::new([(0, FakeDisk::new(256, 512))])
}

/// What a read answers if the device ends it so, each time.
fn read_after(end: &Ending) -> (Result<(), Error>, usize) {
    let fake = fake();
    let disk = fake.disk();
    for _ in 0..20 {
        fake.fault(0x28, end.clone());
    }
    let result = disk.read(Lba(0), fake.buffer(512), SOON).map(drop).map_err(|failed| {
        assert!(failed.buffer.is_some(), "the buffer comes back");
        failed.error
    });
    (result, fake.seen(0x28).len())
}

#[test]
fn each_failure_has_its_error_and_is_retried_only_where_that_helps() {
    let descriptor = |key: u8, code: u8| Ending {
        sense: [
            &[0x72, key, code, 0, 0, 0, 0, 12, 0, 10, 0x80, 0][..],
            &0x1_2345_6789_u64.to_be_bytes(),
        ]
        .concat(),
        ..ending(0x84, 2)
    };
    let failed = |srb, scsi| Error::Failed {
        srb: SrbStatus(srb),
        scsi: ScsiStatus(scsi),
    };
    let mut medium = sense(3, 0x11, 0);
    medium.sense[0] = 0xf0;
    medium.sense[3..7].copy_from_slice(&77_u32.to_be_bytes());
    for (end, error, attempts) in [
        (medium, Error::Medium { lba: Some(77) }, 1),
        (sense(3, 0x11, 0), Error::Medium { lba: None }, 1),
        (
            descriptor(3, 0x11),
            Error::Medium {
                lba: Some(0x1_2345_6789),
            },
            1,
        ),
        (ending(1, 0x18), Error::Reserved, 1),
        (ending(4, 0x18), Error::Reserved, 1),
        (ending(4, 0x08), Error::Busy, 13),
        (ending(4, 0x28), Error::Busy, 13),
        (ending(5, 0), Error::Busy, 13),
        (sense(2, 4, 1), Error::NotReady, 13),
        (sense(2, 0x3a, 0), Error::NotReady, 1),
        (sense(5, 0x20, 0), Error::Unsupported, 1),
        (sense(5, 0x21, 0), Error::OutOfRange, 1),
        (sense(5, 0x25, 0), Error::DiskGone, 1),
        (sense(7, 0x27, 0), Error::WriteProtected, 1),
        (sense(7, 0x27, 7), Error::NoSpace, 1),
        (ending(0x20, 2), Error::DiskGone, 1),
        (ending(8, 0), Error::DiskGone, 1),
        (ending(4, 0), failed(4, 0), 1),
        (ending(0x30, 0), failed(0x30, 0), 1),
        (ending(2, 0), failed(2, 0), 8),
        (ending(0x0e, 0), failed(0x0e, 0), 8),
        (ending(0x16, 0), failed(0x16, 0), 8),
        (ending(9, 0), failed(9, 0), 13),
        // Nobody says why.
        (ending(1, 2), failed(1, 2), 1),
        (ending(0, 0), Error::Protocol, 1),
    ]
    .into_iter()
    .step_by(if cfg!(miri) { 8 } else { 1 })
    {
        let (srb, scsi) = (end.srb, end.scsi);
        assert_eq!(
            read_after(&end),
            (Err(error), attempts),
            "{srb:#x} {scsi:#x} {:x?}",
            end.sense
        );
    }
    let (result, attempts) = read_after(&sense(6, 0x29, 0));
    assert!(matches!(result, Err(Error::Device(sense)) if sense.code == (0x29, 0)));
    assert_eq!(attempts, 8);
    let (result, attempts) = read_after(&sense(4, 0x44, 0));
    assert!(matches!(result, Err(Error::Device(sense)) if sense.key.0 == 4));
    assert_eq!(attempts, 1);
}

#[test]
fn what_passes_is_not_an_error() {
    for end in [
        ending(4, 0x08),
        ending(5, 0),
        ending(0x0e, 0),
        ending(4, 0x40),
        sense(6, 0x29, 0),
        sense(0x0b, 0x47, 0),
        sense(2, 4, 1),
    ] {
        let fake = fake();
        let disk = fake.disk();
        for _ in 0..5 {
            fake.fault(0x28, end.clone());
        }
        let buffer = disk.read(Lba(3), fake.buffer(512), SOON).unwrap();
        assert_eq!(bytes_of(&buffer), fake.script().disks[&0].data[3 * 512..4 * 512]);
        assert_eq!(fake.seen(0x28).len(), 6);
    }
}

#[test]
fn q9_sense_data_goes_before_the_statuses_and_the_adapter_before_both_where_nothing_is_there() {
    // The adapter says "error", the device "busy", and the sense data why.
    let both = Ending {
        scsi: 0x08,
        ..sense(7, 0x27, 0)
    };
    assert_eq!(read_after(&both).0, Err(Error::WriteProtected));
    // Sense data that is not flagged is none.
    let unflagged = Ending {
        srb: 4,
        scsi: 0x18,
        ..sense(7, 0x27, 0)
    };
    assert_eq!(read_after(&unflagged).0, Err(Error::Reserved));
    // No such unit, whatever else is said.
    let gone = Ending {
        srb: 0xa0,
        ..sense(3, 0x11, 0)
    };
    assert_eq!(read_after(&gone).0, Err(Error::DiskGone));
    // Done, with help.
    let recovered = Ending {
        is_done: true,
        ..sense(1, 0x17, 0)
    };
    assert_eq!(read_after(&recovered), (Ok(()), 1));
    // A device that says "good" while sense data is flagged is believed.
    let good = Ending {
        srb: 0x81,
        scsi: 0,
        is_done: true,
        ..sense(3, 0x11, 0)
    };
    assert_eq!(read_after(&good), (Ok(()), 1));
    // Sense data that says nothing, is no sense data, or is too short, decides nothing.
    for bytes in [vec![], vec![0x70], vec![0x70, 0, 0], vec![0x12; 18], vec![0xff; 255]] {
        let end = Ending {
            sense: bytes,
            ..ending(0x84, 0x18)
        };
        assert_eq!(read_after(&end).0, Err(Error::Reserved));
    }
}

#[test]
fn q9_a_success_with_an_error_in_the_header_is_none() {
    let with = |status: u32, end: Ending| Ending {
        status,
        is_done: true,
        ..end
    };
    for status in [0xc000_0001, 0xc000_0185, u32::MAX] {
        let error = Error::Contradicted { status };
        assert_eq!(read_after(&with(status, ending(1, 0))), (Err(error), 8), "{status:#x}");
        assert_eq!(read_after(&with(status, ending(1, 4))).0, Err(error));
        // What is wrong with the command itself goes first, and sense data that says that it was done.
        assert_eq!(read_after(&with(status, ending(1, 0x18))).0, Err(Error::Reserved));
        assert_eq!(read_after(&with(status, sense(1, 0x17, 0))), (Ok(()), 1));
        // Hosts say so of a command that has other data than was asked for: the bytes count.
        assert_eq!(read_after(&with(status, ending(0x12, 0))), (Ok(()), 1));
    }
    for status in [1, 0x103, 0x4000_0000, 0x8000_0005] {
        assert_eq!(read_after(&with(status, ending(1, 0))), (Ok(()), 1), "{status:#x}");
    }

    // What may not be durable is not reported to be, and it may pass.
    let fake = fake();
    let disk = fake.disk();
    let end = with(0xc000_009a, ending(1, 0));
    for _ in 0..8 {
        fake.fault(0x35, end.clone());
    }
    let error = Error::Contradicted { status: 0xc000_009a };
    assert_eq!(disk.flush(SOON).unwrap_err(), error);
    fake.fault(0x35, end.clone());
    disk.flush(SOON).unwrap();
    for _ in 0..8 {
        fake.fault(0x2a, end.clone());
    }
    let failed = disk.write(Lba(0), fake.buffer(512), SOON).unwrap_err();
    assert_eq!(failed.error, error);
    fake.fault(0x2a, end);
    disk.write(Lba(0), failed.buffer.unwrap(), SOON).unwrap();
}

#[test]
fn q9_no_more_is_believed_to_be_transferred_than_was_asked_for_and_less_is_an_error() {
    let more = Ending {
        transferred: Some(u32::MAX),
        is_done: true,
        ..ending(1, 0)
    };
    assert_eq!(read_after(&more), (Ok(()), 1));
    let less = Ending {
        transferred: Some(511),
        is_done: true,
        ..ending(1, 0)
    };
    assert_eq!(read_after(&less), (Err(Error::Short { transferred: 511 }), 8));
}

#[test]
fn q9_answers_that_are_none_are_errors_and_nothing_else_breaks() {
    for raw in [
        vec![1; 8],
        vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![3; 64],
        vec![0xff; 64],
        vec![1; 40],
    ] {
        let fake = fake();
        let disk = fake.disk();
        fake.script().raw_answer = Some(raw);
        let failed = disk.read(Lba(0), fake.buffer(512), SOON).unwrap_err();
        assert_eq!(failed.error, Error::Protocol);
        // One that is empty is sent again: whoever had the request has let go of it.
        fake.script().raw_answer = Some(Vec::new());
        disk.read(Lba(0), failed.buffer.unwrap(), SOON).unwrap();
        assert_eq!(fake.seen(0x28).len(), 1);
    }
}

#[test]
fn q9_a_flush_reaches_the_device_and_fails_loudly_where_it_cannot() {
    let fake = fake();
    let disk = fake.disk();
    disk.write(Lba(5), fake.pattern(1024, 9), SOON).unwrap();
    assert!(fake.script().disks[&0].durable.is_empty());
    disk.flush(SOON).unwrap();
    let stored = fake.script().disks[&0].clone();
    assert_eq!(stored.durable, stored.data);
    assert_eq!(fake.seen(0x35).len(), 1);
    fake.fault(0x35, sense(5, 0x20, 0));
    assert_eq!(disk.flush(SOON).unwrap_err(), Error::Unsupported);
    fake.fault(0x35, sense(3, 0x0c, 0));
    assert_eq!(disk.flush(SOON).unwrap_err(), Error::Medium { lba: None });
}

#[test]
fn a_write_through_is_refused_and_not_sent_where_the_disk_does_not_offer_it() {
    let fake = fake();
    let disk = fake.disk();
    assert!(!disk.can_write_through());
    let failed = disk.write_through(Lba(5), fake.pattern(1024, 9), SOON).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_some()), (Error::Unsupported, true));
    assert!(fake.seen(0x2a).is_empty());
}

#[test]
fn q9_a_discard_is_checked_and_cut_to_the_limits_of_the_device() {
    let fake = fake();
    let disk = fake.disk();
    disk.discard(Lba(10), 100, SOON).unwrap();
    let ranges = fake.seen(0x42);
    assert_eq!(ranges.len(), 7, "16 blocks at a time");
    assert!(ranges.iter().all(|seen| seen.transfer == 24));
    let data = fake.script().disks[&0].data.clone();
    assert!(data[10 * 512..110 * 512].iter().all(|byte| *byte == 0));
    assert!(data[110 * 512..].iter().any(|byte| *byte != 0) && data[..10 * 512].iter().any(|byte| *byte != 0));
    for (lba, count) in [(0, 257), (256, 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(disk.discard(Lba(lba), count, SOON).unwrap_err(), Error::OutOfRange);
    }
    assert_eq!(fake.seen(0x42).len(), 7, "nothing was sent");
    disk.discard(Lba(256), 0, SOON).unwrap();
    fake.script().disks.get_mut(&0).unwrap().unmap = false;
    let disk = {
        let mut plain = FakeDisk::new(16, 512);
        plain.unmap = false;
        let other = Fake::new([(0, plain)]);
        other.disk()
    };
    assert_eq!(disk.discard(Lba(0), 1, SOON).unwrap_err(), Error::ControllerGone);
}

#[test]
fn a_protected_disk_is_read_and_not_written() {
    let mut protected = FakeDisk::new(64, 512);
    protected.protected = true;
    let fake = Fake::new([(0, protected)]);
    let disk = fake.disk();
    disk.read(Lba(0), fake.buffer(512), SOON).unwrap();
    let failed = disk.write(Lba(0), fake.buffer(512), SOON).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_some()), (Error::WriteProtected, true));
    assert_eq!(disk.discard(Lba(0), 1, SOON).unwrap_err(), Error::WriteProtected);
    assert!(fake.seen(0x2a).is_empty());
}
