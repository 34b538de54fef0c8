//! [`IrqMutex`]: a lock that interrupt handlers and deferred work may take too.

use crate::arch::cpu;
use core::fmt;
use core::ops::{Deref, DerefMut};

/// A spin lock that is held with interrupts off, so that whatever interrupts may take it as well.
///
/// One processor runs, so a lock that is held when somebody wants it will never be free again: that is a panic with both of them
/// in the backtrace, and not a machine that stands still.
///
/// Critical sections are short and do no waiting. Lock order, outermost first: scheduler, mapped ranges, heap, page tables,
/// frames, console.
pub struct IrqMutex<T>(spin::Mutex<T>);

/// The held lock. Dropping it releases the lock first and then lets interrupts in again, if they were on.
pub struct IrqGuard<'a, T> {
    guard: spin::MutexGuard<'a, T>,
    _interrupts: cpu::InterruptsOff,
}

impl<T> IrqMutex<T> {
    /// Makes an unlocked lock.
    pub const fn new(value: T) -> Self {
        Self(spin::Mutex::new(value))
    }

    /// Takes the lock.
    ///
    /// # Panics
    ///
    /// If it is held: whoever holds it called, or was interrupted by, who takes it now.
    #[track_caller]
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let interrupts = cpu::InterruptsOff::enter();
        let guard = match self.0.try_lock() {
            Some(guard) => guard,
            #[expect(clippy::panic, reason = "a machine that stands still tells nobody why")]
            None if cfg!(target_os = "none") => {
                panic!("a lock is taken twice: its holder called, or was interrupted by, who takes it now")
            }
            // The tests on the development machine run on several processors.
            None => self.0.lock(),
        };
        IrqGuard {
            guard,
            _interrupts: interrupts,
        }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let interrupts = cpu::InterruptsOff::enter();
        self.0.try_lock().map(|guard| IrqGuard {
            guard,
            _interrupts: interrupts,
        })
    }

    /// Takes the lock, from whoever holds it if need be. For the panic path, which nobody survives.
    ///
    /// # Safety
    ///
    /// Whoever holds the lock must never run again, and the value must make sense in the middle of any change.
    #[expect(unsafe_code, reason = "the panic path must be able to print")]
    pub(crate) unsafe fn lock_by_force(&self) -> IrqGuard<'_, T> {
        for _ in 0..1000 {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            core::hint::spin_loop();
        }
        // SAFETY: The caller vouches for the holder.
        unsafe { self.0.force_unlock() };
        self.lock()
    }
}

impl<T> fmt::Debug for IrqMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqMutex")
    }
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: fmt::Debug> fmt::Debug for IrqGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
