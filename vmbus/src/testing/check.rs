//! Looks for the usual mistakes in an implementation of [`Platform`]: [`check_platform`].

use core::ptr::NonNull;
use core::time::Duration;

use crate::Platform;
use crate::memory::{Gpa, PAGE_SIZE, Pfn, SharedPages};
use crate::platform::{Callers, PageUse, TimedOut, Wait};
use crate::time::Instant;

/// What [`check_platform`] found out about a platform without faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlatformReport {
    /// The guest-physical pages of a block were contiguous. Allowed, but the crate does not need it.
    pub is_contiguous: bool,
    /// Guest-physical addresses were equal to kernel addresses. Allowed.
    pub is_identity_mapped: bool,
    /// [`Platform::map_twice`] works.
    pub maps_twice: bool,
    /// Pages for [`PageUse::HypercallCode`] can be had. Whether they are mapped executable shows only when a hypercall
    /// is made: a page fault on an instruction fetch there means that they are not.
    pub has_hypercall_page: bool,
}

/// A mistake in a platform, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformFault {
    /// No pages at all.
    #[error(
        "allocate_pages({page_count}) failed: {page_count} pages contiguous in the kernel's address space are needed to \
         check the platform (a bus needs some hundreds); look at the pool that they come from"
    )]
    NoPages {
        /// How many pages were asked for.
        page_count: usize,
    },
    /// A block does not begin at a page boundary.
    #[error("allocate_pages returned {address:#x}, which is not a multiple of 4096: allocate with page alignment")]
    NotAligned {
        /// The block's address.
        address: usize,
    },
    /// A fresh block has other bytes than zero.
    #[error(
        "byte {offset} of a fresh block is {value:#x}: allocate_pages has to zero the pages (all of them, each time), or \
         the host sees what was in them"
    )]
    NotZeroed {
        /// The offset of the byte in its block.
        offset: usize,
        /// Its value.
        value: u8,
    },
    /// Released pages came back with what was written to them.
    #[error(
        "byte {offset} is {value:#x} in a block that was released and allocated again: zero the pages in allocate_pages, \
         not only when they are first made"
    )]
    NotZeroedAgain {
        /// The offset of the byte in its block.
        offset: usize,
        /// Its value.
        value: u8,
    },
    /// Memory does not keep what is written to it.
    #[error(
        "{wrote:#x} was written to offset {offset} of a block, and {read:#x} was read: the pages have to be mapped writable, \
         to memory, and each to its own"
    )]
    DoesNotHold {
        /// The offset of the byte in its block.
        offset: usize,
        /// The value written.
        wrote: u8,
        /// The value read.
        read: u8,
    },
    /// Two blocks share memory.
    #[error("two live blocks overlap at {address:#x}: allocate_pages gave the same memory twice")]
    Overlap {
        /// The address that lies in both.
        address: usize,
    },
    /// An address of an own block has no translation.
    #[error("translate({address:#x}) failed, for memory that allocate_pages returned")]
    NotTranslated {
        /// The address.
        address: usize,
    },
    /// A translation lost the offset within the page.
    #[error(
        "translate({address:#x}) returned {gpa:#x}: the low 12 bits have to be the same (add the offset in the page to the \
         page's address)"
    )]
    OffsetLost {
        /// The address.
        address: usize,
        /// Its translation.
        gpa: u64,
    },
    /// Two addresses in one page translate to two pages.
    #[error("translate puts two bytes of the page at {address:#x} in different guest pages")]
    PageTorn {
        /// The page's address.
        address: usize,
    },
    /// Two pages translate to the same one.
    #[error(
        "translate({first:#x}) and translate({second:#x}) are both in guest page {page:#x}: translate each page by itself \
         (not the block's first page)"
    )]
    SamePage {
        /// One address.
        first: usize,
        /// The other.
        second: usize,
        /// The page number that both have.
        page: u64,
    },
    /// A translation is out of the range of any machine.
    #[error("translate({address:#x}) returned {gpa:#x}: that is beyond 52 bits and no guest-physical address")]
    NotPhysical {
        /// The address.
        address: usize,
        /// Its translation.
        gpa: u64,
    },
    /// A translation changed.
    #[error(
        "translate({address:#x}) returned {first:#x}, then {second:#x}: pages must not move while they are allocated"
    )]
    Moved {
        /// The address.
        address: usize,
        /// Its first translation.
        first: u64,
        /// Its later one.
        second: u64,
    },
    /// The current processor is not one of those that there are.
    #[error(
        "current_processor returned {index} with {count} processors: count from 0 in the operating system's order (not \
         the APIC's ids)"
    )]
    NoSuchProcessor {
        /// What was returned.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// One processor is promised, and there are more.
    #[error(
        "callers promises {promised:?}, and there are {count} processors, of which this is number {index}: such a promise holds \
         only where number 0 alone ever calls into the crate"
    )]
    PromisesOneProcessor {
        /// What was promised.
        promised: Callers,
        /// The running processor.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The promise is another one each time.
    #[error("callers returned {first:?}, then {second:?}: what is promised holds for ever")]
    PromiseChanged {
        /// The first answer.
        first: Callers,
        /// The second.
        second: Callers,
    },
    /// A wait did not look at its condition.
    #[error(
        "wait returned success, but its condition had not held: call Wait::is_ready, and return Ok only if it is true"
    )]
    WaitIgnoresCondition,
    /// A wait for something that holds timed out.
    #[error("wait timed out though its condition held: look at Wait::is_ready before and after the deadline")]
    WaitMissesCondition,
    /// A wait did not end at its deadline.
    #[error("wait went on after its deadline had passed: look at Wait::is_late in each round")]
    WaitIgnoresDeadline,
    /// A wait ended before its deadline.
    #[error("wait returned TimedOut before its deadline: look at Wait::is_late, and wait on while it is false")]
    WaitEndsEarly,
    /// Dispatch sections do not nest.
    #[error(
        "after nested dispatch sections the token of a new one differs from that of the first: leave_dispatch has to restore what its token says"
    )]
    DispatchDoesNotNest,
    /// A double mapping has a second half of its own.
    #[error(
        "byte {offset} of what map_twice returned is not the same memory as byte {mirror}: map the list of pages, then the \
         same list once more behind it, in order"
    )]
    NotMirrored {
        /// The offset that was written.
        offset: usize,
        /// The offset that was read.
        mirror: usize,
    },
    /// A double mapping is of other pages.
    #[error(
        "what was written to page {page_index} does not show in what map_twice returned: map the pages of the list, in its order"
    )]
    MapsOtherPages {
        /// The page's place in the list.
        page_index: usize,
    },
}

