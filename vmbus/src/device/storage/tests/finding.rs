//! Initialising a controller and finding what is on it.

use super::fake::{Fake, FakeDisk, SOON, ending, sense};
use crate::Deadline;
use crate::device::storage::protocol::Version;
use crate::device::storage::scsi::DeviceKind;
use crate::device::storage::{Change, Error, IDE, Lba, SCSI, attach};
use crate::protocol::Guid;

fn luns(fake: &Fake) -> Vec<u8> {
    let controller = fake.attach();
    controller.rescan(SOON).unwrap();
    controller
        .disks()
        .unwrap()
        .iter()
        .map(|disk| disk.address().lun)
        .collect()
}

#[test]
fn initialises_in_the_order_that_hosts_insist_on_at_each_version() {
    for (versions, agreed, packet_len) in [
        (vec![0x602, 0x600, 0x501, 0x402], Version::V6_2, 64),
        (vec![0x600, 0x501, 0x402], Version::V6_0, 64),
        (vec![0x501, 0x402], Version::V5_1, 64),
        (vec![0x402], Version::V4_2, 48),
    ] {
        let fake = Fake::new([(0, FakeDisk::new(64, 512))]);
        let asked = 5 - versions.len();
        fake.script().versions = versions;
        let controller = fake.attach();
        assert_eq!(controller.version(), agreed);
        let steps: Vec<u32> = [vec![7], vec![9; asked], vec![10, 8]].concat();
        assert_eq!(fake.script().steps, steps);
        controller.rescan(SOON).unwrap();
        assert!(
            fake.script().seen.iter().all(|seen| seen.packet_len == packet_len),
            "{agreed}"
        );
    }
}

#[test]
fn a_host_that_refuses_a_step_or_speaks_no_version_of_ours_is_a_clear_error() {
    for step in [7, 10, 8] {
        let fake = Fake::new([]);
        fake.script().init_status.insert(step, 0xc000_0001);
        assert_eq!(attach(&fake.host, SCSI, SOON).unwrap_err(), Error::Protocol, "{step}");
    }
    let fake = Fake::new([]);
    fake.script().versions = vec![0x200];
    assert_eq!(attach(&fake.host, SCSI, SOON).unwrap_err(), Error::Protocol);
    let fake = Fake::new([]);
    fake.script().max_transfer = 512;
    assert_eq!(attach(&fake.host, SCSI, SOON).unwrap_err(), Error::Protocol);
}

#[test]
fn a_host_without_a_limit_gets_small_transfers() {
    let fake = Fake::new([]);
    fake.script().max_transfer = 0;
    assert_eq!(fake.attach().max_transfer(), 64 * 1024);
}

#[test]
fn a_silent_host_ends_at_the_deadline() {
    let fake = Fake::new([]);
    fake.script().holds = true;
    assert_eq!(
        attach(&fake.host, SCSI, Deadline::seconds(1)).unwrap_err(),
        Error::TimedOut
    );
}

#[test]
fn lun_0_may_be_absent_and_units_sparse() {
    let fake = Fake::new([3, 17, 63, 255].map(|lun| (lun, FakeDisk::new(64, 512))));
    assert_eq!(luns(&fake), [3, 17, 63, 255]);
}

#[test]
fn units_are_tried_where_the_list_is_not_answered() {
    for ending in [None, Some(ending(0x20, 2)), Some(ending(4, 0)), Some(ending(6, 0))] {
        let fake = Fake::new([1, 40].map(|lun| (lun, FakeDisk::new(64, 512))));
        match ending {
            None => fake.script().reports_luns = false,
            Some(ending) => fake.fault(0xa0, ending),
        }
        let controller = fake.attach();
        controller.rescan(SOON).unwrap();
        let found: Vec<u8> = controller
            .disks()
            .unwrap()
            .iter()
            .map(|disk| disk.address().lun)
            .collect();
        assert_eq!(found, [1, 40]);
        assert!(!controller.needs_rescan(), "absent units are no news");
    }
}

