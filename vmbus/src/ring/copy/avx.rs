//! Copies by vectors of 32 or 64 bytes, where the processor has them and its system keeps them.
//!
//! Part of the crate where an operating system runs under it, as in tests and benchmarks, and in kernels only with the feature
//! `avx`: a kernel must save the upper halves of the vector registers wherever a ring may be used, in interrupts, too, if its
//! interrupted programs use them. Vectors of 64 bytes are used only where the kernel has turned on their state (XCR0), and then it
//! must save that.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU8, Ordering};

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const USABLE: u8 = 2;
const USABLE_AND_FAST_STRINGS: u8 = 3;
/// And vectors of 64 bytes.
const USABLE_AND_WIDE: u8 = 4;

/// Whether this build may use AVX at all.
const PERMITTED: bool = cfg!(any(feature = "avx", not(any(target_os = "none", target_os = "uefi"))));

/// Whether AVX can be used: asked once.
#[inline]
pub(in crate::ring) fn usable() -> bool {
    PERMITTED && state() >= USABLE
}

/// Whether AVX can be used and the processor's string moves are fast ones (ERMS).
#[inline]
pub(in crate::ring) fn has_fast_strings() -> bool {
    PERMITTED && state() >= USABLE_AND_FAST_STRINGS
}

/// Whether vectors of 64 bytes can be used, too, as far as is known: false before anybody has asked [`usable`]. One look.
#[inline]
pub(in crate::ring) fn has_wide() -> bool {
    PERMITTED && STATE.load(Ordering::Relaxed) == USABLE_AND_WIDE
}

/// What was found out.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

#[inline]
fn state() -> u8 {
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => {
            let state = detect();
            STATE.store(state, Ordering::Relaxed);
            state
        }
        state => state,
    }
}

const OSXSAVE: u32 = 1 << 27;

#[cold]
fn detect() -> u8 {
    /// Which register sets the system saves.
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { _xgetbv(0) }
    }
    let leaf_1 = __cpuid(1).ecx;
    let enabled = if leaf_1 & OSXSAVE == 0 {
        0
    } else {
        // SAFETY: OSXSAVE says that the instruction may be used.
        unsafe { enabled_state() }
    };
    let leaf_7 = if __cpuid(0).eax < 7 {
        [0, 0]
    } else {
        let features = __cpuid_count(7, 0);
        [features.ebx, features.ecx]
    };
    choose(leaf_1, enabled, leaf_7)
}

/// Chooses by what the processor says of itself (ECX of CPUID's leaf 1, EBX and ECX of leaf 7) and what its system saves (XCR0).
const fn choose(leaf_1: u32, enabled: u64, [ebx, ecx]: [u32; 2]) -> u8 {
    const AVX: u32 = 1 << 28;
    const SSE_AND_AVX_STATE: u64 = 0b110;
    const WIDE_STATE: u64 = 0b111 << 5;
    const FAST_STRINGS: u32 = 1 << 9;
    const AVX512_F: u32 = 1 << 16;
    /// Came with the processors whose clock does not fall when they use wide vectors.
    const AVX512_VBMI2: u32 = 1 << 6;
    if leaf_1 & OSXSAVE == 0 || leaf_1 & AVX == 0 || enabled & SSE_AND_AVX_STATE != SSE_AND_AVX_STATE {
        ABSENT
    } else if ebx & FAST_STRINGS == 0 {
        USABLE
    } else if ebx & AVX512_F != 0 && ecx & AVX512_VBMI2 != 0 && enabled & WIDE_STATE == WIDE_STATE {
        USABLE_AND_WIDE
    } else {
        USABLE_AND_FAST_STRINGS
    }
}

/// The shortest copy that [`to_shared`] and [`from_shared`] can make.
pub(in crate::ring) const AT_LEAST: usize = 32;

