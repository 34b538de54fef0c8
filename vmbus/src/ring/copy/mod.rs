//! Copies between private memory and memory that the peer may change at any moment.
//!
//! A plain copy would be a data race, so nothing here is one. Several ways, chosen by length:
//!
//! - one or two words: relaxed atomic loads and stores of 64 bits ([`words`]);
//! - more: assembly, which the compiler sees as one opaque access: vectors of 16 bytes ([`x86_64`]), 32 or 64 ([`avx`]) where
//!   the target has them, words and a string move where it has none, as in a kernel built without floating point;
//! - on other machines, and under miri: atomic words for all lengths.
//!
//! What arrives may be torn between old and new content; it is never undefined, and it is private from then on. Each
//! shared byte is read once. The limits between the ways are measured ones (`cargo bench`).

// The functions of this module are for `memory`, which has checked pointers and lengths before.
#![expect(
    unsafe_code,
    reason = "copies through raw pointers to shared memory are what this module is for"
)]

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
pub(super) mod avx;
pub(super) mod words;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) mod x86_64;

/// Copies `len` bytes, a multiple of 8, to shared memory.
///
/// # Safety
///
/// - `src` is valid for reads of `len` bytes of private, initialised memory.
/// - `dst` is valid for writes of `len` bytes, is aligned to 8, and nobody in this program reaches it except by atomics and by
///   this module.
#[inline(always)]
pub(super) unsafe fn to_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(dst.addr().is_multiple_of(8) && len.is_multiple_of(8));
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len > x86_64::INLINE_AT_MOST {
        // SAFETY: the same conditions.
        unsafe { x86_64::long_to_shared(dst, src, len) };
    } else if len > 16 {
        // SAFETY: the same conditions.
        unsafe { x86_64::short(dst, src, len) };
    } else {
        // SAFETY: the same conditions.
        unsafe { words::two_to_shared(dst, src, len) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the same conditions.
    unsafe {
        words::to_shared(dst, src, len);
    }
}

/// Copies `len` bytes, a multiple of 8, from shared memory.
///
/// # Safety
///
/// - `src` is valid for reads of `len` bytes, is aligned to 8, and nobody in this program reaches it except by atomics and by
///   this module.
/// - `dst` is valid for writes of `len` bytes of private memory, and aligned to 8.
#[inline(always)]
pub(super) unsafe fn from_shared(dst: *mut u8, src: *const u8, len: usize) {
    debug_assert!(dst.addr().is_multiple_of(8) && src.addr().is_multiple_of(8) && len.is_multiple_of(8));
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len > x86_64::INLINE_AT_MOST {
        // SAFETY: the same conditions.
        unsafe { x86_64::long_from_shared(dst, src, len) };
    } else if len > 16 {
        // SAFETY: the same conditions.
        unsafe { x86_64::short(dst, src, len) };
    } else {
        // SAFETY: the same conditions.
        unsafe { words::two_from_shared(dst, src, len) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the same conditions.
    unsafe {
        words::from_shared(dst, src, len);
    }
}

/// Copies any number of bytes to any place in shared memory.
///
/// # Safety
///
/// As for [`words::bytes_to_shared`].
pub(super) unsafe fn bytes_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    // The rest of a word, then whole words, then what is left.
    let in_front = dst.addr().wrapping_neg() & 7;
    let in_front = if in_front < len { in_front } else { len };
    let whole = len.wrapping_sub(in_front) & !7;
    // SAFETY: not more than `len`.
    let dst_whole = unsafe { dst.add(in_front) };
    // SAFETY: as above.
    let src_whole = unsafe { src.add(in_front) };
    // SAFETY: as above.
    let dst_tail = unsafe { dst_whole.add(whole) };
    // SAFETY: as above.
    let src_tail = unsafe { src_whole.add(whole) };
    // SAFETY: the first part of the range.
    unsafe { words::bytes_to_shared(dst, src, in_front) };
    if whole != 0 {
        // SAFETY: the second part, which starts at a word.
        unsafe { to_shared(dst_whole, src_whole, whole) };
    }
    // SAFETY: the third.
    unsafe { words::bytes_to_shared(dst_tail, src_tail, len.wrapping_sub(in_front).wrapping_sub(whole)) };
}

/// Copies any number of bytes from any place in shared memory.
///
/// For single fields: a word at a time.
///
/// # Safety
///
/// As for [`words::bytes_from_shared`].
pub(super) unsafe fn bytes_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the same conditions.
    unsafe { words::bytes_from_shared(dst, src, len) }
}
