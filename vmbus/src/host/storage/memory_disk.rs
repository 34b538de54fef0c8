//! A disk in memory: [`MemoryDisk`], sparse, with a write cache that a power cut empties.
//!
//! Memory is had from the heap in chunks of 64 KiB where something was written, so that a disk of many TiB costs what is on it.
//! With a cache, a chunk that was written to since the last flush keeps what is on the medium beside what is read: a flush drops the former,
//! a power cut goes back to it. So reading and writing copy once, whatever the cache does.

use alloc::vec::Vec;

use super::{Backend, BackendError, Durability, RequestMemory};
use crate::Platform;
use crate::fallible::{OutOfMemory, ReservedVec, Shared, try_vec_zeroed};
use crate::sync::Lock;

/// Bytes of a chunk.
const CHUNK: usize = 64 * 1024;
/// Bytes that reach the medium together or not at all.
const SECTOR: usize = 512;
const SECTORS: usize = CHUNK / SECTOR;
const ZEROS: [u8; 4096] = [0; 4096];

/// Whether a disk keeps what was written in a cache until it is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteCache {
    /// What was written is on the medium.
    #[default]
    None,
    /// What was written is lost in a power cut, unless it was flushed.
    Volatile,
}

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerCut {
    /// Nothing.
    LosesAll,
    /// Some sectors of 512 bytes and not others, as chosen by this seed: disks write their caches in any order.
    LosesSome(u64),
}

/// What is on the medium where a chunk was written to.
enum Medium {
    /// What is read.
    Same,
    /// Nothing: zeros.
    Empty,
    /// This.
    Bytes(Vec<u8>),
}

struct Chunk {
    index: u64,
    bytes: Vec<u8>,
    medium: Medium,
    /// A bit for each sector that was written to since the last flush.
    unflushed: u128,
}

struct Store {
    len: u64,
    /// In the order of their index.
    chunks: Vec<Chunk>,
    cache: WriteCache,
    flushes: u64,
}

struct Inner {
    platform: &'static dyn Platform,
    store: Lock<Store>,
}

/// A disk in memory. Clones are handles of the same one: one for the controller, one for the test that looks at what is on it.
#[derive(Clone)]
pub struct MemoryDisk {
    inner: Shared<Inner>,
}

/// The part of a range that lies in one chunk.
#[derive(Clone, Copy)]
struct Part {
    chunk: u64,
    /// From where in the chunk.
    at: usize,
    /// From where in the range.
    from: usize,
    len: usize,
}

/// Splits a range at the boundaries of chunks.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut from = 0;
    core::iter::from_fn(move || {
        let position = offset + from as u64;
        // Below the size of a chunk.
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of 64 KiB")]
        let at = (position % CHUNK as u64) as usize;
        let part = Part {
            chunk: position / CHUNK as u64,
            at,
            from,
            len: (CHUNK - at).min(len - from),
        };
        from += part.len;
        (part.len > 0).then_some(part)
    })
}

