//! Prints a file or a folder: what the key `show=` of the command line asks for, so that an appliance can read its configuration.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{Blocks, FileError, FilePath, Partition, Stream, Volume, partitions};

/// Bytes of a file that is shown at most.
const MOST: usize = 64 << 10;

/// A disk without a type of its own.
pub type AnyDisk<'d> = dyn Blocks + 'd;

/// Opens the volume that `path` names, or the first one that there is.
///
/// # Errors
///
/// [`FileError::NotFound`] if there is no such disk, partition or volume; what the disk says.
pub fn open<'d>(
    disks: &'d mut [&'d mut AnyDisk<'d>],
    path: &FilePath<'_>,
) -> Result<Volume<&'d mut AnyDisk<'d>>, FileError> {
    let (disk, partition) = match path.volume {
        Some((disk, number)) => {
            let there = disks.get_mut(disk).ok_or(FileError::NotFound)?;
            let parts = parts(*there)?;
            let part = parts.into_iter().find(|part| part.number == number);
            (disk, part.ok_or(FileError::NotFound)?)
        }
        None => first_volume(disks).ok_or(FileError::NotFound)?,
    };
    let disk = disks.get_mut(disk).ok_or(FileError::NotFound)?;
    Volume::open(Stream::new(&mut **disk, &partition)?)
}

/// The partitions of a disk, and the whole disk as number 0.
fn parts(disk: &mut AnyDisk<'_>) -> Result<Vec<Partition>, FileError> {
    let whole = Partition::whole(disk);
    let mut parts = partitions(disk)?;
    parts.push(whole);
    Ok(parts)
}

/// Disk and partition of the first volume that can be opened. What cannot be read is passed over.
fn first_volume(disks: &mut [&mut AnyDisk<'_>]) -> Option<(usize, Partition)> {
    for (index, disk) in disks.iter_mut().enumerate() {
        for part in parts(*disk).unwrap_or_default() {
            let range = Stream::new(&mut **disk, &part);
            if range.is_ok_and(|range| Volume::open(range).is_ok()) {
                return Some((index, part));
            }
        }
    }
    None
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A file.
    File(Vec<u8>),
    /// A folder.
    Folder(Vec<super::Entry>),
}

/// Reads what is at `path`.
///
/// # Errors
///
/// As [`open`]; [`FileError::TooLarge`] for a file of more than 64 KiB.
pub fn show<'d>(disks: &'d mut [&'d mut AnyDisk<'d>], path: &FilePath<'_>) -> Result<Shown, FileError> {
    let volume = open(disks, path)?;
    match volume.list(path.path) {
        Ok(entries) => Ok(Shown::Folder(entries)),
        Err(FileError::NotFound) => volume.read(path.path, MOST).map(Shown::File),
        Err(error) => Err(error),
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What is no text is shown as replacement characters.
            Self::File(content) => f.write_str(String::from_utf8_lossy(content).trim_end()),
            Self::Folder(entries) if entries.is_empty() => f.write_str("(empty)"),
            Self::Folder(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    if index > 0 {
                        f.write_str("\n")?;
                    }
                    match entry.is_folder {
                        true => write!(f, "{:>12}  {}/", "", entry.name)?,
                        false => write!(f, "{:>12}  {}", entry.bytes, entry.name)?,
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory_disk::MemoryDisk;
    use super::*;

    const MIB: usize = 1 << 20;

    /// Two disks: an empty one, and one with a volume in its second partition.
    fn disks() -> [MemoryDisk; 2] {
        let empty = MemoryDisk::new(vec![0; MIB], 512);
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
            .create_from_device(std::io::Cursor::new(vec![0; 8 * MIB]), None)
            .unwrap();
        for name in ["raw", "files"] {
            table
                .add_partition(name, 3 << 20, gpt::partition_types::BASIC, 0, None)
                .unwrap();
        }
        let mut disk = MemoryDisk::new(table.write().unwrap().into_inner(), 512);
        let part = partitions(&mut disk).unwrap().pop().unwrap();
        let volume = Volume::format(Stream::new(&mut disk, &part).unwrap(), "files").unwrap();
        volume.write("/etc/name.txt", b"appliance\n").unwrap();
        volume.write("/top", &[b'x'; 1234]).unwrap();
        volume.close().unwrap();
        [empty, disk]
    }

    fn text(path: &str) -> Result<String, FileError> {
        let [mut first, mut second] = disks();
        let mut disks: [&mut AnyDisk<'_>; 2] = [&mut first, &mut second];
        show(&mut disks, &FilePath::parse(path).unwrap()).map(|shown| shown.to_string())
    }

    #[test]
    fn files_and_folders_are_shown_from_the_first_volume_or_the_named_one() {
        for prefix in ["", "1.2:"] {
            assert_eq!(text(&format!("{prefix}/etc/name.txt")).unwrap(), "appliance");
            assert_eq!(
                text(&format!("{prefix}/")).unwrap(),
                "              etc/\n        1234  top"
            );
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for (path, error) in [
            ("/none", FileError::NotFound),
            ("2.1:/", FileError::NotFound),
            ("1.3:/", FileError::NotFound),
            ("1.1:/", FileError::Damaged),
            ("0.0:/", FileError::Damaged),
        ] {
            assert_eq!(text(path), Err(error), "{path}");
        }
        let mut none: [&mut AnyDisk<'_>; 0] = [];
        assert_eq!(
            show(&mut none, &FilePath::parse("/").unwrap()),
            Err(FileError::NotFound)
        );
    }
}
