//! A disk for those who know other traits: bytes ([`DiskBytes`], feature `embedded-io`) and blocks (`BlockDevice` of
//! `embedded-sdmmc`, feature `embedded-sdmmc`). All of it copies, and waits with [`PATIENCE`].

#[cfg(feature = "embedded-io")]
pub use bytes::DiskBytes;

#[cfg(feature = "embedded-io")]
mod bytes {
    use alloc::vec::Vec;

    use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom, Write};

    use super::super::{Disk, Error, Lba, PATIENCE};
    use crate::fallible::{OutOfMemory, try_vec_zeroed};

    /// A disk as a row of bytes, with a position: what file systems on `embedded-io` want. A piece that is no whole block is read
    /// into a block of its own, and written back at once: nothing is held back, so `flush` is [`Disk::flush`].
    ///
    /// # Examples
    ///
    /// ```
    /// use embedded_io::{Read as _, Seek as _, SeekFrom, Write as _};
    /// use vmbus::device::storage::{Disk, DiskBytes, Error};
    /// fn rename(disk: Disk) -> Result<(), Error> {
    ///     let mut bytes = DiskBytes::new(disk)?;
    ///     bytes.seek(SeekFrom::Start(71))?;
    ///     bytes.write_all(b"MY DISK    ")?;
    ///     bytes.flush()
    /// }
    /// ```
    #[derive(Debug)]
    pub struct DiskBytes {
        disk: Disk,
        position: u64,
        block: Vec<u8>,
    }

    impl DiskBytes {
        /// Begins at byte 0.
        ///
        /// # Errors
        ///
        /// [`OutOfMemory`] if there is no memory for a block.
        pub fn new(disk: Disk) -> Result<Self, OutOfMemory> {
            Ok(Self {
                block: try_vec_zeroed(disk.block_len() as usize)?,
                disk,
                position: 0,
            })
        }

        /// Returns the disk.
        #[must_use]
        pub const fn disk(&self) -> &Disk {
            &self.disk
        }

        /// Returns the block at the position, the position in it, and how many bytes of `len` can be moved at once: whole blocks
        /// if the position is at one, and a piece of one otherwise.
        fn place(&self, len: usize) -> (Lba, usize, usize) {
            let block_len = self.block.len().max(1);
            let rest = self.disk.size_bytes().saturating_sub(self.position);
            let len = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
            #[expect(clippy::cast_possible_truncation, reason = "a remainder of a block's length")]
            let offset = self.position.checked_rem(block_len as u64).unwrap_or(0) as usize;
            let whole = len.saturating_sub(len.checked_rem(block_len).unwrap_or(0));
            let now = if offset == 0 && whole > 0 {
                whole
            } else {
                len.min(block_len.saturating_sub(offset))
            };
            (
                Lba(self.position.checked_div(block_len as u64).unwrap_or(0)),
                offset,
                now,
            )
        }
    }

    impl embedded_io::Error for Error {
        fn kind(&self) -> ErrorKind {
            match self {
                Self::OutOfRange | Self::Unaligned => ErrorKind::InvalidInput,
                Self::WriteProtected => ErrorKind::PermissionDenied,
                Self::Unsupported => ErrorKind::Unsupported,
                Self::TimedOut | Self::Busy => ErrorKind::TimedOut,
                Self::DiskGone | Self::ControllerGone => ErrorKind::NotConnected,
                Self::OutOfMemory(_) => ErrorKind::OutOfMemory,
                Self::NoSpace => ErrorKind::WriteZero,
                _ => ErrorKind::Other,
            }
        }
    }

    impl ErrorType for DiskBytes {
        type Error = Error;
    }

    impl Read for DiskBytes {
        fn read(&mut self, target: &mut [u8]) -> Result<usize, Error> {
            let (lba, offset, now) = self.place(target.len());
            let Some(target) = target.get_mut(..now) else {
                return Ok(0);
            };
            if now >= self.block.len() && offset == 0 {
                self.disk.read_into(lba, target, PATIENCE)?;
            } else if now > 0 {
                self.disk.read_into(lba, &mut self.block, PATIENCE)?;
                target.copy_from_slice(
                    self.block
                        .get(offset..offset.saturating_add(now))
                        .ok_or(Error::OutOfRange)?,
                );
            }
            self.position = self.position.saturating_add(now as u64);
            Ok(now)
        }
    }

    impl Write for DiskBytes {
        fn write(&mut self, source: &[u8]) -> Result<usize, Error> {
            let (lba, offset, now) = self.place(source.len());
            let Some(source) = source.get(..now).filter(|source| !source.is_empty()) else {
                // Nothing was to be written, or the disk ends here.
                return if source.is_empty() {
                    Ok(0)
                } else {
                    Err(Error::OutOfRange)
                };
            };
            if now >= self.block.len() && offset == 0 {
                self.disk.write_from(lba, source, PATIENCE)?;
            } else {
                self.disk.read_into(lba, &mut self.block, PATIENCE)?;
                let place = self
                    .block
                    .get_mut(offset..offset.saturating_add(now))
                    .ok_or(Error::OutOfRange)?;
                place.copy_from_slice(source);
                self.disk.write_from(lba, &self.block, PATIENCE)?;
            }
            self.position = self.position.saturating_add(now as u64);
            Ok(now)
        }

        fn flush(&mut self) -> Result<(), Error> {
            self.disk.flush(PATIENCE)
        }
    }

    impl Seek for DiskBytes {
        fn seek(&mut self, to: SeekFrom) -> Result<u64, Error> {
            let position = match to {
                SeekFrom::Start(position) => Some(position),
                SeekFrom::End(offset) => self.disk.size_bytes().checked_add_signed(offset),
                SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            };
            self.position = position.ok_or(Error::OutOfRange)?;
            Ok(self.position)
        }
    }
}

#[cfg(feature = "embedded-sdmmc")]
mod blocks {
    use embedded_sdmmc_types::{Block, BlockCount, BlockDevice, BlockIdx};

    use super::super::{Disk, Error, Lba, PATIENCE};

    /// Disks of 512-byte blocks; of others each call answers [`Error::Unaligned`].
    impl BlockDevice for Disk {
        type Error = Error;

        fn read(&self, blocks: &mut [Block], start_block_idx: BlockIdx) -> Result<(), Error> {
            for (lba, block) in (u64::from(start_block_idx.0)..).zip(blocks) {
                self.read_into(Lba(lba), &mut block.contents, PATIENCE)?;
            }
            Ok(())
        }

        fn write(&self, blocks: &[Block], start_block_idx: BlockIdx) -> Result<(), Error> {
            for (lba, block) in (u64::from(start_block_idx.0)..).zip(blocks) {
                self.write_from(Lba(lba), &block.contents, PATIENCE)?;
            }
            Ok(())
        }

        fn num_blocks(&self) -> Result<BlockCount, Error> {
            if self.block_len() as usize != Block::LEN {
                return Err(Error::Unaligned);
            }
            // The trait tells of 2 TiB at the most.
            Ok(BlockCount(u32::try_from(self.blocks()).unwrap_or(u32::MAX)))
        }
    }
}
