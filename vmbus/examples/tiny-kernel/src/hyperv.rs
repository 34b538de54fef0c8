//! All that `vmbus` needs of this kernel, and the loop that uses it.
#![expect(unsafe_code, reason = "the contract with vmbus")]

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;
use core::ptr::NonNull;

use vmbus::bus::{Bus, Config};
use vmbus::device::dynamic_memory::{self, DynamicMemory, Engine, Figures, MemoryPool, PageRange, State};
use vmbus::hyperv::{Hypervisor, NotHyperV};
use vmbus::kmcl::Instance;
use vmbus::memory::{Gpa, PAGE_SIZE};
use vmbus::platform::{NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex};
use vmbus::{Deadline, testing};

/// This kernel, as `vmbus` sees it.
pub(crate) struct Tiny;

/// The layout of a block of pages; `None` if no memory is that large.
fn layout(page_count: usize) -> Option<Layout> {
    Layout::from_size_align(page_count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

// SAFETY: method by method below.
unsafe impl Platform for Tiny {
    // The heap's blocks are zeroed, aligned as the layout says, and mapped writable and executable, as everything here is.
    fn allocate_pages(&self, page_count: usize, _page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        let layout = layout(page_count).ok_or(OutOfPages { page_count })?;
        // SAFETY: the layout is not empty, because there is at least one page.
        let block = unsafe { alloc_zeroed(layout) };
        NonNull::new(block).ok_or(OutOfPages { page_count })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        if let Some(layout) = layout(page_count) {
            // SAFETY: by the caller, the block comes from `allocate_pages`, with the same count and so the same layout.
            unsafe { dealloc(base.as_ptr(), layout) };
        }
    }

    // Every address is its own physical address.
    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        Ok(Gpa::new(address.addr().get() as u64))
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(0)
    }

    // Nothing to arrange: the loop below polls.
    fn schedule_deferred(&self, _processor: ProcessorIndex) {}
}

/// The memory that the kernel leaves alone, so that the host may have it.
pub(crate) struct Spare {
    free: Vec<PageRange>,
    total_pages: u64,
    committed_pages: u64,
}

impl Spare {
    /// Makes the pool of the pages `free` in a machine of `total_pages`.
    pub(crate) fn new(free: Vec<PageRange>, total_pages: u64) -> Self {
        let free_pages: u64 = free.iter().map(|run| run.page_count()).sum();
        let committed_pages = total_pages.saturating_sub(free_pages);
        Self {
            free,
            total_pages,
            committed_pages,
        }
    }
}

impl MemoryPool for Spare {
    fn figures(&self) -> Figures {
        Figures {
            total_pages: self.total_pages,
            free_pages: self.free.iter().map(|run| run.page_count()).sum(),
            committed_pages: self.committed_pages,
        }
    }

    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        let (taken, rest) = self.free.pop()?.split_at(max_pages);
        self.free.extend(rest);
        taken
    }

    fn give_back(&mut self, pages: PageRange) {
        for run in &mut self.free {
            let first = run.start().min(pages.start());
            if (run.end() == pages.start() || pages.end() == run.start())
                && let Some(joined) = PageRange::new(first, run.page_count() + pages.page_count())
            {
                *run = joined;
                return;
            }
        }
        self.free.push(pages);
    }
}

/// Finds the hypervisor, or says what was found instead.
pub(crate) fn hypervisor() -> Result<&'static Hypervisor, NotHyperV> {
    Ok(Box::leak(Box::new(Hypervisor::detect()?)))
}

/// Connects to the VMBus, lists the offers, and lets the host have `memory` for as long as `goes_on` says.
pub(crate) fn run(
    hypervisor: &'static Hypervisor,
    platform: &'static dyn Platform,
    memory: Spare,
    mut goes_on: impl FnMut(&Engine<Spare>) -> bool,
) -> Result<(), Box<dyn Error>> {
    log::info!("{:?}", testing::check_platform(platform, 1)?);
    let bus = Bus::connect(hypervisor, platform, Config::default())?;
    log::info!("connected to the VMBus, version {}", bus.version());
    for offer in bus.offers() {
        log::info!("{offer}");
    }

    let config = dynamic_memory::Config {
        hot_add_alignment: None,
        ..Default::default()
    };
    let mut driver = DynamicMemory::new(platform, config, memory)?;
    driver.attach(&bus, Instance::Any, || {}, Deadline::seconds(10))?;
    while goes_on(driver.engine()) {
        bus.poll();
        driver.run(hypervisor.now());
        if let State::Faulted(fault) = driver.engine().state() {
            return Err(fault.into());
        }
        core::hint::spin_loop();
    }

    driver.detach(Deadline::seconds(10))?;
    bus.disconnect(Deadline::seconds(100))?;
    Ok(())
}
