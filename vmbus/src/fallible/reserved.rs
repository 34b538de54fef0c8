//! Lists that change within the room that they have: [`ReservedVec`] and [`ReservedQueue`].
//!
//! `Vec::push`, `insert`, `remove` and their like end in a panic where there is no room or no such element, and so every program that
//! calls them has that panic in it, reserved or not. What is here says so in its result, allocates nothing, and has no panic by the way it
//! is built; for queues, by a check that makes `alloc`'s own one superfluous. `tests/panic_free.rs` looks at the program.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

/// A vector whose room was reserved before.
pub(crate) trait ReservedVec<T> {
    /// Appends `value`, or gives it back if there is no room.
    fn push_within(&mut self, value: T) -> Result<(), T>;

    /// Inserts `value` in front of the element at `index`, or gives it back if there is no room, or no such place.
    fn insert_within(&mut self, index: usize, value: T) -> Result<(), T>;

    /// Moves all of `other` behind what is here; returns false, and moves nothing, if there is no room for all of it.
    #[must_use]
    fn append_within(&mut self, other: &mut Self) -> bool;

    /// Takes the element at `index`, if there is one; those behind it move up.
    fn take_at(&mut self, index: usize) -> Option<T>;

    /// Takes the element at `index`, if there is one; the last one takes its place.
    fn swap_take(&mut self, index: usize) -> Option<T>;
}

impl<T> ReservedVec<T> for Vec<T> {
    #[inline]
    fn push_within(&mut self, value: T) -> Result<(), T> {
        let len = self.len();
        let Some(place) = self.spare_capacity_mut().first_mut() else {
            return Err(value);
        };
        place.write(value);
        // SAFETY: the first element of the spare room is the one behind the last, and was written just now.
        unsafe { self.set_len(len.wrapping_add(1)) };
        Ok(())
    }

    fn insert_within(&mut self, index: usize, mut value: T) -> Result<(), T> {
        if self.len() == self.capacity() {
            return Err(value);
        }
        let Some(behind) = self.get_mut(index..) else {
            return Err(value);
        };
        for element in behind {
            mem::swap(element, &mut value);
        }
        self.push_within(value)
    }

    #[inline]
    fn append_within(&mut self, other: &mut Self) -> bool {
        let (len, count) = (self.len(), other.len());
        let Some(room) = self.spare_capacity_mut().get_mut(..count) else {
            return false;
        };
        let (from, to) = (other.as_ptr(), room.as_mut_ptr().cast::<T>());
        // SAFETY: as many elements of another vector as there is room for.
        unsafe { from.copy_to_nonoverlapping(to, count) };
        // SAFETY: shorter than it was; the elements are not its own any more.
        unsafe { other.set_len(0) };
        // SAFETY: the elements behind the last one were just moved there, and fit.
        unsafe { self.set_len(len.wrapping_add(count)) };
        true
    }

    fn take_at(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        let mut taken = self.pop()?;
        for element in self.get_mut(index..)?.iter_mut().rev() {
            mem::swap(element, &mut taken);
        }
        Some(taken)
    }

    fn swap_take(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        let last = self.pop()?;
        Some(match self.get_mut(index) {
            Some(element) => mem::replace(element, last),
            None => last,
        })
    }
}

/// A queue whose room was reserved before.
pub(crate) trait ReservedQueue<T> {
    /// Appends `value`, or gives it back if there is no room.
    fn push_back_within(&mut self, value: T) -> Result<(), T>;

    /// Puts `value` in front of all others, or gives it back if there is no room.
    fn push_front_within(&mut self, value: T) -> Result<(), T>;
}

