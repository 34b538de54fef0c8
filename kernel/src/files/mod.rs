//! Files on disks: partitions, FAT volumes, and the paths by which the command line names what is on them.
//!
//! - [`Blocks`]: a disk, as this module wants it; the VMBus binding provides it;
//! - [`partition`]: what a disk is divided into (GPT, or nothing);
//! - [`stream`]: a range of a disk as bytes, with a small cache that writes back;
//! - [`volume`]: FAT on such a range: list, read, write, format;
//! - [`path`]: `1.2:/etc/config`, that is disk, partition and file; [`show`]: prints what is there.
//!
//! What is on a disk is as little to be trusted as the host: every figure is checked before it is used, and a damaged disk is an error.
//! The formats themselves are read by well-kept crates (`gpt_disk_io`, and a maintained branch of `fatfs` that needs no `std`).

#[cfg(test)]
pub(crate) mod memory_disk;
pub mod partition;
pub mod path;
pub mod show;
pub mod stream;
pub mod volume;

use alloc::string::String;

pub use partition::{Partition, partitions};
pub use path::FilePath;
pub use stream::Stream;
pub use volume::{Entry, FileError, Volume};

/// A disk: blocks of 512 or 4096 bytes.
pub trait Blocks {
    /// Bytes of a block.
    fn block_size(&self) -> usize;

    /// Number of blocks.
    fn block_count(&self) -> u64;

    /// Reads the blocks from `first` on; `into` is a whole number of blocks.
    ///
    /// # Errors
    ///
    /// [`BlockError`]; `into` then holds anything.
    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError>;

    /// Writes the blocks from `first` on; `from` is a whole number of blocks.
    ///
    /// # Errors
    ///
    /// [`BlockError`]; the blocks then hold anything.
    fn write(&mut self, first: u64, from: &[u8]) -> Result<(), BlockError>;

    /// Makes what was written last, whatever happens to the machine.
    ///
    /// # Errors
    ///
    /// [`BlockError`]: some of it may be lost.
    fn flush(&mut self) -> Result<(), BlockError>;
}

impl<B: Blocks + ?Sized> Blocks for &mut B {
    fn block_size(&self) -> usize {
        (**self).block_size()
    }

    fn block_count(&self) -> u64 {
        (**self).block_count()
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError> {
        (**self).read(first, into)
    }

    fn write(&mut self, first: u64, from: &[u8]) -> Result<(), BlockError> {
        (**self).write(first, from)
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        (**self).flush()
    }
}

/// Why blocks could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// There are no such blocks.
    #[error("block {first} and those behind it are not on the disk")]
    OutOfRange {
        /// The first of them.
        first: u64,
    },
    /// The end of the range was met in the middle of what was asked for.
    #[error("the end of the volume came too early")]
    EndOfVolume,
    /// What the device said.
    #[error("{0}")]
    Device(String),
}