#[test]
fn unit_attention_on_the_first_command_is_not_the_end() {
    let fake = Fake::new([(0, FakeDisk::new(64, 512))]);
    for operation in [0xa0, 0x12, 0x00, 0x25, 0x9e] {
        fake.fault(operation, sense(6, 0x29, 0));
        fake.fault(operation, sense(6, 0x2a, 1));
    }
    let disk = fake.attach().wait_for_disk(SOON).unwrap();
    assert_eq!(disk.blocks(), 64);
}

#[test]
fn a_disk_says_what_it_is() {
    let mut other = FakeDisk::new(100, 4096);
    other.protected = true;
    other.unmap = false;
    let fake = Fake::new([(0, FakeDisk::new(64, 512)), (1, other)]);
    let controller = fake.attach();
    controller.rescan(SOON).unwrap();
    let disks = controller.disks().unwrap();
    let info = disks[0].info();
    assert_eq!((info.vendor.as_str(), info.product.as_str()), ("Msft", "Virtual Disk"));
    assert_eq!(info.serial.unwrap().as_str(), "SERIAL-1");
    assert_eq!(info.identity.unwrap().bytes(), [0x60, 1, 2, 3, 4, 5, 6, b'1']);
    assert_eq!(
        (disks[0].blocks(), disks[0].block_len(), info.physical_block_len),
        (64, 512, 4096)
    );
    assert_eq!(disks[0].discard_granularity(), Some(4));
    assert!(!disks[0].is_write_protected());
    assert_eq!(
        disks[0].to_string(),
        "Msft Virtual Disk, 0 MiB in blocks of 512, target 0, LUN 0"
    );
    assert_eq!((disks[1].blocks(), disks[1].block_len()), (100, 4096));
    assert_eq!(disks[1].discard_granularity(), None);
    assert!(disks[1].is_write_protected());
}

#[test]
fn old_devices_without_pages_or_the_long_capacity_are_disks_too() {
    let mut plain = FakeDisk::new(64, 512);
    (plain.has_pages, plain.has_capacity_16) = (false, false);
    let fake = Fake::new([(0, plain)]);
    fake.fault(0x1a, sense(5, 0x20, 0));
    let disk = fake.attach().wait_for_disk(SOON).unwrap();
    assert_eq!(
        (disk.blocks(), disk.info().serial, disk.discard_granularity()),
        (64, None, None)
    );
    let mut block = [0; 512];
    disk.read_into(Lba(63), &mut block, SOON).unwrap();
}

#[test]
fn disks_of_2_tib_and_more_have_all_their_blocks() {
    for blocks in [1 << 32, (1 << 32) + 1, 1 << 40] {
        let fake = Fake::new([(0, FakeDisk::new(blocks, 512))]);
        let disk = fake.attach().wait_for_disk(SOON).unwrap();
        assert_eq!(disk.blocks(), blocks);
        let mut block = [0xff; 512];
        disk.read_into(Lba(blocks - 1), &mut block, SOON).unwrap();
        assert_eq!(block, [0; 512]);
        let operation = if blocks == 1 << 32 { 0x28 } else { 0x88 };
        assert_eq!(fake.seen(operation).len(), 1, "{blocks}");
    }
    // Without the long command nobody knows how large it is.
    let mut large = FakeDisk::new(1 << 32, 512);
    large.has_capacity_16 = false;
    let fake = Fake::new([(0, large)]);
    assert_eq!(luns(&fake), [0_u8; 0]);
}

