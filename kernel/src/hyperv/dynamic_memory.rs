//! Dynamic memory: the frame allocator as the driver's pool, and the task that runs the driver.
//!
//! The task owns the driver for the life of the kernel, so that the frames that the host has stay accounted for while the channel
//! or the whole bus is closed and opened again. Others tell it what they want ([`wish`]) and look at what it shows ([`shown`]).

use alloc::string::{String, ToString as _};
use core::sync::atomic::{AtomicBool, Ordering};

use vmbus::Deadline;
use vmbus::device::dynamic_memory::{
    AddRefused, CLASS, Config, Counters, DynamicMemory, Figures, MemoryPool, PageRange, Progress, State,
};
use vmbus::kmcl::{self, Gone, Instance};
use vmbus::memory::Pfn;

use super::bus;
use super::devices::DeviceState;
use super::offers::{self, OfferKey};
use super::port::PLATFORM;
use crate::memory::frames::{Frame, FrameRange};
use crate::memory::layout::PAGE_SIZE;
use crate::memory::{self, MemoryError};
use crate::sync::IrqMutex;
use crate::{task, time};

/// The frame allocator, as the driver sees it.
#[derive(Debug)]
struct Frames;

const fn frames(pages: PageRange) -> FrameRange {
    FrameRange {
        first: Frame(pages.start().get()),
        count: pages.page_count(),
    }
}

impl MemoryPool for Frames {
    fn figures(&self) -> Figures {
        let statistics = memory::statistics();
        let in_use = statistics
            .total
            .saturating_sub(statistics.free)
            .saturating_sub(statistics.ballooned);
        Figures {
            total_pages: statistics.total / PAGE_SIZE,
            free_pages: statistics.free / PAGE_SIZE,
            committed_pages: in_use / PAGE_SIZE,
        }
    }

    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        let taken = memory::balloon_take(max_pages)?;
        PageRange::new(Pfn::new(taken.first.0), taken.count)
    }

    fn give_back(&mut self, pages: PageRange) {
        if let Err(error) = memory::balloon_give_back(frames(pages)) {
            log::error!("the balloon gave back frames that it did not have ({pages:?}): {error}");
        }
    }

    fn add(&mut self, pages: PageRange) -> Result<u64, AddRefused> {
        #[expect(unsafe_code, reason = "the host says that there is memory")]
        // SAFETY: the host has added memory there and the kernel knows of nothing else there: `add` refuses what it knows. A host
        // that lies takes away memory that the guest then finds missing, which it can do with any memory.
        let added = unsafe { memory::add(frames(pages)) };
        match added {
            Ok(_) => Ok(pages.page_count()),
            Err(MemoryError::CannotAdd(_)) => Err(AddRefused::Never),
            Err(_) => Err(AddRefused::NotNow),
        }
    }
}

/// What the task is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The channel open.
    Open,
    /// The channel closed.
    Closed,
}

/// What the task shows of the driver.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// How far the conversation has come.
    pub state: State,
    /// Pages that the host has.
    pub held_pages: u64,
    /// What has happened.
    pub counters: Counters,
    /// What the channel has done, while it is open.
    pub channel: Option<kmcl::Counters>,
    /// Why its last channel has ended, if the host ended it.
    pub gone: Option<Gone>,
}

struct Shared {
    wish: Wish,
    shown: Option<Shown>,
    /// Why the last attempt to open failed.
    failure: Option<&'static str>,
    /// What was offered at the last attempt to open. It is not tried again before that changes, or before somebody wishes it again.
    tried: Option<Option<OfferKey>>,
}

static SHARED: IrqMutex<Shared> = IrqMutex::new(Shared {
    wish: Wish::Closed,
    shown: None,
    failure: None,
    tried: None,
});

/// Whether the driver has something to run for.
static WOKEN: AtomicBool = AtomicBool::new(false);

/// Starts the task. Again is nothing.
///
/// # Errors
///
/// [`task::SpawnError`] if there is no room for it.
pub fn start() -> Result<(), task::SpawnError> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if !STARTED.swap(true, Ordering::Relaxed) {
        task::spawn("dynamic-memory", run)?;
    }
    Ok(())
}

/// Tells the task what is wanted.
pub fn wish(wish: Wish) {
    let mut shared = SHARED.lock();
    shared.wish = wish;
    shared.failure = None;
    shared.tried = None;
    drop(shared);
    wake();
}

/// Returns what the driver shows; `None` before it has run.
#[must_use]
pub fn shown() -> Option<Shown> {
    SHARED.lock().shown
}

/// Waits until the driver is in the state that is wanted. Returns whether it is. Context: task.
pub fn await_wish(deadline: time::Deadline) -> bool {
    let wanted = SHARED.lock().wish;
    task::wait_until(deadline, || match (wanted, shown().map(|shown| shown.state)) {
        (Wish::Open, Some(State::Running { .. })) | (Wish::Closed, Some(State::Closed) | None) => true,
        (Wish::Open, _) => SHARED.lock().failure.is_some(),
        (Wish::Closed, _) => false,
    }) && SHARED.lock().failure.is_none()
}

/// Closes the channel, if it is open.
pub(super) fn stop() {
    if shown().is_some_and(|shown| shown.state != State::Closed) && task::may_block() {
        wish(Wish::Closed);
        await_wish(time::Deadline::after_ms(5000));
    }
}

