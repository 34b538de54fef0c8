//! A platform for this crate's own tests: pages from the heap, addresses that are not the kernel's, tasks that are threads.
#![expect(unsafe_code, reason = "it implements the platform trait")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
use std::sync::Mutex;

use crate::Platform;
use crate::memory::{Gpa, PAGE_SIZE};
use crate::platform::{Callers, DispatchToken, NotMapped, OutOfPages, PageUse, ProcessorIndex, TaskId};

/// Guest-physical pages are the kernel's with their numbers scrambled, so that an address taken for a page fails.
const SCRAMBLE: u64 = 0x5a5;

/// A platform on the heap of the test's process.
#[derive(Debug, Default)]
pub(crate) struct TestPlatform {
    callers: Callers,
    in_use: AtomicUsize,
    refuse: AtomicBool,
    blocks: Mutex<Vec<(usize, usize)>>,
    meanwhile: Mutex<Option<Meanwhile>>,
    has_meanwhile: AtomicBool,
}

/// What another task does while one is about to take a lock.
struct Meanwhile {
    /// So many locks later.
    later: usize,
    /// Returns whether it is to be done again, before the next lock.
    work: Box<dyn FnMut() -> bool + Send>,
}

impl core::fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "Meanwhile({})", self.later)
    }
}

impl TestPlatform {
    pub(crate) fn leak() -> &'static Self {
        Self::leak_promising(Callers::default())
    }

    /// Makes a platform that promises who calls: the test has to keep it.
    pub(crate) fn leak_promising(callers: Callers) -> &'static Self {
        #[cfg(not(loom))]
        crate::testing::watch();
        Box::leak(Box::new(Self {
            callers,
            ..Self::default()
        }))
    }

    pub(crate) fn pages_in_use(&self) -> usize {
        self.in_use.load(Ordering::SeqCst)
    }

    /// Has `work` done before the lock that is taken when so many others have been; again before each one that follows, as long as it
    /// returns true. The locks that it takes itself do not count.
    pub(crate) fn before_lock(&self, later: usize, work: impl FnMut() -> bool + Send + 'static) {
        let work = Box::new(work);
        *self.meanwhile.lock().unwrap() = Some(Meanwhile { later, work });
        self.has_meanwhile.store(true, Ordering::SeqCst);
    }

    fn do_what_others_do(&self) {
        let due = self.meanwhile.lock().unwrap().take();
        let Some(mut due) = due else { return };
        let stays = if due.later == 0 {
            (due.work)()
        } else {
            due.later -= 1;
            true
        };
        if stays {
            *self.meanwhile.lock().unwrap() = Some(due);
        } else {
            self.has_meanwhile.store(false, Ordering::SeqCst);
        }
    }

    pub(crate) fn refuse_pages(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::SeqCst);
    }
}

fn layout(page_count: usize) -> Layout {
    Layout::from_size_align(page_count * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: pages are zeroed heap blocks, each owned by one caller until released; translation is a fixed bijection.
unsafe impl Platform for TestPlatform {
    fn allocate_pages(&self, page_count: usize, _: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        if self.refuse.load(Ordering::SeqCst) || page_count > 1 << 20 {
            return Err(OutOfPages { page_count });
        }
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout(page_count)) }).ok_or(OutOfPages { page_count })?;
        self.in_use.fetch_add(page_count, Ordering::SeqCst);
        self.blocks.lock().unwrap().push((base.addr().get(), page_count));
        Ok(base)
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        let mut blocks = self.blocks.lock().unwrap();
        let index = blocks
            .iter()
            .position(|block| *block == (base.addr().get(), page_count));
        blocks.swap_remove(index.expect("only what was allocated is released, once"));
        // SAFETY: allocated here with this layout, and poisoned so that late readers see it.
        unsafe { base.as_ptr().write_bytes(0xdd, page_count * PAGE_SIZE) };
        // SAFETY: as above.
        unsafe { dealloc(base.as_ptr(), layout(page_count)) };
        self.in_use.fetch_sub(page_count, Ordering::SeqCst);
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        let address = address.addr().get();
        let known = self.blocks.lock().unwrap().iter().any(|(base, pages)| {
            address
                .checked_sub(*base)
                .is_some_and(|offset| offset < pages * PAGE_SIZE)
        });
        if known {
            Ok(Gpa::new(address as u64 ^ (SCRAMBLE << 12)))
        } else {
            Err(NotMapped { address })
        }
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(0)
    }

    fn schedule_deferred(&self, _: ProcessorIndex) {}

    fn callers(&self) -> Callers {
        self.callers
    }

    fn enter_dispatch(&self) -> DispatchToken {
        if self.has_meanwhile.load(Ordering::Relaxed) {
            self.do_what_others_do();
        }
        DispatchToken(0)
    }

    fn current_task(&self) -> TaskId {
        std::thread_local!(static HERE: u8 = const { 0 });
        TaskId(HERE.with(|here| core::ptr::from_ref(here).addr()))
    }
}
