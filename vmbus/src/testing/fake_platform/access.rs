//! Memory by guest-physical address: the host's way in, and what a test lays open to it.

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::state::{Block, Page, Part, Source};
use super::{FakePlatform, locked};
use crate::memory::PAGE_SIZE;
use crate::platform::PageUse;

/// An access by guest-physical address that met no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAccess {
    /// There never was memory.
    #[error("there is no memory at guest-physical address {0:#x}")]
    Nowhere(u64),
    /// The guest has released that memory.
    #[error("the memory at guest-physical address {0:#x} was released by the guest")]
    Released(u64),
    /// The address of a word is not a multiple of its size.
    #[error("the word at guest-physical address {0:#x} is not aligned")]
    Unaligned(u64),
}

impl FakePlatform {
    /// Makes memory of the test's own part of the guest's memory, so that it can be translated and reached by the host.
    ///
    /// # Safety
    ///
    /// The memory stays valid until [`Self::disown`], and nobody holds a reference to it while the host may use it.
    pub unsafe fn adopt(&self, base: NonNull<u8>, len_bytes: usize) {
        let mut state = locked(&self.state);
        let address = base.addr().get();
        let (mut offset, mut page_numbers) = (0, Vec::new());
        while offset < len_bytes {
            let in_page = (address + offset) % PAGE_SIZE;
            let part = (PAGE_SIZE - in_page).min(len_bytes - offset);
            let number = state.next_page_number();
            // The page's base may lie before the memory: it is never touched there.
            let page_base = base.as_ptr().wrapping_add(offset).wrapping_sub(in_page);
            let Some(page_base) = NonNull::new(page_base) else {
                break;
            };
            state.pages.insert(
                number,
                Page {
                    base: page_base,
                    present: in_page..in_page + part,
                    page_use: PageUse::Data,
                    in_file: None,
                },
            );
            page_numbers.push(number);
            offset += part;
        }
        let page_count = page_numbers.len();
        let block = Block {
            base,
            page_count,
            page_numbers,
            source: Source::Adopted,
        };
        state.blocks.insert(address, block);
    }

    /// Ends what [`Self::adopt`] began.
    pub fn disown(&self, base: NonNull<u8>) {
        let mut state = locked(&self.state);
        match state.blocks.remove(&base.addr().get()) {
            Some(block) if block.source == Source::Adopted => {
                for number in &block.page_numbers {
                    state.pages.remove(number);
                }
            }
            other => {
                if let Some(block) = other {
                    state.blocks.insert(block.base.addr().get(), block);
                }
                state.fault(format!("memory at {base:?} was disowned but never adopted"));
            }
        }
    }

    /// Reads guest memory as the host does.
    ///
    /// # Errors
    ///
    /// [`BadAccess`], which is also recorded as a fault.
    pub fn guest_read(&self, gpa: u64, target: &mut [u8]) -> Result<(), BadAccess> {
        let mut state = locked(&self.state);
        state.for_each_part(gpa, target.len(), |index, part| match part {
            Part::Byte(byte) => target[index] = byte.load(Ordering::Relaxed),
            Part::Word(word) => target[index..index + 8].copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()),
        })
    }

    /// Writes guest memory as the host does.
    ///
    /// # Errors
    ///
    /// [`BadAccess`], which is also recorded as a fault.
    pub fn guest_write(&self, gpa: u64, source: &[u8]) -> Result<(), BadAccess> {
        let mut state = locked(&self.state);
        state.for_each_part(gpa, source.len(), |index, part| match part {
            Part::Byte(byte) => byte.store(source[index], Ordering::Relaxed),
            Part::Word(word) => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&source[index..index + 8]);
                word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            }
        })
    }

    /// Runs `access` on the aligned 32-bit word at a guest-physical address.
    ///
    /// # Errors
    ///
    /// [`BadAccess`], which is also recorded as a fault.
    pub fn guest_word32<R>(&self, gpa: u64, access: impl FnOnce(&AtomicU32) -> R) -> Result<R, BadAccess> {
        let mut state = locked(&self.state);
        if !gpa.is_multiple_of(4) {
            return Err(BadAccess::Unaligned(gpa));
        }
        state.checked_byte(gpa.wrapping_add(3))?;
        let at = state.checked_byte(gpa)?;
        // SAFETY: aligned, present, and alive while the lock is held.
        Ok(access(unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) }))
    }

    /// Runs `access` on the aligned 64-bit word at a guest-physical address.
    ///
    /// # Errors
    ///
    /// [`BadAccess`], which is also recorded as a fault.
    pub fn guest_word64<R>(&self, gpa: u64, access: impl FnOnce(&AtomicU64) -> R) -> Result<R, BadAccess> {
        let mut state = locked(&self.state);
        if !gpa.is_multiple_of(8) {
            return Err(BadAccess::Unaligned(gpa));
        }
        state.checked_byte(gpa.wrapping_add(7))?;
        let at = state.checked_byte(gpa)?;
        // SAFETY: aligned, present, and alive while the lock is held.
        Ok(access(unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) }))
    }

    /// Returns what the page at a guest-physical address was allocated for, or `None` if there is no such page.
    #[must_use]
    pub fn page_use(&self, gpa: u64) -> Option<PageUse> {
        let state = locked(&self.state);
        state.pages.get(&(gpa / PAGE_SIZE as u64)).map(|page| page.page_use)
    }

    /// Returns the guest-physical address of each page that is allocated now, in the order in which they were.
    #[must_use]
    pub fn page_addresses(&self) -> Vec<u64> {
        let state = locked(&self.state);
        state.pages_in_order().map(|number| number * PAGE_SIZE as u64).collect()
    }
}
