//! [`Word`], a byte that is changed atomically as far as the platform's promise asks for it, and what a lock built on it guards.
#![expect(unsafe_code, reason = "the audited module that locks are built on")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU8, Ordering};

use super::{Lock, LockGuard};
use crate::platform::Callers;

macro_rules! word {
    ($name:ident, $atomic:ty, $kind:ident $(, $constant:tt)?) => {
        /// A byte of state, changed by whole steps: with locked instructions where several processors may come, with plain ones where
        /// the platform promises that nobody else does.
        #[derive(Debug)]
        pub(crate) struct $name {
            word: $atomic,
            callers: Callers,
        }

        impl $name {
            pub(crate) $($constant)? fn new(callers: Callers, value: u8) -> Self {
                Self {
                    word: <$atomic>::new(value),
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
                self.word.load(Ordering::Acquire)
            }

            /// Release.
            #[inline]
            pub(crate) fn store(&self, value: u8) {
                self.word.store(value, Ordering::Release);
            }

            /// Replaces `old` by `new` in one step, sequentially consistent; returns what was found instead of `old`.
            #[inline]
            pub(crate) fn compare_exchange(&self, old: u8, new: u8) -> Result<(), u8> {
                match self.callers {
                    Callers::Anywhere => self
                        .word
                        .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                        .map(|_| ()),
                    Callers::OneProcessor => on_one_processor!($kind, &self.word, old, new),
                    // Nobody comes between the two, by the platform's promise.
                    Callers::OneAtATime => {
                        let found = self.word.load(Ordering::Relaxed);
                        if found != old {
                            return Err(found);
                        }
                        self.word.store(new, Ordering::Relaxed);
                        Ok(())
                    }
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
                let mut old = self.word.load(Ordering::Relaxed);
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
