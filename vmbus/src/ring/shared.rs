//! Rings in pages that a peer, host or guest, changes while we look.
//!
//! Where the platform maps the data twice in a row, no access is ever split.

#![expect(
    unsafe_code,
    reason = "the pages belong to two sides, so references to them cannot exist"
)]

use core::ptr::NonNull;

use super::control::Control;
use super::copy;
use super::error::InvalidRing;
use super::geometry::{Geometry, padded};
use super::memory::Words;
use super::sync::{AtomicU32, publish, publish_here};
use crate::protocol::packet::PAGE_SIZE;

/// A ring in pages that a peer sees, too.
///
/// `K` keeps the pages: they live at least as long as this does.
#[derive(Debug)]
pub struct SharedRing<K = ()> {
    control: NonNull<Control>,
    data: NonNull<u8>,
    geometry: Geometry,
    /// How many bytes can be reached from `data` on: the size, or twice that where the pages are mapped twice in a row.
    mapped: usize,
    /// Both ends run on one processor.
    is_local: bool,
    keeper: K,
}

// SAFETY: the pages belong to no thread, and all access to them is atomic or by opaque assembly.
unsafe impl<K: Send> Send for SharedRing<K> {}
// SAFETY: as above; methods that store through a shared reference do so atomically.
unsafe impl<K: Sync> Sync for SharedRing<K> {}

impl<K> SharedRing<K> {
    /// A ring whose data pages are mapped once: what reaches the end of the data is copied in two parts.
    ///
    /// # Errors
    ///
    /// [`InvalidRing`] if the pages are not aligned, or `size` is not one or more whole pages.
    ///
    /// # Safety
    ///
    /// As long as the returned value lives,
    /// 1. `control` is valid for reads and writes of one page, and `data` of `size` bytes;
    /// 2. this program reaches these pages only through values of this type, or by atomic accesses of aligned 32-bit words
    ///    (control) and 64-bit words (data). What the peer does does not matter.
    pub unsafe fn new(control: NonNull<u8>, data: NonNull<u8>, size: u32, keeper: K) -> Result<Self, InvalidRing> {
        let geometry = Geometry::new(size)?;
        for pages in [control, data] {
            if !pages.addr().get().is_multiple_of(PAGE_SIZE as usize) {
                return Err(InvalidRing::Alignment {
                    address: pages.addr().get(),
                });
            }
        }
        Ok(Self {
            control: control.cast(),
            data,
            geometry,
            mapped: size as usize,
            is_local: false,
            keeper,
        })
    }

    /// A ring whose data pages are mapped twice in a row: no copy is ever split.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new), and `data` is valid for twice `size` bytes, of which the second half shows the same pages as
    /// the first, in the same order.
    pub unsafe fn new_mapped_twice(
        control: NonNull<u8>,
        data: NonNull<u8>,
        size: u32,
        keeper: K,
    ) -> Result<Self, InvalidRing> {
        // SAFETY: the caller promises more than this.
        let ring = unsafe { Self::new(control, data, size, keeper) }?;
        Ok(Self {
            mapped: ring.mapped.saturating_mul(2),
            ..ring
        })
    }

