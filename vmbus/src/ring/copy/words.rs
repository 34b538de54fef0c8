//! The portable copies: relaxed atomics, 64 bits at a time where aligned, else bytes.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Stores one word.
///
/// # Safety
///
/// `dst` is valid for writes of 8 bytes, is aligned to 8, and is only ever reached by atomics and this module's parent.
#[inline]
pub(in crate::ring) unsafe fn store(dst: *mut u64, word: u64) {
    // SAFETY: valid and aligned as this function's caller promises; all others use atomics, too.
    let dst = unsafe { AtomicU64::from_ptr(dst) };
    dst.store(word, Ordering::Relaxed);
}

/// Loads one word.
///
/// # Safety
///
/// `src` is valid for reads of 8 bytes, is aligned to 8, and is only ever reached by atomics and this module's parent.
#[inline]
pub(in crate::ring) unsafe fn load(src: *const u64) -> u64 {
    // SAFETY: valid and aligned as this function's caller promises; all others use atomics, too. Nothing is stored through it.
    let src = unsafe { AtomicU64::from_ptr(src.cast_mut()) };
    src.load(Ordering::Relaxed)
}

/// [`super::to_shared`] by words.
///
/// # Safety
///
/// As for [`super::to_shared`].
#[inline]
pub(in crate::ring) unsafe fn to_shared(dst: *mut u8, src: *const u8, len: usize) {
    let mut at = 0;
    while at < len {
        // SAFETY: `at` is a multiple of 8 below `len`, which is one, too: 8 bytes are left in both.
        let from = unsafe { src.add(at) };
        // SAFETY: as above.
        let to = unsafe { dst.add(at) };
        // SAFETY: private, initialised, 8 bytes left; any alignment will do.
        let word = unsafe { from.cast::<u64>().read_unaligned() };
        // SAFETY: `dst` is aligned and `at` a multiple of 8.
        unsafe { store(to.cast(), word) };
        at = at.wrapping_add(WORD);
    }
}

/// [`super::from_shared`] by words.
///
/// # Safety
///
/// As for [`super::from_shared`].
#[inline]
pub(in crate::ring) unsafe fn from_shared(dst: *mut u8, src: *const u8, len: usize) {
    let mut at = 0;
    while at < len {
        // SAFETY: `at` is a multiple of 8 below `len`, which is one, too: 8 bytes are left in both.
        let from = unsafe { src.add(at) };
        // SAFETY: as above.
        let to = unsafe { dst.add(at) };
        // SAFETY: `src` is aligned and `at` a multiple of 8.
        let word = unsafe { load(from.cast()) };
        // SAFETY: private, 8 bytes left, aligned.
        unsafe { to.cast::<u64>().write(word) };
        at = at.wrapping_add(WORD);
    }
}

/// Copies any number of bytes to any place in shared memory.
///
/// # Safety
///
/// As for [`super::to_shared`], without the conditions on alignment and length.
pub(in crate::ring) unsafe fn bytes_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: `at` is below `len`.
        let from = unsafe { src.add(at) };
        // SAFETY: as above.
        let to = unsafe { dst.add(at) };
        // SAFETY: private and initialised.
        let byte = unsafe { from.read() };
        // SAFETY: valid for writes, and all others use atomics, too.
        let to = unsafe { AtomicU8::from_ptr(to) };
        to.store(byte, Ordering::Relaxed);
    }
}

/// Copies any number of bytes from any place in shared memory.
///
/// # Safety
///
/// As for [`super::from_shared`], without the conditions on alignment and length.
pub(in crate::ring) unsafe fn bytes_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: `at` is below `len`.
        let from = unsafe { src.add(at) };
        // SAFETY: as above.
        let to = unsafe { dst.add(at) };
        // SAFETY: valid for reads, all others use atomics, too, and nothing is stored through it.
        let from = unsafe { AtomicU8::from_ptr(from.cast_mut()) };
        // SAFETY: private and valid for writes.
        unsafe { to.write(from.load(Ordering::Relaxed)) };
    }
}
