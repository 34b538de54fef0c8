//! A platform in the memory of a test: [`FakePlatform`].
//!
//! Its guest-physical addresses are never those of the process, and two neighbouring pages of a block are never
//! neighbours there, so that whoever confuses the two or takes the address of the first page for all of them is found
//! out. Addresses are never used twice. Pages are zeroed when allocated and poisoned when released; released memory
//! rests for a while, and a change to it in that time is a recorded fault. (Under Miri released memory is freed at once.)
//!
//! Time is virtual: it stands in the platform, moves a little with each look at the clock, and a wait moves it on, so that
//! a time-out of minutes takes no time. [`FakePlatform::use_real_time`] is for tests with threads.
#![expect(
    unsafe_code,
    reason = "hands out raw pages, and gives a model host its way into them"
)]
#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_macros,
        reason = "runs on a development machine"
    )
)]

mod access;
mod clock;
mod here;
mod mapping;
#[cfg(test)]
mod meanwhile;
mod state;
#[cfg(test)]
mod tests;

use alloc::alloc::alloc_zeroed;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::access::BadAccess;
use self::clock::Clock;
pub use self::here::ProcessorGuard;
use self::state::{Block, Page, Source, State, check_poison, layout_of};
use super::heap::Exempt;
use super::patience::watch;
use crate::memory::{Gpa, PAGE_SIZE, Pfn};
use crate::platform::{
    CannotMapTwice, DispatchToken, NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex, TaskId, TimedOut, Wait,
};

/// The other side of the memory: a host, as the platform sees it.
pub trait HostSide: Sync {
    /// Lets the host work, as time passes. Returns true if it did something.
    fn run(&self) -> bool;
    /// Returns when the host will do something next by itself, in units of 100 ns.
    fn next_event(&self) -> Option<u64>;
    /// Tells the host that the guest is about to release these pages, so that it can check that it has no claim to them.
    fn releasing(&self, page_numbers: &[u64]);
}

type DeferredHandler = Box<dyn Fn(ProcessorIndex) + Send + Sync>;

/// A platform for tests. See the module's documentation.
pub struct FakePlatform {
    state: Mutex<State>,
    deferred_handler: Mutex<Option<&'static DeferredHandler>>,
    allocations: AtomicU64,
    live_pages: AtomicUsize,
    peak_pages: AtomicUsize,
    processors: AtomicU32,
    clock: Clock,
    #[cfg(test)]
    meanwhile: meanwhile::Meanwhile,
}

