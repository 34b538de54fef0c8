//! Allocation that may fail: [`Shared`] (a reference count), [`try_box`] and [`TryPush`]; and change of lists within the room that they have.
//!
//! Stable Rust has no `Arc::try_new` and no `Box::try_new`, and a library that aborts the kernel for want of memory is
//! of no use, so this module provides them. It is the only one in the crate that allocates directly.
#![expect(unsafe_code, reason = "the audited module that talks to the allocator")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use zerocopy::FromZeros;

mod handle;
mod reserved;
pub(crate) use handle::{Borrowed, Handle};
pub(crate) use reserved::{ReservedQueue, ReservedVec};

/// The heap has no memory left for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Boxes `value`.
///
/// # Errors
///
/// [`OutOfMemory`]; `value` is dropped then.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        // A box of nothing does not allocate.
        #[expect(clippy::disallowed_methods, reason = "no allocation for a type without size")]
        return Ok(Box::new(value));
    }
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc::alloc::alloc(layout) };
    let Some(memory) = NonNull::new(memory.cast::<T>()) else {
        return Err(OutOfMemory);
    };
    // SAFETY: freshly allocated for exactly a `T`.
    unsafe { memory.as_ptr().write(value) };
    // SAFETY: allocated by the global allocator with `T`'s layout, and initialised.
    Ok(unsafe { Box::from_raw(memory.as_ptr()) })
}

/// Growth of a vector that may fail.
pub trait TryPush<T> {
    /// Appends `value`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; the vector is unchanged and `value` dropped then.
    fn try_push(&mut self, value: T) -> Result<(), OutOfMemory>;
}

impl<T> TryPush<T> for Vec<T> {
    fn try_push(&mut self, value: T) -> Result<(), OutOfMemory> {
        self.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.push_within(value).map_err(|_| OutOfMemory)
    }
}

/// Makes an empty vector with room for `capacity` elements.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn try_vec_with_capacity<T>(capacity: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
    Ok(vector)
}

/// Makes a vector of `len` elements, each from `make(index)`.
///
/// # Errors
///
/// [`OutOfMemory`]; nothing is made then.
pub fn try_vec_of<T>(len: usize, mut make: impl FnMut(usize) -> T) -> Result<Vec<T>, OutOfMemory> {
    let mut vector = try_vec_with_capacity(len)?;
    for index in 0..len {
        vector.push_within(make(index)).map_err(|_| OutOfMemory)?;
    }
    Ok(vector)
}

/// Makes a vector of `len` zeroes, which the heap may have at hand.
///
/// # Errors
///
/// [`OutOfMemory`]; nothing is made then.
pub(crate) fn try_vec_zeroed<T: FromZeros>(len: usize) -> Result<Vec<T>, OutOfMemory> {
    T::new_vec_zeroed(len).map_err(|_| OutOfMemory)
}

struct Counted<T> {
    count: AtomicUsize,
    value: T,
}

/// A value with several owners, like `alloc::sync::Arc` without weak references, whose making may fail.
pub struct Shared<T> {
    pointer: NonNull<Counted<T>>,
    _owns: PhantomData<Counted<T>>,
}

// SAFETY: as for `Arc`: owners on several threads share `&T` and any of them may drop the value.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Makes a value with one owner.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; `value` is dropped then.
    pub fn try_new(value: T) -> Result<Self, OutOfMemory> {
        let counted = try_box(Counted {
            count: AtomicUsize::new(1),
            value,
        })?;
        Ok(Self {
            pointer: NonNull::from(Box::leak(counted)),
            _owns: PhantomData,
        })
    }

    /// Returns true if both are owners of the same value.
    #[must_use]
    pub fn is_same(this: &Self, other: &Self) -> bool {
        this.pointer == other.pointer
    }

    /// Returns the number of owners at this moment.
    #[must_use]
    pub fn owner_count(this: &Self) -> usize {
        this.counted().count.load(Ordering::Relaxed)
    }

    const fn counted(&self) -> &Counted<T> {
        // SAFETY: the value lives as long as it has an owner, and `self` is one.
        unsafe { self.pointer.as_ref() }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // Relaxed: a new owner is made from one that can see the value already.
        let before = self.counted().count.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before < usize::MAX / 2, "owners are made by code, not by the host");
        Self {
            pointer: self.pointer,
            _owns: PhantomData,
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Release: what this owner did happens before the value is dropped by the last one.
        if self.counted().count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Acquire: pairs with the release of every other owner.
        fence(Ordering::Acquire);
        // SAFETY: the pointer came from a box, and the last owner is this one.
        drop(unsafe { Box::from_raw(self.pointer.as_ptr()) });
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize as Counter;

    struct CountsDrops<'a>(&'a Counter);
    impl Drop for CountsDrops<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_value_is_dropped_once_by_its_last_owner() {
        let drops = Counter::new(0);
        let first = Shared::try_new(CountsDrops(&drops)).unwrap();
        let second = first.clone();
        assert_eq!(Shared::owner_count(&first), 2);
        assert!(Shared::is_same(&first, &second));
        drop(first);
        assert_eq!(drops.load(Ordering::SeqCst), 0);
        drop(second);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn owners_on_several_threads_agree() {
        let value = Shared::try_new(Counter::new(0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let value = value.clone();
                scope.spawn(move || value.fetch_add(1, Ordering::Relaxed));
            }
        });
        assert_eq!(value.load(Ordering::Relaxed), 4);
        assert_eq!(Shared::owner_count(&value), 1);
    }

    #[test]
    fn boxes_and_vectors_hold_what_was_put_in() {
        assert_eq!(*try_box(7_u64).unwrap(), 7);
        assert_eq!(*try_box(()).unwrap(), ());
        let mut vector = try_vec_of(3, |index| index * 2).unwrap();
        vector.try_push(9).unwrap();
        assert_eq!(vector, [0, 2, 4, 9]);
        assert_eq!(try_vec_with_capacity::<u64>(usize::MAX).unwrap_err(), OutOfMemory);
        assert_eq!(try_vec_zeroed::<u64>(3).unwrap(), [0; 3]);
        assert_eq!(try_vec_zeroed::<u64>(0).unwrap(), []);
        assert_eq!(try_vec_zeroed::<u64>(usize::MAX).unwrap_err(), OutOfMemory);
    }
}
