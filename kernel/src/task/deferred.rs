//! Deferred work: what an interrupt asked for, done at its end, with interrupts on, before the interrupted task goes on.
//!
//! A handler is registered once and gets a number; [`schedule`] marks the number, from any context, without a lock and without
//! allocation; marking twice before it runs is marking once. While somebody holds a [`Dispatch`] token no deferred work runs on the
//! processor: what deferred work shares with tasks is protected so. Deferred work must not wait.

use crate::arch::{cpu, interrupts};
use crate::sync::IrqMutex;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Handlers that can be registered.
const CAPACITY: usize = 64;

/// Rounds at the end of one interrupt, so that work that schedules itself does not keep the tasks from running.
const ROUNDS: u32 = 16;

/// The number of a registered handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferredId(u32);

#[cfg(any(test, feature = "selftest"))]
impl DeferredId {
    /// For a handler that asks for itself, which is registered before it can know its number.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    /// The handler with this number; `None` if there cannot be one.
    pub(crate) fn of(number: u32) -> Option<Self> {
        ((number as usize) < CAPACITY).then_some(Self(number))
    }
}

/// No room for another handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many kinds of deferred work")]
pub struct TooMany;

/// The kernel does not run on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("processor {0} does not run")]
pub struct NotRunning(pub cpu::Processor);

/// A handler of deferred work.
pub type Handler = &'static (dyn Fn(cpu::Processor) + Sync);

static HANDLERS: IrqMutex<([Option<Handler>; CAPACITY], usize)> = IrqMutex::new(([None; CAPACITY], 0));

static PENDING: [AtomicU64; cpu::MAX_PROCESSORS] = [const { AtomicU64::new(0) }; cpu::MAX_PROCESSORS];

/// Dispatch tokens held, plus one while deferred work runs.
static LEVEL: [AtomicU32; cpu::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; cpu::MAX_PROCESSORS];

/// Whether deferred work runs (rather than that somebody holds a token).
static RUNNING: [AtomicU32; cpu::MAX_PROCESSORS] = [const { AtomicU32::new(0) }; cpu::MAX_PROCESSORS];

fn of(table: &'static [impl Sized], processor: cpu::Processor) -> usize {
    (processor as usize).min(table.len() - 1)
}

fn pending() -> &'static AtomicU64 {
    &PENDING[of(&PENDING, cpu::current())]
}

fn level() -> &'static AtomicU32 {
    &LEVEL[of(&LEVEL, cpu::current())]
}

fn running() -> &'static AtomicU32 {
    &RUNNING[of(&RUNNING, cpu::current())]
}

/// Registers a handler for good.
///
/// # Errors
///
/// [`TooMany`] if there is no room.
pub fn register(handler: Handler) -> Result<DeferredId, TooMany> {
    let mut handlers = HANDLERS.lock();
    let (table, count) = &mut *handlers;
    let id = u32::try_from(*count).map_err(|_| TooMany)?;
    *table.get_mut(*count).ok_or(TooMany)? = Some(handler);
    *count += 1;
    Ok(DeferredId(id))
}

/// Asks for a handler to run on a processor: at the end of the current or next interrupt, or when the processor has nothing to do.
///
/// # Errors
///
/// [`NotRunning`] if that processor does not run.
pub fn schedule(processor: cpu::Processor, id: DeferredId) -> Result<(), NotRunning> {
    if processor != cpu::current() {
        return Err(NotRunning(processor));
    }
    pending().fetch_or(1 << id.0, Ordering::Release);
    Ok(())
}

/// Whether deferred work waits on this processor.
#[must_use]
pub fn is_pending() -> bool {
    pending().load(Ordering::Acquire) != 0
}

/// Whether deferred work is what runs.
#[must_use]
pub fn is_running() -> bool {
    running().load(Ordering::Relaxed) != 0
}

/// Whether this is no place to wait: deferred work runs, or somebody holds a [`Dispatch`] token.
#[must_use]
pub fn at_dispatch() -> bool {
    level().load(Ordering::Relaxed) != 0
}

/// While this exists, no deferred work runs on this processor.
#[derive(Debug)]
pub struct Dispatch {
    /// Tokens belong to the processor that they were made on.
    _not_send: core::marker::PhantomData<*const ()>,
}

/// Keeps deferred work from running on this processor. Not to be held across a wait.
#[must_use = "deferred work runs again when this is dropped"]
pub fn enter_dispatch() -> Dispatch {
    level().fetch_add(1, Ordering::Acquire);
    Dispatch {
        _not_send: core::marker::PhantomData,
    }
}

impl Dispatch {
    /// Lets go of the token without leaving the section; [`Dispatch::leave_from_token`] leaves it.
    pub(crate) const fn into_token(self) {
        core::mem::forget(self);
    }

    /// Leaves a section whose token was let go.
    pub(crate) fn leave_from_token() {
        drop(Self {
            _not_send: core::marker::PhantomData,
        });
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        let last = level().fetch_sub(1, Ordering::Release) == 1;
        if last && is_pending() && !interrupts::in_interrupt() && cpu::interrupts_enabled() {
            let interrupts = cpu::InterruptsOff::enter();
            run();
            drop(interrupts);
        }
    }
}

/// Runs what waits. Called with interrupts off outside of hard interrupts; lets them in while work runs. Returns whether
/// anything ran.
pub(crate) fn run() -> bool {
    if at_dispatch() {
        return false;
    }
    let mut any = false;
    for _ in 0..ROUNDS {
        let mut waiting = pending().swap(0, Ordering::Acquire);
        if waiting == 0 {
            break;
        }
        any = true;
        level().fetch_add(1, Ordering::Relaxed);
        running().store(1, Ordering::Relaxed);
        cpu::enable_interrupts();
        while waiting != 0 {
            let index = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            let handler = HANDLERS.lock().0.get(index).copied().flatten();
            if let Some(handler) = handler {
                handler(cpu::current());
            }
        }
        cpu::disable_interrupts();
        running().store(0, Ordering::Relaxed);
        level().fetch_sub(1, Ordering::Relaxed);
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static SEEN: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    fn note(text: &'static str) {
        SEEN.lock().unwrap().push(text);
    }

    /// One test, because the processor's state is global.
    #[test]
    fn work_runs_once_per_request_and_never_under_a_token() {
        static FIRST: &(dyn Fn(cpu::Processor) + Sync) =
            &|_| note(if at_dispatch() { "first" } else { "first outside" });
        let first = register(FIRST).unwrap();
        let second = register(&|_| note("second")).unwrap();
        assert!(!run(), "nothing waits");

        for id in [second, first, first] {
            schedule(0, id).unwrap();
        }
        assert_eq!(schedule(1, first), Err(NotRunning(1)));
        let token = enter_dispatch();
        assert!(!run() && is_pending());
        drop(token);
        assert!(run());
        assert_eq!(*SEEN.lock().unwrap(), ["first", "second"]);
        assert!(!is_pending() && !at_dispatch() && !is_running());

        // Work that schedules itself does not keep the processor for ever.
        static SELF: spin::Once<DeferredId> = spin::Once::new();
        let again = register(&|_| {
            note("again");
            schedule(0, *SELF.get().unwrap()).unwrap();
        });
        SELF.call_once(|| again.unwrap());
        SEEN.lock().unwrap().clear();
        schedule(0, *SELF.get().unwrap()).unwrap();
        run();
        assert_eq!(SEEN.lock().unwrap().len(), ROUNDS as usize);
        assert!(is_pending());
    }
}