/// How many pages the blocks have with which the check is made.
const BLOCK_PAGES: usize = 4;

/// Looks for the usual mistakes in `platform`, in a system with `processor_count` processors: pages that are not zeroed, not
/// aligned or shared, translations that lose the offset or the page, waits that ignore their condition or deadline.
///
/// Call it once in the real kernel in task context, before the bus is connected. It allocates a few pages and gives them
/// back, takes no time, and needs neither a heap nor a host. What it cannot check: that another processor or the host sees the
/// same memory, that pages for the hypercall page are executable, and that nobody calls whom [`Platform::callers`] rules out,
/// beyond the number of processors.
///
/// # Errors
///
/// The first [`PlatformFault`] found; its message says what to fix.
pub fn check_platform(platform: &'static dyn Platform, processor_count: u32) -> Result<PlatformReport, PlatformFault> {
    check_processor(platform, processor_count)?;
    check_dispatch(platform)?;
    check_wait(platform)?;
    let (is_contiguous, is_identity_mapped) = check_pages(platform)?;
    let maps_twice = check_double_mapping(platform)?;
    let code = SharedPages::allocate_for(platform, 1, PageUse::HypercallCode)
        .map_err(|_| PlatformFault::NoPages { page_count: 1 })?;
    // Only looked at, never written: the kernel may map it read-only.
    check_aligned(&code)?;
    translated(platform, code.base())?;
    Ok(PlatformReport {
        is_contiguous,
        is_identity_mapped,
        maps_twice,
        has_hypercall_page: true,
    })
}

