//! A logical unit: [`Disk`], a backend with what SCSI commands tell about it.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Backend, WriteCache};
use crate::fallible::{OutOfMemory, Shared, try_box};
use crate::protocol::Guid;

/// What a disk does with blocks that its user gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Provisioning {
    /// It is not to be asked: no UNMAP, and no pages that tell of it.
    #[default]
    Full,
    /// It takes them back, and they are zero from then on.
    Thin {
        /// Blocks that one UNMAP may name at the most.
        max_blocks: u32,
        /// Ranges that one UNMAP may have at the most.
        max_ranges: u32,
        /// Blocks that are given up together, at least.
        granularity: u32,
    },
}

impl Provisioning {
    /// A thin disk with wide limits.
    pub const THIN: Self = Self::Thin {
        max_blocks: u32::MAX,
        max_ranges: 256,
        granularity: 1,
    };
}

/// What a transfer of no blocks is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZeroLength {
    /// An error, as some hosts do.
    #[default]
    Refused,
    /// Success, as SBC has it.
    Accepted,
}

/// What a disk tells about itself.
#[derive(Clone, Copy, Debug)]
pub struct DiskConfig {
    /// Bytes of a block: 512 or 4096.
    pub block_bytes: u32,
    /// Blocks of a physical block, as a power of two: 3 for disks of 512-byte blocks that are 4096 bytes inside.
    pub physical_exponent: u8,
    /// The vendor's name.
    pub vendor: [u8; 8],
    /// The model's name.
    pub product: [u8; 16],
    /// The revision.
    pub revision: [u8; 4],
    /// The serial number, of which trailing zeros do not count; none if all are zero.
    pub serial: [u8; 32],
    /// What makes the disk known among all others.
    pub id: Guid,
    /// What it does with blocks that are given up.
    pub provisioning: Provisioning,
    /// Whether it says that it has a write cache; a backend that has one should say so here, too.
    pub write_cache: WriteCache,
    /// What it answers to transfers of no blocks.
    pub zero_length: ZeroLength,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            block_bytes: 512,
            physical_exponent: 0,
            vendor: *b"Msft    ",
            product: *b"Virtual Disk    ",
            revision: *b"1.0 ",
            serial: [0; 32],
            id: Guid::literal("d15c0000-0000-4000-8000-000000000000"),
            provisioning: Provisioning::Full,
            write_cache: WriteCache::None,
            zero_length: ZeroLength::Refused,
        }
    }
}

struct Inner {
    config: DiskConfig,
    backend: Box<dyn Backend>,
    is_write_protected: AtomicBool,
    is_stopped: AtomicBool,
    /// Code and qualifier of a unit attention that nobody has been told of, with bit 16 set; 0 for none.
    attention: AtomicU32,
}

/// A disk for a controller. Clones are handles of the same one.
#[derive(Clone)]
pub struct Disk {
    inner: Shared<Inner>,
}

impl Disk {
    /// Makes a disk of a backend.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(backend: impl Backend + 'static, config: DiskConfig) -> Result<Self, OutOfMemory> {
        let backend: Box<dyn Backend> = try_box(backend)?;
        Ok(Self {
            inner: Shared::try_new(Inner {
                config,
                backend,
                is_write_protected: AtomicBool::new(false),
                is_stopped: AtomicBool::new(false),
                attention: AtomicU32::new(0),
            })?,
        })
    }

    /// Returns what the disk tells about itself.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.inner.config
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    pub(super) fn block_bytes(&self) -> u64 {
        u64::from(self.inner.config.block_bytes.max(1))
    }

    /// Returns how many blocks the disk has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.backend().len_bytes() / self.block_bytes()
    }

    /// Refuses writes from now on, or takes them again.
    pub fn set_write_protected(&self, is_write_protected: bool) {
        self.inner
            .is_write_protected
            .store(is_write_protected, Ordering::Relaxed);
    }

    /// Returns true if writes are refused.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.inner.is_write_protected.load(Ordering::Relaxed)
    }

    pub(super) fn set_stopped(&self, is_stopped: bool) {
        self.inner.is_stopped.store(is_stopped, Ordering::Relaxed);
    }

    /// Returns true if the client has stopped the disk (START STOP UNIT): it is not ready until it is started again.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inner.is_stopped.load(Ordering::Relaxed)
    }

    /// Has the next command that is told of such things fail with a unit attention: 0x29, 0 after power on or reset, say.
    pub fn raise_attention(&self, code: u8, qualifier: u8) {
        let attention = 1 << 16 | u32::from(code) << 8 | u32::from(qualifier);
        self.inner.attention.store(attention, Ordering::Relaxed);
    }

    /// Says that the backend's size has changed, by a unit attention.
    pub fn capacity_changed(&self) {
        self.raise_attention(0x2A, 0x09);
    }

    /// Takes the unit attention that nobody has been told of: code and qualifier.
    pub(super) fn take_attention(&self) -> Option<(u8, u8)> {
        if self.inner.attention.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.inner.attention.swap(0, Ordering::Relaxed).to_le_bytes() {
            [qualifier, code, 1, _] => Some((code, qualifier)),
            _ => None,
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Disk")
            .field("blocks", &self.blocks())
            .field("block_bytes", &self.inner.config.block_bytes)
            .finish_non_exhaustive()
    }
}
