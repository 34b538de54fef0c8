//! The crate's lock: a spin lock that keeps deferred work off its processor while it is held.
//!
//! Never taken in the interrupt entry, never held across a callback or a wait. On a platform that promises something about who
//! calls ([`Callers`]), a lock costs less: no locked instruction where there is one processor, and no dispatch section either
//! where calls come one at a time. `Word` is the same for a few bits.

mod word;

use core::fmt;
use core::marker::PhantomData;
use core::ops::DerefMut;

#[cfg(feature = "host")]
pub(crate) use self::word::Mark;
#[cfg(loom)]
pub(crate) use self::word::ModelWord;
pub(crate) use self::word::Word;
use crate::Platform;
use crate::platform::{Callers, DispatchToken};

/// A spin lock whose holder is in a dispatch section of the platform.
pub struct Lock<T> {
    held: Word,
    /// The holder's section. It lies here and not in the guard so that a guard is one address: where calls come one at a time
    /// there are no sections, and a guard that had room for one would be carried about for nothing.
    section: word::Guarded<Section>,
    value: word::Guarded<T>,
}

impl<T> Lock<T> {
    /// Makes a free lock around `value`, for callers on any number of processors.
    pub const fn new(value: T) -> Self {
        Self::for_callers(Callers::Anywhere, value)
    }

    /// Makes a free lock around `value` that costs no more than the platform's promise asks for.
    pub fn new_on(platform: &'static dyn Platform, value: T) -> Self {
        Self::for_callers(platform.callers(), value)
    }

    const fn for_callers(callers: Callers, value: T) -> Self {
        Self {
            held: Word::new(callers, FREE),
            section: word::Guarded::new(None),
            value: word::Guarded::new(value),
        }
    }

    /// Enters a dispatch section and takes the lock. Context: task or deferred work.
    #[inline]
    pub fn lock(&self, platform: &'static dyn Platform) -> LockGuard<'_, T> {
        self.lock_on(|| platform)
    }

    /// [`lock`](Self::lock) that asks for the platform only if it needs it.
    #[inline]
    pub(crate) fn lock_on(&self, platform: impl FnOnce() -> &'static dyn Platform) -> LockGuard<'_, T> {
        if self.held.replace_alone(FREE, HELD) {
            LockGuard {
                lock: self,
                _here: PhantomData,
            }
        } else {
            self.lock_in_section(platform)
        }
    }

    /// Takes the lock in a dispatch section, or after others. By itself, so that locks of those whose calls come one at a time
    /// take little room where they are taken.
    #[cold]
    #[inline(never)]
    fn lock_in_section(&self, platform: impl FnOnce() -> &'static dyn Platform) -> LockGuard<'_, T> {
        let section = match self.held.callers() {
            Callers::OneAtATime => None,
            Callers::Anywhere | Callers::OneProcessor => {
                let platform = platform();
                Some((platform, platform.enter_dispatch()))
            }
        };
        if self.held.compare_exchange_with_others(FREE, HELD).is_err() {
            self.hold_later();
        }
        LockGuard::in_section(self, section)
    }

    #[inline]
    fn try_hold(&self) -> bool {
        self.held.compare_exchange(FREE, HELD).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn hold_later(&self) {
        // Where calls come one at a time, this is a lock held across a callback: a mistake of this crate.
        debug_assert!(self.held.callers() != Callers::OneAtATime, "a lock is taken twice");
        #[cfg(all(test, not(loom)))]
        let waiting = crate::testing::Waiting::new("a lock that others hold");
        while !self.try_hold() {
            while self.held.load() == HELD {
                #[cfg(all(test, not(loom)))]
                waiting.check();
                core::hint::spin_loop();
            }
        }
    }

    /// Takes the lock if it is free, without a dispatch section: for the crash path, which runs alone.
    pub fn try_lock_in_emergency(&self) -> Option<impl DerefMut<Target = T> + '_> {
        // Made only if the lock was taken: the drop of a guard frees it.
        self.try_hold().then(|| LockGuard::in_section(self, None))
    }

    /// Returns the value, which nobody else can reach.
    pub const fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

const FREE: u8 = 0;
const HELD: u8 = 1;

/// Does not take the lock to show what it guards: in no section, deferred work that interrupts the printing would wait for it for
/// ever.
impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_held = self.held.load() == HELD;
        formatter.write_str(if is_held { "Lock(held)" } else { "Lock(free)" })
    }
}

/// A dispatch section of the platform, left when dropped: meanwhile the caller stays on its processor, and no deferred work
/// of this crate runs there.
pub(crate) struct DispatchSection {
    platform: &'static dyn Platform,
    token: DispatchToken,
}

impl DispatchSection {
    pub(crate) fn enter(platform: &'static dyn Platform) -> Self {
        Self {
            platform,
            token: platform.enter_dispatch(),
        }
    }
}

impl Drop for DispatchSection {
    #[inline]
    fn drop(&mut self) {
        self.platform.leave_dispatch(self.token);
    }
}

/// The section that the holder of a lock is in, if it needs one. Read and written part by part: as a whole it would have to wait
/// for its parts.
type Section = Option<(&'static dyn Platform, DispatchToken)>;

/// The right to use what a [`Lock`] guards. It stays on the processor whose section it is in, and whoever has it has the value alone:
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// fn elsewhere(guard: vmbus::sync::LockGuard<'_, u8>) {
///     send(guard);
/// }
/// ```
pub struct LockGuard<'a, T> {
    lock: &'a Lock<T>,
    /// Neither sent, because the section is left where it was entered, nor shared: a lock is shared with a value that is not.
    _here: PhantomData<*const T>,
}

impl<T> Drop for LockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if !self.lock.held.replace_alone(HELD, FREE) {
            self.leave();
        }
    }
}

impl<T> LockGuard<'_, T> {
    /// Lets go, and then leaves the section: with the section left first, deferred work could run here and spin on the lock for
    /// ever.
    #[cold]
    #[inline(never)]
    fn leave(&self) {
        let section = self.section();
        self.lock.held.store(FREE);
        if let Some((platform, token)) = section {
            platform.leave_dispatch(token);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(test)]
mod tests;
