//! A range of a disk as a stream of bytes: [`Stream`].
//!
//! File systems read and write a few bytes here and there. The stream keeps one window of the range in memory, and writes it back when it
//! moves on or is flushed; whole blocks in larger pieces go past it.

use alloc::vec;
use alloc::vec::Vec;

use fat::{IoBase, IoError, Read, Seek, SeekFrom, Write};

use super::{BlockError, Blocks, Partition};

/// Bytes of the window; a multiple of all sizes of blocks.
const WINDOW: usize = 16 << 10;

/// A range of a disk, as bytes.
#[derive(Debug)]
pub struct Stream<B: Blocks> {
    disk: B,
    first: u64,
    len: u64,
    position: u64,
    window: Vec<u8>,
    /// The offset in the range of the window's first byte; it is a multiple of the window's size.
    at: Option<u64>,
    is_dirty: bool,
}

impl<B: Blocks> Stream<B> {
    /// Makes a stream of the bytes of `partition`.
    ///
    /// # Errors
    ///
    /// The partition is not on the disk.
    pub fn new(disk: B, partition: &Partition) -> Result<Self, BlockError> {
        let out_of_range = BlockError::OutOfRange { first: partition.first };
        let end = partition.first.checked_add(partition.count);
        if end.is_none_or(|end| end > disk.block_count()) || !WINDOW.is_multiple_of(disk.block_size()) {
            return Err(out_of_range);
        }
        let len = partition.count.checked_mul(disk.block_size() as u64);
        Ok(Self {
            first: partition.first,
            len: len.ok_or(out_of_range)?,
            position: 0,
            window: vec![0; WINDOW],
            at: None,
            is_dirty: false,
            disk,
        })
    }

    /// Bytes of the range.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The block that holds the byte at `offset` of the range.
    fn block(&self, offset: u64) -> u64 {
        self.first + offset / self.disk.block_size() as u64
    }

    /// The part of the window that lies in the range.
    fn window_len(&self, at: u64) -> usize {
        usize::try_from(self.len - at).map_or(WINDOW, |left| left.min(WINDOW))
    }

    fn write_back(&mut self) -> Result<(), BlockError> {
        if let (Some(at), true) = (self.at, self.is_dirty) {
            let block = self.block(at);
            let used = self.window_len(at);
            self.disk.write(block, self.window.get(..used).unwrap_or_default())?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// Moves the window to the byte at `offset`.
    fn look_at(&mut self, offset: u64) -> Result<(), BlockError> {
        let at = offset - offset % WINDOW as u64;
        if self.at == Some(at) {
            return Ok(());
        }
        self.write_back()?;
        // What it holds in between is nothing.
        self.at = None;
        let (block, used) = (self.block(at), self.window_len(at));
        self.disk.read(block, self.window.get_mut(..used).unwrap_or_default())?;
        self.at = Some(at);
        Ok(())
    }

    /// How many of the next `wanted` bytes go past the window: whole blocks in larger pieces.
    fn past_window(&self, wanted: usize) -> usize {
        let left = usize::try_from(self.len - self.position).unwrap_or(usize::MAX);
        let whole = wanted.min(left) / WINDOW * WINDOW;
        let is_aligned = self.position.is_multiple_of(self.disk.block_size() as u64);
        if is_aligned { whole } else { 0 }
    }

    /// Where in the window the position is, and how many of the next `wanted` bytes it has.
    fn in_window(&self, wanted: usize) -> core::ops::Range<usize> {
        let start = usize::try_from(self.position % WINDOW as u64).unwrap_or(0);
        let at = self.position - start as u64;
        start..self.window_len(at).min(start.saturating_add(wanted))
    }
}

impl<B: Blocks> IoBase for Stream<B> {
    type Error = BlockError;
}

impl<B: Blocks> Read for Stream<B> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, BlockError> {
        if into.is_empty() || self.position >= self.len {
            return Ok(0);
        }
        let direct = self.past_window(into.len());
        let done = if direct > 0 {
            // The disk has to be what the window says it is.
            self.write_back()?;
            let block = self.block(self.position);
            self.disk.read(block, into.get_mut(..direct).unwrap_or_default())?;
            direct
        } else {
            self.look_at(self.position)?;
            let range = self.in_window(into.len());
            let source = self.window.get(range).unwrap_or_default();
            if let Some(target) = into.get_mut(..source.len()) {
                target.copy_from_slice(source);
            }
            source.len()
        };
        self.position += done as u64;
        Ok(done)
    }
}

impl<B: Blocks> Write for Stream<B> {
    fn write(&mut self, from: &[u8]) -> Result<usize, BlockError> {
        if from.is_empty() || self.position >= self.len {
            return Ok(0);
        }
        let direct = self.past_window(from.len());
        let done = if direct > 0 {
            self.write_back()?;
            // It may hold what is overwritten here.
            self.at = None;
            let block = self.block(self.position);
            self.disk.write(block, from.get(..direct).unwrap_or_default())?;
            direct
        } else {
            self.look_at(self.position)?;
            let range = self.in_window(from.len());
            let target = self.window.get_mut(range).unwrap_or_default();
            if let Some(source) = from.get(..target.len()) {
                target.copy_from_slice(source);
            }
            self.is_dirty = true;
            target.len()
        };
        self.position += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        self.write_back()?;
        self.disk.flush()
    }
}

impl<B: Blocks> Seek for Stream<B> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64, BlockError> {
        let (base, by) = match to {
            SeekFrom::Start(offset) => (offset, 0),
            SeekFrom::End(by) => (self.len, by),
            SeekFrom::Current(by) => (self.position, by),
        };
        self.position = base.checked_add_signed(by).ok_or(BlockError::EndOfVolume)?;
        Ok(self.position)
    }
}

