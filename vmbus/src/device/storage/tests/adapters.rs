//! The traits of others.

use embedded_io::{Error as _, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use embedded_sdmmc_types::{Block, BlockDevice as _, BlockIdx};
use proptest::prelude::*;

use super::fake::{Fake, FakeDisk, pattern};
use crate::device::storage::{DiskBytes, Error};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 32 }))]

    #[test]
    fn bytes_are_those_of_the_disk_wherever_they_begin_and_end(
        is_large in any::<bool>(),
        steps in prop::collection::vec((0_usize..17_000, 0_usize..9000, any::<Option<u8>>()), 1..if cfg!(miri) { 4 } else { 12 }),
    ) {
        let block = if is_large { 4096 } else { 512 };
        let fake = Fake::new([(0, FakeDisk::new(16384 / block as u64, block))]);
        let mut model = fake.script().disks[&0].data.clone();
        let mut bytes = DiskBytes::new(fake.disk()).unwrap();
        for (at, len, seed) in steps {
            bytes.seek(SeekFrom::Start(at as u64)).unwrap();
            let end = (at + len).min(model.len());
            let inside = end.saturating_sub(at);
            if let Some(seed) = seed {
                let data = pattern(len, seed);
                let result = bytes.write_all(&data);
                prop_assert_eq!(result, if inside == len { Ok(()) } else { Err(Error::OutOfRange) });
                if inside > 0 {
                    model[at..end].copy_from_slice(&data[..inside]);
                }
            } else {
                let mut data = vec![0; len];
                let mut filled = 0;
                while filled < len {
                    match bytes.read(&mut data[filled..]).unwrap() {
                        0 => break,
                        now => filled += now,
                    }
                }
                prop_assert_eq!(filled, inside);
                if inside > 0 {
                    prop_assert_eq!(&data[..inside], &model[at..end]);
                }
            }
        }
        bytes.flush().unwrap();
        prop_assert!(fake.script().disks[&0].durable == model);
    }
}

#[test]
fn positions_are_those_of_the_trait() {
    let fake = Fake::new([(0, FakeDisk::new(16, 512))]);
    let mut bytes = DiskBytes::new(fake.disk()).unwrap();
    assert_eq!(bytes.seek(SeekFrom::End(-1)), Ok(8191));
    assert_eq!(bytes.seek(SeekFrom::Current(-8191)), Ok(0));
    assert_eq!(bytes.seek(SeekFrom::Current(-1)), Err(Error::OutOfRange));
    assert_eq!(Error::OutOfRange.kind(), ErrorKind::InvalidInput);
    assert_eq!(Error::ControllerGone.kind(), ErrorKind::NotConnected);
}

#[test]
fn blocks_are_those_of_the_disk() {
    let fake = Fake::new([(0, FakeDisk::new(16, 512))]);
    let disk = fake.disk();
    let mut blocks = [Block::new(), Block::new()];
    blocks[1].contents.fill(7);
    embedded_sdmmc_types::BlockDevice::write(&disk, &blocks, BlockIdx(3)).unwrap();
    assert_eq!(fake.script().disks[&0].data[4 * 512..5 * 512], [7; 512]);
    embedded_sdmmc_types::BlockDevice::read(&disk, &mut blocks, BlockIdx(4)).unwrap();
    assert_eq!(blocks[0].contents, [7; 512]);
    assert_eq!(disk.num_blocks().unwrap().0, 16);
    let fake = Fake::new([(0, FakeDisk::new(16, 4096))]);
    assert_eq!(fake.disk().num_blocks().unwrap_err(), Error::Unaligned);
}