/// Copies from private memory: first and last vector wherever they fall, aligned ones between them. Some bytes are read and
/// written twice, which only private memory can stand.
///
/// # Safety
///
/// - `src` is valid for reads of `len` bytes of private memory, at least [`AT_LEAST`].
/// - `dst` is valid for writes of `len` bytes, and the two do not overlap.
/// - [`usable`] is true.
#[inline]
pub(in crate::ring) unsafe fn to_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `last` is where the last 32 bytes go. The first 32 are stored, then `dst` goes up to the next multiple of 32, which
    // is 1 to 32 bytes, and `src` with it; blocks of 128 bytes are copied while `dst` is at most `last` - 96, and vectors of 32
    // while it is below `last`: neither ends behind `last` + 32, the end. Then the last 32 bytes. Registers and flags are
    // declared; the stack is not used.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{src}]",
            "vmovdqu ymm4, [{src} + {last} - 32]",
            "lea {last}, [{dst} + {last} - 32]",
            "vmovdqu [{dst}], ymm0",
            // `src` as a distance from `dst`.
            "sub {src}, {dst}",
            "add {dst}, 32",
            "and {dst}, -32",
            "lea {blocks}, [{last} - 96]",
            "cmp {dst}, {blocks}",
            "ja 3f",
            "2:",
            "vmovdqu ymm0, [{src} + {dst}]",
            "vmovdqu ymm1, [{src} + {dst} + 32]",
            "vmovdqu ymm2, [{src} + {dst} + 64]",
            "vmovdqu ymm3, [{src} + {dst} + 96]",
            "vmovdqa [{dst}], ymm0",
            "vmovdqa [{dst} + 32], ymm1",
            "vmovdqa [{dst} + 64], ymm2",
            "vmovdqa [{dst} + 96], ymm3",
            "sub {dst}, -128",
            "cmp {dst}, {blocks}",
            "jbe 2b",
            "3:",
            "cmp {dst}, {last}",
            "jae 5f",
            "4:",
            "vmovdqu ymm0, [{src} + {dst}]",
            "vmovdqa [{dst}], ymm0",
            "add {dst}, 32",
            "cmp {dst}, {last}",
            "jb 4b",
            "5:",
            "vmovdqu [{last}], ymm4",
            last = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            blocks = out(reg) _,
            out("xmm0") _,
            out("xmm1") _,
            out("xmm2") _,
            out("xmm3") _,
            out("xmm4") _,
            options(nostack),
        );
    }
    leave();
}

// The beginning and the end that both copies out of shared memory have.

/// Copies 8 bytes and 16 where the target's address has that bit: it is aligned to 32 then.
macro_rules! up_to_32 {
    () => {
        concat!(
            "test {dst:l}, 8\n",
            "jz 2f\n",
            "vmovq xmm0, [{src}]\n",
            "vmovq [{dst}], xmm0\n",
            "add {src}, 8\n",
            "add {dst}, 8\n",
            "sub {len}, 8\n",
            "2:\n",
            "test {dst:l}, 16\n",
            "jz 3f\n",
            "vmovdqu xmm0, [{src}]\n",
            "vmovdqa [{dst}], xmm0\n",
            "add {src}, 16\n",
            "add {dst}, 16\n",
            "sub {len}, 16\n",
            "3:\n",
        )
    };
}

/// Copies 32, 16 and 8 bytes where `{len}` has that bit, to an aligned target.
macro_rules! below_64 {
    () => {
        concat!(
            "test {len:l}, 32\n",
            "jz 7f\n",
            "vmovdqu ymm0, [{src}]\n",
            "vmovdqa [{dst}], ymm0\n",
            "add {src}, 32\n",
            "add {dst}, 32\n",
            "7:\n",
            "test {len:l}, 16\n",
            "jz 8f\n",
            "vmovdqu xmm0, [{src}]\n",
            "vmovdqa [{dst}], xmm0\n",
            "add {src}, 16\n",
            "add {dst}, 16\n",
            "8:\n",
            "test {len:l}, 8\n",
            "jz 9f\n",
            "vmovq xmm0, [{src}]\n",
            "vmovq [{dst}], xmm0\n",
            "9:\n",
        )
    };
}

/// Copies a whole number of words from shared memory: a word and a pair of words until the target is aligned to 32, then 128
/// bytes at a time; what is left at the end by smaller pieces. Each byte is read once.
///
/// # Safety
///
/// - `src` is valid for reads and `dst` for writes of `len` bytes, a multiple of 8 and at least [`AT_LEAST`], and the two do not
///   overlap.
/// - `dst` is aligned to 8.
/// - [`usable`] is true.
#[inline]
pub(in crate::ring) unsafe fn from_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: 8 bytes and 16 where the target's address has that bit, of the 32 that there are at least; then `len / 128` times
    // 128 bytes, then 64, 32, 16 and 8 where what is left has that bit: `len` bytes in all, each read and written once. Registers
    // and flags are declared; the stack is not used.
    unsafe {
        asm!(
            up_to_32!(),
            "sub {len}, 128",
            "jb 5f",
            "4:",
            "vmovdqu ymm0, [{src}]",
            "vmovdqu ymm1, [{src} + 32]",
            "vmovdqu ymm2, [{src} + 64]",
            "vmovdqu ymm3, [{src} + 96]",
            "vmovdqa [{dst}], ymm0",
            "vmovdqa [{dst} + 32], ymm1",
            "vmovdqa [{dst} + 64], ymm2",
            "vmovdqa [{dst} + 96], ymm3",
            "sub {src}, -128",
            "sub {dst}, -128",
            "sub {len}, 128",
            "jae 4b",
            // What is left, less 128: the low bits are those of the length.
            "5:",
            "test {len:l}, 120",
            "jz 9f",
            "test {len:l}, 64",
            "jz 6f",
            "vmovdqu ymm0, [{src}]",
            "vmovdqu ymm1, [{src} + 32]",
            "vmovdqa [{dst}], ymm0",
            "vmovdqa [{dst} + 32], ymm1",
            "add {src}, 64",
            "add {dst}, 64",
            "6:",
            below_64!(),
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            out("xmm0") _,
            out("xmm1") _,
            out("xmm2") _,
            out("xmm3") _,
            options(nostack),
        );
    }
    leave();
}

