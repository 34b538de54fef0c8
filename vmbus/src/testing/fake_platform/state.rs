//! The blocks and pages of a fake platform.

use alloc::alloc::{Layout, dealloc};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{BadAccess, HostSide, mapping};
use crate::memory::PAGE_SIZE;
use crate::platform::{PageUse, ProcessorIndex};

/// What fills released memory.
const POISON: u64 = 0xdbdb_dbdb_dbdb_dbdb;
/// So many released pages rest before their memory goes back to the heap.
const QUARANTINE_PAGES: usize = 512;
/// The first page number that is handed out.
const FIRST_PFN: u64 = 0x10_0000;
/// Page numbers are scattered over so many pages.
const PFN_SPACE: u64 = 1 << 28;
/// Odd, so that multiplication modulo the power of two above meets each page number once.
const PFN_SCATTER: u64 = 0x9e3_779b;

pub(super) struct Block {
    pub(super) base: NonNull<u8>,
    pub(super) page_count: usize,
    pub(super) page_numbers: Vec<u64>,
    pub(super) source: Source,
}

/// Where the memory of a block is from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Heap,
    /// The file that can be mapped twice.
    File,
    /// It belongs to the test: it is neither poisoned nor freed.
    Adopted,
}

// SAFETY: the pointer is to memory that the block owns (or that a test promised to keep), reached as atomics only.
unsafe impl Send for Block {}

pub(super) struct Page {
    pub(super) base: NonNull<u8>,
    /// The part of the page that is there: all of it, except at the edges of adopted memory.
    pub(super) present: core::ops::Range<usize>,
    pub(super) page_use: PageUse,
    /// Its number in the file that can be mapped twice.
    pub(super) in_file: Option<usize>,
}

// SAFETY: as for `Block`.
unsafe impl Send for Page {}

#[derive(Default)]
pub(super) struct State {
    /// By kernel address.
    pub(super) blocks: BTreeMap<usize, Block>,
    /// By page number.
    pub(super) pages: BTreeMap<u64, Page>,
    pub(super) pages_ever: u64,
    pub(super) resting: VecDeque<Block>,
    pub(super) resting_pages: usize,
    pub(super) fail_at: Option<u64>,
    pub(super) fail_from: Option<u64>,
    pub(super) faults: Vec<String>,
    pub(super) deferred: VecDeque<ProcessorIndex>,
    pub(super) host: Option<&'static dyn HostSide>,
    pub(super) file: Option<mapping::File>,
    /// What was mapped twice and not removed: address and pages.
    pub(super) double_mappings: BTreeMap<usize, usize>,
}

const fn scattered(number: u64) -> u64 {
    FIRST_PFN + number.wrapping_mul(PFN_SCATTER) % PFN_SPACE
}

impl State {
    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    pub(super) const fn next_page_number(&mut self) -> u64 {
        let number = scattered(self.pages_ever);
        self.pages_ever += 1;
        number
    }

    /// Returns the numbers of the pages that are there, oldest first.
    pub(super) fn pages_in_order(&self) -> impl Iterator<Item = u64> {
        (0..self.pages_ever)
            .map(scattered)
            .filter(|number| self.pages.contains_key(number))
    }

    /// Forgets everything but the host.
    ///
    /// # Safety
    ///
    /// Nothing points to any page any more.
    pub(super) unsafe fn start_over(&mut self) {
        for (base, pages) in core::mem::take(&mut self.double_mappings) {
            if let Some(base) = core::num::NonZeroUsize::new(base) {
                let base = NonNull::with_exposed_provenance(base);
                // SAFETY: made by `map_twice` with so many pages, not removed since, and not used any more.
                unsafe { mapping::File::unmap(base, pages * 2) };
            }
        }
        let live = core::mem::take(&mut self.blocks).into_values();
        for block in live.chain(core::mem::take(&mut self.resting)) {
            // SAFETY: the block is in none of the tables any more, and not used.
            unsafe { free(&block) };
        }
        let (host, file) = (self.host.take(), self.file.take());
        *self = Self {
            host,
            file,
            ..Self::default()
        };
    }

    /// Finds a byte and records a fault if it is not there.
    pub(super) fn checked_byte(&mut self, gpa: u64) -> Result<NonNull<u8>, BadAccess> {
        let offset = usize::try_from(gpa % PAGE_SIZE as u64).unwrap_or(0);
        let number = gpa / PAGE_SIZE as u64;
        if let Some(page) = self.pages.get(&number)
            && page.present.contains(&offset)
            && let Some(at) = NonNull::new(page.base.as_ptr().wrapping_add(offset))
        {
            return Ok(at);
        }
        let existed = (0..self.pages_ever)
            .rev()
            .take(1 << 16)
            .any(|ever| scattered(ever) == number);
        let error = if existed {
            BadAccess::Released(gpa)
        } else {
            BadAccess::Nowhere(gpa)
        };
        self.fault(format!("the host's access failed: {error}"));
        Err(error)
    }