fn check_processor(platform: &'static dyn Platform, count: u32) -> Result<(), PlatformFault> {
    let index = platform.current_processor().0;
    if index >= count {
        return Err(PlatformFault::NoSuchProcessor { index, count });
    }
    let (promised, second) = (platform.callers(), platform.callers());
    if promised != second {
        return Err(PlatformFault::PromiseChanged {
            first: promised,
            second,
        });
    }
    if promised != Callers::Anywhere && (count != 1 || index != 0) {
        return Err(PlatformFault::PromisesOneProcessor { promised, index, count });
    }
    Ok(())
}

fn check_dispatch(platform: &'static dyn Platform) -> Result<(), PlatformFault> {
    let outer = platform.enter_dispatch();
    let inner = platform.enter_dispatch();
    platform.leave_dispatch(inner);
    platform.leave_dispatch(outer);
    let again = platform.enter_dispatch();
    platform.leave_dispatch(again);
    if again == outer {
        Ok(())
    } else {
        Err(PlatformFault::DispatchDoesNotNest)
    }
}

/// A clock for the waits of this check: each look at it takes a millisecond, so no time source is needed.
struct LookClock(core::sync::atomic::AtomicU64);

impl LookClock {
    const MILLISECOND: u64 = 10_000;

    const fn new() -> Self {
        Self(core::sync::atomic::AtomicU64::new(0))
    }

    fn now(&self) -> Instant {
        let units = self
            .0
            .fetch_add(Self::MILLISECOND, core::sync::atomic::Ordering::Relaxed);
        Instant::from_reference_units(units)
    }

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_reference_units(0).saturating_add(Duration::from_millis(milliseconds))
    }
}

fn check_wait(platform: &'static dyn Platform) -> Result<(), PlatformFault> {
    // The condition comes true at the third look, long before the deadline.
    let (clock, mut looks) = (LookClock::new(), 0_u32);
    let now = || clock.now();
    let mut ready = || {
        looks += 1;
        looks >= 3
    };
    let result = platform.wait(&mut Wait::new(&mut ready, &now, Some(LookClock::at(1_000_000))));
    match result {
        Ok(()) if looks >= 3 => {}
        Ok(()) => return Err(PlatformFault::WaitIgnoresCondition),
        Err(TimedOut) => return Err(PlatformFault::WaitEndsEarly),
    }
    // It never does. A platform that ignores the deadline is let out by the condition after many looks.
    let (clock, mut looks) = (LookClock::new(), 0_u32);
    let now = || clock.now();
    let mut ready = || {
        looks += 1;
        looks >= 100_000
    };
    let result = platform.wait(&mut Wait::new(&mut ready, &now, Some(LookClock::at(20))));
    if result.is_ok() {
        return Err(if looks >= 100_000 {
            PlatformFault::WaitIgnoresDeadline
        } else {
            PlatformFault::WaitIgnoresCondition
        });
    }
    if clock.now() < LookClock::at(20) {
        return Err(PlatformFault::WaitEndsEarly);
    }
    // It holds, and the deadline has passed.
    let clock = LookClock::new();
    let now = || clock.now();
    let mut ready = || true;
    platform
        .wait(&mut Wait::new(&mut ready, &now, Some(LookClock::at(0))))
        .map_err(|TimedOut| PlatformFault::WaitMissesCondition)
}

fn check_aligned(block: &SharedPages) -> Result<(), PlatformFault> {
    let address = block.base().addr().get();
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(PlatformFault::NotAligned { address });
    }
    Ok(())
}

fn first_nonzero(block: &SharedPages) -> Option<(usize, u8)> {
    let mut chunk = [0; 64];
    for start in (0..block.len_bytes()).step_by(chunk.len()) {
        let read = block.read_at(start, &mut chunk);
        debug_assert!(read.is_ok(), "inside the block");
        if let Some((offset, value)) = chunk.iter().enumerate().find(|(_, byte)| **byte != 0) {
            return Some((start + offset, *value));
        }
    }
    None
}

fn byte_at(block: &SharedPages, offset: usize) -> u8 {
    let mut byte = [0];
    // The offset is inside the block: its callers count to its length.
    let read = block.read_at(offset, &mut byte);
    debug_assert!(read.is_ok(), "inside the block");
    byte[0]
}

