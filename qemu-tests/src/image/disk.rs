//! The disk itself: protective MBR, GPT, one EFI system partition with FAT32.

use std::io::{Cursor, Write as _};

use anyhow::{Context as _, Result, bail};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::partition_types;

use super::Contents;

const MIB: usize = 1 << 20;
/// Where the partition begins: the usual alignment.
const PARTITION_START: usize = MIB;
/// FAT32 needs 65,525 clusters, and the firmware of Gen2 machines wants FAT32.
const SMALLEST_PARTITION: usize = 64 * MIB;
/// Behind the partition: room for the second GPT, in whole MiB because Azure wants those.
const TAIL: usize = MIB;

/// The path of the loader on the partition: where firmware looks when no boot entry says otherwise.
pub const LOADER_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// The path of the kernel on the partition.
pub const KERNEL_PATH: &str = "EFI/vmbus/kernel.elf";
/// The path of the kernel's command line on the partition.
pub const COMMAND_LINE_PATH: &str = "EFI/vmbus/cmdline.txt";

/// The identifiers of the disk and its partition; fixed, so that images can be reproduced.
const DISK_GUID: &str = "6e9a1b70-5f0c-4f5e-9d5b-0c8f0a7be501";
const PARTITION_GUID: &str = "6e9a1b70-5f0c-4f5e-9d5b-0c8f0a7be502";

/// Returns the bytes of a disk with `contents`.
///
/// # Errors
///
/// If the contents are too large for a disk that is built in memory (1 GiB).
pub fn lay_out(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let files = [
        (LOADER_PATH, Some(contents.loader)),
        (KERNEL_PATH, contents.kernel),
        (COMMAND_LINE_PATH, Some(contents.command_line.as_bytes())),
    ];
    let needed: usize = files.iter().filter_map(|(_, bytes)| bytes.map(<[u8]>::len)).sum();
    if needed > 1 << 30 {
        bail!("loader, kernel and command line have {needed} bytes together; a disk of over 1 GiB is not made here");
    }
    let partition_size = SMALLEST_PARTITION.max((needed + 2 * MIB).next_multiple_of(MIB) + needed.div_ceil(64));
    let partition_size = partition_size.next_multiple_of(MIB);
    let volume = file_system(partition_size, &files).context("cannot make the FAT file system")?;
    partitioned(&volume).context("cannot write the partition table")
}

fn file_system(size: usize, files: &[(&str, Option<&[u8]>)]) -> Result<Vec<u8>> {
    let mut volume = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(0x564d_4255)
        .volume_label(*b"VMBUS      ");
    fatfs::format_volume(&mut volume, options)?;
    {
        let file_system = FileSystem::new(&mut volume, FsOptions::new())?;
        let root = file_system.root_dir();
        for (path, bytes) in files {
            let Some(bytes) = bytes else { continue };
            for (end, _) in path.match_indices('/') {
                root.create_dir(&path[..end])?;
            }
            root.create_file(path)?.write_all(bytes)?;
        }
    }
    Ok(volume.into_inner())
}

fn partitioned(volume: &[u8]) -> Result<Vec<u8>> {
    let mut disk = vec![0; PARTITION_START + volume.len() + TAIL];
    disk[PARTITION_START..][..volume.len()].copy_from_slice(volume);
    let sectors = u32::try_from(disk.len() / 512)?;
    let mut device = Cursor::new(disk);
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors - 1).overwrite_lba0(&mut device)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(DISK_GUID.parse()?))?;
    table.add_partition(
        "EFI system partition",
        volume.len() as u64,
        partition_types::EFI,
        0,
        Some((PARTITION_START / 512) as u64),
    )?;
    let mut partitions = table.partitions().clone();
    for partition in partitions.values_mut() {
        partition.part_guid = PARTITION_GUID.parse()?;
    }
    table.update_partitions(partitions)?;
    Ok(table.write()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn contents(kernel: Option<&[u8]>) -> Contents<'_> {
        Contents {
            loader: b"loader",
            kernel,
            command_line: "log=debug",
        }
    }

    fn read(disk: &[u8], path: &str) -> Option<Vec<u8>> {
        let table = gpt::GptConfig::new()
            .open_from_device(Cursor::new(disk.to_vec()))
            .unwrap();
        let partition = table.partitions().values().next().unwrap();
        assert_eq!(partition.part_type_guid, partition_types::EFI);
        assert_eq!(partition.first_lba * 512, PARTITION_START as u64);
        let end = usize::try_from((partition.last_lba + 1) * 512).unwrap();
        let volume = disk[PARTITION_START..end].to_vec();
        let file_system = FileSystem::new(Cursor::new(volume), FsOptions::new()).unwrap();
        assert_eq!(file_system.fat_type(), FatType::Fat32);
        let mut bytes = Vec::new();
        file_system
            .root_dir()
            .open_file(path)
            .ok()?
            .read_to_end(&mut bytes)
            .unwrap();
        Some(bytes)
    }

    #[test]
    fn the_files_stand_where_firmware_and_loader_look() {
        let disk = lay_out(&contents(Some(b"kernel"))).unwrap();
        assert_eq!(disk.len() % MIB, 0, "whole MiB, as Azure wants");
        assert_eq!(read(&disk, "EFI/BOOT/BOOTX64.EFI").unwrap(), b"loader");
        assert_eq!(read(&disk, "EFI/vmbus/kernel.elf").unwrap(), b"kernel");
        assert_eq!(read(&disk, "EFI/vmbus/cmdline.txt").unwrap(), b"log=debug");
    }

    #[test]
    fn a_disk_without_a_kernel_can_be_made_for_the_loaders_tests() {
        assert_eq!(read(&lay_out(&contents(None)).unwrap(), "EFI/vmbus/kernel.elf"), None);
    }

    #[test]
    fn a_large_kernel_makes_a_larger_disk() {
        let kernel = vec![7; 70 * MIB];
        let disk = lay_out(&contents(Some(&kernel))).unwrap();
        assert!(disk.len() > 72 * MIB);
        assert!(read(&disk, "EFI/vmbus/kernel.elf").unwrap() == kernel);
    }
}
