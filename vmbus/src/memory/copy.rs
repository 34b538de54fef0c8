//! Copies between private memory and memory that others may change meanwhile, for data in bulk.
//!
//! A plain copy would be a data race. Longer ones are the processor's string move, which the compiler sees as one opaque access, and which is as
//! fast as any copy from some hundred bytes on, at any alignment and without vector registers; short ones are atomic bytes. Under Miri
//! and on other machines all are atomics, of whole words where those are aligned. What arrives may be torn, and each shared byte is read once. The ring has copies of its own, tuned
//! for packets.
#![expect(unsafe_code, reason = "copies through raw pointers to shared memory")]

use core::ptr::NonNull;
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU8, Ordering};

/// From this length on the string move is faster than bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STRING_AT_LEAST: usize = 16;

/// Copies bytes out of shared memory.
///
/// # Safety
///
/// `source` is valid for reads of as many bytes as `target` has, and while the call runs this program reaches them only by atomics and
/// by this module.
pub(super) unsafe fn from_shared(target: &mut [u8], source: NonNull<u8>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if target.len() >= STRING_AT_LEAST {
        // SAFETY: both are valid for that many bytes; a private slice does not overlap with shared memory.
        return unsafe { string(target.as_mut_ptr(), source.as_ptr(), target.len()) };
    }
    #[cfg(any(miri, not(target_arch = "x86_64")))]
    // SAFETY: as this function's caller promises.
    return unsafe { words_from_shared(target, source) };
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for (index, byte) in target.iter_mut().enumerate() {
        // SAFETY: within what the caller vouches for.
        let source = unsafe { source.add(index) };
        // SAFETY: as above; a byte is always aligned.
        *byte = unsafe { AtomicU8::from_ptr(source.as_ptr()) }.load(Ordering::Relaxed);
    }
}

/// Copies bytes into shared memory.
///
/// # Safety
///
/// `target` is valid for writes of as many bytes as `source` has, and while the call runs this program reaches them only by atomics
/// and by this module.
pub(super) unsafe fn to_shared(target: NonNull<u8>, source: &[u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if source.len() >= STRING_AT_LEAST {
        // SAFETY: as for `from_shared`.
        return unsafe { string(target.as_ptr(), source.as_ptr(), source.len()) };
    }
    #[cfg(any(miri, not(target_arch = "x86_64")))]
    // SAFETY: as this function's caller promises.
    return unsafe { words_to_shared(target, source) };
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for (index, byte) in source.iter().enumerate() {
        // SAFETY: within what the caller vouches for.
        let target = unsafe { target.add(index) };
        // SAFETY: as above; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(target.as_ptr()) }.store(*byte, Ordering::Relaxed);
    }
}

/// [`from_shared`] by words, where the shared side is aligned and a whole one is left.
///
/// # Safety
///
/// As for [`from_shared`].
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
unsafe fn words_from_shared(target: &mut [u8], source: NonNull<u8>) {
    let (to, from, len) = (target.as_mut_ptr(), source.as_ptr(), target.len());
    let mut at = 0;
    while at < len {
        let (to, from) = (to.wrapping_add(at), from.wrapping_add(at));
        if from.cast::<u64>().is_aligned() && len.wrapping_sub(at) >= size_of::<u64>() {
            // SAFETY: aligned, and a whole word is left of what the caller vouches for.
            let word = unsafe { AtomicU64::from_ptr(from.cast()) }.load(Ordering::Relaxed);
            // SAFETY: private, and as many bytes are left there.
            unsafe { to.cast::<u64>().write_unaligned(word) };
            at = at.wrapping_add(size_of::<u64>());
        } else {
            // SAFETY: within what the caller vouches for; a byte is always aligned.
            let byte = unsafe { AtomicU8::from_ptr(from) }.load(Ordering::Relaxed);
            // SAFETY: private, and a byte is left there.
            unsafe { to.write(byte) };
            at = at.wrapping_add(1);
        }
    }
}

/// [`to_shared`] by words, where the shared side is aligned and a whole one is left.
///
/// # Safety
///
/// As for [`to_shared`].
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
unsafe fn words_to_shared(target: NonNull<u8>, source: &[u8]) {
    let (to, from, len) = (target.as_ptr(), source.as_ptr(), source.len());
    let mut at = 0;
    while at < len {
        let (to, from) = (to.wrapping_add(at), from.wrapping_add(at));
        if to.cast::<u64>().is_aligned() && len.wrapping_sub(at) >= size_of::<u64>() {
            // SAFETY: private, initialised, and a whole word is left there.
            let word = unsafe { from.cast::<u64>().read_unaligned() };
            // SAFETY: aligned, and a whole word is left of what the caller vouches for.
            unsafe { AtomicU64::from_ptr(to.cast()) }.store(word, Ordering::Relaxed);
            at = at.wrapping_add(size_of::<u64>());
        } else {
            // SAFETY: private, initialised, and a byte is left there.
            let byte = unsafe { from.read() };
            // SAFETY: within what the caller vouches for; a byte is always aligned.
            unsafe { AtomicU8::from_ptr(to) }.store(byte, Ordering::Relaxed);
            at = at.wrapping_add(1);
        }
    }
}

/// Copies any number of bytes by the processor's string move.
///
/// # Safety
///
/// `source` is valid for reads and `target` for writes of `len` bytes, and the two do not overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn string(target: *mut u8, source: *const u8, len: usize) {
    // SAFETY: `rep movsb` reads `len` bytes at `source` and writes them to `target`, upwards: the ABI keeps the direction flag
    // clear. It changes the three registers named, no flags and no stack.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type ToShared = unsafe fn(NonNull<u8>, &[u8]);
    type FromShared = unsafe fn(&mut [u8], NonNull<u8>);

    #[test]
    fn all_lengths_and_alignments_arrive_whole_and_touch_nothing_else() {
        let ways: [(ToShared, FromShared); 2] = [(to_shared, from_shared), (words_to_shared, words_from_shared)];
        for (to_shared, from_shared) in ways {
            check(to_shared, from_shared);
        }
    }

    fn check(to_shared: ToShared, from_shared: FromShared) {
        let source: Vec<u8> = (0..=255).cycle().take(300).collect();
        // Miri is some hundred times slower.
        let lens: Vec<usize> = if cfg!(miri) {
            vec![0, 1, 8, 17]
        } else {
            (0..40).chain([63, 64, 65, 255]).collect()
        };
        for len in lens {
            for offset in 0..if cfg!(miri) { 2 } else { 9 } {
                let mut shared = [0xEE_u8; 304];
                let place = NonNull::from(&mut shared[offset..]).cast::<u8>();
                // SAFETY: inside the array, which nobody else has.
                unsafe { to_shared(place, &source[offset..offset + len]) };
                assert_eq!(shared[offset..offset + len], source[offset..offset + len]);
                assert!(
                    shared[..offset]
                        .iter()
                        .chain(&shared[offset + len..])
                        .all(|byte| *byte == 0xEE)
                );
                let mut back = [0xDD; 300];
                // SAFETY: as above.
                unsafe {
                    from_shared(
                        &mut back[offset..offset + len],
                        NonNull::from(&mut shared[offset..]).cast(),
                    )
                };
                assert_eq!(back[offset..offset + len], source[offset..offset + len]);
                assert_eq!((back[offset + len], back[299]), (0xDD, 0xDD));
            }
        }
    }
}
