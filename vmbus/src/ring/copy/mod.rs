//! Copies between private memory and memory that the peer may change at any moment.
//!
//! A plain copy would be a data race, so nothing here is one. Three ways, chosen by length:
//!
//! - few words: relaxed atomic loads and stores of 64 bits ([`words`]), which the compiler unrolls and inlines;
//! - more: assembly that the compiler sees as one opaque access ([`x86_64`]): vectors where the target has SSE2, a string move
//!   where it has none, as in a kernel built without floating point;
//! - on other machines, under miri and in models: words for all lengths.
//!
//! What arrives may be torn between old and new content; it is never undefined, and it is private from then on.

// The functions of this module are for `memory`, which has checked pointers and lengths before.
#![expect(
    unsafe_code,
    reason = "copies through raw pointers to shared memory are what this module is for"
)]

pub(super) mod words;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) mod x86_64;

/// Up to this many bytes, words are at least as fast as a call of anything else.
const WORDS_AT_MOST: usize = 64;

/// Copies `len` bytes, a multiple of 8, to shared memory.
///
/// # Safety
///
/// - `src` is valid for reads of `len` bytes of private, initialised memory.
/// - `dst` is valid for writes of `len` bytes, is aligned to 8, and nobody in this program reaches it except by atomics and by
///   this module.
#[inline]
pub(super) unsafe fn to_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(dst.addr().is_multiple_of(8) && len.is_multiple_of(8));
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len > WORDS_AT_MOST {
        // SAFETY: the same conditions.
        return unsafe { x86_64::copy(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { words::to_shared(dst, src, len) }
}

/// Copies `len` bytes, a multiple of 8, from shared memory.
///
/// # Safety
///
/// - `src` is valid for reads of `len` bytes, is aligned to 8, and nobody in this program reaches it except by atomics and by
///   this module.
/// - `dst` is valid for writes of `len` bytes of private memory, and aligned to 8.
#[inline]
pub(super) unsafe fn from_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(dst.addr().is_multiple_of(8) && src.addr().is_multiple_of(8) && len.is_multiple_of(8));
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len > WORDS_AT_MOST {
        // SAFETY: the same conditions.
        return unsafe { x86_64::copy(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { words::from_shared(dst, src, len) }
}

/// Copies any number of bytes to any place in shared memory.
///
/// # Safety
///
/// As for [`to_shared`], without the conditions on alignment and length.
#[inline]
pub(super) unsafe fn bytes_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the same conditions.
    unsafe {
        x86_64::copy(dst, src, len);
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the same conditions.
    unsafe {
        words::bytes_to_shared(dst, src, len);
    }
}

/// Copies any number of bytes from any place in shared memory.
///
/// # Safety
///
/// As for [`from_shared`], without the conditions on alignment and length.
#[inline]
pub(super) unsafe fn bytes_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the same conditions.
    unsafe {
        x86_64::copy(dst, src, len);
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the same conditions.
    unsafe {
        words::bytes_from_shared(dst, src, len);
    }
}
