//! A disk in memory, for tests.

use super::{BlockError, Blocks};
use alloc::string::ToString as _;
use alloc::vec::Vec;

/// Blocks in memory, with what was done to them.
#[derive(Debug, Clone)]
pub(crate) struct MemoryDisk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_size: usize,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) flushes: usize,
    /// Fails from here on.
    pub(crate) broken: bool,
}

impl MemoryDisk {
    pub(crate) fn new(bytes: Vec<u8>, block_size: usize) -> Self {
        Self {
            bytes,
            block_size,
            reads: 0,
            writes: 0,
            flushes: 0,
            broken: false,
        }
    }

    fn range(&mut self, first: u64, len: usize) -> Result<&mut [u8], BlockError> {
        assert!(len.is_multiple_of(self.block_size), "whole blocks");
        if self.broken {
            return Err(BlockError::Device("the disk is broken".to_string()));
        }
        let start = usize::try_from(first).unwrap() * self.block_size;
        self.bytes
            .get_mut(start..start + len)
            .ok_or(BlockError::OutOfRange { first })
    }
}

impl Blocks for MemoryDisk {
    fn block_size(&self) -> usize {
        self.block_size
    }

    fn block_count(&self) -> u64 {
        (self.bytes.len() / self.block_size) as u64
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError> {
        self.reads += 1;
        into.copy_from_slice(self.range(first, into.len())?);
        Ok(())
    }

    fn write(&mut self, first: u64, from: &[u8]) -> Result<(), BlockError> {
        self.writes += 1;
        self.range(first, from.len())?.copy_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        self.flushes += 1;
        self.range(0, 0).map(|_| ())
    }
}
