//! What disks there are, and what they are.

use vmbus::device::storage::{self, Error, Lba};
use vmbus::host::storage::{
    Address, Config, DiskConfig, Effect, Fault, Filter, Kind, Outcome, ReportLuns, Version, opcode, operation,
};
use vmbus::kmcl::Instance;
use vmbus::protocol::Guid;

use crate::ground::{Ground, MIB, PATIENT, disk_config, luns, only, read};

#[test]
fn lun_0_may_be_absent_and_the_others_far_apart() {
    for (report_luns, found) in [
        (ReportLuns::Answered, &[3, 63, 200][..]),
        (ReportLuns::Refused, &[3, 63]),
    ] {
        let ground = Ground::new(Config {
            report_luns,
            ..Config::default()
        });
        for lun in [200, 3, 63] {
            ground.add(lun, MIB * u64::from(lun));
        }
        let client = ground.drive();
        assert_eq!(
            luns(&client),
            found,
            "without the list, as many as a host can have are tried"
        );
        for disk in client.disks().unwrap() {
            assert_eq!(disk.size_bytes(), MIB * u64::from(disk.address().lun));
            assert_eq!(read(&disk, disk.blocks() - 1, 1).unwrap(), [0; 512]);
        }
        drop(client);
        ground.finish();
    }
}

#[test]
fn a_controller_may_have_no_disk_or_all_that_fit() {
    let ground = Ground::new(Config::default());
    let client = ground.drive();
    assert_eq!(luns(&client), []);
    for lun in 0..=255 {
        ground.add(lun, MIB);
    }
    ground.host.process();
    assert!(client.needs_rescan());
    assert_eq!(client.rescan(PATIENT).unwrap().len(), 256);
    assert_eq!(luns(&client), (0..=255).collect::<Vec<_>>());
    drop(client);
    ground.finish();
}

#[test]
fn the_first_command_of_a_disk_meets_a_unit_attention() {
    // Power on, and a list of units that has changed, which real hosts tell of at once.
    for (code, qualifier) in [(0x29, 0x00), (0x29, 0x02), (0x3F, 0x0E), (0x2A, 0x09), (0x28, 0x00)] {
        let ground = Ground::new(Config::default());
        for lun in [0, 5] {
            ground.add(lun, MIB).1.raise_attention(code, qualifier);
        }
        let client = ground.drive();
        assert_eq!(luns(&client), [0, 5]);
        assert!(!client.needs_rescan(), "what a disk says when it is asked is no news");
        // And several at once, one behind the other.
        let attention = Outcome::unit_attention(code, qualifier);
        ground.inject(Fault::new(Filter::any().at(Address::lun(5)), Effect::Answer(attention)).times(3));
        client.rescan(PATIENT).unwrap();
        assert_eq!(luns(&client), [0, 5]);
        drop(client);
        ground.finish();
    }
}

#[test]
fn a_disk_that_cannot_be_asked_hides_no_other() {
    let ground = Ground::new(Config::default());
    for lun in 0..3 {
        ground.add(lun, MIB);
    }
    let filter = Filter::command(opcode::READ_CAPACITY_10).at(Address::lun(1));
    ground.inject(Fault::new(filter, Effect::Answer(Outcome::reservation_conflict())).always());
    let client = ground.drive();
    assert_eq!(luns(&client), [0, 2]);
    // A disk that was known stays so.
    ground.server.clear_faults();
    client.rescan(PATIENT).unwrap();
    assert_eq!(luns(&client), [0, 1, 2]);
    let filter = Filter::command(opcode::READ_CAPACITY_10).at(Address::lun(1));
    ground.inject(Fault::new(filter, Effect::Answer(Outcome::hardware_error())).always());
    assert!(client.rescan(PATIENT).unwrap().is_empty());
    assert_eq!(luns(&client), [0, 1, 2]);
    assert!(client.disks().unwrap()[1].is_present());
    drop(client);
    ground.finish();
}

