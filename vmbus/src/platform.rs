//! The trait that an operating system implements to use this crate: [`Platform`].
//!
//! It asks for memory that the host may see, for the translation of a kernel address into a guest-physical one, for the
//! current processor, and for a way to run work later. Everything else that the crate needs of the machine (CPUID,
//! MSRs, the hypercall page, the clock) comes with it, see [`crate::hyperv`]. Interrupt vectors, locks, tasks and the
//! heap stay with the operating system.
//!
//! A platform lives for the rest of the system's life, so that the crate can hold a plain reference to it: in a kernel
//! it is a `static`.
#![expect(
    unsafe_code,
    reason = "the platform trait is the crate's contract with the kernel below it"
)]

use core::ptr::NonNull;
use core::time::Duration;

use crate::memory::{Gpa, Pfn};
use crate::time::Instant;

/// The number of a processor in the operating system's counting: 0 is the one that booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProcessorIndex(pub u32);

impl core::fmt::Display for ProcessorIndex {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "processor {}", self.0)
    }
}

/// What pages are for, so that the platform can map them with the right permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// Data that guest and host read and write: readable, writable, not executable.
    Data,
    /// The hypercall page: readable and executable. The hypervisor writes it, the guest never does.
    HypercallCode,
}

/// The platform has no memory left for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the platform could not provide {page_count} pages")]
pub struct OutOfPages {
    /// How many pages were asked for.
    pub page_count: usize,
}

/// An address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel address {address:#x} is not mapped to memory")]
pub struct NotMapped {
    /// The address that was asked about.
    pub address: usize,
}

/// The platform cannot map memory twice in a row; the crate then goes without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the platform does not map memory twice")]
pub struct CannotMapTwice;

/// The wait ended by its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct TimedOut;

/// What [`Platform::enter_dispatch`] found, to be restored by [`Platform::leave_dispatch`]. Its meaning is the platform's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the dispatch section ends only when the token is given back"]
pub struct DispatchToken(pub usize);

/// Who calls into the crate, as a platform promises it: the less can come between, the less a lock costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Callers {
    /// Several processors, at the same time.
    #[default]
    Anywhere,
    /// One processor: tasks that take turns, and deferred work that interrupts them. No locked instruction is needed then.
    OneProcessor,
    /// One call at a time: whatever calls next does so after the call has returned, or from a callback or a method of the
    /// platform within it. A kernel that polls in its main loop is like that. No dispatch section is needed then, either.
    OneAtATime,
}

/// What runs: a task, or a processor's deferred work. Its meaning is the platform's; equal means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub usize);

/// A wait in progress, as [`Platform::wait`] sees it.
#[expect(missing_debug_implementations, reason = "two borrowed closures have nothing to show")]
pub struct Wait<'a> {
    ready: &'a mut dyn FnMut() -> bool,
    now: &'a dyn Fn() -> Instant,
    until: Option<Instant>,
}

impl<'a> Wait<'a> {
    /// Makes a wait for `ready` to return true, until `until` (`None`: for ever) on the clock `now`.
    pub fn new(ready: &'a mut dyn FnMut() -> bool, now: &'a dyn Fn() -> Instant, until: Option<Instant>) -> Self {
        Self { ready, now, until }
    }

    /// Looks whether the condition holds. Polls the bus where that is needed, so it works with interrupts off.
    pub fn is_ready(&mut self) -> bool {
        (self.ready)()
    }

    /// Returns the time that is left: `None` if there is no deadline, zero if it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since((self.now)()))
    }

    /// Returns true if the deadline has passed.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }
}

/// What an operating system provides. All methods may be called on any processor.
///
/// # Implementation safety
///
/// The crate gives the memory that it gets from here to the host, which may write to it at any time. Each method states
/// under "Implementation safety" what the implementor promises; breaking one is undefined behaviour in safe code
/// elsewhere. [`crate::testing::check_platform`] looks for the usual mistakes.
pub unsafe trait Platform: Sync {
    /// Allocates `page_count` (at least 1) pages of 4 KiB that the host may read and write, contiguous in the kernel's
    /// address space; their guest-physical addresses need not be contiguous.
    ///
    /// Called in task context, never from the interrupt entry; sometimes inside [`Platform::enter_dispatch`], so it must not
    /// wait for another task.
    ///
    /// # Errors
    ///
    /// [`OutOfPages`] if there is not enough memory; nothing is allocated then.
    ///
    /// # Implementation safety
    ///
    /// The block is page-aligned, **zeroed**, used by nobody else, mapped as `page_use` says and cached as ordinary memory is, and
    /// stays mapped at the same guest-physical pages until [`Platform::release_pages`]. A confidential guest makes the pages visible to the
    /// host here.
    fn allocate_pages(&self, page_count: usize, page_use: PageUse) -> Result<NonNull<u8>, OutOfPages>;

