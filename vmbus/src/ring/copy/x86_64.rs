//! The copies in assembly.
//!
//! The compiler knows nothing of these accesses but that memory changes, so a peer that writes at the same time causes torn
//! bytes, as on the bare machine, and nothing else.

use core::arch::asm;

/// From this length on, the processor's string move is as fast as a loop of vectors, and gentler on the caches.
#[cfg(target_feature = "sse2")]
const STRING_FROM: usize = 2048;

/// Copies `len` bytes between private and shared memory, in either direction and at any alignment.
///
/// # Safety
///
/// `src` is valid for reads and `dst` for writes of `len` bytes, and the two do not overlap.
#[inline]
pub(in crate::ring) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(target_feature = "sse2")]
    if len < STRING_FROM {
        // SAFETY: the same conditions.
        return unsafe { vectors(dst, src, len) };
    }
    // SAFETY: the same conditions.
    unsafe { string(dst, src, len) }
}

/// Copies by the processor's string move.
///
/// # Safety
///
/// As for [`copy`].
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

/// Copies by 16-byte vectors, 64 bytes at a time; what is left at the end by smaller and smaller pieces.
///
/// # Safety
///
/// As for [`copy`].
#[cfg(target_feature = "sse2")]
#[inline]
pub(in crate::ring) unsafe fn vectors(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `blocks` times 64 bytes, then 32, 16, 8, 4, 2 and 1 where the length has that bit: `len` bytes in all, each read
    // and written once. Registers and flags are declared; the stack is not used.
    unsafe {
        asm!(
            "test {blocks}, {blocks}",
            "jz 3f",
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
            "dec {blocks}",
            "jnz 2b",
            "3:",
            "test {len:e}, 32",
            "jz 4f",
            "movups {a}, [{src}]",
            "movups {b}, [{src} + 16]",
            "movups [{dst}], {a}",
            "movups [{dst} + 16], {b}",
            "add {src}, 32",
            "add {dst}, 32",
            "4:",
            "test {len:e}, 16",
            "jz 5f",
            "movups {a}, [{src}]",
            "movups [{dst}], {a}",
            "add {src}, 16",
            "add {dst}, 16",
            "5:",
            "test {len:e}, 8",
            "jz 6f",
            "movq {a}, [{src}]",
            "movq [{dst}], {a}",
            "add {src}, 8",
            "add {dst}, 8",
            "6:",
            "test {len:e}, 7",
            "jz 8f",
            "and {len:e}, 7",
            "7:",
            "mov {byte:l}, [{src}]",
            "mov [{dst}], {byte:l}",
            "inc {src}",
            "inc {dst}",
            "dec {len:e}",
            "jnz 7b",
            "8:",
            blocks = inout(reg) len / 64 => _,
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            byte = out(reg) _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}
