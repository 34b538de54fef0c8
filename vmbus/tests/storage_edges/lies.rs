//! What a disk tells of itself may be nonsense: capacities that cannot be, pages that end early or lie about their length, and
//! random bytes in any answer.

use proptest::prelude::*;
use vmbus::device::storage::{self, Controller, Lba};
use vmbus::host::storage::{Address, Config, DiskConfig, Effect, Fault, Filter, Provisioning, opcode};

use crate::ground::{Ground, MIB, PATIENT, disk_config, luns, only, read};

/// A thin disk with a serial number: one that is asked for every page.
fn talkative() -> DiskConfig {
    let mut serial = [0; 32];
    serial[..4].copy_from_slice(b"1234");
    DiskConfig {
        serial,
        provisioning: Provisioning::THIN,
        ..disk_config(0)
    }
}

/// A controller with an honest disk at LUN 1, and one at LUN 0 that brings `bytes` to each command with this opcode after the
/// first `after` of them.
fn lying(opcode: u8, after: u32, bytes: &[u8]) -> (Ground, Controller) {
    let ground = Ground::new(Config::default());
    ground.add_as(Address::lun(0), MIB, talkative());
    ground.add(1, MIB);
    let lie = Fault::new(
        Filter::command(opcode).at(Address::lun(0)),
        Effect::data(bytes).unwrap(),
    );
    ground.inject(lie.after(after).always());
    let client = ground.drive();
    (ground, client)
}

fn capacity(last: u64, block_len: u32) -> Vec<u8> {
    let mut bytes = [last.to_be_bytes().to_vec(), block_len.to_be_bytes().to_vec()].concat();
    bytes.resize(32, 0);
    bytes
}

#[test]
fn capacities_that_cannot_be_make_no_disk() {
    // What makes no sense at all is taken from the shorter command, if that can tell it.
    for bytes in [capacity(u64::MAX, 512), capacity(2047, 0)] {
        let (ground, client) = lying(opcode::SERVICE_ACTION_IN_16, 0, &bytes);
        let disk = client.disks().unwrap().remove(0);
        assert_eq!((disk.address().lun, disk.blocks(), disk.block_len()), (0, 2048, 512));
        drop((client, disk));
        ground.finish();
    }
    for block_len in [1, 3, 256, 520, 1536, 1 << 17, 1 << 31, u32::MAX] {
        let (ground, client) = lying(opcode::SERVICE_ACTION_IN_16, 0, &capacity(2047, block_len));
        assert_eq!(luns(&client), [1], "blocks of {block_len} bytes");
        drop(client);
        ground.finish();
    }
    // As large as it gets, it is used as far as it goes.
    let (ground, client) = lying(opcode::SERVICE_ACTION_IN_16, 0, &capacity(u64::MAX - 1, 4096));
    let disk = client.disks().unwrap().remove(0);
    assert_eq!((disk.blocks(), disk.size_bytes()), (u64::MAX, u64::MAX));
    assert!(read(&disk, u64::MAX - 1, 1).is_err());
    assert!(disk.discard(Lba(0), u64::MAX, PATIENT).is_err());
    drop((client, disk));
    ground.finish();
}

#[test]
fn a_capacity_that_ends_early_is_no_capacity() {
    for len in [0, 1, 7] {
        let (ground, client) = lying(opcode::READ_CAPACITY_10, 0, &vec![0; len]);
        assert_eq!(luns(&client), [1], "{len} bytes");
        drop(client);
        ground.finish();
    }
    for len in [0, 7, 11] {
        let (ground, client) = lying(opcode::SERVICE_ACTION_IN_16, 0, &capacity(9, 4096)[..len]);
        let disk = client.disks().unwrap().remove(0);
        assert_eq!((disk.address().lun, disk.blocks(), disk.block_len()), (0, 2048, 512));
        drop((client, disk));
        ground.finish();
    }
}