/// Holds every fake platform, so that a leak checker sees that it is reachable.
static PLATFORMS: Mutex<Vec<&'static FakePlatform>> = Mutex::new(Vec::new());
static HANDLERS: Mutex<Vec<&'static DeferredHandler>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that failed with the lock held has said so already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakePlatform {
    /// Makes a platform with one processor and no host, for the rest of the process's life. A test that hangs after this is ended, as
    /// [`wait_until`](super::wait_until) would: not those of a program's first thread.
    #[must_use]
    pub fn new() -> &'static Self {
        watch();
        let platform: &'static Self = Box::leak(Box::new(Self {
            state: Mutex::new(State::default()),
            deferred_handler: Mutex::new(None),
            allocations: AtomicU64::new(0),
            live_pages: AtomicUsize::new(0),
            peak_pages: AtomicUsize::new(0),
            processors: AtomicU32::new(1),
            clock: Clock::new(),
            #[cfg(test)]
            meanwhile: meanwhile::Meanwhile::default(),
        }));
        locked(&PLATFORMS).push(platform);
        platform
    }

    /// Makes a platform whose pages can be mapped twice in a row, or `None` where the system cannot do that.
    #[must_use]
    pub fn with_double_mapping() -> Option<&'static Self> {
        let file = mapping::File::new()?;
        let platform = Self::new();
        locked(&platform.state).file = Some(file);
        Some(platform)
    }

    /// Returns how many double mappings there are now.
    #[must_use]
    pub fn double_mappings(&self) -> usize {
        locked(&self.state).double_mappings.len()
    }

    /// Puts a host at the other side. [`super::model::Host`] does this by itself.
    pub fn attach_host(&self, host: &'static dyn HostSide) {
        locked(&self.state).host = Some(host);
    }

    /// Forgets everything but the host and the handlers: memory, faults, counters, time, what was deferred. For programs that
    /// run very many tests, which would otherwise fill the memory with platforms.
    ///
    /// # Safety
    ///
    /// Nothing points to pages of this platform any more, released or not.
    pub unsafe fn start_over(&self) {
        watch();
        {
            let mut state = locked(&self.state);
            // SAFETY: as the caller promised.
            unsafe { state.start_over() };
        }
        self.allocations.store(0, Ordering::Relaxed);
        self.live_pages.store(0, Ordering::Relaxed);
        self.peak_pages.store(0, Ordering::Relaxed);
        self.clock.start_over();
    }

    // ----- processors, deferred work

    /// Sets how many processors there are.
    pub fn set_processor_count(&self, count: u32) {
        self.processors.store(count, Ordering::Relaxed);
    }

    /// Returns how many processors there are.
    #[must_use]
    pub fn processor_count(&self) -> u32 {
        self.processors.load(Ordering::Relaxed)
    }

    /// Puts this thread on processor `index` until the guard is dropped.
    pub fn on_processor(&self, index: u32) -> ProcessorGuard {
        debug_assert!(index < self.processor_count(), "a processor that the platform has");
        ProcessorGuard::enter(index)
    }

    /// Makes `handler` run what was deferred, also during waits, as a kernel would. Without one, the work is only
    /// recorded, for [`Self::run_deferred`].
    pub fn set_deferred_handler(&self, handler: impl Fn(ProcessorIndex) + Send + Sync + 'static) {
        let handler: DeferredHandler = Box::new(handler);
        let handler: &'static DeferredHandler = Box::leak(Box::new(handler));
        locked(&HANDLERS).push(handler);
        *locked(&self.deferred_handler) = Some(handler);
    }

    /// Takes what was deferred off the queue, oldest first.
    pub fn take_deferred(&self) -> Vec<ProcessorIndex> {
        locked(&self.state).deferred.drain(..).collect()
    }

    /// Runs `work` for each processor for which work was deferred, on that processor, until there is none left. Returns
    /// how often it ran.
    pub fn run_deferred(&self, mut work: impl FnMut(ProcessorIndex)) -> usize {
        let mut runs = 0;
        loop {
            let next = locked(&self.state).deferred.pop_front();
            let Some(processor) = next else { return runs };
            let _here = self.on_processor(processor.0);
            work(processor);
            runs += 1;
        }
    }

    /// Returns how many dispatch sections this thread is in.
    #[must_use]
    pub fn dispatch_depth() -> usize {
        here::dispatch_depth()
    }

    // ----- counters and faults

    /// Returns the number of pages that are allocated now.
    #[must_use]
    pub fn live_pages(&self) -> usize {
        self.live_pages.load(Ordering::Relaxed)
    }

    /// Returns the largest number of pages that were allocated at any time.
    #[must_use]
    pub fn peak_pages(&self) -> usize {
        self.peak_pages.load(Ordering::Relaxed)
    }

    /// Returns how many times pages were asked for, with or without success.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Makes the `n`-th allocation from now fail (0: the next one), and only that.
    pub fn fail_allocation(&self, n: u64) {
        locked(&self.state).fail_at = Some(self.allocations() + n);
    }

    /// Makes each allocation from the `n`-th on (0: the next one) fail.
    pub fn fail_allocations_from(&self, n: u64) {
        locked(&self.state).fail_from = Some(self.allocations() + n);
    }

    /// Ends all failing.
    pub fn stop_failing(&self) {
        let mut state = locked(&self.state);
        state.fail_at = None;
        state.fail_from = None;
    }

    /// Returns what was done wrong with the platform's memory so far: double releases, writes after a release, accesses of
    /// the host to memory that is not there.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut state = locked(&self.state);
        let State { resting, faults, .. } = &mut *state;
        for block in resting.iter_mut() {
            check_poison(block, faults);
        }
        faults.clone()
    }

    /// Checks that no fault was recorded.
    ///
    /// # Panics
    ///
    /// If one was.
    #[track_caller]
    pub fn assert_no_faults(&self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "the platform's memory was misused: {faults:#?}");
    }

    // ----- time

    /// Returns the time without moving it, in units of 100 ns.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.clock.time()
    }

    /// Looks at the clock as a guest does. Virtual time moves by one unit with each look, and ever faster if a guest does
    /// nothing else, so that a loop that waits for a time ends.
    #[must_use]
    pub fn look_at_clock(&self) -> u64 {
        self.clock.look()
    }

    /// The guest did something else than to look at the clock.
    pub fn note_activity(&self) {
        self.clock.note_activity();
    }

    /// Moves virtual time on.
    pub fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    /// Lets time be real from now on: for tests with threads, whose waits must not race through virtual hours.
    pub fn use_real_time(&self) {
        self.clock.make_real();
    }

    fn run_deferred_in_wait(&self) -> bool {
        let handler = *locked(&self.deferred_handler);
        match handler {
            Some(handler) if here::dispatch_depth() == 0 => self.run_deferred(handler) > 0,
            _ => false,
        }
    }
}

