//! [`Word`], a byte that is changed atomically as far as the platform's promise asks for it, and what a lock built on it guards.
#![expect(unsafe_code, reason = "the audited module that locks are built on")]

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU8, Ordering};

use super::{Lock, LockGuard, Section};
use crate::platform::Callers;

/// Set in a word that is changed by plain instructions: with the state in one byte, one comparison shows both.
const ALONE: u8 = 0x80;

macro_rules! word {
    ($name:ident, $atomic:ty, $kind:ident $(, $constant:tt)?) => {
        /// Seven bits of state, changed by whole steps: with locked instructions where several processors may come, with plain ones
        /// where the platform promises that nobody else does.
        #[derive(Debug)]
        pub(crate) struct $name {
            word: $atomic,
            callers: Callers,
        }

        impl $name {
            pub(crate) $($constant)? fn new(callers: Callers, value: u8) -> Self {
                let alone = if matches!(callers, Callers::OneAtATime) { ALONE } else { 0 };
                Self {
                    word: <$atomic>::new(value | alone),
                    callers,
                }
            }

            #[inline]
            pub(crate) const fn callers(&self) -> Callers {
                self.callers
            }

            /// Acquire.
            #[inline]
            pub(crate) fn load(&self) -> u8 {
                self.word.load(Ordering::Acquire) & !ALONE
            }

            /// Release, for a word that others may change.
            #[inline]
            pub(crate) fn store(&self, value: u8) {
                self.word.store(value, Ordering::Release);
            }

            /// Replaces `old` by `new` if that is what is there and nobody else can come: false says nothing.
            #[inline]
            pub(crate) fn replace_alone(&self, old: u8, new: u8) -> bool {
                // Nobody comes between the two, by the platform's promise.
                let is_old = self.word.load(Ordering::Relaxed) == old | ALONE;
                if is_old {
                    self.word.store(new | ALONE, Ordering::Relaxed);
                }
                is_old
            }

            /// Replaces `old` by `new` in one step, sequentially consistent; returns what was found instead of `old`.
            #[inline]
            pub(crate) fn compare_exchange(&self, old: u8, new: u8) -> Result<(), u8> {
                if self.replace_alone(old, new) {
                    return Ok(());
                }
                self.compare_exchange_late(old, new)
            }

            #[cold]
            #[inline(never)]
            fn compare_exchange_late(&self, old: u8, new: u8) -> Result<(), u8> {
                self.compare_exchange_with_others(old, new)
            }

            /// [`compare_exchange`](Self::compare_exchange) for a word that others may change.
            #[inline]
            pub(crate) fn compare_exchange_with_others(&self, old: u8, new: u8) -> Result<(), u8> {
                match self.callers {
                    // It was not the old one, and nobody has come meanwhile.
                    Callers::OneAtATime => Err(self.load()),
                    Callers::OneProcessor => on_one_processor!($kind, &self.word, old, new),
                    Callers::Anywhere => self
                        .word
                        .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                        .map(|_| ()),
                }
            }

            /// Sets bits in one step; returns what they were before.
            #[cfg(feature = "alloc")]
            #[inline]
            pub(crate) fn set(&self, bits: u8) -> u8 {
                self.change(|word| word | bits)
            }

            /// Clears bits in one step; returns what they were before.
            #[cfg(feature = "alloc")]
            #[inline]
            pub(crate) fn clear(&self, bits: u8) -> u8 {
                self.change(|word| word & !bits)
            }

            #[cfg(feature = "alloc")]
            #[inline]
            fn change(&self, change: impl Fn(u8) -> u8) -> u8 {
                let mut old = self.load();
                while let Err(found) = self.compare_exchange(old, change(old)) {
                    old = found;
                }
                old
            }
        }
    };
}

macro_rules! on_one_processor {
    (real, $word:expr, $old:expr, $new:expr) => {
        on_one_processor($word, $old, $new)
    };
    // A model has several tasks, whatever it calls itself.
    (model, $word:expr, $old:expr, $new:expr) => {
        $word
            .compare_exchange($old, $new, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
    };
}

word!(Word, AtomicU8, real, const);
#[cfg(loom)]
word!(ModelWord, loom::sync::atomic::AtomicU8, model);

/// A compare-and-exchange that nothing on this processor can interrupt. It is no step to other processors, which do not come
/// by the platform's promise.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn on_one_processor(word: &AtomicU8, old: u8, new: u8) -> Result<(), u8> {
    let found: u8;
    // SAFETY: one instruction on a valid byte; an interrupt comes before it or behind it. It reads the byte and writes `new`, or
    // what it read.
    unsafe {
        core::arch::asm!(
            "cmpxchg byte ptr [{word}], {new}",
            word = in(reg) word.as_ptr(),
            new = in(reg_byte) new,
            inout("al") old => found,
            options(nostack),
        );
    }
    if found == old { Ok(()) } else { Err(found) }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn on_one_processor(word: &AtomicU8, old: u8, new: u8) -> Result<(), u8> {
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        .map(|_| ())
}

/// A mark that whoever signals sets, and whoever works takes.
#[cfg(feature = "host")]
#[derive(Debug)]
pub(crate) struct Mark {
    // A byte of its own and no `Word`: setting it is one store.
    is_set: AtomicU8,
    callers: Callers,
}

#[cfg(feature = "host")]
impl Mark {
    pub(crate) const fn new(callers: Callers) -> Self {
        Self {
            is_set: AtomicU8::new(0),
            callers,
        }
    }

    /// Release.
    #[inline]
    pub(crate) fn set(&self) {
        self.is_set.store(1, Ordering::Release);
    }

    /// Acquire.
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire) != 0
    }

    /// Takes the mark if it is set, in one step.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        // Looked at first: as a rule it is not.
        if !self.is_set() {
            return false;
        }
        if self.callers == Callers::OneAtATime {
            // Nobody comes between the two, by the platform's promise.
            self.is_set.store(0, Ordering::Relaxed);
            return true;
        }
        self.is_set.swap(0, Ordering::SeqCst) != 0
    }
}

/// What a lock guards.
pub(super) struct Guarded<T>(UnsafeCell<T>);

impl<T> Guarded<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(super) const fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

// SAFETY: the value is reached by whoever holds the lock alone, so sharing the lock is sending the value to and fro.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<'a, T> LockGuard<'a, T> {
    /// Makes the guard of a lock that was just taken in `section`, which lies in the lock meanwhile.
    pub(super) const fn in_section(lock: &'a Lock<T>, section: Section) -> Self {
        let guard = Self {
            lock,
            _here: PhantomData,
        };
        // SAFETY: the section is the holder's, as the value is: see below; nothing refers to it.
        unsafe { lock.section.0.get().write(section) };
        guard
    }

    /// Returns the section that the lock was taken in.
    #[inline(always)]
    pub(super) const fn section(&self) -> Section {
        // SAFETY: as above; the lock is still held.
        unsafe { *self.lock.section.0.get() }
    }
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        let lock: &Lock<T> = self.lock;
        // SAFETY: a guard is made by whoever has changed the lock's word from free to held, and changes it back when dropped: by
        // `Word`, and the platform's promise, there is no second one meanwhile.
        unsafe { &*lock.value.0.get() }
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let lock: &Lock<T> = self.lock;
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { &mut *lock.value.0.get() }
    }
}
