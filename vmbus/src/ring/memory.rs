//! What the two ends of a ring know of its memory: one control page, and whole pages of data.
//!
//! Positions are those of [`Geometry`](super::geometry::Geometry); what starts near the end of the data goes on at its start.
//! [`SharedRing`](super::SharedRing) is the implementation for pages that a peer changes while we look; models have their own.

use super::control::Control;
use super::geometry::padded;
use super::sync::AtomicU32;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("VMBus exists on 64-bit machines only, and sums of offsets and lengths rely on it");

/// The memory of a ring: [`SharedRing`](super::SharedRing).
///
/// What lies in it is reached by the two halves of a ring alone, which know where its words begin:
///
/// ```compile_fail,E0624
/// use vmbus::ring::RingMemory;
///
/// fn between_two_words(ring: &impl RingMemory) {
///     ring.store_words(3, [0]);
/// }
/// ```
#[expect(
    private_bounds,
    reason = "sealed, and its functions are this crate's: they rely on where they are asked to store"
)]
pub trait RingMemory: Words {}

impl<M: Words> RingMemory for M {}

/// Control words and data of a ring.
///
/// Offsets may lie anywhere below twice the size: they wrap once. An access that is longer than the ring, or starts behind
/// that, is a mistake of this crate; it does nothing in release builds. To store or load words elsewhere than at a multiple of 8 is
/// undefined behaviour.
pub(crate) trait Words {
    /// The control page.
    fn control(&self) -> &Control;

    /// Stores a word of the control page, and lets no later load of another one overtake the store.
    fn publish(&self, word: &AtomicU32, value: u32);

    /// Data bytes: whole pages.
    fn size(&self) -> u32;

    /// Stores words at a multiple of 8.
    fn store_words<const N: usize>(&self, at: u32, words: [u64; N]);

    /// Stores a whole packet at a multiple of 8: descriptor, payload padded with zeroes, trailer.
    fn store_packet(&self, at: u32, first: u64, second: u64, payload: &[u8], trailer: u64);

    /// The same, by the other functions.
    #[cold]
    #[inline(never)]
    fn store_packet_in_parts(&self, at: u32, first: u64, second: u64, payload: &[u8], trailer: u64) {
        self.store_words(at, [first, second]);
        self.store_padded(at.wrapping_add(16), payload);
        // The payload is shorter than the ring, whose size fits.
        let end = u32::try_from(padded(payload.len())).unwrap_or(u32::MAX);
        self.store_words(at.wrapping_add(16).wrapping_add(end), [trailer]);
    }

    /// Loads two words from a multiple of 8, each once.
    fn load_pair(&self, at: u32) -> [u64; 2];

    /// Stores bytes at a multiple of 8, and zeroes up to the next one.
    fn store_padded(&self, at: u32, bytes: &[u8]);

    /// Stores bytes anywhere.
    fn store_bytes(&self, at: u32, bytes: &[u8]);

    /// Loads words from a multiple of 8, each once.
    fn load(&self, at: u32, words: &mut [u64]);

    /// Loads bytes from anywhere, each once.
    fn load_bytes(&self, at: u32, bytes: &mut [u8]);
}
