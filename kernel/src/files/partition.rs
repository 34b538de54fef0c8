//! What a disk is divided into: [`partitions`].
//!
//! The table is the GPT (UEFI specification, chapter 5), the first one or, where that is damaged, the second. A disk without a table is
//! taken as one volume.

use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use gpt_disk_io::gpt_disk_types::{BlockSize, GptHeader, GptPartitionEntry, Lba};
use gpt_disk_io::{BlockIo, Disk, DiskError};

use super::{BlockError, Blocks};

/// More entries than this are not looked at; tables have 128.
const MAX_ENTRIES: u32 = 1024;

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1; 0 is the whole disk.
    pub number: u32,
    /// Its name in the table.
    pub name: String,
    /// What it is for: a GUID, empty for the whole disk.
    pub kind: String,
    /// Its first block.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
}

impl Partition {
    /// The whole disk.
    #[must_use]
    pub fn whole(disk: &dyn Blocks) -> Self {
        Self {
            number: 0,
            name: String::new(),
            kind: String::new(),
            first: 0,
            count: disk.block_count(),
        }
    }
}

/// A disk, as the crate that knows tables wants it.
struct Io<'d>(&'d mut dyn Blocks);

impl BlockIo for Io<'_> {
    type Error = BlockError;

    fn block_size(&self) -> BlockSize {
        BlockSize::from_usize(self.0.block_size()).unwrap_or(BlockSize::BS_512)
    }

    fn num_blocks(&mut self) -> Result<u64, BlockError> {
        Ok(self.0.block_count())
    }

    fn read_blocks(&mut self, first: Lba, into: &mut [u8]) -> Result<(), BlockError> {
        self.0.read(first.to_u64(), into)
    }

    fn write_blocks(&mut self, first: Lba, _: &[u8]) -> Result<(), BlockError> {
        // Tables are only read here.
        Err(BlockError::OutOfRange { first: first.to_u64() })
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        Ok(())
    }
}

fn block_error(error: DiskError<BlockError>) -> BlockError {
    match error {
        DiskError::Io(error) => error,
        other => BlockError::Device(other.to_string()),
    }
}

/// Whether a header is one, of a size that is looked at, and undamaged.
fn is_sound(header: &GptHeader, at: Lba) -> bool {
    let entry_size = header.size_of_partition_entry.to_u32();
    header.is_signature_valid()
        && header.calculate_header_crc32() == header.header_crc32
        && Lba::from(header.my_lba) == at
        && (128..=512).contains(&entry_size)
        && header.number_of_partition_entries.to_u32() <= MAX_ENTRIES
}

/// Returns the partitions in the order of the table; none if there is no table.
///
/// # Errors
///
/// The disk could not be read.
pub fn partitions(disk: &mut dyn Blocks) -> Result<Vec<Partition>, BlockError> {
    let (block_size, block_count) = (disk.block_size(), disk.block_count());
    if block_count < 4 || !(512..=1 << 16).contains(&block_size) {
        return Ok(Vec::new());
    }
    let mut block = vec![0; block_size];
    let mut disk = Disk::new(Io(disk)).map_err(block_error)?;
    for at in [Lba(1), Lba(block_count - 1)] {
        let header = disk.read_gpt_header(at, &mut block).map_err(block_error)?;
        if !is_sound(&header, at) {
            continue;
        }
        let Ok(layout) = header.get_partition_entry_array_layout() else {
            continue;
        };
        if layout.num_entries == 0 {
            return Ok(Vec::new());
        }
        let entries = disk
            .gpt_partition_entry_array_iter(layout, &mut block)
            .map_err(block_error)?;
        let mut found = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            found.extend(partition(number, &entry.map_err(block_error)?, block_count));
        }
        return Ok(found);
    }
    Ok(Vec::new())
}

/// An entry of the table, if it is in use and lies on the disk.
fn partition(number: u32, entry: &GptPartitionEntry, block_count: u64) -> Option<Partition> {
    let range = entry.is_used().then(|| entry.lba_range())??;
    let (first, last) = (range.start().to_u64(), range.end().to_u64());
    if last >= block_count {
        log::warn!("partition {number} ends at block {last}, behind the disk's {block_count} blocks: left out");
        return None;
    }
    let (name, kind) = (entry.name, entry.partition_type_guid);
    Some(Partition {
        number,
        name: name.to_string(),
        kind: kind.0.to_string(),
        first,
        count: last - first + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory_disk::MemoryDisk;
    use super::*;
    use std::io::Cursor;

    const MIB: usize = 1 << 20;

    /// A disk with a table written by another program.
    fn disk(block_size: usize) -> MemoryDisk {
        let size = match block_size {
            512 => gpt::disk::LogicalBlockSize::Lb512,
            _ => gpt::disk::LogicalBlockSize::Lb4096,
        };
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(size)
            .create_from_device(Cursor::new(vec![0; 8 * MIB]), None)
            .unwrap();
        table
            .add_partition("EFI system", 2 << 20, gpt::partition_types::EFI, 0, None)
            .unwrap();
        table
            .add_partition("data", 3 << 20, gpt::partition_types::BASIC, 0, None)
            .unwrap();
        MemoryDisk::new(table.write().unwrap().into_inner(), block_size)
    }

    fn check(disk: &mut MemoryDisk) {
        let block_size = disk.block_size;
        let found = partitions(disk).unwrap();
        let names: Vec<_> = found.iter().map(|found| (found.number, found.name.as_str())).collect();
        assert_eq!(names, [(1, "EFI system"), (2, "data")]);
        assert_eq!(found[0].kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(found[0].count * block_size as u64, 2 << 20);
        assert!(found[1].first >= found[0].first + found[0].count);
    }

    #[test]
    fn a_table_of_another_program_is_read_for_both_sizes_of_blocks() {
        check(&mut disk(512));
        check(&mut disk(4096));
    }

    #[test]
    fn the_second_table_stands_in_for_a_damaged_first_one() {
        let mut disk = disk(512);
        // The disk's own GUID, which the sum covers.
        disk.bytes[512 + 60] ^= 1;
        check(&mut disk);
        let last = disk.bytes.len() - 512;
        disk.bytes[last + 60] ^= 1;
        assert_eq!(partitions(&mut disk).unwrap(), []);
    }

    #[test]
    fn whatever_an_entry_says_no_partition_leaves_the_disk() {
        for (first, last) in [(40_u64, 1 << 40), (1 << 40, 1 << 41), (90, 80), (40, u64::MAX)] {
            let mut disk = disk(512);
            // The second entry of the first table; headers do not cover entries one by one.
            let entry = 2 * 512 + 128;
            disk.bytes[entry + 32..entry + 40].copy_from_slice(&first.to_le_bytes());
            disk.bytes[entry + 40..entry + 48].copy_from_slice(&last.to_le_bytes());
            let found = partitions(&mut disk).unwrap();
            assert_eq!(found.len(), 1, "{first} to {last}");
        }
    }

    #[test]
    fn no_table_is_no_error_and_a_broken_disk_is_one() {
        let mut empty = MemoryDisk::new(vec![0; 64 << 10], 512);
        assert_eq!(partitions(&mut empty).unwrap(), []);
        assert_eq!(Partition::whole(&empty).count, 128);
        let mut tiny = MemoryDisk::new(vec![0; 512], 512);
        assert_eq!(partitions(&mut tiny).unwrap(), []);
        let mut disk = disk(512);
        disk.broken = true;
        assert!(partitions(&mut disk).is_err());
    }
}
