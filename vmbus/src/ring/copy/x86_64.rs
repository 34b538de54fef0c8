//! The copies in assembly.
//!
//! The compiler knows nothing of these accesses but that memory changes, so a peer that writes at the same time causes torn
//! bytes, as on the bare machine, and nothing else.

use core::arch::asm;

/// Copies up to this length are made where they are asked for; longer ones by a call.
#[cfg(target_feature = "sse2")]
pub(super) const INLINE_AT_MOST: usize = 128;
/// The same without vectors: words are faster than the start of a string move.
#[cfg(not(target_feature = "sse2"))]
pub(super) const INLINE_AT_MOST: usize = 64;

/// From this length on, a string move is faster than 16-byte vectors.
#[cfg(target_feature = "sse2")]
const STRING_RATHER_THAN_VECTORS: usize = 2048;

/// From this length on, vectors of 64 bytes are faster than those of 32, where there are some.
#[cfg(target_feature = "sse2")]
const WIDE_RATHER_THAN_AVX: usize = 384;

/// From this length on, a fast string move to shared memory is faster than 32-byte vectors; from there it is not.
#[cfg(target_feature = "sse2")]
const STRING_RATHER_THAN_AVX: usize = 8192;

/// From this length on, a string move is faster than words.
#[cfg(not(target_feature = "sse2"))]
const STRING_RATHER_THAN_WORDS: usize = 448;

/// Copies a whole number of words, at most [`INLINE_AT_MOST`] bytes of them.
///
/// # Safety
///
/// `src` is valid for reads and `dst` for writes of `len` bytes, a multiple of 8, and the two do not overlap.
#[inline(always)]
pub(super) unsafe fn short(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(target_feature = "sse2")]
    // SAFETY: the same conditions.
    unsafe {
        vectors(dst, src, len);
    }
    #[cfg(not(target_feature = "sse2"))]
    // SAFETY: the same conditions.
    unsafe {
        words(dst, src, len);
    }
}

