//! A source's slot in the message page, and the protocol by which it is emptied: [`take`].
//!
//! The slot is free while its first word, the type, is 0. A hypervisor that finds it taken sets a flag in the second word, and
//! whoever empties the slot has to write the end-of-message register if the flag is set: only then is the next message
//! delivered. `models` has every interleaving of the two.

#[cfg(not(loom))]
use core::sync::atomic::fence;
use core::sync::atomic::{AtomicU32, Ordering};
#[cfg(loom)]
use loom::sync::atomic::fence;

use super::message::Message;
use crate::memory::{OutOfRange, SharedPages};

/// In the second word of a message: another one waits for this slot to become free.
pub(super) const MESSAGE_PENDING: u32 = 1 << 8;

/// How to free a slot.
#[derive(Clone, Copy)]
pub(super) enum Release {
    /// Whatever it holds: its only user.
    Always,
    /// If it still holds a message of the type that was copied.
    IfUnchanged,
}

/// The words of a slot: in shared memory, or in a model.
pub(super) trait Words {
    /// Loads word `index` (0 to 63).
    fn load(&self, index: usize, ordering: Ordering) -> u32;
    /// Stores 0 as the type.
    fn store_free(&self, ordering: Ordering);
    /// Stores 0 as the type if it is `message_type`.
    fn free_if(&self, message_type: u32, ordering: Ordering);
}

/// Takes the message out of a slot: copies it, each word once, frees the slot, and asks for the next one if the hypervisor has
/// said that one waits.
pub(super) fn take(slot: &impl Words, release: Release, ask_for_next: impl FnOnce()) -> Option<Message> {
    let message = copy(slot)?;
    clear(slot, message.message_type().0, release);
    // The slot must be seen free before the pending flag is read, or a message could be queued between the two and
    // nobody would ask for it: a store before a load, which only a full fence keeps in order.
    fence(Ordering::SeqCst);
    if slot.load(1, Ordering::Relaxed) & MESSAGE_PENDING != 0 {
        ask_for_next();
    }
    Some(message)
}

/// Copies the message, if there is one; each word is read once.
fn copy(slot: &impl Words) -> Option<Message> {
    // Acquire: pairs with the host's writing the type last.
    let message_type = slot.load(0, Ordering::Acquire);
    if message_type == 0 {
        return None;
    }
    let mut bytes = [0; Message::LEN];
    let (words, _) = bytes.as_chunks_mut::<4>();
    for (index, word) in words.iter_mut().enumerate() {
        let value = if index == 0 {
            message_type
        } else {
            slot.load(index, Ordering::Relaxed)
        };
        *word = value.to_le_bytes();
    }
    Some(Message::new(bytes))
}

/// Frees the slot.
pub(super) fn clear(slot: &impl Words, message_type: u32, release: Release) {
    // Release, twice: the copy is done before the host sees the slot free.
    match release {
        Release::Always => slot.store_free(Ordering::Release),
        // If it fails, another processor has freed the slot, and what lies there is another message.
        Release::IfUnchanged => slot.free_if(message_type, Ordering::Release),
    }
}

/// A source's slot in the message page. It is only ever touched in words of 32 bits.
pub(super) struct MessageSlot<'a> {
    message_type: &'a AtomicU32,
    pages: &'a SharedPages,
    offset: usize,
}

impl<'a> MessageSlot<'a> {
    /// Returns the slot that begins at `offset`.
    pub(super) fn new(pages: &'a SharedPages, offset: usize) -> Result<Self, OutOfRange> {
        // All of it lies inside.
        pages.word::<AtomicU32>(offset.saturating_add(Message::LEN - 4))?;
        Ok(Self {
            message_type: pages.word(offset)?,
            pages,
            offset,
        })
    }
}

impl Words for MessageSlot<'_> {
    fn load(&self, index: usize, ordering: Ordering) -> u32 {
        if index == 0 {
            return self.message_type.load(ordering);
        }
        let word = self
            .pages
            .word::<AtomicU32>(self.offset.saturating_add(index.saturating_mul(4)));
        debug_assert!(word.is_ok(), "a slot has 64 words, and all of it lies inside");
        word.map_or(0, |word| word.load(ordering))
    }

    fn store_free(&self, ordering: Ordering) {
        self.message_type.store(0, ordering);
    }

    fn free_if(&self, message_type: u32, ordering: Ordering) {
        let _ = self
            .message_type
            .compare_exchange(message_type, 0, ordering, Ordering::Relaxed);
    }
}
