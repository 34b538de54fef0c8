//! The disk in memory against plain arrays of bytes: what is read, and what may be read after a power cut.

use proptest::prelude::*;

use super::super::backend::{Direction, RequestMemory};
use super::super::{Backend, BackendError, Durability, MemoryDisk, PowerCut, WriteCache};
use crate::test_platform::TestPlatform;

/// Two chunks, and a part of a third.
const BLOCKS: usize = 300;
const BLOCK: usize = 512;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Through(usize, usize, u8),
    Discard(usize, usize),
    Flush,
    Cut(Option<u64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..BLOCKS, 1_usize..200).prop_map(|(first, len)| (first, len.min(BLOCKS - first)));
    let step = prop_oneof![
        4 => (range.clone(), 1_u8..).prop_map(|((first, len), value)| Step::Write(first, len, value)),
        1 => (range.clone(), 1_u8..).prop_map(|((first, len), value)| Step::Through(first, len, value)),
        2 => range.prop_map(|(first, len)| Step::Discard(first, len)),
        1 => Just(Step::Flush),
        1 => proptest::option::of(any::<u64>()).prop_map(Step::Cut),
    ];
    proptest::collection::vec(step, 1..if cfg!(miri) { 5 } else { 30 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]

    #[test]
    fn what_was_flushed_is_there_and_the_rest_is_old_or_new(steps in steps(), is_cached in any::<bool>()) {
        let cache = if is_cached { WriteCache::Volatile } else { WriteCache::None };
        let disk = MemoryDisk::new(TestPlatform::leak(), (BLOCKS * BLOCK) as u64, cache).unwrap();
        // What each block holds, and what it held when it was safe last.
        let mut blocks = [0_u8; BLOCKS];
        let mut safe = [0_u8; BLOCKS];
        let offset = |first: usize| (first * BLOCK) as u64;
        for step in steps {
            match step {
                Step::Write(first, len, value) => {
                    disk.write_cached(offset(first), &vec![value; len * BLOCK]);
                    blocks[first..first + len].fill(value);
                    if !is_cached {
                        safe[first..first + len].fill(value);
                    }
                }
                Step::Through(first, len, value) => {
                    disk.write_at(offset(first), &vec![value; len * BLOCK]).unwrap();
                    blocks[first..first + len].fill(value);
                    safe[first..first + len].fill(value);
                }
                Step::Discard(first, len) => {
                    disk.discard(offset(first), (len * BLOCK) as u64).unwrap();
                    blocks[first..first + len].fill(0);
                    if !is_cached {
                        safe[first..first + len].fill(0);
                    }
                }
                Step::Flush => {
                    disk.flush().unwrap();
                    safe = blocks;
                }
                Step::Cut(None) => {
                    disk.cut_power(PowerCut::LosesAll);
                    blocks = safe;
                }
                Step::Cut(Some(seed)) => {
                    disk.cut_power(PowerCut::LosesSome(seed));
                    let mut found = vec![0; BLOCKS * BLOCK];
                    disk.read_at(0, &mut found).unwrap();
                    for (index, block) in found.chunks(BLOCK).enumerate() {
                        prop_assert!(block[0] == blocks[index] || block[0] == safe[index]);
                        blocks[index] = block[0];
                    }
                    safe = blocks;
                }
            }
            let mut found = vec![0; BLOCKS * BLOCK];
            disk.read_at(0, &mut found).unwrap();
            for (index, block) in found.chunks(BLOCK).enumerate() {
                prop_assert!(block.iter().all(|byte| *byte == blocks[index]), "block {index}");
            }
            prop_assert!(is_cached || !disk.has_unflushed());
        }
    }
}

#[test]
fn a_disk_has_an_end_and_can_be_resized() {
    let disk = MemoryDisk::new(TestPlatform::leak(), 100_000, WriteCache::None).unwrap();
    disk.write_at(99_000, &[1; 1000]).unwrap();
    assert_eq!(disk.write_at(99_001, &[1; 1000]), Err(BackendError::OutOfRange));
    assert_eq!(disk.read_at(u64::MAX, &mut [0]), Err(BackendError::OutOfRange));
    assert_eq!(disk.discard(99_000, 1001), Err(BackendError::OutOfRange));
    let nothing = RequestMemory::new(None, Direction::Unsaid, 512);
    assert!(matches!(
        disk.write(0, &nothing, Durability::Cached),
        Err(BackendError::Memory(_))
    ));
    disk.resize(99_500);
    disk.resize(200_000);
    let mut bytes = [9; 1000];
    disk.read_at(99_000, &mut bytes).unwrap();
    assert_eq!((&bytes[..500], &bytes[500..]), (&[1; 500][..], &[0; 500][..]));
    assert_eq!(disk.len_bytes(), 200_000);
    disk.resize(0);
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn what_a_resize_has_cut_off_does_not_come_back_with_a_power_cut() {
    let disk = MemoryDisk::new(TestPlatform::leak(), 8192, WriteCache::Volatile).unwrap();
    disk.write_at(0, &[1; 8192]).unwrap();
    disk.write_cached(0, &[2; 8192]);
    disk.resize(4096);
    disk.resize(8192);
    disk.cut_power(PowerCut::LosesAll);
    let mut bytes = [9; 8192];
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!((&bytes[..4096], &bytes[4096..]), (&[1; 4096][..], &[0; 4096][..]));
}

#[test]
fn discarding_a_huge_range_touches_only_what_is_there() {
    let disk = MemoryDisk::new(TestPlatform::leak(), 1 << 50, WriteCache::None).unwrap();
    disk.write_at(1 << 49, &[1; 512]).unwrap();
    disk.write_at((1 << 49) + (1 << 20), &[2; 512]).unwrap();
    disk.discard(512, (1 << 50) - 1024).unwrap();
    assert_eq!(disk.allocated_bytes(), 0);
}
