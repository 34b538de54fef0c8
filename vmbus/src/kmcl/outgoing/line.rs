//! What waits in line for room in the ring: [`Line`].

use alloc::collections::VecDeque;

use crate::fallible::{OutOfMemory, ReservedQueue};
use crate::kmcl::Context;
use crate::kmcl::packet::PacketMemory;
use crate::kmcl::receive::Slot;
use crate::kmcl::slab::RequestId;

/// What waits in line for room in the ring.
pub(super) enum Queued<C: Context> {
    /// A request; its packet lies in the table.
    Request(RequestId),
    /// A packet that asks for no completion.
    Notice(PacketMemory<C>),
    /// The answer to the packet that lent its memory, which holds this many bytes of it.
    Completion(Slot, usize),
}

/// The line, with room for all that may stand in it.
pub(super) struct Line<C: Context>(VecDeque<Queued<C>>);

impl<C: Context> Line<C> {
    /// Makes a line with room for `len`.
    pub(super) fn with_room(len: usize) -> Result<Self, OutOfMemory> {
        let mut line = Self(VecDeque::new());
        line.reserve(len)?;
        Ok(line)
    }

    /// Makes sure that there is room for `len` in all.
    pub(super) fn reserve(&mut self, len: usize) -> Result<(), OutOfMemory> {
        let more = len.saturating_sub(self.0.len());
        self.0.try_reserve_exact(more).map_err(|_| OutOfMemory)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.0.len() < self.0.capacity()
    }

    /// Puts something at the end.
    pub(super) fn join(&mut self, queued: Queued<C>) {
        let kept = self.0.push_back_within(queued);
        debug_assert!(
            kept.is_ok(),
            "there is room for some packets of ours, and for each of the peer's"
        );
    }

    pub(super) fn first(&self) -> Option<&Queued<C>> {
        self.0.front()
    }

    pub(super) fn first_mut(&mut self) -> Option<&mut Queued<C>> {
        self.0.front_mut()
    }

    /// Takes the first one.
    pub(super) fn take_first(&mut self) -> Option<Queued<C>> {
        self.0.pop_front()
    }

    /// Takes a request out, wherever it stands.
    pub(super) fn remove(&mut self, id: RequestId) {
        let is_it = |queued: &Queued<C>| matches!(queued, Queued::Request(other) if *other == id);
        if let Some(place) = self.0.iter().position(is_it) {
            self.0.remove(place);
        }
    }
}
