//! The pages that the host has: [`HeldPages`].

use alloc::vec::Vec;

use super::PageRange;
use crate::fallible::{OutOfMemory, ReservedVec, try_vec_zeroed};
use crate::memory::Pfn;

/// Pages in a chunk: 128 MiB of memory, whose bits fill a page of 4 KiB.
const CHUNK_PAGES: u64 = 32_768;
const WORD_PAGES: u64 = 64;
const CHUNK_WORDS: usize = (CHUNK_PAGES / WORD_PAGES) as usize;

/// How many empty chunks are kept for later instead of being freed: what one run can need.
const SPARE_CHUNKS: usize = 2;

/// A range could not be recorded; nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InsertError {
    /// A page of it is held already.
    #[error("a page of the range is held already")]
    AlreadyHeld,
    /// [`HeldPages::reserve`] was not called for as many pages.
    #[error("no room was reserved for the range")]
    NotReserved,
}

/// What [`HeldPages::remove`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// How many pages of the range, from the first on, were looked at. All of them, unless the steps ran out.
    pub examined_pages: u64,
    /// How many of these were held, and are not any more.
    pub removed_pages: u64,
    /// How many steps were used.
    pub steps: u32,
}

/// The set of pages that the host has taken. It is the only memory of them that there is: who drops it, loses the pages
/// for good (they stay untouched, which is safe).
///
/// One bit a page, in chunks of 128 MiB that exist only where pages are held: at most 1/32768 of the memory, however
/// fragmented the pages are. Room is reserved *before* pages are taken, so recording them cannot fail when memory is
/// short.
#[derive(Debug, Default)]
pub struct HeldPages {
    /// Sorted by number. None is empty.
    chunks: Vec<Chunk>,
    /// The bits of chunks to come, all zero.
    spare: Vec<Vec<u64>>,
    page_count: u64,
    /// Makes [`HeldPages::reserve`] fail, as it does when the heap is empty.
    #[cfg(test)]
    pub(super) refuse_reservations: bool,
}

#[derive(Debug)]
struct Chunk {
    /// The chunk's first page, divided by [`CHUNK_PAGES`].
    number: u64,
    held_pages: u64,
    /// [`CHUNK_WORDS`] of them.
    words: Vec<u64>,
}