impl IoError for BlockError {
    fn is_interrupted(&self) -> bool {
        false
    }

    fn new_unexpected_eof_error() -> Self {
        Self::EndOfVolume
    }

    fn new_write_zero_error() -> Self {
        Self::EndOfVolume
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory_disk::MemoryDisk;
    use super::*;
    use proptest::prelude::*;

    const BLOCK: usize = 512;

    fn stream(blocks: usize) -> Stream<MemoryDisk> {
        let disk = MemoryDisk::new(vec![0; blocks * BLOCK], BLOCK);
        let partition = Partition {
            first: 3,
            count: blocks as u64 - 5,
            ..Partition::whole(&disk)
        };
        Stream::new(disk, &partition).unwrap()
    }

    #[test]
    fn a_partition_that_is_not_on_the_disk_is_refused() {
        let disk = MemoryDisk::new(vec![0; 8 * BLOCK], BLOCK);
        for (first, count) in [(0, 9), (8, 1), (u64::MAX, 2)] {
            let partition = Partition {
                first,
                count,
                ..Partition::whole(&disk)
            };
            assert!(Stream::new(disk.clone(), &partition).is_err(), "{first} {count}");
        }
    }

    #[test]
    fn small_writes_reach_the_disk_with_a_flush_and_not_before() {
        let mut stream = stream(100);
        for _ in 0..20 {
            stream.write_all(&[7; 10]).unwrap();
        }
        assert_eq!((stream.disk.writes, stream.disk.reads), (0, 1));
        stream.flush().unwrap();
        assert_eq!((stream.disk.writes, stream.disk.flushes), (1, 1));
        assert_eq!(
            stream.disk.bytes[3 * BLOCK..][..201],
            [[7; 200].as_slice(), &[0]].concat()
        );
    }

    #[test]
    fn an_error_while_writing_back_loses_nothing_that_a_later_flush_could_write() {
        let mut stream = stream(100);
        stream.write_all(&[7; 10]).unwrap();
        stream.disk.broken = true;
        assert!(stream.flush().is_err());
        stream.seek(SeekFrom::Start(32 << 10)).unwrap();
        assert!(stream.read(&mut [0; 4]).is_err());
        stream.disk.broken = false;
        stream.flush().unwrap();
        assert_eq!(stream.disk.bytes[3 * BLOCK], 7);
    }

    proptest! {
        /// The stream is the same as a vector of bytes, and changes nothing outside its range.
        #[test]
        fn it_reads_and_writes_like_memory(
            steps in prop::collection::vec((0..100_000_usize, 0..40_000_usize, any::<u8>(), 0..3_u8), 1..20)
        ) {
            let mut stream = stream(150);
            let mut model = vec![0_u8; 145 * BLOCK];
            for (offset, len, value, kind) in steps {
                let offset = offset.min(model.len());
                stream.seek(SeekFrom::Start(offset as u64)).unwrap();
                let range = offset..(offset + len).min(model.len());
                if kind == 0 {
                    let mut read = vec![0; range.len()];
                    stream.read_exact(&mut read).unwrap();
                    prop_assert_eq!(&read, &model[range]);
                } else {
                    stream.write_all(&vec![value; range.len()]).unwrap();
                    model[range].fill(value);
                }
                if kind == 2 {
                    stream.flush().unwrap();
                    prop_assert_eq!(&stream.disk.bytes[3 * BLOCK..148 * BLOCK], &model[..]);
                }
            }
            stream.flush().unwrap();
            prop_assert_eq!(&stream.disk.bytes[3 * BLOCK..148 * BLOCK], &model[..]);
            prop_assert!(stream.disk.bytes[..3 * BLOCK].iter().chain(&stream.disk.bytes[148 * BLOCK..]).all(|byte| *byte == 0));
            stream.seek(SeekFrom::End(0)).unwrap();
            prop_assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
            prop_assert_eq!(stream.write(&[0; 8]).unwrap(), 0);
        }
    }
}
