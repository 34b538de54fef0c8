//! What disks tell about themselves.

use super::super::{Address, Config, DiskConfig, Provisioning, ReportLuns, WriteCache};
use super::support::{Data, Ground, sixteen, ten};
use crate::protocol::Guid;

const INVALID: u8 = 0x06;

fn inquiry(page: Option<u8>, len: u16) -> [u8; 6] {
    let [high, low] = len.to_be_bytes();
    [0x12, u8::from(page.is_some()), page.unwrap_or(0), high, low, 0]
}

#[test]
fn luns_are_reported_in_order_whichever_unit_is_asked() {
    let ground = Ground::ready(Config::default());
    let mut cdb = [0; 12];
    (cdb[0], cdb[8], cdb[9]) = (0xA0, 1, 0);
    // None, LUN 0 absent, sparse.
    assert_eq!(ground.run(&cdb, Data::In(16)).good()[..8], [0; 8]);
    for lun in [200, 3, 63] {
        ground.add(Address::lun(lun), 1 << 20, WriteCache::None, DiskConfig::default());
    }
    let other = Address {
        target: 1,
        ..Address::lun(9)
    };
    ground.add(other, 1 << 20, WriteCache::None, DiskConfig::default());
    let expected = [
        [0, 0, 0, 24, 0, 0, 0, 0],
        [0, 3, 0, 0, 0, 0, 0, 0],
        [0, 63, 0, 0, 0, 0, 0, 0],
        [0, 200, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    for lun in [0, 3, 77] {
        let reply = ground.run_at(Address::lun(lun), &cdb, Data::In(256));
        assert_eq!(reply.transferred(), 32);
        assert_eq!(reply.good()[..32], expected);
    }
    // Too little room: the length tells how much there is.
    let reply = ground.run(&cdb, Data::In(20));
    assert_eq!(reply.transferred(), 20);
    assert_eq!(reply.good()[..20], expected[..20]);
    let reply = ground.run(&cdb, Data::In(4));
    assert_eq!((reply.transferred(), reply.good()), (0, vec![0xCC; 4]));
    ground.close();
}

#[test]
fn a_controller_may_refuse_to_report_luns() {
    let config = Config {
        report_luns: ReportLuns::Refused,
        ..Config::default()
    };
    let ground = Ground::ready(config);
    ground.add(Address::lun(0), 1 << 20, WriteCache::None, DiskConfig::default());
    let mut cdb = [0; 12];
    (cdb[0], cdb[9]) = (0xA0, 64);
    ground.run(&cdb, Data::In(64)).check(INVALID, (5, 0x20, 0));
    ground.close();
}

#[test]
fn absent_units_are_told_apart() {
    let ground = Ground::ready(Config::default());
    ground.add(Address::lun(2), 1 << 20, WriteCache::None, DiskConfig::default());
    for cdb in [&ten(0x25, 0, 0)[..], &[0; 6]] {
        let reply = ground.run(cdb, Data::In(8));
        assert_eq!((reply.srb_status(), reply.scsi_status()), (0x20, 2));
        assert_eq!((reply.status(), reply.transferred()), (0xC000_00C0, 0));
    }
    let data = ground.run(&inquiry(None, 36), Data::In(36)).good();
    assert_eq!((data[0], &data[8..16]), (0x7F, &b"Msft    "[..]));
    let data = ground.run_at(Address::lun(1), &inquiry(None, 36), Data::In(36)).good();
    assert_eq!((data[0], &data[8..36]), (0x7F, &[0; 28][..]));
    ground
        .run(&inquiry(Some(0x80), 36), Data::In(36))
        .check(INVALID, (5, 0x24, 0));
    ground.close();
}

#[test]
fn inquiry_tells_who_the_disk_is() {
    let mut serial = [0; 32];
    serial[..6].copy_from_slice(b"SN-042");
    let config = DiskConfig {
        serial,
        id: Guid::literal("01020304-0506-4708-890a-0b0c0d0e0f10"),
        provisioning: Provisioning::Thin {
            max_blocks: 0x1234,
            max_ranges: 5,
            granularity: 8,
        },
        ..DiskConfig::default()
    };
    let (ground, _) = Ground::with_disk(config);
    let data = ground.run(&inquiry(None, 96), Data::In(96)).good();
    assert_eq!(data[..5], [0, 0, 5, 2, 91]);
    assert_eq!(&data[8..36], b"Msft    Virtual Disk    1.0 ");
    let page = |code| ground.run(&inquiry(Some(code), 255), Data::In(255)).good();
    assert_eq!(page(0x00)[..10], [0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2]);
    assert_eq!(page(0x80)[..10], [0, 0x80, 0, 6, b'S', b'N', b'-', b'0', b'4', b'2']);
    let ids = page(0x83);
    assert_eq!(ids[..8], [0, 0x83, 0, 48, 1, 1, 0, 24]);
    assert_eq!(
        ids[16..32],
        [4, 3, 2, 1, 6, 5, 8, 0x47, 0x89, 10, 11, 12, 13, 14, 15, 16]
    );
    assert_eq!(ids[32..44], [1, 3, 0, 16, 0x60, 2, 0x24, 0x80, 4, 3, 2, 1]);
    let limits = page(0xB0);
    assert_eq!(limits[..4], [0, 0xB0, 0, 60]);
    assert_eq!(
        limits[20..36],
        [0, 0, 0x12, 0x34, 0, 0, 0, 5, 0, 0, 0, 8, 0x80, 0, 0, 0]
    );
    assert_eq!(page(0xB1)[..6], [0, 0xB1, 0, 60, 0, 1]);
    assert_eq!(page(0xB2)[..8], [0, 0xB2, 0, 4, 0, 0xE4, 2, 0]);
    // Less room, and the length of all of it.
    let reply = ground.run(&inquiry(Some(0x83), 8), Data::In(8));
    assert_eq!(
        (reply.transferred(), reply.good()),
        (8, vec![0, 0x83, 0, 48, 1, 1, 0, 24])
    );
    for (cdb, len) in [
        (inquiry(Some(0xC7), 64), 64),
        (inquiry(None, 64), 63),
        (inquiry(None, 4), 64),
        ([0x12, 0, 0x80, 0, 64, 0], 64),
    ] {
        ground.run(&cdb, Data::In(len)).check(INVALID, (5, 0x24, 0));
    }
    ground.close();
}

#[test]
fn a_thick_disk_has_no_pages_of_thin_ones() {
    let (ground, _) = Ground::with_disk(DiskConfig::default());
    let data = ground.run(&inquiry(Some(0), 64), Data::In(64)).good();
    assert_eq!(data[..6], [0, 0, 0, 2, 0, 0x83]);
    for page in [0x80, 0xB0, 0xB1, 0xB2] {
        ground
            .run(&inquiry(Some(page), 64), Data::In(64))
            .check(INVALID, (5, 0x24, 0));
    }
    let mut cdb = sixteen(0x9E, 0, 32);
    cdb[1] = 0x10;
    assert_eq!(ground.run(&cdb, Data::In(32)).good()[14], 0);
    ground
        .run(&ten(0x42, 0, 24), Data::Out(vec![0; 24]))
        .check(INVALID, (5, 0x20, 0));
    ground.close();
}

#[test]
fn capacities_reach_beyond_32_bits() {
    let ground = Ground::ready(Config::default());
    let mut long = sixteen(0x9E, 0, 32);
    long[1] = 0x10;
    let big = DiskConfig {
        block_bytes: 4096,
        provisioning: Provisioning::THIN,
        ..DiskConfig::default()
    };
    for (lun, bytes, config, short_last, last) in [
        (0, 1 << 20, DiskConfig::default(), 2047_u32, 2047_u64),
        // Just what READ CAPACITY (10) can tell, and one block more.
        (1, (1_u64 << 41) - 512, DiskConfig::default(), 0xFFFF_FFFE, 0xFFFF_FFFE),
        (2, 1 << 41, DiskConfig::default(), 0xFFFF_FFFF, 0xFFFF_FFFF),
        (3, 3 << 40, DiskConfig::default(), 0xFFFF_FFFF, (6 << 30) - 1),
        (4, 64 << 40, big, 0xFFFF_FFFF, (16 << 30) - 1),
    ] {
        ground.add(Address::lun(lun), bytes, WriteCache::None, config);
        let at = Address::lun(lun);
        let data = ground.run_at(at, &ten(0x25, 0, 0), Data::In(8)).good();
        assert_eq!(data[..4], short_last.to_be_bytes());
        assert_eq!(data[4..8], config.block_bytes.to_be_bytes());
        let data = ground.run_at(at, &long, Data::In(32)).good();
        assert_eq!(data[..8], last.to_be_bytes());
        assert_eq!(data[8..12], config.block_bytes.to_be_bytes());
        assert_eq!(data[14], if lun == 4 { 0xC0 } else { 0 });
    }
    ground.run(&ten(0x25, 0, 0), Data::In(7)).check(0x12, (5, 0x24, 0));
    ground.run(&long, Data::In(11)).check(0x12, (5, 0x24, 0));
    long[1] = 0x12;
    ground.run(&long, Data::In(32)).check(INVALID, (5, 0x20, 0));
    assert_eq!(ground.unasked().len(), 5);
    ground.close();
}

#[test]
fn mode_pages_tell_of_cache_and_write_protection() {
    let config = DiskConfig {
        write_cache: WriteCache::Volatile,
        ..DiskConfig::default()
    };
    let (ground, _) = Ground::with_disk(config);
    let six = |page, len| [0x1A, 0, page, 0, len, 0];
    let ten = |page, len| [0x5A, 0, page, 0, 0, 0, 0, 0, len, 0];
    assert_eq!(
        ground.run(&six(0x3F, 24), Data::In(24)).good()[..7],
        [23, 0, 0x10, 0, 8, 18, 4]
    );
    ground
        .controller
        .disk(Address::lun(0))
        .unwrap()
        .set_write_protected(true);
    assert_eq!(
        ground.run(&six(0x08, 24), Data::In(24)).good()[..7],
        [23, 0, 0x90, 0, 8, 18, 4]
    );
    assert_eq!(
        ground.run(&ten(0x08, 28), Data::In(28)).good()[..11],
        [0, 26, 0, 0x90, 0, 0, 0, 0, 8, 18, 4]
    );
    // Changeable values: none. Less room, no room.
    assert_eq!(ground.run(&six(0x48, 24), Data::In(24)).good()[6], 0);
    assert_eq!(ground.run(&six(0x08, 4), Data::In(4)).good(), [23, 0, 0x90, 0]);
    assert_eq!(ground.run(&six(0x08, 0), Data::None).transferred(), 0);
    for (cdb, len) in [
        (six(0x1C, 24), 24),
        (six(0xC8, 24), 24),
        (six(0x08, 3), 24),
        (six(0x08, 25), 24),
    ] {
        ground.run(&cdb, Data::In(len)).check(INVALID, (5, 0x24, 0));
    }
    ground.close();
}

#[test]
fn unit_attentions_are_told_once_and_not_to_inquiry() {
    let (ground, memory) = Ground::with_disk(DiskConfig::default());
    let disk = ground.controller.disk(Address::lun(0)).unwrap();
    disk.raise_attention(0x29, 0);
    ground.run(&inquiry(None, 36), Data::In(36)).good();
    ground.run(&[0; 6], Data::None).check(4, (6, 0x29, 0));
    ground.run(&[0; 6], Data::None).good();
    memory.resize(2 << 20);
    disk.capacity_changed();
    let data = ground.run(&[3, 0, 0, 0, 18, 0], Data::In(18)).good();
    assert_eq!((data[0], data[2], data[7], data[12], data[13]), (0x70, 6, 10, 0x2A, 9));
    let data = ground.run(&[3, 0, 0, 0, 18, 0], Data::In(18)).good();
    assert_eq!((data[2], data[12]), (0, 0));
    assert_eq!(
        ground.run(&ten(0x25, 0, 0), Data::In(8)).good()[..4],
        4095_u32.to_be_bytes()
    );
    ground.close();
}

#[test]
fn a_stopped_disk_is_not_ready_until_it_is_started() {
    let (ground, _) = Ground::with_disk(DiskConfig::default());
    ground.run(&[0x1B, 0, 0, 0, 0, 0], Data::None).good();
    assert!(ground.controller.disk(Address::lun(0)).unwrap().is_stopped());
    ground.run(&[0; 6], Data::None).check(4, (2, 4, 2));
    ground.run(&ten(0x28, 0, 1), Data::In(512)).check(4, (2, 4, 2));
    ground.run(&inquiry(None, 36), Data::In(36)).good();
    ground.run(&[0x1B, 0, 0, 0, 1, 0], Data::None).good();
    ground.run(&[0; 6], Data::None).good();
    ground.run(&[0xFF; 6], Data::None).check(INVALID, (5, 0x20, 0));
    ground.close();
}