impl HeldPages {
    /// Makes an empty set. Does not allocate.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            spare: Vec::new(),
            page_count: 0,
            #[cfg(test)]
            refuse_reservations: false,
        }
    }

    /// Returns how many pages are held.
    #[must_use]
    pub const fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Returns true if the page is held.
    #[must_use]
    pub fn contains(&self, page: Pfn) -> bool {
        let (number, word, bit) = place(page.get());
        let held = || {
            let chunk = self.chunks.get(self.find(number).ok()?)?;
            Some(chunk.words.get(word)? >> bit & 1 != 0)
        };
        held().unwrap_or(false)
    }

    /// Returns true if any page of the range is held.
    #[must_use]
    pub fn overlaps(&self, range: PageRange) -> bool {
        let mut page = range.start().get();
        let end = range.end().get();
        while page < end {
            let (number, word, _) = place(page);
            let chunk = match self.find(number) {
                Ok(index) => self.chunks.get(index),
                Err(next) => {
                    // Nothing here: on to the next chunk that exists.
                    match self.chunks.get(next) {
                        Some(chunk) => page = chunk.number.saturating_mul(CHUNK_PAGES),
                        None => return false,
                    }
                    continue;
                }
            };
            let (mask, next_page) = mask(page, end);
            if chunk
                .and_then(|chunk| chunk.words.get(word))
                .is_some_and(|word| word & mask != 0)
            {
                return true;
            }
            page = next_page;
        }
        false
    }

    /// Makes sure that one range of up to `max_pages` pages can be recorded, wherever it lies.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; what was recorded stays so.
    pub fn reserve(&mut self, max_pages: u64) -> Result<(), OutOfMemory> {
        #[cfg(test)]
        if self.refuse_reservations {
            return Err(OutOfMemory);
        }
        // A range that starts on the last page of a chunk touches one more chunk than its length says.
        let needed = usize::try_from(max_pages.div_ceil(CHUNK_PAGES).saturating_add(1)).map_err(|_| OutOfMemory)?;
        self.chunks.try_reserve(needed).map_err(|_| OutOfMemory)?;
        let missing = needed.saturating_sub(self.spare.len());
        self.spare.try_reserve(missing).map_err(|_| OutOfMemory)?;
        for _ in 0..missing {
            let words = try_vec_zeroed(CHUNK_WORDS)?;
            self.spare.push_within(words).map_err(|_| OutOfMemory)?;
        }
        Ok(())
    }

    /// Records that the host has the pages of `range`.
    ///
    /// # Errors
    ///
    /// [`InsertError`]; nothing is recorded then.
    pub fn insert(&mut self, range: PageRange) -> Result<(), InsertError> {
        if self.overlaps(range) {
            return Err(InsertError::AlreadyHeld);
        }
        self.make_chunks(range)?;
        let (mut page, end) = (range.start().get(), range.end().get());
        while page < end {
            let (number, word, _) = place(page);
            let (mask, next_page) = mask(page, end);
            if let Ok(index) = self.find(number)
                && let Some(chunk) = self.chunks.get_mut(index)
                && let Some(word) = chunk.words.get_mut(word)
            {
                *word |= mask;
                chunk.held_pages = chunk.held_pages.saturating_add(u64::from(mask.count_ones()));
                self.page_count = self.page_count.saturating_add(u64::from(mask.count_ones()));
            }
            page = next_page;
        }
        Ok(())
    }

    /// Makes the chunks that `range` needs from the spare ones, or none of them.
    fn make_chunks(&mut self, range: PageRange) -> Result<(), InsertError> {
        let first = range.start().get() / CHUNK_PAGES;
        let last = range.end().get().saturating_sub(1) / CHUNK_PAGES;
        let existing = self
            .chunks
            .partition_point(|chunk| chunk.number <= last)
            .saturating_sub(self.chunks.partition_point(|chunk| chunk.number < first));
        let needed = usize::try_from(last.saturating_sub(first).saturating_add(1))
            .unwrap_or(usize::MAX)
            .saturating_sub(existing);
        if needed > self.spare.len() || needed > self.chunks.capacity().saturating_sub(self.chunks.len()) {
            return Err(InsertError::NotReserved);
        }
        for number in first..=last {
            if let Err(index) = self.find(number)
                && let Some(words) = self.spare.pop()
            {
                let chunk = Chunk {
                    number,
                    held_pages: 0,
                    words,
                };
                let kept = self.chunks.insert_within(index, chunk);
                debug_assert!(kept.is_ok(), "there is room: just checked");
            }
        }
        Ok(())
    }

    /// Forgets those pages of `range` that are held and calls `on_run` with each run of them, in ascending order; stops
    /// early when `max_steps` (at least 1) are used up. A step is 64 pages looked at or one run found, so a call's time
    /// does not depend on how long the range is.
    pub fn remove(&mut self, range: PageRange, max_steps: u32, mut on_run: impl FnMut(PageRange)) -> Removal {
        let (start, end) = (range.start().get(), range.end().get());
        let mut page = start;
        let mut steps = 0_u32;
        let mut removed_pages = 0_u64;
        let mut run = RunBuilder::default();
        while page < end && (steps < max_steps.max(1)) {
            steps = steps.saturating_add(1);
            let (number, word_index, _) = place(page);
            let index = match self.find(number) {
                Ok(index) => index,
                Err(next) => {
                    page = match self.chunks.get(next) {
                        Some(chunk) => chunk.number.saturating_mul(CHUNK_PAGES).min(end),
                        None => end,
                    };
                    continue;
                }
            };
            let (mask, next_page) = mask(page, end);
            let Some(chunk) = self.chunks.get_mut(index) else { break };
            let Some(word) = chunk.words.get_mut(word_index) else {
                break;
            };
            let held = *word & mask;
            *word &= !mask;
            let count = u64::from(held.count_ones());
            chunk.held_pages = chunk.held_pages.saturating_sub(count);
            removed_pages = removed_pages.saturating_add(count);
            let runs = run.add_word(page & !(WORD_PAGES - 1), held, &mut on_run);
            steps = steps.saturating_add(runs);
            if chunk.held_pages == 0 {
                self.retire(index);
            }
            page = next_page;
        }
        run.finish(&mut on_run);
        self.page_count = self.page_count.saturating_sub(removed_pages);
        Removal {
            examined_pages: page.saturating_sub(start),
            removed_pages,
            steps,
        }
    }

    /// Calls `on_run` with each longest run of held pages, in ascending order.
    pub fn for_each_run(&self, mut on_run: impl FnMut(PageRange)) {
        let mut run = RunBuilder::default();
        for chunk in &self.chunks {
            let mut page = chunk.number.saturating_mul(CHUNK_PAGES);
            for word in &chunk.words {
                run.add_word(page, *word, &mut on_run);
                page = page.saturating_add(WORD_PAGES);
            }
        }
        run.finish(&mut on_run);
    }

    /// Returns roughly how many bytes of heap the set takes.
    #[must_use]
    pub const fn bookkeeping_bytes(&self) -> usize {
        let bitmaps = self.chunks.len().saturating_add(self.spare.len());
        bitmaps
            .saturating_mul(CHUNK_WORDS.saturating_mul(size_of::<u64>()))
            .saturating_add(self.chunks.capacity().saturating_mul(size_of::<Chunk>()))
            .saturating_add(self.spare.capacity().saturating_mul(size_of::<Vec<u64>>()))
    }

    /// Removes an empty chunk; its bits become spare ones or go back to the heap.
    fn retire(&mut self, index: usize) {
        if let Some(chunk) = self.chunks.take_at(index)
            && self.spare.len() < SPARE_CHUNKS
        {
            // If there is no room for it, it goes back to the heap.
            let _ = self.spare.push_within(chunk.words);
        }
    }

    fn find(&self, number: u64) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&number, |chunk| chunk.number)
    }
}

