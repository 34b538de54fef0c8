//! Memory that rests until the other end gives it up: [`Parked`], and what it keeps along with it: [`Kept`].

use alloc::boxed::Box;
use core::mem;

use super::gpadl::GpadlMemory;

/// Memory that the other end may have as long as it has the rings of a channel, without a number of its own: what requests have
/// lent. Dropped when the rings are given up.
pub(crate) struct Kept {
    memory: Box<dyn Send + Sync>,
    blocks: u64,
}

impl Kept {
    pub(crate) fn new(memory: Box<dyn Send + Sync>, blocks: u64) -> Self {
        Self { memory, blocks }
    }

    /// Returns how many blocks of memory it is.
    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Leaves it to the other end for good.
    pub(super) fn lose(self) {
        mem::forget(self.memory);
    }
}

/// Memory of a GPADL that is kept from use.
pub(super) struct Parked {
    memory: Box<dyn GpadlMemory>,
    kept: Option<Kept>,
}

impl Parked {
    pub(super) const fn new(memory: Box<dyn GpadlMemory>, kept: Option<Kept>) -> Self {
        Self { memory, kept }
    }

    /// Keeps something along with it, if it does not already: then that comes back.
    pub(super) fn keep(&mut self, kept: Kept) -> Option<Kept> {
        match &self.kept {
            None => {
                self.kept = Some(kept);
                None
            }
            Some(_) => Some(kept),
        }
    }

    /// Returns how many blocks of memory it is.
    pub(super) fn blocks(&self) -> u64 {
        self.kept.as_ref().map_or(1, |kept| kept.blocks.saturating_add(1))
    }

    /// Leaves it to the other end for good.
    pub(super) fn lose(self) {
        mem::forget(self.memory);
        if let Some(kept) = self.kept {
            kept.lose();
        }
    }
}