/// The shortest copy that [`wide_to_shared`] and [`wide_from_shared`] can make.
pub(in crate::ring) const WIDE_AT_LEAST: usize = 64;

/// [`to_shared`] by vectors of 64 bytes.
///
/// # Safety
///
/// As for [`to_shared`], with [`WIDE_AT_LEAST`] and [`has_wide`].
#[inline]
pub(in crate::ring) unsafe fn wide_to_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: as in `to_shared`, with vectors of 64 bytes and blocks of 256: the first 64 bytes are stored, `dst` goes up by 1 to
    // 64 to a multiple of 64, blocks are copied while `dst` is at most `last` - 192, vectors while it is below `last`, and then the
    // last 64 bytes. Registers and flags are declared; the stack is not used.
    unsafe {
        asm!(
            "vmovdqu64 zmm0, [{src}]",
            "vmovdqu64 zmm4, [{src} + {last} - 64]",
            "lea {last}, [{dst} + {last} - 64]",
            "vmovdqu64 [{dst}], zmm0",
            "sub {src}, {dst}",
            "add {dst}, 64",
            "and {dst}, -64",
            "lea {blocks}, [{last} - 192]",
            "cmp {dst}, {blocks}",
            "ja 3f",
            "2:",
            "vmovdqu64 zmm0, [{src} + {dst}]",
            "vmovdqu64 zmm1, [{src} + {dst} + 64]",
            "vmovdqu64 zmm2, [{src} + {dst} + 128]",
            "vmovdqu64 zmm3, [{src} + {dst} + 192]",
            "vmovdqa64 [{dst}], zmm0",
            "vmovdqa64 [{dst} + 64], zmm1",
            "vmovdqa64 [{dst} + 128], zmm2",
            "vmovdqa64 [{dst} + 192], zmm3",
            "add {dst}, 256",
            "cmp {dst}, {blocks}",
            "jbe 2b",
            "3:",
            "cmp {dst}, {last}",
            "jae 5f",
            "4:",
            "vmovdqu64 zmm0, [{src} + {dst}]",
            "vmovdqa64 [{dst}], zmm0",
            "add {dst}, 64",
            "cmp {dst}, {last}",
            "jb 4b",
            "5:",
            "vmovdqu64 [{last}], zmm4",
            last = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            blocks = out(reg) _,
            out("xmm0") _,
            out("xmm1") _,
            out("xmm2") _,
            out("xmm3") _,
            out("xmm4") _,
            options(nostack),
        );
    }
    leave();
}