/// Joins bits into runs.
#[derive(Default)]
struct RunBuilder {
    start: u64,
    page_count: u64,
}

impl RunBuilder {
    /// Adds the pages whose bits are set, and returns how many runs began in this word.
    fn add_word(&mut self, first_page: u64, mut bits: u64, on_run: &mut impl FnMut(PageRange)) -> u32 {
        let mut runs: u32 = 0;
        while bits != 0 {
            let offset = bits.trailing_zeros();
            let len = (bits >> offset).trailing_ones();
            let start = first_page.saturating_add(u64::from(offset));
            if self.page_count > 0 && self.start.saturating_add(self.page_count) == start {
                self.page_count = self.page_count.saturating_add(u64::from(len));
            } else {
                self.finish(on_run);
                *self = Self {
                    start,
                    page_count: u64::from(len),
                };
                runs = runs.saturating_add(1);
            }
            // Clears what was counted; shifted out all 64 bits, nothing is left.
            bits &= u64::MAX.checked_shl(offset.saturating_add(len)).unwrap_or(0);
        }
        runs
    }

    fn finish(&mut self, on_run: &mut impl FnMut(PageRange)) {
        if let Some(range) = PageRange::new(Pfn::new(self.start), self.page_count) {
            on_run(range);
        }
        self.page_count = 0;
    }
}

/// Returns the chunk's number, the word in it and the bit in that.
const fn place(page: u64) -> (u64, usize, u32) {
    (
        page / CHUNK_PAGES,
        (page % CHUNK_PAGES / WORD_PAGES) as usize,
        (page % WORD_PAGES) as u32,
    )
}

