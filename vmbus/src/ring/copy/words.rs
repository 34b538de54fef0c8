//! The portable copies: relaxed atomics of 64 bits.

use core::sync::atomic::{AtomicU64, Ordering};

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
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
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
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
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

/// [`super::to_shared`] for at most two words: no loop.
///
/// # Safety
///
/// As for [`super::to_shared`], with at most 16 bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(in crate::ring) unsafe fn two_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(len <= 2 * WORD);
    if len == 0 {
        return;
    }
    // SAFETY: private, initialised, 8 bytes at least; any alignment will do.
    let word = unsafe { src.cast::<u64>().read_unaligned() };
    // SAFETY: 8 bytes at least, aligned.
    unsafe { store(dst.cast(), word) };
    if len > WORD {
        // SAFETY: 8 bytes more.
        let src = unsafe { src.add(WORD) };
        // SAFETY: as above.
        let dst = unsafe { dst.add(WORD) };
        // SAFETY: private, initialised.
        let word = unsafe { src.cast::<u64>().read_unaligned() };
        // SAFETY: aligned as the first.
        unsafe { store(dst.cast(), word) };
    }
}

/// [`super::from_shared`] for at most two words: no loop.
///
/// # Safety
///
/// As for [`super::from_shared`], with at most 16 bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(in crate::ring) unsafe fn two_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(len <= 2 * WORD);
    if len == 0 {
        return;
    }
    // SAFETY: 8 bytes at least, aligned.
    let word = unsafe { load(src.cast()) };
    // SAFETY: private, 8 bytes at least, aligned.
    unsafe { dst.cast::<u64>().write(word) };
    if len > WORD {
        // SAFETY: 8 bytes more.
        let src = unsafe { src.add(WORD) };
        // SAFETY: as above.
        let dst = unsafe { dst.add(WORD) };
        // SAFETY: aligned as the first.
        let word = unsafe { load(src.cast()) };
        // SAFETY: private, aligned.
        unsafe { dst.cast::<u64>().write(word) };
    }
}

/// The word that holds a byte, the byte's place in it, and how many of `len` bytes from there on it holds.
#[inline]
fn part_of_word(byte: *const u8, len: usize) -> (*const u64, usize, usize) {
    let place = byte.addr() % WORD;
    (
        byte.wrapping_sub(place).cast(),
        place,
        len.min(WORD.wrapping_sub(place)),
    )
}

/// Copies any number of bytes to any place in shared memory.
///
/// By whole words, like everything here, since atomics of different sizes must not meet: what else a word holds is stored as it
/// was loaded.
///
/// # Safety
///
/// As for [`super::to_shared`], without the conditions on alignment and length; but all words that the range touches are valid,
/// and nobody else in this program stores to them.
pub(in crate::ring) unsafe fn bytes_to_shared(mut dst: *mut u8, mut src: *const u8, mut len: usize) {
    while len != 0 {
        let (word, place, count) = part_of_word(dst, len);
        // SAFETY: the whole word is valid, and aligned.
        let mut bytes = unsafe { load(word) }.to_le_bytes();
        // SAFETY: `count` bytes are left in `src`, and in the word from `place` on.
        unsafe {
            bytes
                .as_mut_ptr()
                .wrapping_add(place)
                .copy_from_nonoverlapping(src, count)
        };
        // SAFETY: the whole word is valid, and aligned.
        unsafe { store(word.cast_mut(), u64::from_le_bytes(bytes)) };
        (dst, src, len) = (
            dst.wrapping_add(count),
            src.wrapping_add(count),
            len.wrapping_sub(count),
        );
    }
}

/// Copies any number of bytes from any place in shared memory.
///
/// # Safety
///
/// As for [`super::from_shared`], without the conditions on alignment and length; but all words that the range touches are
/// valid.
pub(in crate::ring) unsafe fn bytes_from_shared(mut dst: *mut u8, mut src: *const u8, mut len: usize) {
    while len != 0 {
        let (word, place, count) = part_of_word(src, len);
        // SAFETY: the whole word is valid, and aligned.
        let bytes = unsafe { load(word) }.to_le_bytes();
        // SAFETY: `count` bytes are left in `dst`, and in the word from `place` on.
        unsafe { dst.copy_from_nonoverlapping(bytes.as_ptr().wrapping_add(place), count) };
        (dst, src, len) = (
            dst.wrapping_add(count),
            src.wrapping_add(count),
            len.wrapping_sub(count),
        );
    }
}
