//! A disk: [`Disk`], what it is, and what can be asked of it.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::link::{Inner, Unit};
use super::operation::{Operation, Plan};
use super::probe::copy_buffer;
use super::protocol::{Address, Direction, TIME_OUT_SECONDS};
use super::scsi::{Cdb, DeviceKind, Identity, Text, UnmapLimits};
use super::transfer::{Lend, Transfer};
use super::{Error, Failed};
use crate::Deadline;
use crate::fallible::{OutOfMemory, Shared};
use crate::memory::{DmaBuffer, Mdl};

/// How long those who do not say otherwise wait for a disk: as long as the host may take, and a little more. Storage in a cloud
/// may stand still for minutes, and its host always answers in the end.
pub const PATIENCE: Deadline = Deadline::seconds(TIME_OUT_SECONDS as u64 + 10);

/// The number of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

/// What is done with blocks and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    /// Past the disk's cache.
    WriteThrough,
}

bitflags::bitflags! {
    /// What a disk is like.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Flags: u8 {
        const WRITE_PROTECTED = 1;
        const REMOVABLE = 2;
        const WRITE_THROUGH = 4;
    }
}

/// What a disk says of itself; it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// What it is.
    pub kind: DeviceKind,
    /// Who made it.
    pub vendor: Text,
    /// What they call it.
    pub product: Text,
    /// In which version.
    pub revision: Text,
    /// Its serial number, if it has one.
    pub serial: Option<Text>,
    /// Its number in the world, if it has one.
    pub identity: Option<Identity>,
    /// Bytes of a block of the medium below: writes that are multiples of it are faster.
    pub physical_block_len: u32,
}

/// What a look at a unit has found.
pub(super) struct Found {
    pub(super) address: Address,
    pub(super) info: Info,
    pub(super) block_shift: u8,
    pub(super) blocks: u64,
    pub(super) flags: Flags,
    pub(super) unmap: UnmapLimits,
    /// The longest transfer in blocks; 0: no limit of its own.
    pub(super) max_blocks: u32,
}

struct State {
    unit: Shared<Unit>,
    info: Info,
    block_shift: u8,
    unmap: UnmapLimits,
    blocks: AtomicU64,
    flags: AtomicU8,
}

/// A disk of the machine. Clones are handles of the same one. It stays valid when the disk or its controller is taken away:
/// then each call answers [`Error::DiskGone`] or [`Error::ControllerGone`].
///
/// Requests may be made from several tasks at the same time, and are done in any order: who needs an order waits. What was
/// written is durable when a [`flush`](Self::flush) that began after the write's end has succeeded.
///
/// There are three forms of each request: one that waits, with a deadline; `start_*`, whose [`Transfer`] is awaited by `async`
/// code or waited for later, so that one task has many in flight; and, for plain slices, one that copies.
#[derive(Clone)]
pub struct Disk(Shared<State>);

impl Disk {
    pub(super) fn new(inner: &Shared<Inner>, found: Found) -> Result<Self, OutOfMemory> {
        let mut unit = Unit::new(inner.clone(), found.address);
        if found.max_blocks != 0 {
            let max = u64::from(found.max_blocks) << found.block_shift;
            unit.max_transfer = u32::try_from(max).map_or(unit.max_transfer, |max| max.min(unit.max_transfer));
        }
        Ok(Self(Shared::try_new(State {
            unit: Shared::try_new(unit)?,
            info: found.info,
            block_shift: found.block_shift,
            unmap: found.unmap,
            blocks: AtomicU64::new(found.blocks),
            flags: AtomicU8::new(found.flags.bits()),
        })?))
    }

