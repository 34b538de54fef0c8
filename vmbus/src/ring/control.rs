//! The control page: the words through which the two ends of a ring talk.

use core::sync::atomic::{AtomicU32 as Reserved, Ordering::Relaxed as RELAXED};

use super::sync::{AtomicU32, Ordering};

/// Feature bit 0: this ring's producer tells how much room it waits for, and both sides answer such waits with a signal.
pub(super) const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// The words at the start of a ring's first page (`hv_ring_buffer`).
///
/// The peer may change each of them at any time, so nothing that is read here is trusted.
#[repr(C)]
#[derive(Debug)]
pub struct Control {
    /// Where the producer writes next, from the start of the data, in bytes.
    pub(super) write_index: AtomicU32,
    /// Where the consumer reads next.
    pub(super) read_index: AtomicU32,
    /// Not zero: the consumer does not want to be signalled.
    pub(super) interrupt_mask: AtomicU32,
    /// Not zero: the producer waits for this much room.
    pub(super) pending_send_size: AtomicU32,
    _reserved: [Reserved; 12],
    /// Bits that the producer sets.
    pub(super) features: AtomicU32,
}

#[cfg(not(loom))]
const _: () = {
    assert!(core::mem::offset_of!(Control, write_index) == 0);
    assert!(core::mem::offset_of!(Control, read_index) == 4);
    assert!(core::mem::offset_of!(Control, interrupt_mask) == 8);
    assert!(core::mem::offset_of!(Control, pending_send_size) == 12);
    assert!(core::mem::offset_of!(Control, features) == 64);
};

impl Control {
    /// A page of zeroes, for rings in private memory.
    #[cfg(all(test, loom))]
    pub(super) fn zeroed() -> Self {
        Self {
            write_index: AtomicU32::new(0),
            read_index: AtomicU32::new(0),
            interrupt_mask: AtomicU32::new(0),
            pending_send_size: AtomicU32::new(0),
            _reserved: [const { Reserved::new(0) }; 12],
            features: AtomicU32::new(0),
        }
    }

    /// Makes this the control page of an empty ring, whatever the page held before.
    ///
    /// Right only before the peer knows of the ring: it resets the peer's words, too.
    pub(super) fn initialise(&self, features: u32) {
        self.write_index.store(0, Ordering::Relaxed);
        self.read_index.store(0, Ordering::Relaxed);
        self.interrupt_mask.store(0, Ordering::Relaxed);
        self.pending_send_size.store(0, Ordering::Relaxed);
        for word in &self._reserved {
            word.store(0, RELAXED);
        }
        // Release: whoever learns of the ring through this word or a later message sees the zeroes above.
        self.features.store(features, Ordering::Release);
    }
}