#[test]
fn what_is_no_disk_and_blocks_that_cannot_be_are_left_alone() {
    let mut tape = FakeDisk::new(64, 512);
    tape.device_type = 1;
    let mut optical = FakeDisk::new(64, 2048);
    optical.device_type = 5;
    let odd = FakeDisk::new(64, 520);
    let fake = Fake::new([(0, tape), (1, optical), (2, odd), (3, FakeDisk::new(64, 512))]);
    let controller = fake.attach();
    assert_eq!(controller.wait_for_disk(SOON).unwrap().address().lun, 3);
    let disks = controller.disks().unwrap();
    assert_eq!(disks.len(), 2);
    assert_eq!(disks[0].info().kind, DeviceKind::Optical);
    assert!(disks[0].is_write_protected());
}

#[test]
fn an_accelerated_ide_disk_is_at_the_target_that_its_instance_names() {
    let instance = Guid::literal("00000000-0001-8899-0000-000000000000");
    let fake = Fake::of_class(IDE, instance, [(0, FakeDisk::new(64, 512))]);
    let controller = attach(&fake.host, IDE, SOON).unwrap();
    let disk = controller.wait_for_disk(SOON).unwrap();
    assert_eq!(disk.address().target, 1);
    assert_eq!(controller.instance(), instance);
    assert!(fake.seen(0xa0).is_empty(), "there is only one unit");
}

#[test]
fn disks_come_and_go_and_change_and_each_change_is_told_once() {
    let fake = Fake::new([(0, FakeDisk::new(64, 512))]);
    let controller = fake.attach();
    let first = controller.wait_for_disk(SOON).unwrap();
    assert!(!controller.needs_rescan());
    // One comes: the host tells.
    fake.script().disks.insert(2, FakeDisk::new(32, 512));
    let mut notice = [0; 64];
    notice[0] = 11;
    fake.notify(&notice);
    assert!(controller.needs_rescan());
    let changes = controller.rescan(SOON).unwrap();
    assert!(matches!(&changes[..], [Change::Added(disk)] if disk.address().lun == 2));
    assert!(controller.rescan(SOON).unwrap().is_empty());
    // Some hosts send no more than the operation.
    fake.script().disks.get_mut(&0).unwrap().blocks = 128;
    fake.notify(&11_u32.to_le_bytes());
    controller.wait_for_news(SOON).unwrap();
    let changes = controller.rescan(SOON).unwrap();
    assert!(matches!(&changes[..], [Change::Resized(_)]));
    assert_eq!(first.blocks(), 128);
    // One goes.
    fake.script().disks.remove(&2);
    notice[0] = 2;
    fake.notify(&notice);
    let changes = controller.rescan(SOON).unwrap();
    let [Change::Removed(gone)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert!(!gone.is_present());
    assert_eq!(gone.flush(SOON).unwrap_err(), Error::DiskGone);
    // Another one in its place is another object.
    fake.script().disks.get_mut(&0).unwrap().serial = "SERIAL-2";
    let changes = controller.rescan(SOON).unwrap();
    assert!(matches!(&changes[..], [Change::Removed(_), Change::Added(_)]));
    assert!(!first.is_present());
    assert_eq!(controller.counters().notices, 3);
}

#[test]
fn a_unit_attention_about_the_devices_is_news() {
    for (code, qualifier) in [(0x3f, 0x0e), (0x2a, 0x09), (0x28, 0)] {
        let fake = Fake::new([(0, FakeDisk::new(64, 512))]);
        let controller = fake.attach();
        let disk = controller.wait_for_disk(SOON).unwrap();
        fake.fault(0x28, sense(6, code, qualifier));
        disk.read_into(Lba(0), &mut [0; 512], SOON).unwrap();
        assert!(controller.needs_rescan());
    }
}

#[test]
fn a_disk_that_comes_late_is_waited_for() {
    let fake = Fake::new([]);
    let controller = fake.attach();
    assert_eq!(
        controller.wait_for_disk(Deadline::seconds(3)).unwrap_err(),
        Error::TimedOut
    );
    fake.script().disks.insert(0, FakeDisk::new(64, 512));
    // Even if the host tells nothing.
    assert_eq!(controller.wait_for_disk(SOON).unwrap().blocks(), 64);
}
