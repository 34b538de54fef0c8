//! What goes wrong in the middle: rings that break under lent memory, errors that belong to an earlier command, looks for disks that end
//! half way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Ending, Fake, FakeDisk, SOON, ending, sense};
use crate::Deadline;
use crate::device::storage::{Change, Config, Error, Lba, attach_with};
use crate::host::Misbehaviour;
use crate::kmcl::Gone;
use crate::memory::Mdl;

fn fake() -> Fake {
    Fake::new([(0, FakeDisk::new(256, 512))])
}

#[test]
fn q4_memory_that_the_host_may_still_write_to_does_not_come_back_from_a_broken_ring() {
    let fake = fake();
    fake.script().max_transfer = 4096;
    let disk = fake.disk();
    fake.script().holds = true;
    let cut = disk.start_read(Lba(0), fake.buffer(8192));
    let whole = disk.start_read(Lba(0), fake.buffer(4096));
    let list = disk.start_read(Lba(0), Mdl::from(fake.buffer(4096)));
    let cut_list = disk.start_read(Lba(0), Mdl::from(fake.buffer(8192)));
    fake.host.process();
    assert_eq!(fake.held(), 6);
    let channel = fake.server.as_ref().unwrap().id();
    fake.host.misbehave(channel, Misbehaviour::WriteIndex(7)).unwrap();
    // None of it was answered, and the channel is not closed: all of it is the host's.
    for (what, read) in [("in one", whole), ("in parts", cut)] {
        let failed = read.wait(SOON).unwrap_err();
        assert_eq!(
            (failed.error, failed.buffer.is_none()),
            (Error::ControllerGone, true),
            "{what}"
        );
    }
    for (what, read) in [("in one", list), ("in parts", cut_list)] {
        let failed = read.wait(SOON).unwrap_err();
        assert_eq!(
            (failed.error, failed.buffer.is_none()),
            (Error::ControllerGone, true),
            "a list {what}"
        );
    }
}

#[test]
fn an_error_of_an_earlier_command_is_not_taken_for_the_end_of_this_one() {
    let deferred = |format: u8, key: u8| {
        let mut end = sense(key, 0x17, 0);
        end.sense[0] = format;
        if format == 0x73 {
            end.sense[1] = key;
            end.sense[2] = 0x17;
        }
        end
    };
    for format in [0x71, 0xf1, 0x73] {
        // What was recovered was the earlier one; this one was not done, and is sent again.
        let fake = fake();
        let disk = fake.disk();
        disk.write(Lba(3), fake.pattern(512, 9), SOON).unwrap();
        fake.fault(0x35, deferred(format, 1));
        disk.flush(SOON).unwrap();
        assert_eq!(fake.seen(0x35).len(), 2, "{format:#x}");
        let script = fake.script();
        assert!(
            script.disks[&0].durable == script.disks[&0].data,
            "{format:#x}: it is durable"
        );
        drop(script);
        // What was given up was an earlier write: to flush again would find nothing wrong.
        fake.fault(0x35, deferred(format, 0x0b));
        assert!(matches!(disk.flush(SOON).unwrap_err(), Error::Device(_)), "{format:#x}");
        assert_eq!(fake.seen(0x35).len(), 3, "{format:#x}");
    }
}

#[test]
fn nothing_of_a_chain_is_sent_that_ends_inside_a_block_further_on() {
    let fake = fake();
    fake.script().max_transfer = 4096;
    let disk = fake.disk();
    let part = |offset: usize, len: usize| Mdl::from(fake.pattern(16384, 3).slice(offset, len).unwrap());
    for chain in [
        [part(0, 1024), part(512, 612), part(100, 412)],
        [part(0, 8192 + 100), part(0, 412), part(0, 512)],
        [part(100, 1000), part(0, 24), part(0, 512)],
    ] {
        let chain = Mdl::chain(chain).unwrap();
        let failed = disk.write(Lba(0), chain, SOON).unwrap_err();
        assert_eq!((failed.error, failed.buffer.is_some()), (Error::Unaligned, true));
        assert_eq!(fake.seen(0x2a), []);
    }
}

#[test]
fn what_a_look_for_disks_has_found_before_it_failed_is_told_by_the_next() {
    let fake = Fake::new([(0, FakeDisk::new(64, 512)), (1, FakeDisk::new(64, 512))]);
    let controller = fake.attach();
    let busy_from_the_second_on = || {
        fake.fault(
            0x25,
            Ending {
                is_done: true,
                ..ending(1, 0)
            },
        );
        for _ in 0..40 {
            fake.fault(0x25, ending(4, 0x08));
        }
    };
    let told = |changes: Vec<Change>| -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Added(disk) => format!("added {}", disk.address().lun),
                Change::Removed(disk) => format!("removed {}", disk.address().lun),
                Change::Resized(disk) => format!("resized {}", disk.address().lun),
            })
            .collect()
    };
    let give_up = Deadline::millis(100);
    busy_from_the_second_on();
    assert_eq!(controller.rescan(give_up).unwrap_err(), Error::TimedOut);
    fake.script().faults.clear();
    assert!(controller.needs_rescan());
    assert_eq!(told(controller.rescan(SOON).unwrap()), ["added 0", "added 1"]);
    assert_eq!(told(controller.rescan(SOON).unwrap()), [""; 0]);
    // A disk that goes and one that grows, too; and one that came and went is not told of.
    for rounds in 1..4 {
        fake.script().disks.get_mut(&0).unwrap().blocks = 64 + rounds;
        busy_from_the_second_on();
        assert_eq!(controller.rescan(give_up).unwrap_err(), Error::TimedOut);
        fake.script().faults.clear();
    }
    assert_eq!(told(controller.rescan(SOON).unwrap()), ["resized 0"]);
    for serial in ["SERIAL-2", "SERIAL-3", "SERIAL-4"] {
        fake.script().disks.get_mut(&0).unwrap().serial = serial;
        busy_from_the_second_on();
        assert_eq!(controller.rescan(give_up).unwrap_err(), Error::TimedOut);
        fake.script().faults.clear();
    }
    let first = controller.disks().unwrap().remove(0);
    assert_eq!(first.info().serial.unwrap().as_str(), "SERIAL-4");
    assert_eq!(told(controller.rescan(SOON).unwrap()), ["removed 0", "added 0"]);
}

#[test]
fn a_controller_whose_ring_breaks_wakes_its_watcher() {
    let fake = fake();
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = woken.clone();
    let wake = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let controller = attach_with(&fake.host, &Config::default(), wake, SOON).unwrap();
    controller.rescan(SOON).unwrap();
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    let channel = fake.server.as_ref().unwrap().id();
    fake.host.misbehave(channel, Misbehaviour::WriteIndex(7)).unwrap();
    fake.host.process();
    assert_eq!(controller.gone(), Some(Gone::Corrupt));
    assert_eq!((woken.load(Ordering::SeqCst), controller.needs_rescan()), (1, true));
    assert_eq!(controller.rescan(SOON).unwrap_err(), Error::ControllerGone);
    drop(controller);
    assert_eq!(woken.load(Ordering::SeqCst), 1, "and once");
}
