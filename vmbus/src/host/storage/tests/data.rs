//! Reading, writing, flushing, giving up.

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::super::{
    Address, Backend, BackendError, Config, Disk, DiskConfig, Durability, PowerCut, Provisioning, RequestMemory,
    WriteCache, ZeroLength,
};
use super::support::{Data, Ground, pattern, read_10, request, sixteen, ten, write_10};
use crate::memory::DmaBuffer;

const INVALID: u8 = 0x06;
const ERROR: u8 = 0x04;

#[test]
fn all_lengths_of_read_and_write_agree() {
    for block_bytes in [512_u32, 4096] {
        let (ground, memory) = Ground::with_disk(DiskConfig {
            block_bytes,
            ..DiskConfig::default()
        });
        let size = block_bytes as usize;
        let twelve = |opcode, first: u8| [opcode, 0, 0, 0, 0, first, 0, 0, 0, 2, 0, 0];
        let pairs: [(Vec<u8>, Vec<u8>, u8); 4] = [
            (vec![0x0A, 0, 0, 10, 2, 0], vec![0x08, 0, 0, 10, 2, 0], 10),
            (write_10(20, 2).into(), read_10(20, 2).into(), 20),
            (twelve(0xAA, 30).into(), twelve(0xA8, 30).into(), 30),
            (sixteen(0x8A, 40, 2).into(), sixteen(0x88, 40, 2).into(), 40),
        ];
        for (write, read, first) in pairs {
            let bytes = pattern(first, 2 * size);
            let reply = ground.run(&write, Data::Out(bytes.clone()));
            assert_eq!(reply.transferred() as usize, 2 * size);
            reply.good();
            let reply = ground.run(&read, Data::In(2 * size));
            assert_eq!(reply.transferred() as usize, 2 * size);
            assert_eq!(reply.good(), bytes);
            let mut stored = vec![0; 2 * size];
            memory
                .read_at(u64::from(first) * u64::from(block_bytes), &mut stored)
                .unwrap();
            assert_eq!(stored, bytes);
        }
        ground.close();
    }
}

#[test]
fn read_6_of_no_blocks_is_256() {
    let (ground, memory) = Ground::with_disk(DiskConfig::default());
    memory.write_at(255 * 512, &[9; 512]).unwrap();
    let data = ground.run(&[0x08, 0xE0, 0, 0, 0, 0], Data::In(256 * 512)).good();
    assert_eq!(
        data[255 * 512..],
        [9; 512],
        "and the upper bits are no part of the address"
    );
    ground.close();
}

#[test]
fn blocks_beyond_the_end_are_refused() {
    let (ground, _) = Ground::with_disk(DiskConfig::default());
    for cdb in [
        read_10(2048, 1),
        read_10(2047, 2),
        read_10(u32::MAX, 1),
        write_10(2048, 1),
    ] {
        let data = if cdb[0] == 0x28 {
            Data::In(1024)
        } else {
            Data::Out(vec![0; 1024])
        };
        ground.run(&cdb, data).check(INVALID, (5, 0x21, 0));
    }
    ground
        .run(&sixteen(0x88, u64::MAX, 1), Data::In(512))
        .check(INVALID, (5, 0x21, 0));
    ground.run(&ten(0x2F, 2047, 1), Data::None).good();
    ground.run(&ten(0x2F, 2047, 2), Data::None).check(INVALID, (5, 0x21, 0));
    ground.run(&ten(0x35, 2049, 0), Data::None).check(INVALID, (5, 0x21, 0));
    // The transfer is shorter than the command.
    ground.run(&read_10(0, 2), Data::In(1023)).check(INVALID, (5, 0x21, 0));
    ground.close();
}

#[test]
fn data_go_the_way_that_the_request_says() {
    let (ground, memory) = Ground::with_disk(DiskConfig::default());
    ground
        .run(&read_10(0, 1), Data::Out(vec![1; 512]))
        .check(INVALID, (5, 0x24, 0));
    ground.run(&write_10(0, 1), Data::In(512)).check(INVALID, (5, 0x24, 0));
    let mut bytes = [9; 512];
    memory.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 512]);
    ground.close();
}

