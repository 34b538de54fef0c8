//! The atomics that rings are built on: those of `core`, or loom's in a model.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, Ordering, fence};

/// Stores `value` and then lets no later load overtake the store.
///
/// This is the one step of a ring that needs a full barrier: each side publishes something and then looks at what the other
/// side published, and at least one of the two must see the other's. On x86-64 one locked exchange is both the store and the
/// barrier, and sequentially consistent loads are plain loads. Elsewhere, and where loom checks it, it is a store and a fence.
#[inline]
pub(super) fn publish(word: &AtomicU32, value: u32) {
    if cfg!(all(target_arch = "x86_64", not(loom))) {
        let _ = word.swap(value, Ordering::SeqCst);
    } else {
        // Release: pairs with the peer's acquire load of the index before it touches the data.
        word.store(value, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

/// Stores `value` in front of a signal to the peer, which comes in any case: there is nothing that a later load could miss. The
/// signal itself comes behind the store: on x86-64 a hypercall and a locked instruction are barriers, elsewhere this has one.
#[inline]
pub(super) fn publish_and_signal(word: &AtomicU32, value: u32) {
    // Release: orders the data in front of the index.
    word.store(value, Ordering::Release);
    if cfg!(not(any(target_arch = "x86_64", loom))) {
        fence(Ordering::SeqCst);
    }
}

/// Stores `value` as [`publish`] does, for a peer on this processor: what runs here later sees all that was stored before,
/// whatever the processor does, so that only the compiler is to keep the order.
#[inline]
#[cfg(not(loom))]
pub(super) fn publish_here(word: &AtomicU32, value: u32) {
    // Release: orders the data in front of the index for the compiler, too.
    word.store(value, Ordering::Release);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// Loads what the peer may have published, after [`publish`] or [`fence`].
///
/// Acquire at least: the peer's data is visible once its index is. Sequentially consistent, because after [`publish`] it may
/// have no fence in front of it.
#[inline]
pub(super) fn observe(word: &AtomicU32) -> u32 {
    word.load(Ordering::SeqCst)
}