#[test]
fn a_list_of_units_is_read_as_far_as_it_goes() {
    let entry = |first: u8, lun: u8| [first, lun, 0, 0, 0, 0, 0, 0];
    let list = |len: u32, entries: &[[u8; 8]]| [&len.to_be_bytes()[..], &[0; 4], &entries.concat()].concat();
    for (bytes, found) in [
        // Twice the same, one of another bus, one beyond what a request can name, one in the flat form.
        (
            list(
                40,
                &[entry(0, 1), entry(0, 1), entry(1, 7), entry(0x41, 7), entry(0x40, 0)],
            ),
            &[0, 1][..],
        ),
        // Longer than it is, and shorter.
        (list(u32::MAX, &[entry(0, 1)]), &[1]),
        (list(8, &[entry(0, 1), entry(0, 0)]), &[1]),
        (list(15, &[entry(0, 1), entry(0, 0)]), &[1]),
        (list(7, &[entry(0, 1)]), &[]),
        (list(0, &[]), &[]),
        // No list at all: each unit is asked.
        (vec![0, 0, 0], &[0, 1, 7]),
        (vec![], &[0, 1, 7]),
    ] {
        let ground = Ground::new(Config::default());
        for lun in [0, 1, 7] {
            ground.add(lun, MIB);
        }
        ground.inject(Fault::new(
            Filter::command(opcode::REPORT_LUNS),
            Effect::data(&bytes).unwrap(),
        ));
        let client = ground.drive();
        assert_eq!(luns(&client), found, "{bytes:?}");
        drop(client);
        ground.finish();
    }
}

#[test]
fn pages_that_lie_cost_the_disk_what_they_would_have_told_and_no_more() {
    // After the standard answer: the list of pages, the serial number, the identity, the limits, the provisioning.
    let lies: [&[u8]; 10] = [
        &[],
        &[0, 0x80],
        &[0, 0x80, 0xFF, 0xFF],
        &[0, 0x83, 0, 4, 1, 3, 0, 255],
        &[0, 0x83, 0, 8, 1, 3, 0, 0, 1, 3, 0, 0],
        &[0, 0xB0, 0, 0],
        &[0, 0x83, 0, 4, b'A', b'B', b'C', b'D'],
        &[0xFF; 255],
        &[0; 255],
        &[0, 0x80, 0, 3, 0, 7, 0x1B],
    ];
    for lie in lies {
        for after in 1..6 {
            let (ground, client) = lying(opcode::INQUIRY, after, lie);
            let disk = client.disks().unwrap().remove(0);
            assert_eq!((disk.address().lun, disk.blocks()), (0, 2048), "{lie:?} after {after}");
            if let Some(serial) = disk.info().serial {
                assert_eq!(serial.as_str(), "1234");
            }
            disk.write_from(Lba(0), &[1; 1024], PATIENT).unwrap();
            assert_eq!(read(&disk, 0, 2).unwrap(), [1; 1024]);
            if disk.discard_granularity().is_some() {
                disk.discard(Lba(0), 2, PATIENT).unwrap();
            }
            drop((client, disk));
            ground.finish();
        }
    }
}

#[test]
fn a_limit_of_transfers_below_a_block_is_not_followed_into_the_ground() {
    for blocks in [1_u32, 3, u32::MAX] {
        let mut page = [0; 64];
        page[..4].copy_from_slice(&[0, 0xB0, 0, 60]);
        page[8..12].copy_from_slice(&blocks.to_be_bytes());
        // The fourth page that is asked for.
        let (ground, client) = lying(opcode::INQUIRY, 4, &page);
        let disk = client.disks().unwrap().remove(0);
        disk.write_from(Lba(3), &[5; 5 * 512], PATIENT).unwrap();
        assert_eq!(read(&disk, 3, 5).unwrap(), [5; 5 * 512]);
        let writes = ground.server.commands(opcode::WRITE_10) + ground.server.commands(opcode::WRITE_16);
        assert_eq!(writes, if blocks == u32::MAX { 1 } else { 5_u32.div_ceil(blocks) });
        drop((client, disk));
        ground.finish();
    }
}