    /// Tells that the other end of the ring runs on this processor, as this one always does: then no locked instruction is
    /// needed to order what one end publishes and what it looks at next.
    #[must_use]
    pub fn with_peer_on_this_processor(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// What keeps the pages.
    pub const fn keeper(&self) -> &K {
        &self.keeper
    }

    /// Where `len` bytes at `at` start, if they lie in a row.
    #[inline(always)]
    const fn contiguous(&self, at: u32, len: usize) -> Option<*mut u8> {
        // `at` has 32 bits, and `len` is the length of a slice, at most isize::MAX: the sum fits into 64.
        if (at as usize).wrapping_add(len) <= self.mapped {
            // SAFETY: `at` is at most `mapped`, the length of one mapping that starts at `data`.
            Some(unsafe { self.data.as_ptr().add(at as usize) })
        } else {
            None
        }
    }

    #[cold]
    #[inline(never)]
    fn load_pair_in_parts(&self, at: u32) -> [u64; 2] {
        let mut words = [0; 2];
        self.load_in_parts(at, &mut words);
        words
    }

    #[cold]
    #[inline(never)]
    fn load_in_parts(&self, at: u32, words: &mut [u64]) {
        if let Some(split) = self.split(at, size_of_val(words)) {
            let (front, back) = words.split_at_mut((split.in_front / 8).min(words.len()));
            // SAFETY: the slice is private and aligned, the first part has this length, and is aligned.
            unsafe { copy::from_shared(front.as_mut_ptr().cast(), split.start, size_of_val(front)) };
            // SAFETY: the same for the second part.
            unsafe { copy::from_shared(back.as_mut_ptr().cast(), split.wrapped, size_of_val(back)) };
        }
    }

    /// Where an access lies whose bytes do not lie in a row: where they start, how many lie in front of the end, and the data's start, where
    /// they go on.
    #[cold]
    #[inline(never)]
    fn split(&self, at: u32, len: usize) -> Option<Split> {
        let at = if at >= self.geometry.size() {
            at.wrapping_sub(self.geometry.size())
        } else {
            at
        };
        if at >= self.geometry.size() || len > self.geometry.size() as usize {
            debug_assert!(false, "{len} bytes at {at} of a ring of {}", self.geometry.size());
            return None;
        }
        // `at` is below the size.
        let in_front = (self.geometry.size().wrapping_sub(at) as usize).min(len);
        // SAFETY: `at` lies in the mapping.
        let start = unsafe { self.data.as_ptr().add(at as usize) };
        Some(Split {
            start,
            in_front,
            rest: len.wrapping_sub(in_front),
            wrapped: self.data.as_ptr(),
        })
    }
}

/// An access in two parts: `in_front` bytes at `start`, then `rest` bytes at `wrapped`.
///
/// Both parts lie in the mapping; where the access is aligned, so are both parts, since the size is a multiple of 8.
struct Split {
    start: *mut u8,
    in_front: usize,
    rest: usize,
    wrapped: *mut u8,
}

impl<K> Words for SharedRing<K> {
    #[inline]
    fn control(&self) -> &Control {
        // SAFETY: the page is valid and aligned (constructor), and `Control` is nothing but atomics.
        unsafe { self.control.as_ref() }
    }

    #[inline(always)]
    fn publish(&self, word: &AtomicU32, value: u32) {
        if self.is_local {
            publish_here(word, value);
        } else {
            publish(word, value);
        }
    }

    #[inline]
    fn size(&self) -> u32 {
        self.geometry.size()
    }

    #[inline]
    fn store_words<const N: usize>(&self, at: u32, words: [u64; N]) {
        debug_assert!(at.is_multiple_of(8));
        if let Some(start) = self.contiguous(at, size_of::<[u64; N]>()) {
            for (index, word) in words.into_iter().enumerate() {
                // SAFETY: within the N words that `contiguous` found.
                let to = unsafe { start.add(index.wrapping_mul(8)) };
                // SAFETY: valid, and aligned, since `data` is page-aligned and `at` a multiple of 8.
                unsafe { copy::words::store(to.cast(), word) };
            }
        } else {
            self.store_padded(at, zerocopy::IntoBytes::as_bytes(&words));
        }
    }

    #[inline(always)]
    fn store_packet(&self, at: u32, first: u64, second: u64, payload: &[u8], trailer: u64) {
        debug_assert!(at.is_multiple_of(8));
        let body = padded(payload.len());
        let Some(start) = self.contiguous(at, body.wrapping_add(24)) else {
            return self.store_packet_in_parts(at, first, second, payload, trailer);
        };
        // SAFETY: `contiguous` found 16 bytes, the padded payload, and 8 bytes.
        let second_at = unsafe { start.add(8) };
        // SAFETY: as above.
        let body_at = unsafe { start.add(16) };
        // SAFETY: as above.
        let trailer_at = unsafe { body_at.add(body) };
        // SAFETY: valid, and aligned, since `data` is page-aligned and `at` a multiple of 8.
        unsafe { copy::words::store(start.cast(), first) };
        // SAFETY: as above.
        unsafe { copy::words::store(second_at.cast(), second) };
        // SAFETY: the slice is private, the target valid for its padded length, and aligned.
        unsafe { store_padded(body_at, payload) };
        // SAFETY: as above.
        unsafe { copy::words::store(trailer_at.cast(), trailer) };
    }

    #[inline(always)]
    fn load_pair(&self, at: u32) -> [u64; 2] {
        debug_assert!(at.is_multiple_of(8));
        let Some(start) = self.contiguous(at, 16) else {
            return self.load_pair_in_parts(at);
        };
        // SAFETY: `contiguous` found 16 bytes.
        let next = unsafe { start.add(8) };
        // SAFETY: valid, and aligned, since `data` is page-aligned and `at` a multiple of 8.
        let first = unsafe { copy::words::load(start.cast()) };
        // SAFETY: as above.
        let second = unsafe { copy::words::load(next.cast()) };
        [first, second]
    }

