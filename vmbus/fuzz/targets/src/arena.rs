//! The memory of a ring: a control page and one or two pages of data, mapped once and, where the system can, twice in a row,
//! and a page behind it that nobody may touch.
#![expect(unsafe_code, reason = "memory that two ends reach, by atomics through raw pointers")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmbus::memory::Pfn;
use vmbus::platform::PageUse;
use vmbus::platform::Platform;
use vmbus::ring::SharedRing;
use vmbus::testing::FakePlatform;

use crate::wire::Wire;

const PAGE: usize = 4096;
/// What the page behind the data is full of.
const UNTOUCHED: u64 = 0xc0de_c0de_c0de_c0de;

/// How the data is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Once,
    Twice,
}

/// Pages for a ring with a certain number of pages of data. Made once for each thread, and never given back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arena {
    control: NonNull<u8>,
    twice: Option<NonNull<u8>>,
    pages: usize,
}

impl Arena {
    fn new(pages: usize) -> Self {
        let platform = FakePlatform::with_double_mapping().unwrap_or_else(FakePlatform::new);
        let Ok(control) = platform.allocate_pages(pages + 2, PageUse::Data) else {
            panic!("a few pages");
        };
        let pfns = (1..=pages).map(|index| {
            // SAFETY: inside the block.
            let page = unsafe { control.add(index * PAGE) };
            platform.translate(page).map(|gpa| Pfn::new(gpa.get() / 4096))
        });
        let pfns: Vec<Pfn> = pfns.flatten().collect();
        let arena = Self {
            control,
            twice: platform.map_twice(&pfns).ok(),
            pages,
        };
        for index in 0..512 {
            arena.word(pages + 1, index).store(UNTOUCHED, Ordering::Relaxed);
        }
        arena
    }

    /// Returns this thread's pages with one or two pages of data: all zero, so that a run does not depend on the one before.
    pub(crate) fn get(two_pages: bool) -> Self {
        std::thread_local! {
            static ARENAS: [Arena; 2] = [Arena::new(1), Arena::new(2)];
        }
        let arena = ARENAS.with(|arenas| arenas[usize::from(two_pages)]);
        for page in 0..=arena.pages {
            for index in 0..512 {
                arena.word(page, index).store(0, Ordering::Relaxed);
            }
        }
        arena
    }

    const fn word(&self, page: usize, index: usize) -> &AtomicU64 {
        // SAFETY: inside the block, which has two pages besides those of data.
        let at = unsafe { self.control.add(page * PAGE + index * 8) };
        // SAFETY: aligned, never given back, and only reached by atomics or the ring's own copies.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    const fn control(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: inside the first page.
        let at = unsafe { self.control.add(offset as usize) };
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    /// Loads eight bytes of the data; the place goes round.
    pub(crate) fn load(&self, at: u32) -> u64 {
        let at = (at % self.size()) as usize;
        self.word(1 + at / PAGE, at % PAGE / 8).load(Ordering::Relaxed)
    }

    /// Returns a word of the control page, by its number.
    pub(crate) fn control_word(&self, index: usize) -> u64 {
        self.word(0, index).load(Ordering::Relaxed)
    }

    /// Checks that nothing was written behind the data.
    pub(crate) fn check(&self) {
        for index in 0..512 {
            let found = self.word(self.pages + 1, index).load(Ordering::Relaxed);
            assert_eq!(found, UNTOUCHED, "written behind the ring, at word {index}");
        }
    }

    /// Returns a ring over the pages.
    pub(crate) fn ring(&self, view: View) -> SharedRing {
        // SAFETY: inside the block.
        let data = unsafe { self.control.add(PAGE) };
        let ring = match (view, self.twice) {
            // SAFETY: the pages are never given back, the mapping shows them twice in a row, and all other accesses are atomic.
            (View::Twice, Some(twice)) => unsafe { SharedRing::new_mapped_twice(self.control, twice, self.size(), ()) },
            // SAFETY: as above, mapped once.
            _ => unsafe { SharedRing::new(self.control, data, self.size(), ()) },
        };
        match ring {
            Ok(ring) => ring,
            Err(error) => panic!("whole aligned pages: {error}"),
        }
    }
}

impl Wire for Arena {
    fn size(&self) -> u32 {
        self.pages as u64 as u32 * 4096
    }

    fn set(&self, offset: u32, value: u32) {
        self.control(offset).store(value, Ordering::Relaxed);
    }

    fn get(&self, offset: u32) -> u32 {
        self.control(offset).load(Ordering::Relaxed)
    }

    fn store(&self, at: u32, word: u64) {
        let at = (at % self.size()) as usize;
        self.word(1 + at / PAGE, at % PAGE / 8).store(word, Ordering::Relaxed);
    }
}