#[derive(Clone, Debug)]
struct Lie {
    opcode: Option<u8>,
    skip: u32,
    times: u32,
    data: Option<Vec<u8>>,
    patches: Vec<(usize, Vec<u8>)>,
    len: Option<usize>,
}

fn lies() -> impl Strategy<Value = Vec<Lie>> {
    let opcodes = [
        opcode::INQUIRY,
        opcode::REPORT_LUNS,
        opcode::READ_CAPACITY_10,
        opcode::SERVICE_ACTION_IN_16,
        opcode::MODE_SENSE_6,
        opcode::TEST_UNIT_READY,
        opcode::READ_10,
        opcode::UNMAP,
    ];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(prop_oneof![Just(0_u8), Just(0xFF), Just(0x80), any::<u8>()], 0..260),
    ];
    let patch = (0_usize..64, prop::collection::vec(any::<u8>(), 1..9));
    let lie = (
        prop::option::weighted(0.8, prop::sample::select(opcodes.to_vec())),
        0_u32..8,
        1_u32..12,
        prop::option::of(bytes),
        prop::collection::vec(patch, 0..3),
        prop::option::weighted(0.2, 0_usize..65),
    );
    let lie = lie.prop_map(|(opcode, skip, times, data, patches, len)| Lie {
        opcode,
        skip,
        times,
        data,
        patches,
        len,
    });
    prop::collection::vec(lie, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_answers_memory_comes_back_and_honest_disks_work_afterwards(lies in lies()) {
        let ground = Ground::new(Config::default());
        ground.add_as(Address::lun(0), MIB, talkative());
        ground.add(1, MIB);
        for Lie { opcode, skip, times, data, patches, len } in lies {
            let filter = opcode.map_or_else(Filter::any, Filter::command);
            let effect = match data {
                Some(data) => Effect::data(&data).unwrap(),
                None => Effect::rewrite(move |answer| {
                    for (at, bytes) in &patches {
                        answer.put(*at, bytes);
                    }
                    if let Some(len) = len {
                        answer.set_len(len);
                    }
                })
                .unwrap(),
            };
            ground.inject(Fault::new(filter, effect).after(skip).times(times));
        }
        ground.server.offer().unwrap();
        let client = storage::attach(&ground.host, storage::SCSI, PATIENT).unwrap();
        // Whatever comes of it, in bounded time.
        let _ = client.rescan(PATIENT);
        for disk in client.disks().unwrap() {
            let buffer = ground.buffer(&vec![0; disk.block_len() as usize]);
            for outcome in [disk.read(Lba(0), buffer.clone(), PATIENT), disk.write(Lba(1), buffer, PATIENT)] {
                let (Ok(back) | Err(storage::Failed { buffer: Some(back), .. })) = outcome else {
                    panic!("the memory is lost");
                };
                prop_assert_eq!(back.len(), disk.block_len() as usize);
            }
            let _ = disk.flush(PATIENT);
            let _ = disk.discard(Lba(0), 1, PATIENT);
        }
        ground.server.clear_faults();
        client.rescan(PATIENT).unwrap();
        prop_assert_eq!(luns(&client), [0, 1]);
        for disk in client.disks().unwrap() {
            prop_assert_eq!(disk.blocks(), 2048);
            disk.write_from(Lba(5), &[8; 512], PATIENT).unwrap();
            prop_assert_eq!(read(&disk, 5, 1).unwrap(), [8; 512]);
        }
        drop(client);
        // What the driver asks a disk with a lying size for is no mistake of its.
        let _ = ground.server.take_violations();
        ground.finish();
    }
}

#[test]
fn an_honest_disk_has_all_its_pages() {
    let ground = Ground::new(Config::default());
    ground.add_as(Address::lun(0), MIB, talkative());
    let client = ground.drive();
    let disk = only(&client);
    assert_eq!(disk.info().serial.unwrap().as_str(), "1234");
    assert_eq!(disk.info().identity.unwrap().bytes().len(), 16);
    assert_eq!(
        (disk.discard_granularity(), disk.info().physical_block_len),
        (Some(1), 512)
    );
    drop((client, disk));
    ground.finish();
}
