//! The crate's lock: a spin lock that keeps deferred work off its processor while it is held.
//!
//! Never taken in the interrupt entry, never held across a callback or a wait.

use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::Platform;
use crate::platform::DispatchToken;

/// A spin lock whose holder is in a dispatch section of the platform.
pub struct Lock<T> {
    inner: spin::mutex::SpinMutex<T>,
}

impl<T> Lock<T> {
    /// Makes a free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            inner: spin::mutex::SpinMutex::new(value),
        }
    }

    /// Enters a dispatch section and takes the lock. Context: task or deferred work.
    pub fn lock(&self, platform: &'static dyn Platform) -> LockGuard<'_, T> {
        let section = DispatchSection::enter(platform);
        LockGuard {
            guard: self.inner.lock(),
            _section: section,
        }
    }

    /// Takes the lock if it is free, without a dispatch section: for the crash path, which runs alone.
    pub fn try_lock_in_emergency(&self) -> Option<impl DerefMut<Target = T> + '_> {
        self.inner.try_lock()
    }

    /// Returns the value, which nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<T: fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inner.try_lock() {
            Some(guard) => formatter.debug_tuple("Lock").field(&*guard).finish(),
            None => formatter.write_str("Lock(held)"),
        }
    }
}

/// A dispatch section of the platform, left when dropped: meanwhile the caller stays on its processor, and no deferred work
/// of this crate runs there.
pub(crate) struct DispatchSection {
    platform: &'static dyn Platform,
    token: Option<DispatchToken>,
}

impl DispatchSection {
    pub(crate) fn enter(platform: &'static dyn Platform) -> Self {
        Self {
            platform,
            token: Some(platform.enter_dispatch()),
        }
    }
}

impl Drop for DispatchSection {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.platform.leave_dispatch(token);
        }
    }
}

/// The right to use what a [`Lock`] guards.
pub struct LockGuard<'a, T> {
    // Dropped in this order: with the section left first, deferred work could run here and spin on the lock for ever.
    guard: spin::mutex::SpinMutexGuard<'a, T>,
    _section: DispatchSection,
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}
