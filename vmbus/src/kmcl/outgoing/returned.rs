//! Memory of incoming packets that were completed, on its way back to the receiving side: [`Returned`].

use alloc::vec::Vec;

use crate::fallible::{OutOfMemory, ReservedVec, try_vec_with_capacity};
use crate::kmcl::receive::Slot;

/// Memory of packets that are completed, until the receiving side runs out of it: so a completion takes one lock, not two.
pub(crate) struct Returned {
    slots: Vec<Slot>,
    /// The receiving side does not read on for want of memory, or at its quota: the next completion brings `process` back.
    reader_waits: bool,
}

impl Returned {
    /// Makes an empty one with room for all that there are.
    pub(super) fn new(slots: u32) -> Result<Self, OutOfMemory> {
        Ok(Self {
            slots: try_vec_with_capacity(slots as usize)?,
            reader_waits: false,
        })
    }

    /// Makes sure that there is room for so many in all.
    pub(super) fn reserve(&mut self, slots: u32) -> Result<(), OutOfMemory> {
        let more = (slots as usize).saturating_sub(self.slots.len());
        self.slots.try_reserve_exact(more).map_err(|_| OutOfMemory)
    }

    /// Keeps memory for the receiving side.
    #[inline]
    pub(crate) fn put(&mut self, body: Slot) {
        let kept = self.slots.push_within(body);
        debug_assert!(kept.is_ok(), "slots come back once");
    }

    /// Returns what is to go back.
    #[inline]
    pub(crate) const fn slots(&mut self) -> &mut Vec<Slot> {
        &mut self.slots
    }

    /// Says whether the receiving side waits for a completion.
    #[inline]
    pub(crate) const fn set_reader_waits(&mut self, waits: bool) {
        self.reader_waits = waits;
    }

    /// Returns true if it does and has not been told of one: to be told now.
    #[inline]
    pub(crate) const fn wake_reader(&mut self) -> bool {
        core::mem::replace(&mut self.reader_waits, false)
    }

    /// Returns true if the receiving side may read on, with memory that came back behind what had waited in line. Told once: whether
    /// that helped, the next look at the ring finds out.
    #[inline]
    pub(crate) const fn take_news(&mut self) -> bool {
        let is_there = self.has_news();
        self.reader_waits &= !is_there;
        is_there
    }

    #[inline]
    pub(super) const fn has_news(&self) -> bool {
        self.reader_waits && !self.slots.is_empty()
    }
}
