//! Filling a packet where it lies in the ring.

use super::error::WriteError;
use super::geometry::padded;
use super::memory::RingMemory;
use super::packet::{DESCRIPTOR, Header};
use super::producer::{Claim, State};

/// Zeroes for what a caller left out.
const ZEROES: [u8; 64] = [0; 64];

/// A place in the ring for one packet: filled piece by piece, then [finished](Self::finish).
///
/// Dropped unfinished, it stages nothing. What was reserved but not written is zero: no old content of the ring goes out
/// again.
#[derive(Debug)]
#[must_use = "a reservation that is not finished sends nothing"]
pub struct Reservation<'p, M> {
    state: &'p mut State,
    memory: &'p M,
    header: Header,
    claim: Claim,
    /// Bytes of the page list.
    external: u32,
    /// Bytes of the page list written so far.
    listed: u32,
    /// Bytes of the payload written so far, all from its start on.
    filled: u32,
    /// Bytes of the payload.
    payload: u32,
}

impl<'p, M: RingMemory> Reservation<'p, M> {
    #[inline]
    pub(super) const fn new(
        state: &'p mut State,
        memory: &'p M,
        header: Header,
        claim: Claim,
        external: u32,
        payload: u32,
    ) -> Self {
        Self {
            state,
            memory,
            header,
            claim,
            external,
            listed: 0,
            filled: 0,
            payload,
        }
    }

    /// Bytes of the payload that are still to be written.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.payload.wrapping_sub(self.filled) as usize
    }

    /// Appends to the page list; lengths are multiples of 8.
    ///
    /// # Errors
    ///
    /// [`WriteError::OutOfBounds`] if it is longer than reserved, or `bytes` no multiple of 8 long.
    pub fn write_external(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let len = fitting(bytes.len(), self.external.wrapping_sub(self.listed))?;
        if !bytes.len().is_multiple_of(8) {
            return Err(WriteError::OutOfBounds { excess: len % 8 });
        }
        self.memory
            .store_padded(self.at(DESCRIPTOR.wrapping_add(self.listed)), bytes);
        self.listed = self.listed.wrapping_add(len);
        Ok(())
    }

    /// Appends to the payload.
    ///
    /// # Errors
    ///
    /// [`WriteError::OutOfBounds`] if it is longer than reserved; then nothing is written.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let len = fitting(bytes.len(), self.payload.wrapping_sub(self.filled))?;
        self.store(self.filled, bytes);
        self.filled = self.filled.wrapping_add(len);
        Ok(())
    }

    /// Writes somewhere in the payload: over what was written, or behind it, and then zeroes fill the gap.
    ///
    /// # Errors
    ///
    /// [`WriteError::OutOfBounds`] if it reaches past what was reserved; then nothing is written.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<(), WriteError> {
        let start = fitting(offset, self.payload)?;
        let len = fitting(bytes.len(), self.payload.wrapping_sub(start))?;
        self.zero_up_to(start);
        self.store(start, bytes);
        // Both lie within the payload: the sum fits.
        self.filled = self.filled.max(start.wrapping_add(len));
        Ok(())
    }

    /// Stages the packet.
    #[inline]
    pub fn finish(mut self) {
        if self.listed < self.external {
            self.zero_external();
        }
        // Also the padding, which starts where the payload ends.
        let end = self.claim.length.wrapping_sub(self.payload_offset());
        if self.filled < end {
            self.zero_up_to(end);
        }
        let data_offset = self.payload_offset();
        self.memory.store_words(
            self.claim.start,
            [
                self.header.encode(data_offset, self.claim.length),
                self.header.transaction_id,
            ],
        );
        self.memory
            .store_words(self.at(self.claim.length), [u64::from(self.claim.start) << 32]);
        self.state.stage(self.claim.total());
    }

    /// Where the payload starts in the packet.
    #[inline]
    const fn payload_offset(&self) -> u32 {
        DESCRIPTOR.wrapping_add(self.external)
    }

    /// The ring offset of a byte of the packet; may lie behind the end, once.
    #[inline]
    const fn at(&self, offset: u32) -> u32 {
        self.claim.start.wrapping_add(offset)
    }

    #[inline]
    fn store(&self, offset: u32, bytes: &[u8]) {
        let at = self.at(self.payload_offset().wrapping_add(offset));
        // Padding may be written only where nothing stands yet and nothing else belongs: when this ends the payload, or a word.
        if at.is_multiple_of(8) && bytes.len().is_multiple_of(8) {
            self.memory.store_padded(at, bytes);
        } else {
            self.memory.store_bytes(at, bytes);
        }
    }

    /// Zeroes the payload from where it is filled up to `end`, which may lie in the padding.
    fn zero_up_to(&mut self, end: u32) {
        while self.filled < end {
            let gap = end.wrapping_sub(self.filled) as usize;
            // Whole words from an aligned start; before that, the rest of a word.
            let to_word = padded(self.filled as usize).wrapping_sub(self.filled as usize);
            let len = if to_word == 0 {
                gap.min(ZEROES.len())
            } else {
                gap.min(to_word)
            };
            let (zeroes, _) = ZEROES.split_at_checked(len).unwrap_or((&ZEROES, &[]));
            self.store(self.filled, zeroes);
            // At most 64.
            self.filled = self.filled.wrapping_add(u32::try_from(zeroes.len()).unwrap_or(0));
        }
    }

    #[cold]
    #[inline(never)]
    fn zero_external(&mut self) {
        while self.listed < self.external {
            self.memory
                .store_words(self.at(DESCRIPTOR.wrapping_add(self.listed)), [0]);
            self.listed = self.listed.wrapping_add(8);
        }
    }
}

/// The length as 32 bits, if it fits into what is left.
#[inline]
fn fitting(len: usize, left: u32) -> Result<u32, WriteError> {
    match u32::try_from(len) {
        Ok(len) if len <= left => Ok(len),
        _ => Err(WriteError::OutOfBounds {
            excess: u32::try_from(len).unwrap_or(u32::MAX).saturating_sub(left),
        }),
    }
}