    /// Takes back a block from [`Platform::allocate_pages`]. Called in task context *and in deferred work* (the host gives
    /// memory up when it likes), also inside [`Platform::enter_dispatch`]: it must not wait. The same holds for the heap:
    /// memory goes back to it in deferred work, though none is taken there.
    ///
    /// # Safety
    ///
    /// `base` and `page_count` are exactly those of one earlier allocation that has not been released; the host has
    /// given up every claim to the pages.
    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize);

    /// Returns the guest-physical address that `address` is mapped to at this moment, for any mapped kernel address.
    ///
    /// # Errors
    ///
    /// [`NotMapped`] if there is no memory at that address.
    ///
    /// # Implementation safety
    ///
    /// The result is true: the host will read and write *that* memory.
    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped>;

    /// Returns the processor that this code runs on, below the number of processors given to the bus.
    ///
    /// A caller that needs the answer to stay true is inside [`Platform::enter_dispatch`] or in the interrupt entry.
    fn current_processor(&self) -> ProcessorIndex;

    /// Returns what runs here: a number that no task shares with another one, nor with the deferred work that may interrupt
    /// it. The crate recognises by it a driver that, inside a callback, waits for that callback to end.
    ///
    /// The default is right where one task runs on each processor, and no callback in between.
    fn current_task(&self) -> TaskId {
        TaskId(self.current_processor().0 as usize)
    }

    /// Tells who calls into the crate. The default promises nothing.
    ///
    /// The interrupt entry (`Bus::acknowledge_interrupt`), which only marks, is not part of the promise, nor is the crash path.
    ///
    /// # Implementation safety
    ///
    /// The answer is always the same, and true, for the rest of the system's life. [`Callers::OneProcessor`]: all code that calls
    /// into this crate, or drops what it made, runs on one processor, whose index is 0. [`Callers::OneAtATime`]: that, and no
    /// such call begins while another one is in progress, other than from within.
    fn callers(&self) -> Callers {
        Callers::Anywhere
    }

    /// Arranges for the operating system to call [`Bus::process`](crate) for `processor` soon, on that processor, in its
    /// deferred-work context. Called from the interrupt entry, from deferred work and from tasks, for another processor as well: it
    /// must not allocate or wait. Calls for a processor that is scheduled already may be merged into one.
    ///
    /// The first call comes inside [`Bus::connect`](crate), before there is a bus to process. Work that runs then and finds none
    /// does nothing, and the call is not repeated: `process` is to be called once when the bus has been stored.
    ///
    /// A system that calls `process` in its main loop may leave this empty.
    fn schedule_deferred(&self, processor: ProcessorIndex);

    /// Enters a section in which no deferred work of this crate runs on this processor and the caller is not moved to
    /// another one. Sections nest. Where deferred work never interrupts a task and there is one processor, the default
    /// (nothing) is right.
    fn enter_dispatch(&self) -> DispatchToken {
        DispatchToken(0)
    }

    /// Leaves the section that `token` was made for.
    fn leave_dispatch(&self, token: DispatchToken) {
        let _ = token;
    }

    /// Waits until `wait` is ready or late. The default polls and pauses, and works anywhere, also with interrupts off.
    ///
    /// An operating system with tasks lets others run between two looks: it may sleep, but not longer than
    /// [`Wait::remaining`], and has to look again after each run of deferred work.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] if the deadline passed and a last look still found the condition false.
    fn wait(&self, wait: &mut Wait<'_>) -> Result<(), TimedOut> {
        loop {
            if wait.is_ready() {
                return Ok(());
            }
            if wait.is_late() {
                return if wait.is_ready() { Ok(()) } else { Err(TimedOut) };
            }
            core::hint::spin_loop();
        }
    }

    /// Maps the pages twice in a row, writable and not executable, and returns where: byte `i` and byte
    /// `i + pages.len() * 4096` of the result are the same memory. Optional: rings copy faster this way.
    ///
    /// # Errors
    ///
    /// [`CannotMapTwice`] where this is not possible (the default).
    ///
    /// # Implementation safety
    ///
    /// The mapping stays until [`Platform::unmap_twice`].
    fn map_twice(&self, pages: &[Pfn]) -> Result<NonNull<u8>, CannotMapTwice> {
        let _ = pages;
        Err(CannotMapTwice)
    }

    /// Removes a mapping that [`Platform::map_twice`] made of `page_count` pages. The pages stay allocated.
    ///
    /// # Safety
    ///
    /// `base` is the result of a `map_twice` of `page_count` pages, not removed yet, and nobody uses it any more.
    unsafe fn unmap_twice(&self, base: NonNull<u8>, page_count: usize) {
        let _ = (base, page_count);
    }
}