/// Returns the bits of the word of `page` from it up to `end`, and the first page after the word or `end`.
const fn mask(page: u64, end: u64) -> (u64, u64) {
    // Beyond the last page of 64 bits there is no next word.
    let word_end = (page / WORD_PAGES).saturating_add(1).saturating_mul(WORD_PAGES);
    let from = u64::MAX << (page % WORD_PAGES);
    if word_end <= end {
        (from, word_end)
    } else {
        // `end` lies inside the word, so not at its start: a shift below 64.
        (from & !(u64::MAX << (end % WORD_PAGES)), end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(Pfn::new(start), count).unwrap()
    }

    fn runs(held: &HeldPages) -> Vec<PageRange> {
        let mut runs = Vec::new();
        held.for_each_run(|run| runs.push(run));
        runs
    }

    fn hold(held: &mut HeldPages, pages: PageRange) {
        held.reserve(pages.page_count()).unwrap();
        held.insert(pages).unwrap();
    }

    #[test]
    fn pages_are_held_until_they_are_removed() {
        let mut held = HeldPages::new();
        hold(&mut held, range(10, 5));
        hold(&mut held, range(CHUNK_PAGES - 3, 6));
        hold(&mut held, range(0x80_0000, 1));
        assert_eq!(held.page_count(), 12);
        assert_eq!(
            runs(&held),
            [range(10, 5), range(CHUNK_PAGES - 3, 6), range(0x80_0000, 1)]
        );
        assert!(held.contains(Pfn::new(14)) && !held.contains(Pfn::new(15)) && !held.contains(Pfn::new(u64::MAX)));

        let mut given = Vec::new();
        let removal = held.remove(range(0, 1 << 24), u32::MAX, |run| given.push(run));
        assert_eq!(given, [range(10, 5), range(CHUNK_PAGES - 3, 6), range(0x80_0000, 1)]);
        assert_eq!((removal.examined_pages, removal.removed_pages), (1 << 24, 12));
        assert_eq!(held.page_count(), 0);
        assert_eq!(runs(&held), []);
    }

    #[test]
    fn q12_a_page_is_never_held_twice_and_never_removed_twice() {
        let mut held = HeldPages::new();
        hold(&mut held, range(100, 10));
        held.reserve(10).unwrap();
        assert_eq!(held.insert(range(95, 6)), Err(InsertError::AlreadyHeld));
        assert_eq!(runs(&held), [range(100, 10)], "nothing of it was recorded");
        let mut given = 0;
        for _ in 0..2 {
            held.remove(range(100, 10), u32::MAX, |run| given += run.page_count());
        }
        assert_eq!(given, 10);
    }

    #[test]
    fn recording_needs_room_reserved_beforehand() {
        let mut held = HeldPages::new();
        assert_eq!(held.insert(range(0, 1)), Err(InsertError::NotReserved));
        held.reserve(1).unwrap();
        // A range of two pages over the border of two chunks, as the reservation for one page foresees.
        held.insert(range(CHUNK_PAGES - 1, 2)).unwrap();
        assert_eq!(held.insert(range(9 * CHUNK_PAGES, 1)), Err(InsertError::NotReserved));
        assert_eq!(held.page_count(), 2);
        // A chunk that exists needs no room, be it the first or the last.
        held.insert(range(5, 1)).unwrap();
        held.insert(range(CHUNK_PAGES + 5, 1)).unwrap();
    }

    #[test]
    fn a_reservation_is_enough_for_a_range_that_touches_one_chunk_more() {
        let mut held = HeldPages::new();
        held.reserve(2 * CHUNK_PAGES + 2).unwrap();
        held.insert(range(CHUNK_PAGES - 1, 2 * CHUNK_PAGES + 2)).unwrap();
        assert_eq!(held.page_count(), 2 * CHUNK_PAGES + 2);
    }

    #[test]
    fn room_that_a_removal_made_is_used_again() {
        let mut held = HeldPages::new();
        held.reserve(1).unwrap();
        for _ in 0..3 {
            held.insert(range(CHUNK_PAGES - 1, 2)).unwrap();
            held.remove(range(CHUNK_PAGES - 1, 2), u32::MAX, |_| {});
        }
    }

    #[test]
    fn a_step_is_a_word_looked_at_or_a_run_found() {
        let mut held = HeldPages::new();
        hold(&mut held, range(0, 1));
        hold(&mut held, range(1000, 1));
        let first = held.remove(range(0, 1), u32::MAX, |_| {});
        assert_eq!((first.examined_pages, first.removed_pages, first.steps), (1, 1, 2));
        let stopped = held.remove(range(0, 1001), 1, |_| panic!("not that far"));
        assert_eq!((stopped.examined_pages, stopped.steps), (64, 1));
    }

    #[test]
    fn removal_stops_when_its_steps_are_used_up_and_goes_on_from_there() {
        const END: u64 = if cfg!(miri) { CHUNK_PAGES / 16 } else { 2 * CHUNK_PAGES };
        let mut held = HeldPages::new();
        for page in (0..END).step_by(2) {
            hold(&mut held, range(page, 1));
        }
        let (mut at, end, mut calls, mut given) = (0, END, 0, 0);
        while at < end {
            let removal = held.remove(range(at, end - at), 100, |run| given += run.page_count());
            // At most one word more than asked for.
            assert!(removal.steps <= 100 + 33, "{removal:?}");
            assert!(removal.examined_pages > 0);
            at += removal.examined_pages;
            calls += 1;
        }
        assert_eq!(given, END / 2);
        assert!(calls > END / 2 / 164, "{calls}");
        assert_eq!(held.page_count(), 0);
    }

    #[test]
    fn a_long_range_over_nothing_costs_next_to_nothing() {
        let mut held = HeldPages::new();
        hold(&mut held, range(1 << 39, 1));
        let removal = held.remove(range(0, 1 << 39), 8, |_| panic!("not held"));
        assert_eq!((removal.examined_pages, removal.removed_pages), (1 << 39, 0));
    }

    #[test]
    fn bookkeeping_is_small_and_goes_away_with_the_pages() {
        let mut held = HeldPages::new();
        // Every second page of 2 GiB, of less under Miri: as fragmented as it gets.
        let chunks = if cfg!(miri) { 2 } else { 16 };
        let pages = chunks * CHUNK_PAGES;
        for page in (0..pages).step_by(2) {
            hold(&mut held, range(page, 1));
        }
        assert_eq!(held.page_count(), pages / 2);
        let bytes = held.bookkeeping_bytes();
        let chunks = usize::try_from(chunks).unwrap();
        assert!(bytes >= chunks * 4 * 1024, "{bytes}");
        assert!(bytes < (chunks + 4) * 4 * 1024, "{bytes}");
        held.remove(range(0, pages), u32::MAX, |_| {});
        assert!(held.bookkeeping_bytes() < 12 * 1024, "{}", held.bookkeeping_bytes());
    }

    #[test]
    fn a_bit_mask_ends_where_the_range_does() {
        assert_eq!(mask(0, 64), (u64::MAX, 64));
        assert_eq!(mask(0, 1), (1, 1));
        assert_eq!(mask(63, 200), (1 << 63, 64));
        assert_eq!(mask(66, 68), (0b1100, 68));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

        #[test]
        fn the_set_is_a_set(actions in prop::collection::vec((any::<bool>(), 0_u64..3 * CHUNK_PAGES, 1_u64..200), 1..60)) {
            let mut held = HeldPages::new();
            let mut model = BTreeSet::new();
            for (is_insert, start, count) in actions {
                let pages = range(start, count);
                if is_insert {
                    held.reserve(count).unwrap();
                    let free = (start..start + count).all(|page| !model.contains(&page));
                    prop_assert_eq!(held.overlaps(pages), !free);
                    prop_assert_eq!(held.insert(pages).is_ok(), free);
                    if free {
                        model.extend(start..start + count);
                    }
                } else {
                    let mut given = Vec::new();
                    held.remove(pages, u32::MAX, |run| {
                        given.extend(run.start().get()..run.end().get());
                    });
                    let expected: Vec<u64> = model.range(start..start + count).copied().collect();
                    model.retain(|page| !(start..start + count).contains(page));
                    prop_assert_eq!(given, expected);
                }
                prop_assert_eq!(held.page_count(), model.len() as u64);
            }
            let mut pages = Vec::new();
            held.for_each_run(|run| pages.extend(run.start().get()..run.end().get()));
            prop_assert_eq!(pages, model.into_iter().collect::<Vec<_>>());
        }
    }
}