/// Copies a whole number of words from private memory by whatever is the fastest for many.
///
/// # Safety
///
/// As for [`short`], with more than [`INLINE_AT_MOST`] bytes; `dst` is aligned to 8.
#[inline]
pub(super) unsafe fn long_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(target_feature = "sse2")]
    if (WIDE_RATHER_THAN_AVX..STRING_RATHER_THAN_AVX).contains(&len) && super::avx::has_wide() {
        const { assert!(super::avx::WIDE_AT_LEAST <= WIDE_RATHER_THAN_AVX) };
        // SAFETY: the same conditions, and the processor and its system have AVX-512.
        return unsafe { super::avx::wide_to_shared(dst, src, len) };
    }
    #[cfg(target_feature = "sse2")]
    if super::avx::usable() {
        const { assert!(super::avx::AT_LEAST <= INLINE_AT_MOST) };
        if len >= STRING_RATHER_THAN_AVX && super::avx::has_fast_strings() {
            // SAFETY: the same conditions.
            return unsafe { string(dst, src, len) };
        }
        // SAFETY: the same conditions, and the processor and its system have AVX.
        return unsafe { super::avx::to_shared(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { long(dst, src, len) }
}

/// Copies a whole number of words from shared memory by whatever is the fastest for many.
///
/// # Safety
///
/// As for [`short`], with more than [`INLINE_AT_MOST`] bytes; `dst` is aligned to 8.
#[inline]
pub(super) unsafe fn long_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(target_feature = "sse2")]
    if len >= WIDE_RATHER_THAN_AVX && super::avx::has_wide() {
        const { assert!(super::avx::WIDE_AT_LEAST <= WIDE_RATHER_THAN_AVX) };
        // SAFETY: the same conditions, and the processor and its system have AVX-512.
        return unsafe { super::avx::wide_from_shared(dst, src, len) };
    }
    #[cfg(target_feature = "sse2")]
    if super::avx::usable() {
        const { assert!(super::avx::AT_LEAST <= INLINE_AT_MOST) };
        // SAFETY: the same conditions, and the processor and its system have AVX.
        return unsafe { super::avx::from_shared(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { long(dst, src, len) }
}

/// Copies a whole number of words in either direction without AVX.
///
/// # Safety
///
/// As for [`short`].
#[inline(never)]
unsafe fn long(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(target_feature = "sse2")]
    if len < STRING_RATHER_THAN_VECTORS {
        // SAFETY: the same conditions.
        return unsafe { vectors(dst, src, len) };
    }
    #[cfg(not(target_feature = "sse2"))]
    if len < STRING_RATHER_THAN_WORDS {
        // SAFETY: the same conditions.
        return unsafe { words(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { string(dst, src, len) }
}

/// Copies any number of bytes by the processor's string move.
///
/// # Safety
///
/// `src` is valid for reads and `dst` for writes of `len` bytes, and the two do not overlap.
#[inline]
pub(in crate::ring) unsafe fn string(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `rep movsb` reads `len` bytes at `src` and writes them to `dst`, upwards: the ABI keeps the direction flag clear.
    // It changes the three registers named, no flags and no stack.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") src => _,
            inout("rdi") dst => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies a whole number of words by 16-byte vectors, 64 bytes at a time; what is left at the end by smaller pieces.
///
/// # Safety
///
/// As for [`short`].
#[cfg(target_feature = "sse2")]
#[inline(always)]
pub(in crate::ring) unsafe fn vectors(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `len / 64` times 64 bytes, then 32, 16 and 8 where the length has that bit: `len` bytes in all, each read and
    // written once. Registers and flags are declared; the stack is not used.
    unsafe {
        asm!(
            "sub {len}, 64",
            "jb 3f",
            "2:",
            "movups {a}, [{src}]",
            "movups {b}, [{src} + 16]",
            "movups {c}, [{src} + 32]",
            "movups {d}, [{src} + 48]",
            "movups [{dst}], {a}",
            "movups [{dst} + 16], {b}",
            "movups [{dst} + 32], {c}",
            "movups [{dst} + 48], {d}",
            "add {src}, 64",
            "add {dst}, 64",
            "sub {len}, 64",
            "jae 2b",
            // What is left, less 64: the low bits are those of the length.
            "3:",
            "test {len:l}, 56",
            "jz 6f",
            "test {len:l}, 32",
            "jz 4f",
            "movups {a}, [{src}]",
            "movups {b}, [{src} + 16]",
            "movups [{dst}], {a}",
            "movups [{dst} + 16], {b}",
            "add {src}, 32",
            "add {dst}, 32",
            "4:",
            "test {len:l}, 16",
            "jz 5f",
            "movups {a}, [{src}]",
            "movups [{dst}], {a}",
            "add {src}, 16",
            "add {dst}, 16",
            "5:",
            "test {len:l}, 8",
            "jz 6f",
            "movq {a}, [{src}]",
            "movq [{dst}], {a}",
            "6:",
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Copies a whole number of words in general registers, 32 bytes at a time: for kernels built without vector registers.
///
/// # Safety
///
/// As for [`short`].
#[cfg(any(test, not(target_feature = "sse2")))]
#[inline(always)]
pub(in crate::ring) unsafe fn words(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `len / 32` times 32 bytes, then 16 and 8 where the length has that bit: `len` bytes in all, each read and written
    // once. Registers and flags are declared; the stack is not used.
    unsafe {
        asm!(
            "sub {len}, 32",
            "jb 3f",
            "2:",
            "mov {a}, [{src}]",
            "mov {b}, [{src} + 8]",
            "mov [{dst}], {a}",
            "mov [{dst} + 8], {b}",
            "mov {a}, [{src} + 16]",
            "mov {b}, [{src} + 24]",
            "mov [{dst} + 16], {a}",
            "mov [{dst} + 24], {b}",
            "add {src}, 32",
            "add {dst}, 32",
            "sub {len}, 32",
            "jae 2b",
            "3:",
            "test {len:l}, 16",
            "jz 4f",
            "mov {a}, [{src}]",
            "mov {b}, [{src} + 8]",
            "mov [{dst}], {a}",
            "mov [{dst} + 8], {b}",
            "add {src}, 16",
            "add {dst}, 16",
            "4:",
            "test {len:l}, 8",
            "jz 5f",
            "mov {a}, [{src}]",
            "mov [{dst}], {a}",
            "5:",
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            a = out(reg) _,
            b = out(reg) _,
            options(nostack),
        );
    }
}