#[test]
fn no_blocks_are_an_error_or_success_as_configured() {
    let (ground, _) = Ground::with_disk(DiskConfig::default());
    ground.run(&read_10(0, 0), Data::None).check(INVALID, (5, 0x21, 0));
    ground.close();
    let (ground, _) = Ground::with_disk(DiskConfig {
        zero_length: ZeroLength::Accepted,
        ..DiskConfig::default()
    });
    for cdb in [read_10(0, 0), write_10(2048, 0)] {
        assert_eq!(ground.run(&cdb, Data::None).transferred(), 0);
    }
    ground.run(&read_10(2049, 0), Data::None).check(INVALID, (5, 0x21, 0));
    ground.close();
}

#[test]
fn a_write_protected_disk_only_reads() {
    let (ground, memory) = Ground::with_disk(DiskConfig {
        provisioning: Provisioning::THIN,
        ..DiskConfig::default()
    });
    ground
        .controller
        .disk(Address::lun(0))
        .unwrap()
        .set_write_protected(true);
    let protected = (7, 0x27, 0);
    ground
        .run(&write_10(0, 1), Data::Out(vec![1; 512]))
        .check(ERROR, protected);
    ground
        .run(&ten(0x41, 0, 1), Data::Out(vec![1; 512]))
        .check(ERROR, protected);
    ground
        .run(&ten(0x42, 0, 24), Data::Out(unmap(&[(0, 1)])))
        .check(ERROR, protected);
    ground.run(&read_10(0, 1), Data::In(512)).good();
    assert_eq!(memory.allocated_bytes(), 0);
    ground.close();
}

#[test]
fn blocks_beyond_2_tib_are_there() {
    let ground = Ground::ready(Config::default());
    let memory = ground.add(Address::lun(0), 3 << 40, WriteCache::None, DiskConfig::default());
    ground.unasked();
    let bytes = pattern(3, 1024);
    let last = (6 << 30) - 2;
    ground.run(&sixteen(0x8A, last, 2), Data::Out(bytes.clone())).good();
    ground.run(&sixteen(0x8A, 1 << 32, 2), Data::Out(bytes.clone())).good();
    assert_eq!(ground.run(&sixteen(0x88, last, 2), Data::In(1024)).good(), bytes);
    assert_eq!(ground.run(&sixteen(0x88, 1 << 32, 2), Data::In(1024)).good(), bytes);
    assert_eq!(
        ground.run(&read_10(0, 2), Data::In(1024)).good(),
        [0; 1024],
        "no wrapping"
    );
    assert_eq!(memory.allocated_bytes(), 2 * 65536);
    ground.close();
}

const CACHED: DiskConfig = DiskConfig {
    block_bytes: 512,
    physical_exponent: 0,
    vendor: *b"Msft    ",
    product: *b"Virtual Disk    ",
    revision: *b"1.0 ",
    serial: [0; 32],
    id: crate::protocol::Guid::ZERO,
    provisioning: Provisioning::THIN,
    write_cache: WriteCache::Volatile,
    zero_length: ZeroLength::Refused,
};

#[test]
fn a_power_cut_loses_what_was_not_flushed() {
    for flush in [&ten(0x35, 0, 0)[..], &sixteen(0x91, 0, 0)] {
        let (ground, memory) = Ground::with_disk(CACHED);
        let read = |first| ground.run(&read_10(first, 1), Data::In(512)).good();
        ground.run(&write_10(0, 1), Data::Out(vec![1; 512])).good();
        ground.run(flush, Data::None).good();
        assert_eq!((memory.flushes(), memory.has_unflushed()), (1, false));
        ground.run(&write_10(0, 1), Data::Out(vec![2; 512])).good();
        ground.run(&write_10(1, 1), Data::Out(vec![3; 512])).good();
        // "Force unit access", in the same chunk and in one that nobody wrote to.
        let mut through = write_10(2, 1);
        through[1] = 0x08;
        ground.run(&through, Data::Out(vec![4; 512])).good();
        through[2..6].copy_from_slice(&1000_u32.to_be_bytes());
        ground.run(&through, Data::Out(vec![5; 512])).good();
        // Given up, and not flushed.
        ground.run(&ten(0x42, 0, 24), Data::Out(unmap(&[(0, 1)]))).good();
        assert_eq!((read(0), read(1), read(2)), (vec![0; 512], vec![3; 512], vec![4; 512]));
        memory.cut_power(PowerCut::LosesAll);
        assert_eq!((read(0), read(1)), (vec![1; 512], vec![0; 512]));
        assert_eq!((read(2), read(1000)), (vec![4; 512], vec![5; 512]));
        ground.close();
    }
}