// SAFETY: blocks come zeroed and page-aligned from the heap, live until released, and each translation is what this
// platform's host side uses.
unsafe impl Platform for FakePlatform {
    fn allocate_pages(&self, page_count: usize, page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        let _exempt = Exempt::enter();
        self.note_activity();
        let refused = OutOfPages { page_count };
        let this = self.allocations.fetch_add(1, Ordering::Relaxed);
        let mut state = locked(&self.state);
        if state.fail_at == Some(this) || state.fail_from.is_some_and(|from| this >= from) {
            return Err(refused);
        }
        if page_count == 0 || page_count > 1 << 20 {
            return Err(refused);
        }
        let (base, first_in_file, source) = match &mut state.file {
            Some(file) => {
                let (base, first) = file.allocate(page_count).ok_or(refused)?;
                (base, Some(first), Source::File)
            }
            None => {
                // SAFETY: the size is not zero.
                let base = unsafe { alloc_zeroed(layout_of(page_count)) };
                (NonNull::new(base).ok_or(refused)?, None, Source::Heap)
            }
        };
        let mut page_numbers = Vec::with_capacity(page_count);
        for index in 0..page_count {
            let number = state.next_page_number();
            // SAFETY: inside the block.
            let page_base = unsafe { base.add(index * PAGE_SIZE) };
            state.pages.insert(
                number,
                Page {
                    base: page_base,
                    present: 0..PAGE_SIZE,
                    page_use,
                    in_file: first_in_file.map(|first| first + index),
                },
            );
            page_numbers.push(number);
        }
        let block = Block {
            base,
            page_count,
            page_numbers,
            source,
        };
        state.blocks.insert(base.addr().get(), block);
        let live = self.live_pages.fetch_add(page_count, Ordering::Relaxed) + page_count;
        self.peak_pages.fetch_max(live, Ordering::Relaxed);
        Ok(base)
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        let _exempt = Exempt::enter();
        let (host, page_numbers) = {
            let mut state = locked(&self.state);
            match state.blocks.get(&base.addr().get()) {
                Some(block) if block.page_count == page_count && block.source != Source::Adopted => {
                    (state.host, block.page_numbers.clone())
                }
                Some(block) => {
                    let had = block.page_count;
                    state.fault(format!("{page_count} pages released of a block of {had}"));
                    return;
                }
                None => {
                    state.fault(format!("{page_count} pages at {base:?} released, but not allocated"));
                    return;
                }
            }
        };
        if let Some(host) = host {
            host.releasing(&page_numbers);
        }
        let mut state = locked(&self.state);
        let Some(block) = state.blocks.remove(&base.addr().get()) else {
            return;
        };
        for number in &block.page_numbers {
            state.pages.remove(number);
        }
        state.rest(block);
        self.live_pages.fetch_sub(page_count, Ordering::Relaxed);
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        let address = address.addr().get();
        let state = locked(&self.state);
        let block = state.block_at(address).ok_or(NotMapped { address })?;
        let first_page = block.base.addr().get() / PAGE_SIZE;
        let number = block.page_numbers[address / PAGE_SIZE - first_page];
        let offset = address % PAGE_SIZE;
        if !state
            .pages
            .get(&number)
            .is_some_and(|page| page.present.contains(&offset))
        {
            return Err(NotMapped { address });
        }
        Ok(Gpa::new(number * PAGE_SIZE as u64 + offset as u64))
    }

