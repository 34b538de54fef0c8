//! The channel's packets as long as they are not on their way: [`Stock`].

use alloc::vec::Vec;

use crate::fallible::{OutOfMemory, ReservedVec, TryPush, try_vec_with_capacity};
use crate::kmcl::Context;
use crate::kmcl::counters::{LiveCounters, add};
use crate::kmcl::packet::PacketMemory;

/// Packets that are free, and those that went out late and whose routine is to be called. It knows how many of the callers' own are on their
/// way, so that there is room for all.
pub(crate) struct Stock<C: Context> {
    free: Vec<PacketMemory<C>>,
    /// Packets that went out without asking for a completion, whose routine is to be called.
    placed: Vec<PacketMemory<C>>,
    /// How many the channel has.
    packets: u32,
    /// Packets in the caller's memory that were sent and whose routine was not called. At most as many as the channel has of its
    /// own: with this, there is room in every line for all that may be in it.
    callers: u32,
}

impl<C: Context> Stock<C> {
    /// Makes an empty stock for `packets` of the channel's, and as many of callers.
    pub(super) fn new(packets: u32) -> Result<Self, OutOfMemory> {
        Ok(Self {
            free: try_vec_with_capacity(packets as usize)?,
            placed: try_vec_with_capacity((packets as usize).saturating_mul(2))?,
            packets,
            callers: 0,
        })
    }

    /// Adds one of the channel's packets.
    pub(crate) fn add(&mut self, body: PacketMemory<C>) -> Result<(), OutOfMemory> {
        self.free.try_push(body)
    }

    /// Returns how many packets the channel has.
    pub(super) const fn packets(&self) -> u32 {
        self.packets
    }

    /// Takes a free packet.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<PacketMemory<C>> {
        self.free.pop()
    }

    /// Puts a packet back among the free ones; one in the caller's memory is returned.
    pub(crate) fn put_back(&mut self, mut body: PacketMemory<C>) -> Option<PacketMemory<C>> {
        self.discount(&mut body);
        if !body.of_pool {
            return Some(body);
        }
        body.reset();
        self.free.push_within(body).err()
    }

    /// Returns true if all of the channel's packets are free.
    #[inline]
    pub(super) const fn is_whole(&self) -> bool {
        self.free.len() == self.packets as usize
    }

    /// Takes note that a packet goes out; false if too many of the caller's own are on their way.
    pub(crate) fn count(&mut self, body: &mut PacketMemory<C>, counters: &LiveCounters) -> bool {
        if body.of_pool {
            return true;
        }
        if self.callers >= self.packets {
            add(&counters.refused, 1);
            return false;
        }
        self.callers = self.callers.wrapping_add(1);
        body.is_counted = true;
        true
    }

    /// Takes note that a packet is not on its way any more.
    pub(crate) fn discount(&mut self, body: &mut PacketMemory<C>) {
        if core::mem::take(&mut body.is_counted) {
            self.callers = self.callers.saturating_sub(1);
        }
    }

    /// Keeps a packet that went out late, for its routine.
    pub(super) fn put_placed(&mut self, body: PacketMemory<C>) {
        let kept = self.placed.push_within(body);
        debug_assert!(kept.is_ok(), "reserved for all packets");
    }

    /// Takes the next one of these.
    pub(super) fn take_placed(&mut self) -> Option<PacketMemory<C>> {
        self.placed.pop()
    }

    /// Returns true if packets that went out late are to be collected.
    pub(crate) const fn has_placed(&self) -> bool {
        !self.placed.is_empty()
    }
}
