//! Handles of one word: [`Handle`].
//!
//! A packet is its memory and a handle of its channel. With both in one word each it is handed on in two registers; with more it
//! goes through memory, where a load of the whole waits for the stores of its parts.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use super::{Counted, Shared};

/// A [`Shared`] that is an owner, or only lent by one: a lent handle counts nothing. An owner may carry a mark.
pub(crate) struct Handle<T> {
    /// The value's address, with [`OWNER`] and [`MARKED`] in bits that its alignment leaves free.
    tagged: NonNull<Counted<T>>,
    _owns: PhantomData<Counted<T>>,
}

/// Dropping the handle gives up an owner.
const OWNER: usize = 1;
/// What it means is its user's matter.
const MARKED: usize = 2;
const TAGS: usize = OWNER | MARKED;

// SAFETY: a `Shared`, or as good as a reference to one.
unsafe impl<T: Send + Sync> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// Makes a handle that is an owner.
    pub(crate) fn owner(shared: Shared<T>) -> Self {
        Self::tagged(ManuallyDrop::new(shared).pointer, OWNER)
    }

    /// Makes a handle that is an owner and has the mark.
    pub(crate) fn marked_owner(shared: Shared<T>) -> Self {
        Self::tagged(ManuallyDrop::new(shared).pointer, TAGS)
    }

    /// Makes a handle that is no owner.
    ///
    /// # Safety
    ///
    /// As long as it is used, other than to be dropped, the value has an owner.
    #[inline]
    pub(crate) unsafe fn lent(owner: &Shared<T>) -> Self {
        Self::tagged(owner.pointer, 0)
    }

    #[inline]
    fn tagged(pointer: NonNull<Counted<T>>, tags: usize) -> Self {
        const {
            assert!(
                align_of::<Counted<T>>() > TAGS,
                "the lower bits of its address are free"
            )
        };
        Self {
            tagged: pointer.map_addr(|address| address | tags),
            _owns: PhantomData,
        }
    }

    #[inline]
    fn has(&self, tag: usize) -> bool {
        self.tagged.addr().get() & tag != 0
    }

    /// Returns whether it is an owner with the mark.
    #[inline]
    pub(crate) fn is_marked(&self) -> bool {
        self.has(MARKED)
    }

    /// Returns whether there is nothing to drop.
    #[inline]
    pub(crate) fn is_lent(&self) -> bool {
        !self.has(OWNER)
    }

    #[inline]
    fn pointer(&self) -> NonNull<Counted<T>> {
        let pointer = self.tagged.as_ptr().map_addr(|address| address & !TAGS);
        // SAFETY: the address of a value, which its alignment keeps from being zero without the tags.
        unsafe { NonNull::new_unchecked(pointer) }
    }

    /// Returns the owner that it is, or was lent by.
    #[inline]
    pub(crate) fn shared(&self) -> Borrowed<'_, T> {
        Borrowed {
            shared: ManuallyDrop::new(Shared {
                pointer: self.pointer(),
                _owns: PhantomData,
            }),
            _handle: PhantomData,
        }
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value has an owner: this one, or by the promise to `lent` another.
        unsafe { &self.pointer().as_ref().value }
    }
}

impl<T> Drop for Handle<T> {
    #[inline]
    fn drop(&mut self) {
        if self.has(OWNER) {
            self.give_up();
        }
    }
}

impl<T> Handle<T> {
    /// Gives up the owner that it is. By itself, so that to drop a handle is one look where it is none.
    #[inline(never)]
    fn give_up(&self) {
        drop(Shared {
            pointer: self.pointer(),
            _owns: PhantomData,
        });
    }
}

/// The owner behind a handle, borrowed.
pub(crate) struct Borrowed<'h, T> {
    shared: ManuallyDrop<Shared<T>>,
    _handle: PhantomData<&'h Handle<T>>,
}

impl<T> Deref for Borrowed<'_, T> {
    type Target = Shared<T>;
    #[inline]
    fn deref(&self) -> &Shared<T> {
        &self.shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_count_and_what_is_lent_does_not() {
        let value = Shared::try_new(7_u8).unwrap();
        let owner = Handle::owner(value.clone());
        let marked = Handle::marked_owner(value.clone());
        // SAFETY: `value` outlives it.
        let lent = unsafe { Handle::lent(&value) };
        assert_eq!((*owner, *marked, *lent), (7, 7, 7));
        assert_eq!([&owner, &marked, &lent].map(Handle::is_marked), [false, true, false]);
        assert_eq!([&owner, &marked, &lent].map(Handle::is_lent), [false, false, true]);
        assert_eq!(Shared::owner_count(&value), 3);
        assert!(Shared::is_same(&lent.shared(), &value) && Shared::is_same(&marked.shared(), &value));
        drop((owner, lent));
        assert_eq!(Shared::owner_count(&value), 2);
        let another = Shared::clone(&marked.shared());
        drop((marked, value));
        assert_eq!((*another, Shared::owner_count(&another)), (7, 1));
    }

    #[test]
    fn a_handle_is_one_word_also_where_there_may_be_none() {
        assert_eq!(size_of::<Handle<u8>>(), size_of::<usize>());
        assert_eq!(size_of::<Option<Handle<u8>>>(), size_of::<usize>());
    }
}