    fn current_processor(&self) -> ProcessorIndex {
        here::processor()
    }

    fn current_task(&self) -> TaskId {
        here::task()
    }

    fn schedule_deferred(&self, processor: ProcessorIndex) {
        let _exempt = Exempt::enter();
        let mut state = locked(&self.state);
        if !state.deferred.contains(&processor) {
            state.deferred.push_back(processor);
        }
    }

    fn enter_dispatch(&self) -> DispatchToken {
        #[cfg(test)]
        self.do_what_others_do();
        here::enter_dispatch()
    }

    fn leave_dispatch(&self, token: DispatchToken) {
        let _exempt = Exempt::enter();
        if let Err(depth) = here::leave_dispatch(token) {
            let mut state = locked(&self.state);
            state.fault(format!(
                "dispatch sections do not nest: depth is {depth}, the token is of depth {}",
                token.0
            ));
        }
    }

    fn wait(&self, wait: &mut Wait<'_>) -> Result<(), TimedOut> {
        if here::dispatch_depth() != 0 {
            let mut state = locked(&self.state);
            state.fault(String::from("a wait inside a dispatch section"));
        }
        let mut step: u64 = 10;
        loop {
            self.note_activity();
            if wait.is_ready() {
                return Ok(());
            }
            let host = locked(&self.state).host;
            let host_worked = host.is_some_and(HostSide::run);
            let worked = self.run_deferred_in_wait() || host_worked;
            if worked {
                continue;
            }
            if wait.is_late() {
                return if wait.is_ready() { Ok(()) } else { Err(TimedOut) };
            }
            if self.clock.is_real() {
                std::thread::yield_now();
                continue;
            }
            // Nobody has anything to do: on to the next thing that happens.
            let now = self.time();
            let mut jump = step;
            // In fewer and longer jumps under Miri, for which each look takes long.
            step = (step * if cfg!(miri) { 16 } else { 2 }).min(10_000_000);
            if let Some(left) = wait.remaining() {
                let left = u64::try_from(left.as_nanos().div_ceil(100)).unwrap_or(u64::MAX);
                jump = jump.min(left.max(1));
            }
            if let Some(event) = host.and_then(HostSide::next_event) {
                jump = jump.min(event.saturating_sub(now).max(1));
            }
            self.clock.jump(jump);
        }
    }

    fn map_twice(&self, pages: &[Pfn]) -> Result<NonNull<u8>, CannotMapTwice> {
        let _exempt = Exempt::enter();
        let mut state = locked(&self.state);
        let mut in_file = Vec::with_capacity(pages.len());
        for page in pages {
            match state.pages.get(&page.get()) {
                Some(Page {
                    in_file: Some(number), ..
                }) => in_file.push(*number),
                Some(_) => return Err(CannotMapTwice),
                None => {
                    state.fault(format!(
                        "page {:#x} is to be mapped twice, but it is not allocated",
                        page.get()
                    ));
                    return Err(CannotMapTwice);
                }
            }
        }
        let mapping = state.file.as_ref().and_then(|file| file.map_twice(&in_file));
        let base = mapping.ok_or(CannotMapTwice)?;
        state.double_mappings.insert(base.addr().get(), pages.len());
        Ok(base)
    }

    unsafe fn unmap_twice(&self, base: NonNull<u8>, page_count: usize) {
        let _exempt = Exempt::enter();
        let mut state = locked(&self.state);
        match state.double_mappings.remove(&base.addr().get()) {
            // SAFETY: made by `map_twice`, with twice as many pages, and removed once.
            Some(had) if had == page_count => unsafe { mapping::File::unmap(base, page_count * 2) },
            had => state.fault(format!(
                "a double mapping of {page_count} pages is removed, but it is one of {had:?}"
            )),
        }
    }
}

impl fmt::Debug for FakePlatform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FakePlatform")
            .field("live_pages", &self.live_pages())
            .field("allocations", &self.allocations())
            .field("time", &self.time())
            .finish_non_exhaustive()
    }
}