fn unmap(ranges: &[(u64, u32)]) -> Vec<u8> {
    let len = u16::try_from(ranges.len() * 16).unwrap();
    let mut list = [&(len + 6).to_be_bytes()[..], &len.to_be_bytes(), &[0; 4]].concat();
    for (first, count) in ranges {
        list.extend(first.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[test]
fn unmap_gives_blocks_up_and_checks_all_of_its_list_first() {
    let (ground, memory) = Ground::with_disk(DiskConfig {
        provisioning: Provisioning::Thin {
            max_blocks: 600,
            max_ranges: 2,
            granularity: 1,
        },
        ..DiskConfig::default()
    });
    memory.write_at(0, &[7; 1 << 20]).unwrap();
    let run = |list: Vec<u8>| ground.run(&ten(0x42, 0, u16::try_from(list.len()).unwrap()), Data::Out(list));
    run(unmap(&[(1, 2), (128, 128)])).good();
    assert_eq!(memory.allocated_bytes(), 15 * 65536, "a whole chunk is given back");
    let data = ground.run(&read_10(0, 4), Data::In(2048)).good();
    assert_eq!(
        (&data[..512], &data[512..1536], &data[1536..]),
        (&[7; 512][..], &[0; 1024][..], &[7; 512][..])
    );
    assert_eq!(ground.run(&read_10(200, 1), Data::In(512)).good(), [0; 512]);
    run(unmap(&[])).good();
    assert_eq!(ground.run(&ten(0x42, 0, 0), Data::None).transferred(), 0);
    let mut wrong_len = unmap(&[(0, 1)]);
    wrong_len[1] += 1;
    let mut wrong_ranges = unmap(&[(0, 1)]);
    wrong_ranges[3] -= 1;
    for (list, sense) in [
        (unmap(&[(10, 1), (2048, 1)]), (5, 0x21, 0)),
        (unmap(&[(10, 1), (u64::MAX, 1)]), (5, 0x21, 0)),
        (unmap(&[(10, 1), (11, 1), (12, 1)]), (5, 0x26, 0)),
        (unmap(&[(10, 601)]), (5, 0x26, 0)),
        (wrong_len, (5, 0x26, 0)),
        (wrong_ranges, (5, 0x26, 0)),
        (vec![0; 7], (5, 0x1A, 0)),
    ] {
        run(list).check(INVALID, sense);
    }
    ground
        .run(&ten(0x42, 0, 8), Data::Out(unmap(&[(10, 1)])))
        .check(INVALID, (5, 0x1A, 0));
    assert_eq!(
        ground.run(&read_10(10, 1), Data::In(512)).good(),
        [7; 512],
        "nothing was given up"
    );
    ground.close();
}

/// A backend that notes what it is told to give up, and after the first range puts another one into the client's list.
struct Treacherous {
    list: DmaBuffer,
    given_up: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Backend for Treacherous {
    fn len_bytes(&self) -> u64 {
        1 << 20
    }
    fn read(&self, _: u64, _: &RequestMemory<'_>) -> Result<(), BackendError> {
        Ok(())
    }
    fn write(&self, _: u64, _: &RequestMemory<'_>, _: Durability) -> Result<(), BackendError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.given_up.lock().unwrap().push((offset, len));
        // The second range lies behind the header and the first one.
        self.list.write_at(8 + 16, &2048_u64.to_be_bytes()).unwrap();
        Ok(())
    }
}

#[test]
fn ranges_that_change_between_the_looks_at_them_are_checked_again() {
    let ground = Ground::ready(Config::default());
    let bytes = unmap(&[(1, 2), (3, 4)]);
    let list = DmaBuffer::allocate(ground.platform, bytes.len()).unwrap();
    list.write_at(0, &bytes).unwrap();
    let given_up = Arc::new(Mutex::new(Vec::new()));
    let backend = Treacherous {
        list: list.clone(),
        given_up: given_up.clone(),
    };
    let config = DiskConfig {
        provisioning: Provisioning::THIN,
        ..DiskConfig::default()
    };
    ground
        .controller
        .attach(Address::lun(0), Disk::new(backend, config).unwrap())
        .unwrap();
    let len = u16::try_from(bytes.len()).unwrap();
    let packet = request(Address::lun(0), &ten(0x42, 0, len), &Data::Out(bytes));
    ground.ask(&packet, Some(list.into())).check(INVALID, (5, 0x21, 0));
    assert_eq!(
        *given_up.lock().unwrap(),
        [(512, 1024)],
        "the first one, and nothing beyond the end"
    );
    drop(ground.controller.detach(Address::lun(0)));
    ground.close();
}

#[test]
fn write_same_repeats_a_block_or_gives_blocks_up() {
    let (ground, memory) = Ground::with_disk(CACHED);
    let block = pattern(9, 512);
    ground.run(&ten(0x41, 5, 200), Data::Out(block.clone())).good();
    assert_eq!(ground.run(&read_10(204, 1), Data::In(512)).good(), block);
    assert_eq!(ground.run(&read_10(205, 1), Data::In(512)).good(), [0; 512]);
    let mut cdb = sixteen(0x93, 6, 2);
    cdb[1] = 0x08;
    ground.run(&cdb, Data::Out(vec![0; 512])).good();
    assert_eq!(ground.run(&read_10(6, 1), Data::In(512)).good(), [0; 512]);
    // Given up, but with contents: written.
    ground.run(&cdb, Data::Out(block.clone())).good();
    assert_eq!(ground.run(&read_10(7, 1), Data::In(512)).good(), block);
    cdb[1] = 0x09;
    ground.run(&cdb, Data::None).good();
    assert_eq!(ground.run(&read_10(7, 1), Data::In(512)).good(), [0; 512]);
    cdb[1] = 0x01;
    ground.run(&cdb, Data::None).check(INVALID, (5, 0x24, 0));
    ground
        .run(&ten(0x41, 0, 0), Data::Out(block.clone()))
        .check(INVALID, (5, 0x24, 0));
    ground
        .run(&ten(0x41, 0, 1), Data::Out(vec![1; 511]))
        .check(INVALID, (5, 0x24, 0));
    ground
        .run(&ten(0x41, 2047, 2), Data::Out(block.clone()))
        .check(INVALID, (5, 0x21, 0));
    assert!(memory.has_unflushed());
    ground.close();
    if cfg!(miri) {
        return;
    }
    // As many as the disk says, 8 MiB, and no more.
    let ground = Ground::ready(Config::default());
    ground.add(Address::lun(0), 9 << 20, WriteCache::None, DiskConfig::default());
    ground.run(&ten(0x41, 0, 0x4000), Data::Out(block.clone())).good();
    ground
        .run(&ten(0x41, 0, 0x4001), Data::Out(block))
        .check(INVALID, (5, 0x24, 0));
    ground.close();
}

#[test]
#[cfg(unix)]
fn an_image_file_is_a_disk_like_any_other() {
    use super::super::{Backend, Disk, ImageFile};
    let path = std::env::temp_dir().join(format!("vmbus-image-{}", std::process::id()));
    let ground = Ground::ready(Config::default());
    let config = DiskConfig {
        provisioning: Provisioning::THIN,
        ..DiskConfig::default()
    };
    let image = ImageFile::create(&path, 1 << 20).unwrap();
    ground
        .controller
        .attach(Address::lun(0), Disk::new(image, config).unwrap())
        .unwrap();
    let blocks = if cfg!(miri) { 10 } else { 300 };
    let bytes = pattern(1, usize::from(blocks) * 512);
    ground.run(&write_10(10, blocks), Data::Out(bytes.clone())).good();
    assert_eq!(ground.run(&read_10(10, blocks), Data::In(bytes.len())).good(), bytes);
    ground.run(&ten(0x42, 0, 24), Data::Out(unmap(&[(11, 1)]))).good();
    ground.run(&ten(0x35, 0, 0), Data::None).good();
    ground.unasked();
    ground.close();
    let stored = std::fs::read(&path).unwrap();
    assert_eq!(stored.len(), 1 << 20);
    assert_eq!(stored[5120..5632], bytes[..512]);
    assert_eq!(stored[5632..6144], [0; 512]);
    assert_eq!(ImageFile::open(&path).unwrap().len_bytes(), 1 << 20);
    std::fs::remove_file(&path).unwrap();
}