/// Returns the state for the status table.
#[must_use]
pub fn state() -> &'static str {
    let shared = SHARED.lock();
    match shared.shown.map(|shown| shown.state) {
        _ if shared.failure.is_some() => "failed",
        None | Some(State::Closed) => "closed",
        Some(State::Negotiating { .. } | State::Capabilities { .. }) => "starting",
        Some(State::Running { .. }) => "running",
        Some(_) => "faulted",
    }
}

/// Returns the device's part of the status table.
#[must_use]
pub fn device_state() -> DeviceState {
    let word = state();
    let shared = SHARED.lock();
    let gone = shared.shown.and_then(|shown| shown.gone);
    let faulted = match shared.shown.map(|shown| shown.state) {
        Some(State::Faulted(fault)) => Some(fault.to_string()),
        _ => gone.map(|why| why.to_string()),
    };
    DeviceState {
        // Where the host has ended the channel, "closed" would be half the truth.
        state: if word == "closed" && gone.is_some() {
            "faulted"
        } else {
            word
        },
        reason: shared.failure.map(String::from).or(faulted),
        counters: shared.shown.and_then(|shown| shown.channel),
    }
}

/// Offers have come or gone.
pub(super) fn offers_changed() {
    wake();
}

/// The bus is joined: what failed before may work now.
pub(super) fn connected() {
    let mut shared = SHARED.lock();
    shared.failure = None;
    shared.tried = None;
    drop(shared);
    wake();
}

fn wake() {
    WOKEN.store(true, Ordering::Release);
    task::notify();
}

/// The task.
fn run() {
    let hypervisor = super::hypervisor();
    let driver = DynamicMemory::new(&PLATFORM, Config::default(), Frames);
    let (Some(hypervisor), Ok(mut driver)) = (hypervisor, driver) else {
        SHARED.lock().failure = Some("no memory");
        return;
    };
    let mut marks = Marks::default();
    let mut is_open = false;
    loop {
        WOKEN.store(false, Ordering::Relaxed);
        let wanted = SHARED.lock().wish;
        match wanted {
            Wish::Open if !is_open && may_try() => match open(&mut driver) {
                Ok(()) => is_open = true,
                Err(reason) => {
                    log::warn!("dynamic memory: {reason}");
                    SHARED.lock().failure = Some(reason);
                }
            },
            Wish::Closed if is_open => {
                if let Err(error) = driver.detach(Deadline::seconds(10)) {
                    log::warn!("dynamic memory: the channel could not be closed: {error}");
                }
                is_open = false;
            }
            _ => {}
        }
        let progress = driver.run(hypervisor.now());
        let engine = driver.engine();
        if is_open && engine.state() == State::Closed {
            match driver.gone() {
                Some(why) => log::warn!("dynamic memory: its channel has ended: {why}"),
                None => log::warn!("dynamic memory: the host has taken its channel back"),
            }
            is_open = false;
            // It may be offered anew already: that was passed over while this was open.
            WOKEN.store(true, Ordering::Release);
        }
        let shown = Shown {
            state: engine.state(),
            held_pages: engine.held().page_count(),
            counters: *engine.counters(),
            channel: driver.channel_counters(),
            gone: driver.gone(),
        };
        SHARED.lock().shown = Some(shown);
        if progress == Progress::More {
            task::yield_now();
            continue;
        }
        marks.say(&shown);
        task::notify();
        let deadline = driver.next_wakeup().map_or(time::Deadline::Never, |instant| {
            let left = instant.saturating_duration_since(hypervisor.now());
            time::Deadline::after_ns(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
        });
        task::wait_until(deadline, || WOKEN.load(Ordering::Acquire));
    }
}

/// Whether the device is to be opened: its offer is another one than at the last attempt. Takes note of it.
fn may_try() -> bool {
    let offered = bus::connected().and_then(|bus| offers::offered(&bus, |offer| offer.class == CLASS));
    let mut shared = SHARED.lock();
    let is_news = shared.tried != Some(offered);
    if is_news {
        shared.tried = Some(offered);
        shared.failure = None;
    }
    is_news
}

fn open(driver: &mut DynamicMemory<Frames>) -> Result<(), &'static str> {
    let bus = bus::connected().ok_or("there is no connection to the VMBus")?;
    if !bus.offers().any(|offer| offer.class == CLASS) {
        return Err("the host does not offer it");
    }
    driver
        .attach(&bus, Instance::Any, wake, Deadline::seconds(10))
        .map_err(|error| {
            log::warn!("dynamic memory: {error}");
            "its channel could not be opened"
        })
}

/// What people and machines are told when something has changed.
#[derive(Default)]
struct Marks {
    has_run: bool,
    held_pages: u64,
    added_pages: u64,
}

impl Marks {
    fn say(&mut self, shown: &Shown) {
        if !self.has_run && matches!(shown.state, State::Running { .. }) {
            self.has_run = true;
            time::reached("dynamic-memory-running");
            crate::status::mark("dm-running", format_args!(""));
        }
        if self.held_pages != shown.held_pages {
            self.held_pages = shown.held_pages;
            log::info!(
                "dynamic memory: the host has {} KiB",
                shown.held_pages * PAGE_SIZE / 1024
            );
            crate::status::mark("ballooned", format_args!("{}", shown.held_pages * PAGE_SIZE));
        }
        if self.added_pages != shown.counters.hot_added_pages {
            self.added_pages = shown.counters.hot_added_pages;
            log::info!(
                "dynamic memory: the host has added {} KiB",
                self.added_pages * PAGE_SIZE / 1024
            );
            crate::status::mark("hot-added", format_args!("{}", self.added_pages * PAGE_SIZE));
        }
    }
}