impl MemoryDisk {
    /// Makes an empty disk of `len_bytes` bytes: all zero.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(platform: &'static dyn Platform, len_bytes: u64, cache: WriteCache) -> Result<Self, OutOfMemory> {
        let store = Store {
            len: len_bytes,
            chunks: Vec::new(),
            cache,
            flushes: 0,
        };
        Ok(Self {
            inner: Shared::try_new(Inner {
                platform,
                store: Lock::new(store),
            })?,
        })
    }

    fn with<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        work(&mut self.inner.store.lock(self.inner.platform))
    }

    /// Copies what a client would read.
    ///
    /// # Errors
    ///
    /// [`BackendError::OutOfRange`].
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), BackendError> {
        self.with(|store| {
            store.check(offset, target.len() as u64)?;
            for part in parts(offset, target.len()) {
                let Some(target) = target.get_mut(part.from..part.from + part.len) else {
                    continue;
                };
                match store
                    .find(part.chunk)
                    .and_then(|chunk| chunk.bytes.get(part.at..part.at + part.len))
                {
                    Some(bytes) => target.copy_from_slice(bytes),
                    None => target.fill(0),
                }
            }
            Ok(())
        })
    }

    /// Puts bytes on the medium, as a test does that prepares a disk.
    ///
    /// # Errors
    ///
    /// [`BackendError::OutOfRange`], [`BackendError::NoSpace`].
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), BackendError> {
        self.with(|store| {
            store.check(offset, source.len() as u64)?;
            store.write(offset, source.len(), Durability::Through, |from, target| {
                let source = source.get(from..from + target.len()).ok_or(BackendError::OutOfRange)?;
                target.copy_from_slice(source);
                Ok(())
            })
        })
    }

    /// Writes as a client does whose write may wait in the cache.
    #[cfg(test)]
    pub(super) fn write_cached(&self, offset: u64, source: &[u8]) {
        let fill = |from: usize, target: &mut [u8]| {
            target.copy_from_slice(&source[from..from + target.len()]);
            Ok(())
        };
        self.with(|store| store.write(offset, source.len(), Durability::Cached, fill))
            .unwrap();
    }

    /// Cuts the power: what was written and not flushed is lost, or some of it. The disk is as usable as before.
    pub fn cut_power(&self, cut: PowerCut) {
        self.with(|store| store.cut_power(cut));
    }

    /// Makes the disk so long; what lies beyond is lost.
    pub fn resize(&self, len_bytes: u64) {
        self.with(|store| {
            store.len = len_bytes;
            let end = len_bytes.div_ceil(CHUNK as u64);
            store.chunks.retain(|chunk| chunk.index < end);
            if let Some(last) = store.chunks.last_mut() {
                // Should the disk grow again, it grows by zeros.
                let kept = usize::try_from(len_bytes - last.index * CHUNK as u64).unwrap_or(CHUNK);
                last.bytes.iter_mut().skip(kept).for_each(|byte| *byte = 0);
                if let Medium::Bytes(medium) = &mut last.medium {
                    medium.iter_mut().skip(kept).for_each(|byte| *byte = 0);
                }
            }
        });
    }

    /// Returns how many bytes of memory the contents take.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.with(|store| store.chunks.len() * CHUNK)
    }

    /// Returns how often the disk was flushed.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.with(|store| store.flushes)
    }

    /// Returns true if something that was written would be lost in a power cut.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.with(|store| store.chunks.iter().any(|chunk| chunk.unflushed != 0))
    }
}

impl Store {
    const fn check(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(BackendError::OutOfRange),
        }
    }

    fn find(&self, index: u64) -> Option<&Chunk> {
        let at = self.chunks.binary_search_by_key(&index, |chunk| chunk.index).ok()?;
        self.chunks.get(at)
    }

    /// Returns the chunk with this index, made if need be, and whether it was made.
    fn find_or_make(&mut self, index: u64) -> Result<(&mut Chunk, bool), OutOfMemory> {
        let (at, is_new) = match self.chunks.binary_search_by_key(&index, |chunk| chunk.index) {
            Ok(at) => (at, false),
            Err(at) => {
                let chunk = Chunk {
                    index,
                    bytes: try_vec_zeroed(CHUNK)?,
                    medium: Medium::Same,
                    unflushed: 0,
                };
                self.chunks.try_reserve(1).map_err(|_| OutOfMemory)?;
                self.chunks.insert_within(at, chunk).map_err(|_| OutOfMemory)?;
                (at, true)
            }
        };
        self.chunks.get_mut(at).map(|chunk| (chunk, is_new)).ok_or(OutOfMemory)
    }

    /// Writes a range, of which `fill` provides the bytes from a position on.
    fn write(
        &mut self,
        offset: u64,
        len: usize,
        durability: Durability,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let is_cached = self.cache == WriteCache::Volatile && durability == Durability::Cached;
        for part in parts(offset, len) {
            let (chunk, is_new) = self.find_or_make(part.chunk).map_err(|_| BackendError::NoSpace)?;
            if is_cached {
                chunk.keep_medium(is_new).map_err(|_| BackendError::NoSpace)?;
            } else {
                chunk.fill_medium().map_err(|_| BackendError::NoSpace)?;
            }
            let Some(bytes) = chunk.bytes.get_mut(part.at..part.at + part.len) else {
                continue;
            };
            // The sectors count as written even if the copy ends early.
            let filled = fill(part.from, bytes);
            if is_cached {
                chunk.unflushed |= sectors(part.at, part.len);
            } else {
                chunk.write_through(part.at, part.len);
            }
            filled?;
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.flushes += 1;
        for chunk in &mut self.chunks {
            chunk.medium = Medium::Same;
            chunk.unflushed = 0;
        }
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), BackendError> {
        let end = offset.saturating_add(len);
        let first = offset / CHUNK as u64;
        let mut at = self.chunks.partition_point(|chunk| chunk.index < first);
        while let Some(chunk) = self.chunks.get_mut(at) {
            let start = chunk.index * CHUNK as u64;
            if start >= end {
                break;
            }
            if self.cache == WriteCache::None && offset <= start && end - start >= CHUNK as u64 {
                drop(self.chunks.take_at(at));
                continue;
            }
            // Both within the chunk.
            let from = usize::try_from(offset.saturating_sub(start))
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let to = usize::try_from(end - start).unwrap_or(CHUNK).min(CHUNK);
            if self.cache == WriteCache::Volatile {
                chunk.keep_medium(false).map_err(|_| BackendError::NoSpace)?;
                chunk.unflushed |= sectors(from, to.saturating_sub(from));
            }
            if let Some(bytes) = chunk.bytes.get_mut(from..to) {
                bytes.fill(0);
            }
            at += 1;
        }
        Ok(())
    }

    fn cut_power(&mut self, cut: PowerCut) {
        let mut random = match cut {
            PowerCut::LosesAll => None,
            PowerCut::LosesSome(seed) => Some(seed | 1),
        };
        for chunk in &mut self.chunks {
            let medium = core::mem::replace(&mut chunk.medium, Medium::Same);
            let unflushed = core::mem::take(&mut chunk.unflushed);
            let survivors = random
                .as_mut()
                .map_or(0, |state| u128::from(next(state)) << 64 | u128::from(next(state)));
            let old: &[u8] = match &medium {
                Medium::Same => continue,
                Medium::Empty => &[],
                Medium::Bytes(bytes) => bytes,
            };
            for (sector, bytes) in chunk.bytes.chunks_mut(SECTOR).enumerate() {
                if unflushed & !survivors & (1 << sector) != 0 {
                    match old.get(sector * SECTOR..(sector + 1) * SECTOR) {
                        Some(old) => bytes.copy_from_slice(old),
                        None => bytes.fill(0),
                    }
                }
            }
        }
    }
}