#[test]
fn pages_that_are_refused_are_done_without() {
    let ground = Ground::new(Config::default());
    let mut serial = [0; 32];
    serial[..4].copy_from_slice(b"1234");
    let config = DiskConfig {
        serial,
        ..disk_config(0)
    };
    ground.add_as(Address::lun(0), MIB, config);
    ground.add_as(Address::lun(1), MIB, config);
    // After the standard answer, no page of vital product data and no mode page; as older hosts do, and with the wrong status.
    let filter = || Filter::command(opcode::INQUIRY).at(Address::lun(1));
    ground.inject(
        Fault::new(filter(), Effect::Answer(Outcome::illegal(0x24)))
            .after(1)
            .always(),
    );
    let filter = Filter::command(opcode::MODE_SENSE_6).at(Address::lun(1));
    ground.inject(Fault::new(filter, Effect::Answer(Outcome::of(0x04, 0x02))).always());
    let filter = Filter::command(opcode::SERVICE_ACTION_IN_16).at(Address::lun(1));
    ground.inject(Fault::new(filter, Effect::Answer(Outcome::illegal(0x20))).always());
    let client = ground.drive();
    let disks = client.disks().unwrap();
    assert_eq!(disks[0].info().serial.unwrap().as_str(), "1234");
    assert!(disks[0].info().identity.is_some());
    assert_eq!((disks[1].info().serial, disks[1].info().identity), (None, None));
    assert_eq!((disks[1].blocks(), disks[1].is_write_protected()), (2048, false));
    drop((client, disks));
    ground.finish();
}

#[test]
fn each_version_of_a_host_is_found_and_garbage_is_not_taken_for_one() {
    for max_version in [Version::V6_2, Version::V6_0, Version::V5_1, Version::V4_2] {
        let ground = Ground::new(Config {
            max_version,
            ..Config::default()
        });
        let (memory, _) = ground.add(0, MIB);
        let client = ground.drive();
        let disk = only(&client);
        disk.write_from(Lba(7), &[9; 1024], PATIENT).unwrap();
        let mut bytes = [0; 1024];
        memory.read_at(7 * 512, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 1024]);
        drop((client, disk));
        ground.finish();
    }
    let ground = Ground::new(Config::default());
    let version = Filter::operation(operation::QUERY_PROTOCOL_VERSION);
    ground.inject(Fault::new(version, Effect::rewrite(|answer| answer.put(0, &[0xA5; 64])).unwrap()).always());
    ground.server.offer().unwrap();
    let outcome = storage::attach(&ground.host, storage::SCSI, PATIENT);
    assert_eq!(outcome.unwrap_err(), Error::Protocol);
    ground.finish();
}

#[test]
fn accelerated_ide_disks_are_found_on_each_channel_and_device() {
    for (channel, device) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let ground = Ground::new(Config {
            kind: Kind::Ide { channel, device },
            ..Config::default()
        });
        let at = Address {
            path: channel,
            target: device,
            lun: 0,
        };
        ground.add_as(at, MIB, disk_config(0));
        ground.server.offer().unwrap();
        let client = storage::attach(&ground.host, storage::IDE, PATIENT).unwrap();
        let disk = client.wait_for_disk(PATIENT).unwrap();
        disk.write_from(Lba(1), &[3; 512], PATIENT).unwrap();
        assert_eq!(read(&disk, 1, 1).unwrap(), [3; 512]);
        drop((client, disk));
        ground.finish();
    }
}

#[test]
fn one_controller_of_several_can_be_asked_for() {
    let ids = [1_u8, 2].map(|number| Guid::from_wire([number; 16]));
    let config = |id| Config {
        instance: Some(id),
        ..Config::default()
    };
    let ground = Ground::new(config(ids[0]));
    ground.add(0, MIB);
    ground.server.offer().unwrap();
    let other = vmbus::host::storage::Controller::new(&ground.host, config(ids[1])).unwrap();
    other.offer().unwrap();
    let asked = storage::Config::of(storage::SCSI, Instance::Only(ids[1]));
    let client = storage::attach_with(&ground.host, &asked, || (), PATIENT).unwrap();
    assert!(client.rescan(PATIENT).unwrap().is_empty(), "the one without a disk");
    assert!(other.is_ready() && !ground.server.is_ready());
    drop(client);
    other.revoke(PATIENT).unwrap();
    drop(other);
    ground.finish();
}
