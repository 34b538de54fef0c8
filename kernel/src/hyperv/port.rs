//! [`Port`]: the platform trait of `vmbus`. This is all that an operating system has to write to use the crate.
#![expect(unsafe_code, reason = "the contract with vmbus")]

use core::ptr::NonNull;

use vmbus::memory::{Gpa, Pfn};
use vmbus::platform::{
    Callers, CannotMapTwice, DispatchToken, NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex, TaskId, TimedOut,
    Wait,
};

use crate::arch::cpu;
use crate::memory::layout;
use crate::memory::pages::{Mapping, Pages};
use crate::task::{self, deferred};
use crate::time::Deadline;
use crate::{hyperv, memory};

/// The platform of this kernel.
pub static PLATFORM: Port = Port;

/// This kernel, as `vmbus` sees it.
#[derive(Debug)]
pub struct Port;

// SAFETY: method by method below.
unsafe impl Platform for Port {
    // Zeroed, page-aligned and ours: `Pages` promises that. The mapping stays until the pages are dropped, which only
    // `release_pages` does.
    fn allocate_pages(&self, page_count: usize, page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        let pages = match page_use {
            PageUse::Data => Pages::allocate(page_count),
            PageUse::HypercallCode => Pages::allocate_code(page_count),
        };
        pages
            .map(|pages| pages.into_raw().0)
            .map_err(|_| OutOfPages { page_count })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        // SAFETY: by the caller, both come from one `allocate_pages`, and are released once.
        drop(unsafe { Pages::from_raw(base, page_count) });
    }

    // From the page tables themselves.
    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        let physical = memory::translate(address.as_ptr());
        physical.map(Gpa::new).ok_or(NotMapped {
            address: address.addr().get(),
        })
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(cpu::current())
    }

    fn current_task(&self) -> TaskId {
        TaskId(usize::try_from(task::current_number()).unwrap_or(usize::MAX))
    }

    // The other processors are parked: tasks and deferred work share the one that booted.
    fn callers(&self) -> Callers {
        Callers::OneProcessor
    }

    fn schedule_deferred(&self, processor: ProcessorIndex) {
        hyperv::bus::schedule(processor);
    }

    fn enter_dispatch(&self) -> DispatchToken {
        deferred::enter_dispatch().into_token();
        DispatchToken(0)
    }

    fn leave_dispatch(&self, _token: DispatchToken) {
        deferred::Dispatch::leave_from_token();
    }

    // Every interrupt and every run of deferred work makes a waiting task look again.
    fn wait(&self, wait: &mut Wait<'_>) -> Result<(), TimedOut> {
        loop {
            let deadline = match wait.remaining() {
                None => Deadline::Never,
                Some(left) => Deadline::after_ns(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)),
            };
            if task::wait_until(deadline, || wait.is_ready()) {
                return Ok(());
            }
            // The two clocks may differ by a little: the crate's counts.
            if wait.is_late() {
                return Err(TimedOut);
            }
        }
    }

    // The frames stay their owner's; the second mapping is writable and not executable, as that of the first is.
    fn map_twice(&self, pages: &[Pfn]) -> Result<NonNull<u8>, CannotMapTwice> {
        let once = pages.iter().map(|page| page.get().wrapping_mul(layout::PAGE_SIZE));
        let mapping = Mapping::of(once.clone().chain(once)).map_err(|_| CannotMapTwice)?;
        Ok(mapping.into_raw().0)
    }

    unsafe fn unmap_twice(&self, base: NonNull<u8>, page_count: usize) {
        // SAFETY: by the caller, `base` comes from `map_twice` of so many pages, and is unmapped once.
        drop(unsafe { Mapping::from_raw(base, 2 * page_count) });
    }
}