/// [`from_shared`] by vectors of 64 bytes.
///
/// Masks would do the words in front of the first whole vector and behind the last at one go, but take longer.
///
/// # Safety
///
/// As for [`from_shared`], with [`WIDE_AT_LEAST`] bytes and [`has_wide`].
#[inline]
pub(in crate::ring) unsafe fn wide_from_shared(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: 8 bytes, 16 and 32 where the target's address has that bit, of the 64 that there are at least; then `len / 256` times
    // 256 bytes, then 128, 64, 32, 16 and 8 where what is left has that bit: `len` bytes in all, each read and written once.
    // Registers and flags are declared; the stack is not used.
    unsafe {
        asm!(
            up_to_32!(),
            "test {dst:l}, 32",
            "jz 4f",
            "vmovdqu ymm0, [{src}]",
            "vmovdqa [{dst}], ymm0",
            "add {src}, 32",
            "add {dst}, 32",
            "sub {len}, 32",
            "4:",
            "sub {len}, 256",
            "jb 6f",
            "5:",
            "vmovdqu64 zmm0, [{src}]",
            "vmovdqu64 zmm1, [{src} + 64]",
            "vmovdqu64 zmm2, [{src} + 128]",
            "vmovdqu64 zmm3, [{src} + 192]",
            "vmovdqa64 [{dst}], zmm0",
            "vmovdqa64 [{dst} + 64], zmm1",
            "vmovdqa64 [{dst} + 128], zmm2",
            "vmovdqa64 [{dst} + 192], zmm3",
            "add {src}, 256",
            "add {dst}, 256",
            "sub {len}, 256",
            "jae 5b",
            // What is left, less 256: the low bits are those of the length.
            "6:",
            "test {len:l}, 128",
            "jz 7f",
            "vmovdqu64 zmm0, [{src}]",
            "vmovdqu64 zmm1, [{src} + 64]",
            "vmovdqa64 [{dst}], zmm0",
            "vmovdqa64 [{dst} + 64], zmm1",
            "sub {src}, -128",
            "sub {dst}, -128",
            "7:",
            "test {len:l}, 64",
            "jz 8f",
            "vmovdqu64 zmm0, [{src}]",
            "vmovdqa64 [{dst}], zmm0",
            "add {src}, 64",
            "add {dst}, 64",
            "8:",
            below_64!(),
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            out("xmm0") _,
            out("xmm1") _,
            out("xmm2") _,
            out("xmm3") _,
            options(nostack),
        );
    }
    leave();
}

/// Ends the use of AVX by code that is compiled without it, which would be slow while upper halves are in use.
#[inline(always)]
fn leave() {
    if cfg!(not(target_feature = "avx")) {
        // SAFETY: AVX was used right before. All registers are declared whose upper halves this clears: this crate is compiled without
        // AVX, but the function that all of this is inlined into may be compiled with it, and keep something there.
        unsafe {
            asm!(
                "vzeroupper",
                out("xmm0") _,
                out("xmm1") _,
                out("xmm2") _,
                out("xmm3") _,
                out("xmm4") _,
                out("xmm5") _,
                out("xmm6") _,
                out("xmm7") _,
                out("xmm8") _,
                out("xmm9") _,
                out("xmm10") _,
                out("xmm11") _,
                out("xmm12") _,
                out("xmm13") _,
                out("xmm14") _,
                out("xmm15") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_that_is_missing_takes_away_what_stands_on_it() {
        // OSXSAVE and AVX; SSE, AVX and the three states of wide vectors; ERMS and AVX-512 F; VBMI2.
        let all = |leaf_1: u32, enabled: u64, ebx: u32, ecx: u32| {
            choose(0x1800_0000 & !leaf_1, 0xe6 & !enabled, [0x1_0200 & !ebx, 0x40 & !ecx])
        };
        assert_eq!(all(0, 0, 0, 0), USABLE_AND_WIDE);
        assert_eq!(choose(u32::MAX, u64::MAX, [u32::MAX; 2]), USABLE_AND_WIDE);
        for (leaf_1, enabled) in [(1 << 27, 0), (1 << 28, 0), (0, 1 << 1), (0, 1 << 2)] {
            assert_eq!(all(leaf_1, enabled, 0, 0), ABSENT, "{leaf_1:#x}, {enabled:#x}");
        }
        for (enabled, ebx, ecx) in [
            (1 << 5, 0, 0),
            (1 << 6, 0, 0),
            (1 << 7, 0, 0),
            (0, 1 << 16, 0),
            (0, 0, 1 << 6),
        ] {
            assert_eq!(
                all(0, enabled, ebx, ecx),
                USABLE_AND_FAST_STRINGS,
                "{enabled:#x}, {ebx:#x}, {ecx:#x}"
            );
        }
        assert_eq!(all(0, 0, 1 << 9, 0), USABLE);
        assert_eq!(choose(0x1800_0000, 0xe6, [0, 0]), USABLE);
    }

    #[test]
    fn what_is_chosen_is_asked_for_by_its_rank() {
        assert_eq!(state(), detect(), "remembered");
        assert_eq!(usable(), state() != ABSENT);
        assert_eq!(
            has_fast_strings(),
            matches!(state(), USABLE_AND_FAST_STRINGS | USABLE_AND_WIDE)
        );
        assert_eq!(has_wide(), state() == USABLE_AND_WIDE);
    }

    #[test]
    fn the_processor_is_known_as_the_standard_library_knows_it() {
        assert_eq!(usable(), std::is_x86_feature_detected!("avx"));
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if let Some(line) = flags.lines().find(|line| line.starts_with("flags")) {
            let is_said_to_be_fast = line.split_whitespace().any(|flag| flag == "erms");
            assert_eq!(has_fast_strings(), usable() && is_said_to_be_fast);
        }
    }
}
