//! Time-outs, lent memory, and controllers that go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Fake, FakeDisk, SOON, bytes_of};
use crate::Deadline;
use crate::device::storage::{Config, Error, Lba, PATIENCE, SCSI, attach, attach_with};

fn fake() -> Fake {
    Fake::new([(0, FakeDisk::new(4096, 512))])
}

#[test]
fn q4_a_timed_out_request_keeps_its_memory_until_the_host_is_done_with_it() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let buffer = fake.buffer(4096);
    let watch = buffer.clone();
    let failed = disk.read(Lba(0), buffer, Deadline::millis(50)).unwrap_err();
    assert_eq!((failed.error, failed.buffer.is_none()), (Error::TimedOut, true));
    assert!(!watch.is_sole_owner(), "the channel owns it on");
    let pages = fake.platform.pages_in_use();
    // The late answer still finds its memory, and gives it back.
    fake.script().holds = false;
    fake.release(|_| ());
    fake.host.process();
    assert_eq!(bytes_of(&watch), fake.script().disks[&0].data[..4096]);
    assert!(watch.is_sole_owner());
    drop(watch);
    assert_eq!(fake.platform.pages_in_use(), pages - 1);
}

#[test]
fn q4_a_dropped_future_keeps_its_memory_too() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let buffer = fake.buffer(4096);
    let watch = buffer.clone();
    drop(disk.start_read(Lba(0), buffer));
    fake.host.process();
    assert!(!watch.is_sole_owner());
    fake.release(|_| ());
    fake.host.process();
    assert!(watch.is_sole_owner());
}

#[test]
fn q4_a_copying_call_that_times_out_does_not_touch_the_callers_memory_later() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let mut target = [0xee; 512];
    assert_eq!(
        disk.read_into(Lba(0), &mut target, Deadline::millis(50)).unwrap_err(),
        Error::TimedOut
    );
    fake.script().holds = false;
    fake.release(|_| ());
    fake.host.process();
    assert_eq!(target, [0xee; 512]);
    disk.read_into(Lba(0), &mut target, SOON).unwrap();
    assert_eq!(target[..], fake.script().disks[&0].data[..512]);
}

#[test]
fn q10_a_host_that_takes_180_seconds_is_waited_for() {
    let fake = fake();
    let disk = fake.disk();
    fake.script().holds = true;
    let read = disk.start_read(Lba(0), fake.buffer(512));
    fake.host.process();
    let (clock, start) = (fake.clock.clone(), fake.clock.load(Ordering::Relaxed));
    // Answered from another thread once 180 s have passed on the channel's clock.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| read.wait(PATIENCE));
        while clock.load(Ordering::Relaxed) < start + 180 * 10_000_000 {
            clock.fetch_add(10_000_000, Ordering::Relaxed);
        }
        fake.release(|_| ());
        waiting.join().unwrap().unwrap();
    });
    assert!(fake.script().seen.iter().all(|seen| seen.time_out >= 180));
}

#[test]
fn a_controller_that_goes_ends_each_request_and_the_disk_says_so() {
    let mut fake = fake();
    let controller = fake.attach();
    let disk = controller.wait_for_disk(SOON).unwrap();
    fake.script().holds = true;
    let buffers: Vec<_> = (0..8).map(|_| fake.buffer(4096)).collect();
    let reads: Vec<_> = buffers
        .iter()
        .map(|buffer| disk.start_read(Lba(0), buffer.clone()))
        .collect();
    let flush = disk.start_flush();
    fake.host.process();
    fake.revoke();
    for read in reads {
        let failed = read.wait(SOON).unwrap_err();
        assert_eq!(failed.error, Error::ControllerGone);
        drop(failed.buffer.expect("the host has given it up"));
    }
    assert!(buffers.iter().all(crate::memory::DmaBuffer::is_sole_owner));
    assert_eq!(Error::from(flush.wait(SOON).unwrap_err()), Error::ControllerGone);
    assert!(!disk.is_present() && !controller.is_present());
    assert_eq!(
        disk.read(Lba(0), fake.buffer(512), SOON).unwrap_err().error,
        Error::ControllerGone
    );
    assert_eq!(
        disk.read_into(Lba(0), &mut [0; 512], SOON).unwrap_err(),
        Error::ControllerGone
    );
    assert_eq!(disk.flush(SOON).unwrap_err(), Error::ControllerGone);
    assert_eq!(controller.rescan(SOON).unwrap_err(), Error::ControllerGone);
    assert_eq!(controller.wait_for_news(SOON).unwrap_err(), Error::ControllerGone);
    assert_eq!((disk.blocks(), disk.block_len()), (4096, 512));
}

#[test]
fn a_controller_that_goes_wakes_its_watcher_and_those_who_wait() {
    let mut fake = fake();
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = woken.clone();
    let wake = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let controller = attach_with(&fake.host, &Config::default(), wake, SOON).unwrap();
    controller.rescan(SOON).unwrap();
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    fake.notify(&11_u32.to_le_bytes());
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    fake.revoke();
    assert_eq!(woken.load(Ordering::SeqCst), 2);
    // What it finds out it does not tell itself again.
    assert_eq!(controller.rescan(SOON).unwrap_err(), Error::ControllerGone);
    assert_eq!(woken.load(Ordering::SeqCst), 2);
}

#[test]
fn everything_is_given_back_when_the_last_handle_goes() {
    let mut fake = fake();
    let before = fake.platform.pages_in_use();
    let controller = fake.attach();
    let disk = controller.wait_for_disk(SOON).unwrap();
    disk.write(Lba(0), fake.buffer(512), SOON).unwrap();
    drop(controller);
    disk.read_into(Lba(0), &mut [0; 512], SOON).unwrap();
    drop(disk);
    fake.host.process();
    assert_eq!(fake.platform.pages_in_use(), before);
    // And the controller can be attached anew.
    fake.script().restart();
    drop(attach(&fake.host, SCSI, SOON).unwrap());
    fake.revoke();
    assert_eq!(fake.platform.pages_in_use(), 0);
}

#[test]
fn a_reset_of_the_bus_is_asked_for() {
    let fake = fake();
    let controller = fake.attach();
    controller.reset(SOON).unwrap();
    fake.script().init_status.insert(6, 0xc000_0001);
    assert_eq!(controller.reset(SOON).unwrap_err(), Error::Unsupported);
}

#[test]
fn a_flood_of_failures_and_notices_is_counted_and_costs_no_memory() {
    let fake = fake();
    let controller = fake.attach();
    let disk = controller.wait_for_disk(SOON).unwrap();
    let rounds = if cfg!(miri) { 4 } else { 1000 };
    for _ in 0..rounds {
        fake.fault(0x28, super::fake::sense(3, 0x11, 0));
        assert!(disk.read_into(Lba(0), &mut [0; 512], SOON).is_err());
        fake.notify(&[0xff; 8]);
    }
    assert_eq!(
        (controller.counters().failures, controller.counters().notices),
        (rounds, rounds)
    );
    disk.read_into(Lba(0), &mut [0; 512], SOON).unwrap();
}