impl Chunk {
    /// Keeps what is on the medium, before something is written to the cache.
    fn keep_medium(&mut self, is_new: bool) -> Result<(), OutOfMemory> {
        if matches!(self.medium, Medium::Same) {
            self.medium = if is_new {
                Medium::Empty
            } else {
                Medium::Bytes(copy_of(&self.bytes)?)
            };
        }
        Ok(())
    }

    /// Makes room on the medium, if it differs from what is read.
    fn fill_medium(&mut self) -> Result<(), OutOfMemory> {
        if matches!(self.medium, Medium::Empty) {
            self.medium = Medium::Bytes(try_vec_zeroed(CHUNK)?);
        }
        Ok(())
    }

    /// Puts on the medium what was written past the cache.
    fn write_through(&mut self, at: usize, len: usize) {
        let Medium::Bytes(medium) = &mut self.medium else {
            return;
        };
        if let (Some(target), Some(source)) = (medium.get_mut(at..at + len), self.bytes.get(at..at + len)) {
            target.copy_from_slice(source);
        }
        self.unflushed &= !sectors(at, len);
    }
}

fn copy_of(bytes: &[u8]) -> Result<Vec<u8>, OutOfMemory> {
    let mut copy = try_vec_zeroed(bytes.len())?;
    copy.copy_from_slice(bytes);
    Ok(copy)
}

/// A bit for each sector of a chunk that a range touches.
const fn sectors(at: usize, len: usize) -> u128 {
    if len == 0 {
        return 0;
    }
    let (first, last) = (at / SECTOR, (at + len - 1) / SECTOR);
    (u128::MAX >> (SECTORS - 1 - last)) & (u128::MAX << first)
}

/// A small generator of numbers (xorshift), enough to choose sectors.
const fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl Backend for MemoryDisk {
    fn len_bytes(&self) -> u64 {
        self.with(|store| store.len)
    }

    fn read(&self, offset: u64, target: &RequestMemory<'_>) -> Result<(), BackendError> {
        self.with(|store| {
            store.check(offset, target.len() as u64)?;
            for part in parts(offset, target.len()) {
                match store
                    .find(part.chunk)
                    .and_then(|chunk| chunk.bytes.get(part.at..part.at + part.len))
                {
                    Some(bytes) => target.write_at(part.from, bytes)?,
                    None => {
                        for from in (0..part.len).step_by(ZEROS.len()) {
                            let zeros = ZEROS.get(..ZEROS.len().min(part.len - from)).unwrap_or_default();
                            target.write_at(part.from + from, zeros)?;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, source: &RequestMemory<'_>, durability: Durability) -> Result<(), BackendError> {
        self.with(|store| {
            store.check(offset, source.len() as u64)?;
            store.write(offset, source.len(), durability, |from, target| {
                Ok(source.read_at(from, target)?)
            })
        })
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.with(Store::flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError> {
        self.with(|store| {
            store.check(offset, len)?;
            store.discard(offset, len)
        })
    }
}

impl core::fmt::Debug for MemoryDisk {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("MemoryDisk")
            .field("len_bytes", &self.len_bytes())
            .field("allocated_bytes", &self.allocated_bytes())
            .finish_non_exhaustive()
    }
}