    /// Whether both are handles of the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Shared::is_same(&self.0, &other.0)
    }

    /// Whether what was found is this disk: it has the same number in the world, or nothing tells them apart.
    pub(super) fn is_same(&self, found: &Found) -> bool {
        fn may_equal<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        let (info, other) = (&self.0.info, &found.info);
        self.0.block_shift == found.block_shift
            && info.kind == other.kind
            && info.vendor == other.vendor
            && info.product == other.product
            && may_equal(info.serial, other.serial)
            && may_equal(info.identity, other.identity)
            && self.is_listed()
    }

    /// Takes over what may change; returns true if the disk has another size.
    pub(super) fn update(&self, found: &Found) -> bool {
        self.0.flags.store(found.flags.bits(), Ordering::Relaxed);
        self.0.blocks.swap(found.blocks, Ordering::Relaxed) != found.blocks
    }

    pub(super) fn note_gone(&self) {
        self.0.unit.is_gone.store(true, Ordering::Release);
    }

    fn is_listed(&self) -> bool {
        !self.0.unit.is_gone.load(Ordering::Acquire)
    }

    fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.0.flags.load(Ordering::Relaxed))
    }

    /// Returns what the disk says of itself.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.0.info
    }

    /// Returns where it is on its controller.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.unit.address
    }

    /// Returns how many blocks it has. May change while the machine runs.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.0.blocks.load(Ordering::Relaxed)
    }

    /// Returns the bytes of a block, a power of two from 512 on.
    #[must_use]
    pub fn block_len(&self) -> u32 {
        1 << self.0.block_shift
    }

    /// Returns its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks().saturating_mul(u64::from(self.block_len()))
    }

    /// Returns true if the disk said that it may not be written.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.flags().contains(Flags::WRITE_PROTECTED)
    }

    /// Returns true if the disk said that it can make single writes durable: [`write_through`](Self::write_through).
    #[must_use]
    pub fn can_write_through(&self) -> bool {
        self.flags().contains(Flags::WRITE_THROUGH)
    }

    /// Returns true if its medium can be taken out.
    #[must_use]
    pub fn is_removable(&self) -> bool {
        self.flags().contains(Flags::REMOVABLE)
    }

    /// Returns whether blocks can be discarded, and in which units: `None` if not.
    #[must_use]
    pub fn discard_granularity(&self) -> Option<u32> {
        (self.0.unmap.max_blocks != 0).then(|| self.0.unmap.granularity.max(1))
    }

    /// Returns false once the disk or its controller was taken away.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.is_listed() && self.0.unit.inner.channel.gone().is_none()
    }

    fn check_present(&self) -> Result<(), Error> {
        if self.0.unit.inner.channel.gone().is_some() {
            Err(Error::ControllerGone)
        } else if !self.is_listed() {
            Err(Error::DiskGone)
        } else {
            Ok(())
        }
    }

    fn check_blocks(&self, first: Lba, count: u64) -> Result<(), Error> {
        self.check_present()?;
        match first.0.checked_add(count) {
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }

    fn check_bytes(&self, first: Lba, len: usize) -> Result<(), Error> {
        let blocks = len as u64 >> self.0.block_shift;
        if blocks << self.0.block_shift != len as u64 {
            return Err(Error::Unaligned);
        }
        self.check_blocks(first, blocks)
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.is_write_protected() {
            Err(Error::WriteProtected)
        } else {
            Ok(())
        }
    }

    fn start(&self, checked: Result<(), Error>, plan: Plan, memory: Mdl, len: u64) -> Operation {
        match checked {
            Ok(()) => Operation::start(&self.0.unit, plan, memory, len),
            Err(error) => Operation::failed(&self.0.unit, memory, error),
        }
    }

    fn start_io(&self, first: Lba, memory: Mdl, access: Access) -> Operation {
        let (lba, block_shift, len) = (first.0, self.0.block_shift, memory.len());
        let mut checked = self.check_bytes(first, len);
        let is_through = access == Access::WriteThrough;
        let plan = if access == Access::Read {
            Plan::Read { lba, block_shift }
        } else {
            checked = checked.and_then(|()| self.check_writable());
            if is_through && !self.can_write_through() {
                checked = checked.and(Err(Error::Unsupported));
            }
            Plan::Write {
                lba,
                block_shift,
                is_through,
            }
        };
        self.start(checked, plan, memory, len as u64)
    }

    /// Reads from block `first` on, as much as `buffer` is long, straight into it. The buffer comes back.
    ///
    /// The buffer may begin anywhere in a page; its length is a multiple of the block. An [`Mdl`] of several parts is split where
    /// one does not end, or the next does not begin, at a page: that has to be at a whole block. Nothing is copied.
    ///
    /// # Errors
    ///
    /// [`Failed`], with the buffer if the host does not have it any more, and an [`Error`].
    pub fn read<B: Lend>(&self, first: Lba, buffer: B, deadline: Deadline) -> Result<B, Failed<B>> {
        self.start_read(first, buffer).wait_here(deadline)
    }

    /// Writes all of `buffer` from block `first` on, straight from it, under the rules of [`read`](Self::read). The buffer comes
    /// back. The data is durable after a [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub fn write<B: Lend>(&self, first: Lba, buffer: B, deadline: Deadline) -> Result<B, Failed<B>> {
        self.start_write(first, buffer).wait_here(deadline)
    }

    /// As [`write`](Self::write), and the data is durable when this returns ("force unit access"): no flush is needed for it.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write); [`Error::Unsupported`] if the disk does not [offer](Self::can_write_through) it: write and
    /// [`flush`](Self::flush) then.
    pub fn write_through<B: Lend>(&self, first: Lba, buffer: B, deadline: Deadline) -> Result<B, Failed<B>> {
        self.start_write_through(first, buffer).wait_here(deadline)
    }

    /// Makes durable all that was written: returns when the device says that it is. If it cannot, that is an error.
    ///
    /// # Errors
    ///
    /// [`Error`]: nothing may be taken for durable then.
    pub fn flush(&self, deadline: Deadline) -> Result<(), Error> {
        Ok(self.start_flush().wait(deadline)?)
    }

    /// Tells the device that it need not keep these blocks. What they read as afterwards is not defined, until they are written
    /// again.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the disk offers no such thing, and the others.
    pub fn discard(&self, first: Lba, count: u64, deadline: Deadline) -> Result<(), Error> {
        Ok(self.start_discard(first, count).wait(deadline)?)
    }

    /// Begins a [`read`](Self::read).
    pub fn start_read<B: Lend>(&self, first: Lba, buffer: B) -> Transfer<B> {
        Transfer::new(self.start_io(first, buffer.into_mdl(), Access::Read))
    }

    /// Begins a [`write`](Self::write).
    pub fn start_write<B: Lend>(&self, first: Lba, buffer: B) -> Transfer<B> {
        Transfer::new(self.start_io(first, buffer.into_mdl(), Access::Write))
    }

    /// Begins a [`write_through`](Self::write_through).
    pub fn start_write_through<B: Lend>(&self, first: Lba, buffer: B) -> Transfer<B> {
        Transfer::new(self.start_io(first, buffer.into_mdl(), Access::WriteThrough))
    }

    /// Begins a [`flush`](Self::flush).
    pub fn start_flush(&self) -> Transfer {
        let plan = Plan::Command {
            cdb: Cdb::synchronize_cache(),
            direction: Direction::None,
        };
        Transfer::new(self.start(self.check_present(), plan, Mdl::empty(), 0))
    }

    /// Begins a [`discard`](Self::discard).
    pub fn start_discard(&self, first: Lba, count: u64) -> Transfer {
        let max_blocks = self.0.unmap.max_blocks;
        let checked = self
            .check_blocks(first, count)
            .and_then(|()| self.check_writable())
            .and(if max_blocks == 0 {
                Err(Error::Unsupported)
            } else {
                Ok(())
            });
        let plan = Plan::Unmap {
            lba: first.0,
            max_blocks,
        };
        Transfer::new(self.start(checked, plan, Mdl::empty(), count))
    }

    /// Reads from block `first` on into `target`, whose length is a multiple of the block. Copies once, through buffers of the
    /// controller.
    ///
    /// # Errors
    ///
    /// [`Error`]; what was read until then is in `target`.
    pub fn read_into(&self, first: Lba, target: &mut [u8], deadline: Deadline) -> Result<(), Error> {
        self.check_bytes(first, target.len())?;
        self.through_buffers(target.len(), deadline, |range, buffer, deadline| {
            let buffer = self.read(self.behind(first, range.start), buffer, deadline)?;
            let target = target.get_mut(range).ok_or(Error::OutOfRange)?;
            buffer.read_at(0, target).map_err(|_| Error::OutOfRange)
        })
    }

    /// Writes `source`, whose length is a multiple of the block, from block `first` on. Copies once, through buffers of the
    /// controller.
    ///
    /// # Errors
    ///
    /// [`Error`]; what was written until then is written.
    pub fn write_from(&self, first: Lba, source: &[u8], deadline: Deadline) -> Result<(), Error> {
        self.check_bytes(first, source.len())?;
        self.through_buffers(source.len(), deadline, |range, buffer, deadline| {
            let lba = self.behind(first, range.start);
            let source = source.get(range).ok_or(Error::OutOfRange)?;
            buffer.write_at(0, source).map_err(|_| Error::OutOfRange)?;
            drop(self.write(lba, buffer, deadline)?);
            Ok(())
        })
    }

    /// The block that lies so many bytes behind `first`.
    fn behind(&self, first: Lba, bytes: usize) -> Lba {
        Lba(first.0.saturating_add(bytes as u64 >> self.0.block_shift))
    }

    /// Calls `each` with pieces of `len` bytes and a buffer for each; the deadline counts for all of it.
    fn through_buffers(
        &self,
        len: usize,
        deadline: Deadline,
        mut each: impl FnMut(core::ops::Range<usize>, DmaBuffer, Deadline) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let inner = &self.0.unit.inner;
        let deadline = deadline.fixed(inner.channel.now());
        let block_len = self.block_len() as usize;
        let most = (inner.copy_len >> self.0.block_shift << self.0.block_shift).max(block_len);
        let mut from = 0_usize;
        while from < len {
            let to = from.saturating_add(most).min(len);
            let buffer = copy_buffer(inner, to.saturating_sub(from), deadline)?;
            each(from..to, buffer, deadline)?;
            from = to;
        }
        Ok(())
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Info { vendor, product, .. } = &self.0.info;
        let bytes = self.size_bytes();
        let (size, unit) = match bytes {
            bytes if bytes >= 10 << 40 => (bytes >> 40, "TiB"),
            bytes if bytes >= 10 << 30 => (bytes >> 30, "GiB"),
            bytes => (bytes >> 20, "MiB"),
        };
        write!(
            formatter,
            "{vendor} {product}, {size} {unit} in blocks of {}, target {}, LUN {}",
            self.block_len(),
            self.address().target,
            self.address().lun
        )
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Disk({self})")
    }
}