fn write_byte(block: &SharedPages, offset: usize, value: u8) {
    let written = block.write_at(offset, &[value]);
    debug_assert!(written.is_ok(), "inside the block");
}

fn translated(platform: &'static dyn Platform, at: NonNull<u8>) -> Result<Gpa, PlatformFault> {
    let address = at.addr().get();
    let gpa = platform
        .translate(at)
        .map_err(|_| PlatformFault::NotTranslated { address })?;
    if gpa.get() >> 52 != 0 {
        return Err(PlatformFault::NotPhysical {
            address,
            gpa: gpa.get(),
        });
    }
    if gpa.offset_in_page() != address % PAGE_SIZE {
        return Err(PlatformFault::OffsetLost {
            address,
            gpa: gpa.get(),
        });
    }
    Ok(gpa)
}

/// A value for each byte of two blocks that differs between neighbours, pages and blocks.
#[expect(clippy::cast_possible_truncation, reason = "only the low byte is wanted")]
const fn pattern(block: usize, offset: usize) -> u8 {
    (offset ^ (offset / PAGE_SIZE * 59) ^ (block * 0xa5)) as u8 | 1
}

fn check_pages(platform: &'static dyn Platform) -> Result<(bool, bool), PlatformFault> {
    let no_pages = |_| PlatformFault::NoPages {
        page_count: BLOCK_PAGES,
    };
    let blocks = [
        SharedPages::allocate(platform, BLOCK_PAGES).map_err(no_pages)?,
        SharedPages::allocate(platform, BLOCK_PAGES).map_err(no_pages)?,
    ];
    for block in &blocks {
        check_aligned(block)?;
        if let Some((offset, value)) = first_nonzero(block) {
            return Err(PlatformFault::NotZeroed { offset, value });
        }
    }
    let [low, high] = {
        let [first, second] = [blocks[0].base().addr().get(), blocks[1].base().addr().get()];
        [first.min(second), first.max(second)]
    };
    if high - low < BLOCK_PAGES * PAGE_SIZE {
        return Err(PlatformFault::Overlap { address: high });
    }
    for (index, block) in blocks.iter().enumerate() {
        for offset in 0..block.len_bytes() {
            write_byte(block, offset, pattern(index, offset));
        }
    }
    for (index, block) in blocks.iter().enumerate() {
        for offset in 0..block.len_bytes() {
            let (wrote, read) = (pattern(index, offset), byte_at(block, offset));
            if wrote != read {
                return Err(PlatformFault::DoesNotHold { offset, wrote, read });
            }
        }
    }
    let result = check_translations(platform, &blocks)?;
    drop(blocks);
    // What was full of bytes a moment ago comes back zeroed, most likely from the same place.
    let again = SharedPages::allocate(platform, BLOCK_PAGES).map_err(no_pages)?;
    if let Some((offset, value)) = first_nonzero(&again) {
        return Err(PlatformFault::NotZeroedAgain { offset, value });
    }
    Ok(result)
}

fn check_translations(
    platform: &'static dyn Platform,
    blocks: &[SharedPages; 2],
) -> Result<(bool, bool), PlatformFault> {
    let mut seen = [(0_usize, Pfn::default()); 2 * BLOCK_PAGES];
    let (mut is_contiguous, mut is_identity) = (true, true);
    for (index, slot) in seen.iter_mut().enumerate() {
        let block = &blocks[index / BLOCK_PAGES];
        let page = index % BLOCK_PAGES;
        let at = |offset: usize| {
            let address = block.base().as_ptr().wrapping_add(page * PAGE_SIZE + offset);
            NonNull::new(address).unwrap_or(block.base())
        };
        let start = translated(platform, at(0))?;
        for offset in [1, 0x7f8, PAGE_SIZE - 1] {
            if translated(platform, at(offset))?.page() != start.page() {
                return Err(PlatformFault::PageTorn {
                    address: at(0).addr().get(),
                });
            }
        }
        is_identity &= start.get() == at(0).addr().get() as u64;
        *slot = (at(0).addr().get(), start.page());
    }
    for (index, &(second, page)) in seen.iter().enumerate() {
        if let Some(&(first, _)) = seen[..index].iter().find(|(_, other)| *other == page) {
            return Err(PlatformFault::SamePage {
                first,
                second,
                page: page.get(),
            });
        }
        if !index.is_multiple_of(BLOCK_PAGES) {
            is_contiguous &= seen[index - 1].1.get() + 1 == page.get();
        }
    }
    // Asked again after all of them: the answers stay.
    for (index, &(address, page)) in seen.iter().enumerate() {
        let block = &blocks[index / BLOCK_PAGES];
        let at = block.base().as_ptr().wrapping_add(index % BLOCK_PAGES * PAGE_SIZE);
        let again = translated(platform, NonNull::new(at).unwrap_or(block.base()))?;
        if again.page() != page {
            return Err(PlatformFault::Moved {
                address,
                first: page.base().map_or(0, Gpa::get),
                second: again.get(),
            });
        }
    }
    Ok((is_contiguous, is_identity))
}