impl<T> ReservedQueue<T> for VecDeque<T> {
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "there is room: just checked")]
    fn push_back_within(&mut self, value: T) -> Result<(), T> {
        if self.len() == self.capacity() {
            return Err(value);
        }
        self.push_back(value);
        Ok(())
    }

    #[inline]
    #[expect(clippy::disallowed_methods, reason = "there is room: just checked")]
    fn push_front_within(&mut self, value: T) -> Result<(), T> {
        if self.len() == self.capacity() {
            return Err(value);
        }
        self.push_front(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec;

    use super::*;

    #[expect(
        clippy::vec_box,
        reason = "on the heap, so that one that is dropped twice, or never, is found"
    )]
    fn boxes(numbers: impl IntoIterator<Item = u32>) -> Vec<Box<u32>> {
        numbers.into_iter().map(Box::new).collect()
    }

    fn numbers(vector: &[Box<u32>]) -> Vec<u32> {
        vector.iter().map(|number| **number).collect()
    }

    #[test]
    fn a_vector_takes_what_fits_and_gives_back_what_does_not() {
        let mut vector = Vec::with_capacity(3);
        let room = vector.capacity();
        let fits = (0..10)
            .filter(|number| vector.push_within(Box::new(*number)).is_ok())
            .count();
        assert_eq!((fits, vector.capacity()), (room, room));
        assert_eq!(numbers(&vector), (0..10).take(room).collect::<Vec<_>>());
        assert_eq!(vector.push_within(Box::new(77)), Err(Box::new(77)));
        assert_eq!(vector.insert_within(0, Box::new(77)), Err(Box::new(77)));
        assert_eq!(Vec::new().push_within(1), Err(1));
        // Elements without a size always fit.
        let mut nothings = Vec::new();
        nothings.push_within(()).unwrap();
        nothings.insert_within(1, ()).unwrap();
        assert!(nothings.append_within(&mut vec![(); 5]));
        assert_eq!(
            (nothings.len(), nothings.take_at(6), nothings.swap_take(6)),
            (7, Some(()), None)
        );
    }

    #[test]
    fn elements_go_in_and_out_as_with_the_methods_of_vec() {
        for len in 0..6_u32 {
            for index in 0..8 {
                let mut expected = boxes(0..len);
                let mut vector = Vec::with_capacity(16);
                vector.extend(boxes(0..len));
                let is_place = index <= expected.len();
                assert_eq!(vector.insert_within(index, Box::new(99)).is_ok(), is_place);
                if is_place {
                    expected.insert(index, Box::new(99));
                }
                assert_eq!(vector, expected);

                let is_there = index < expected.len();
                assert_eq!(vector.clone().take_at(index).is_some(), is_there);
                assert_eq!(vector.clone().swap_take(index).is_some(), is_there);
                if is_there {
                    let (mut other, mut swapped) = (vector.clone(), expected.clone());
                    assert_eq!(other.swap_take(index), Some(swapped.swap_remove(index)));
                    assert_eq!(other, swapped);
                    assert_eq!(vector.take_at(index), Some(expected.remove(index)));
                }
                assert_eq!(vector, expected);
            }
        }
    }

    #[test]
    fn a_vector_takes_all_of_another_or_nothing() {
        let mut vector = Vec::with_capacity(4);
        vector.extend(boxes([1, 2]));
        let mut other = boxes(3..5);
        assert!(vector.append_within(&mut other));
        assert_eq!((numbers(&vector), other.len()), (vec![1, 2, 3, 4], 0));
        let mut other = boxes(5..5 + u32::try_from(vector.capacity()).unwrap());
        let before = other.clone();
        assert!(!vector.append_within(&mut other));
        assert_eq!((numbers(&vector), other), (vec![1, 2, 3, 4], before));
        assert!(vector.append_within(&mut Vec::new()));
    }

    #[test]
    fn a_queue_takes_what_fits_at_either_end() {
        let mut queue = VecDeque::with_capacity(3);
        let room = queue.capacity();
        while queue.push_back_within(Box::new(1)).is_ok() {}
        assert_eq!((queue.len(), queue.capacity()), (room, room));
        assert_eq!(queue.push_front_within(Box::new(2)), Err(Box::new(2)));
        queue.pop_back();
        queue.push_front_within(Box::new(2)).unwrap();
        queue.pop_front();
        queue.push_back_within(Box::new(3)).unwrap();
        assert_eq!((queue.len(), queue.capacity()), (room, room));
        assert_eq!(queue.back(), Some(&Box::new(3)));
    }
}
