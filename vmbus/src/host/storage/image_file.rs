//! A backend in a file of the development machine: [`ImageFile`].
#![cfg_attr(
    not(test),
    expect(clippy::disallowed_macros, reason = "runs on a development machine")
)]

use alloc::vec;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Backend, BackendError, Durability, RequestMemory};

/// Bytes that are copied at a time: a file cannot be read straight into the client's memory, of which there is no slice.
const PIECE: usize = 256 * 1024;

/// A disk image in a file, raw.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    len: u64,
}

impl ImageFile {
    /// Opens an image.
    ///
    /// # Errors
    ///
    /// As of the file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Makes an empty image of `len_bytes` bytes, in place of what was there.
    ///
    /// # Errors
    ///
    /// As of the file.
    pub fn create(path: impl AsRef<Path>, len_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(len_bytes)?;
        Ok(Self { file, len: len_bytes })
    }
}

fn failed(error: &io::Error) -> BackendError {
    match error.kind() {
        io::ErrorKind::StorageFull => BackendError::NoSpace,
        io::ErrorKind::UnexpectedEof => BackendError::OutOfRange,
        _ => BackendError::Failed,
    }
}

/// The pieces of a range: where each starts, and its length.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(PIECE).map(move |from| (from, PIECE.min(len - from)))
}

impl Backend for ImageFile {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, target: &RequestMemory<'_>) -> Result<(), BackendError> {
        let mut buffer = vec![0; PIECE.min(target.len())];
        for (from, len) in pieces(target.len()) {
            let piece = buffer.get_mut(..len).unwrap_or_default();
            self.file
                .read_exact_at(piece, offset + from as u64)
                .map_err(|error| failed(&error))?;
            target.write_at(from, piece)?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, source: &RequestMemory<'_>, durability: Durability) -> Result<(), BackendError> {
        let mut buffer = vec![0; PIECE.min(source.len())];
        for (from, len) in pieces(source.len()) {
            let piece = buffer.get_mut(..len).unwrap_or_default();
            source.read_at(from, piece)?;
            self.file
                .write_all_at(piece, offset + from as u64)
                .map_err(|error| failed(&error))?;
        }
        match durability {
            Durability::Cached => Ok(()),
            Durability::Through => self.flush(),
        }
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.file.sync_data().map_err(|error| failed(&error))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        let zeros = vec![0; PIECE];
        let end = offset.saturating_add(len).min(self.len);
        let mut at = offset;
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            self.file
                .write_all_at(zeros.get(..now).unwrap_or_default(), at)
                .map_err(|error| failed(&error))?;
            at += now as u64;
        }
        Ok(())
    }
}