fn check_double_mapping(platform: &'static dyn Platform) -> Result<bool, PlatformFault> {
    const PAGES: usize = 3;
    let block = SharedPages::allocate(platform, PAGES).map_err(|_| PlatformFault::NoPages { page_count: PAGES })?;
    let mut list = [Pfn::default(); PAGES];
    for (index, page) in list.iter_mut().enumerate() {
        *page = block
            .pfn(index)
            .map_err(|error| PlatformFault::NotTranslated { address: error.address })?;
    }
    // In another order than they lie in, so that a mapping of the block's range is told from one of the list.
    list.swap(0, 2);
    let Ok(mapping) = platform.map_twice(&list) else {
        return Ok(false);
    };
    let result = double::check(mapping, &block);
    double::unmap(platform, mapping, PAGES);
    result.map(|()| true)
}

/// The raw part: a mapping that the crate otherwise has no owner type for.
mod double {
    #![expect(
        unsafe_code,
        reason = "looks at a mapping through the pointer that the platform returned"
    )]

    use core::ptr::NonNull;
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::PlatformFault;
    use crate::Platform;
    use crate::memory::{PAGE_SIZE, SharedPages};

    const fn byte<'a>(mapping: NonNull<u8>, offset: usize) -> &'a AtomicU8 {
        // SAFETY: the platform promises twice the pages' length from `mapping` on; callers stay below that.
        let at = unsafe { mapping.add(offset) };
        // SAFETY: mapped and writable by the same promise, until `unmap`; only reached as atomics.
        unsafe { AtomicU8::from_ptr(at.as_ptr()) }
    }

    /// Checks a mapping of the pages of `block` in reverse order.
    pub(super) fn check(mapping: NonNull<u8>, block: &SharedPages) -> Result<(), PlatformFault> {
        let len = block.len_bytes();
        for page_index in 0..block.page_count() {
            let page_of_block = block.page_count() - 1 - page_index;
            for in_page in [0, 0x123, PAGE_SIZE - 1] {
                let offset = page_index * PAGE_SIZE + in_page;
                let value = 0x40 + u8::try_from(page_index).unwrap_or(0);
                super::write_byte(block, page_of_block * PAGE_SIZE + in_page, value);
                if byte(mapping, offset).load(Ordering::Relaxed) != value {
                    return Err(PlatformFault::MapsOtherPages { page_index });
                }
                byte(mapping, offset).store(!value, Ordering::Relaxed);
                if byte(mapping, offset + len).load(Ordering::Relaxed) != !value {
                    return Err(PlatformFault::NotMirrored {
                        offset,
                        mirror: offset + len,
                    });
                }
                byte(mapping, offset + len).store(value, Ordering::Relaxed);
                if byte(mapping, offset).load(Ordering::Relaxed) != value {
                    return Err(PlatformFault::NotMirrored {
                        offset: offset + len,
                        mirror: offset,
                    });
                }
            }
        }
        Ok(())
    }

    pub(super) fn unmap(platform: &'static dyn Platform, mapping: NonNull<u8>, page_count: usize) {
        // SAFETY: made by `map_twice` of so many pages, removed once, not used after this.
        unsafe { platform.unmap_twice(mapping, page_count) };
    }
}

#[cfg(test)]
mod tests;