    /// Looks up each page once, and then goes through it, in words where they are aligned.
    pub(super) fn for_each_part(
        &mut self,
        gpa: u64,
        len: usize,
        mut access: impl FnMut(usize, Part<'_>),
    ) -> Result<(), BadAccess> {
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done as u64);
            let start = self.checked_byte(at)?;
            let in_page = usize::try_from(at % PAGE_SIZE as u64).unwrap_or(0);
            let part = (PAGE_SIZE - in_page).min(len - done);
            self.checked_byte(at.wrapping_add(part as u64 - 1))?;
            let mut index = 0;
            while index < part {
                // SAFETY: both ends of the part are in the same present part of a page.
                let byte = unsafe { start.add(index) };
                let word = byte.cast::<u64>();
                if part - index >= 8 && word.is_aligned() {
                    // SAFETY: aligned, and eight bytes of a live block, which the lock keeps alive; every access of this
                    // side is atomic.
                    access(done + index, Part::Word(unsafe { AtomicU64::from_ptr(word.as_ptr()) }));
                    index += 8;
                } else {
                    // SAFETY: as above, one byte.
                    access(done + index, Part::Byte(unsafe { AtomicU8::from_ptr(byte.as_ptr()) }));
                    index += 1;
                }
            }
            done += part;
        }
        Ok(())
    }

    /// Finds the block that a kernel address lies in.
    pub(super) fn block_at(&self, address: usize) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=address).next_back()?;
        let first_page = block.base.addr().get() / PAGE_SIZE;
        (address / PAGE_SIZE - first_page < block.page_count).then_some(block)
    }

    /// Poisons a block that was released, and keeps it for a while.
    ///
    /// Not under Miri, to which it goes back at once: Miri itself finds each access that comes after that, also one that only
    /// reads, and takes long to fill and to compare memory word by word.
    pub(super) fn rest(&mut self, block: Block) {
        if cfg!(miri) {
            // SAFETY: the block is in none of the tables any more; that nobody uses it is what Miri checks.
            unsafe { free(&block) };
            return;
        }
        poison(&block);
        self.resting_pages += block.page_count;
        self.resting.push_back(block);
        while self.resting_pages > QUARANTINE_PAGES {
            let Some(mut oldest) = self.resting.pop_front() else {
                break;
            };
            self.resting_pages -= oldest.page_count;
            check_poison(&mut oldest, &mut self.faults);
            // SAFETY: the block is in none of the tables any more, and nobody uses memory that was released so long ago.
            unsafe { free(&oldest) };
        }
    }
}

/// Gives a block's memory back to where it is from.
///
/// # Safety
///
/// Nothing points to it any more.
unsafe fn free(block: &Block) {
    match block.source {
        // SAFETY: the block is a mapping of its own; a double mapping of it would be used after the release.
        Source::File => unsafe { mapping::File::free(block.base, block.page_count) },
        // SAFETY: the block is exactly one allocation with this layout.
        Source::Heap => unsafe { dealloc(block.base.as_ptr(), layout_of(block.page_count)) },
        Source::Adopted => {}
    }
}

/// The layout of a block, whose size was checked when it was allocated.
pub(super) fn layout_of(page_count: usize) -> Layout {
    Layout::from_size_align(page_count * PAGE_SIZE, PAGE_SIZE).unwrap_or(Layout::new::<u64>())
}

pub(super) fn check_poison(block: &mut Block, faults: &mut Vec<String>) {
    // Nearly always nothing was written: one comparison for all words is fast.
    let different = words_of(block).fold(0, |sum, word| sum | (word.load(Ordering::Relaxed) ^ POISON));
    if different == 0 {
        return;
    }
    for (index, word) in words_of(block).enumerate() {
        let found = word.swap(POISON, Ordering::Relaxed);
        if found == POISON {
            continue;
        }
        let different = (found ^ POISON).to_ne_bytes();
        let offset = index * 8 + different.iter().position(|byte| *byte != 0).unwrap_or(0);
        let number = block.page_numbers[offset / PAGE_SIZE];
        let in_page = offset % PAGE_SIZE;
        faults.push(format!(
            "byte {in_page:#x} of page {number:#x} was written after its release"
        ));
        return;
    }
}

/// Fills a block that nobody uses any more with poison.
fn poison(block: &Block) {
    for word in words_of(block) {
        word.store(POISON, Ordering::Relaxed);
    }
}

/// The words of a block of whole pages.
fn words_of(block: &Block) -> impl Iterator<Item = &AtomicU64> {
    (0..block.page_count * PAGE_SIZE).step_by(8).map(|offset| {
        // SAFETY: inside the block.
        let at = unsafe { block.base.add(offset) };
        // SAFETY: the block begins at a page boundary and is alive as long as it rests; it is reached as atomics only.
        unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) }
    })
}

/// A piece of guest memory, reached as an atomic.
pub(super) enum Part<'a> {
    Byte(&'a AtomicU8),
    Word(&'a AtomicU64),
}