    #[inline]
    fn store_padded(&self, at: u32, bytes: &[u8]) {
        debug_assert!(at.is_multiple_of(8));
        if let Some(start) = self.contiguous(at, padded(bytes.len())) {
            // SAFETY: the slice is private, the target valid for its padded length, and aligned.
            unsafe { store_padded(start, bytes) };
        } else if let Some(split) = self.split(at, padded(bytes.len())) {
            let (whole, tail) = bytes.split_at(bytes.len() & !7);
            let (front, back) = whole.split_at(split.in_front.min(whole.len()));
            // SAFETY: `front` is no longer than the first part.
            unsafe { copy::to_shared(split.start, front.as_ptr(), front.len()) };
            // SAFETY: `back` is no longer than the second part.
            unsafe { copy::to_shared(split.wrapped, back.as_ptr(), back.len()) };
            if !tail.is_empty() {
                let (base, offset) = if split.rest == 0 {
                    (split.start, whole.len())
                } else {
                    (split.wrapped, back.len())
                };
                // SAFETY: the last word of the padded length lies in the second part if there is one, else in the first.
                let end = unsafe { base.add(offset) };
                // SAFETY: as above, and aligned, since all parts start and end at multiples of 8.
                unsafe { copy::words::store(end.cast(), last_word(bytes, tail)) };
            }
        }
    }

    fn store_bytes(&self, at: u32, bytes: &[u8]) {
        if let Some(start) = self.contiguous(at, bytes.len()) {
            // SAFETY: the slice is private, the target valid for its length, and all pages in whole words.
            unsafe { copy::bytes_to_shared(start, bytes.as_ptr(), bytes.len()) };
        } else if let Some(split) = self.split(at, bytes.len()) {
            let (front, back) = bytes.split_at(split.in_front.min(bytes.len()));
            // SAFETY: the first part has this length.
            unsafe { copy::bytes_to_shared(split.start, front.as_ptr(), front.len()) };
            // SAFETY: the second part has this length.
            unsafe { copy::bytes_to_shared(split.wrapped, back.as_ptr(), back.len()) };
        }
    }

    #[inline(always)]
    fn load(&self, at: u32, words: &mut [u64]) {
        debug_assert!(at.is_multiple_of(8));
        let len = size_of_val(words);
        if let Some(start) = self.contiguous(at, len) {
            // SAFETY: the slice is private and aligned, the source valid for its length, and aligned.
            unsafe { copy::from_shared(words.as_mut_ptr().cast(), start, len) };
        } else {
            self.load_in_parts(at, words);
        }
    }

    fn load_bytes(&self, at: u32, bytes: &mut [u8]) {
        if let Some(start) = self.contiguous(at, bytes.len()) {
            // SAFETY: the slice is private, the source valid for its length, and all pages in whole words.
            unsafe { copy::bytes_from_shared(bytes.as_mut_ptr(), start, bytes.len()) };
        } else if let Some(split) = self.split(at, bytes.len()) {
            let (front, back) = bytes.split_at_mut(split.in_front.min(bytes.len()));
            // SAFETY: the first part has this length.
            unsafe { copy::bytes_from_shared(front.as_mut_ptr(), split.start, front.len()) };
            // SAFETY: the second part has this length.
            unsafe { copy::bytes_from_shared(back.as_mut_ptr(), split.wrapped, back.len()) };
        }
    }
}

/// Stores bytes, and zeroes up to the next multiple of 8.
///
/// # Safety
///
/// As for [`copy::to_shared`]; `dst` is valid for the length rounded up to a multiple of 8.
#[inline(always)]
unsafe fn store_padded(dst: *mut u8, bytes: &[u8]) {
    let (whole, tail) = bytes.split_at(bytes.len() & !7);
    if !tail.is_empty() {
        // SAFETY: the padded length has room for one more word.
        let end = unsafe { dst.add(whole.len()) };
        // SAFETY: as above, and aligned like `dst`.
        unsafe { copy::words::store(end.cast(), last_word(bytes, tail)) };
    }
    // SAFETY: the slice is private, the target valid for its length, and aligned.
    unsafe { copy::to_shared(dst, whole.as_ptr(), whole.len()) };
}

/// The word that ends a padded slice: its last 1 to 7 bytes, `tail`, and zeroes.
#[inline]
fn last_word(bytes: &[u8], tail: &[u8]) -> u64 {
    if let Some(last) = bytes.last_chunk::<8>() {
        // 8 to 56 bits out: `tail` has 1 to 7 bytes.
        u64::from_le_bytes(*last) >> (64_usize.wrapping_sub(tail.len().wrapping_mul(8)) & 63)
    } else {
        let mut word = 0;
        for &byte in tail.iter().rev() {
            word = word << 8 | u64::from(byte);
        }
        word
    }
}
