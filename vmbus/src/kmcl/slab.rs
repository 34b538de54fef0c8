//! Request ids: [`Slab`], a table of fixed size whose keys never repeat soon.
//!
//! An id crosses to the peer and comes back as an allegation, so it is an index and a generation, never a pointer; the
//! index is checked against the table and the generation against the entry. Id 0 is never given out: it stands for packets
//! that nobody asked for.

use alloc::vec::Vec;

use crate::fallible::{OutOfMemory, try_vec_of};

/// A request's id as it crosses to the peer: the index in the lower half, the generation, never 0, in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(pub(crate) u64);

#[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
impl RequestId {
    const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | index as u64)
    }
    pub(crate) const fn index(self) -> usize {
        self.0 as u32 as usize
    }
    const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

const END: u32 = u32::MAX;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    /// The next free entry, while this one is free.
    next_free: u32,
    value: Option<T>,
}

/// A table of requests.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    first_free: u32,
    used: usize,
}

impl<T> Slab<T> {
    /// Makes a table for `capacity` requests (fewer than 2^32 - 1).
    pub(crate) fn new(capacity: u32) -> Result<Self, OutOfMemory> {
        let entries = try_vec_of(capacity as usize, |index| {
            #[expect(clippy::cast_possible_truncation, reason = "below the capacity, which is 32 bits")]
            let next = (index as u32).wrapping_add(1);
            Entry {
                generation: 1,
                next_free: if next == capacity { END } else { next },
                value: None,
            }
        })?;
        Ok(Self {
            entries,
            first_free: if capacity == 0 { END } else { 0 },
            used: 0,
        })
    }

    #[cfg(test)]
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    /// Enters `value`, or gives it back if the table is full.
    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> Result<RequestId, T> {
        let index = self.first_free;
        match self.entries.get_mut(index as usize) {
            Some(entry) => {
                self.first_free = entry.next_free;
                entry.value = Some(value);
                self.used = self.used.wrapping_add(1);
                Ok(RequestId::new(index, entry.generation))
            }
            None => Err(value),
        }
    }

    #[inline]
    fn live(&mut self, id: RequestId) -> Option<&mut Entry<T>> {
        let entry = self.entries.get_mut(id.index())?;
        (entry.generation == id.generation()).then_some(entry)
    }

    /// Returns the entry that `id` names, if it is a live one.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut T> {
        self.live(id)?.value.as_mut()
    }

    /// Takes the entry that `id` names; the id is void from now on.
    #[inline]
    pub(crate) fn take(&mut self, id: RequestId) -> Option<T> {
        self.take_if(id, |_| true)
    }

    /// Takes the entry that `id` names, if it is one that is `wanted`.
    #[inline]
    pub(crate) fn take_if(&mut self, id: RequestId, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let next_free = self.first_free;
        let entry = self.live(id)?;
        let value = entry.value.take_if(|value| wanted(value))?;
        // 0 is not a generation, so that no id is 0.
        entry.generation = entry.generation.checked_add(1).unwrap_or(1);
        entry.next_free = next_free;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an index below the capacity, which is 32 bits"
        )]
        {
            self.first_free = id.index() as u32;
        }
        self.used = self.used.wrapping_sub(1);
        Some(value)
    }

    /// Returns the id of the first live entry at `index` or behind it, and the index behind that one.
    pub(crate) fn next_used(&self, index: usize) -> Option<(RequestId, usize)> {
        let mut entries = self.entries.iter().zip(0..).skip(index);
        entries.find_map(|(entry, at)| {
            let id = RequestId::new(at, entry.generation);
            entry.value.is_some().then_some((id, (at as usize).saturating_add(1)))
        })
    }

    /// Enters `value` under an id that was given out by an earlier table, or gives it back if that place is not free.
    #[cfg(feature = "host")]
    pub(crate) fn insert_at(&mut self, id: RequestId, value: T) -> Result<(), T> {
        let behind = match self.entries.get(id.index()) {
            Some(entry) if entry.value.is_none() && id.generation() != 0 => entry.next_free,
            _ => return Err(value),
        };
        if self.first_free as usize == id.index() {
            self.first_free = behind;
        } else {
            // One of the other free entries points to it.
            let mut free = self.entries.iter_mut().filter(|entry| entry.value.is_none());
            match free.find(|entry| entry.next_free as usize == id.index()) {
                Some(before) => before.next_free = behind,
                None => return Err(value),
            }
        }
        if let Some(entry) = self.entries.get_mut(id.index()) {
            entry.generation = id.generation();
            entry.value = Some(value);
            self.used = self.used.wrapping_add(1);
        }
        Ok(())
    }

    /// Returns the id of the first live entry that `wanted` accepts.
    pub(crate) fn find(&self, mut wanted: impl FnMut(&T) -> bool) -> Option<RequestId> {
        self.entries.iter().zip(0..).find_map(|(entry, index)| {
            let is_wanted = entry.value.as_ref().is_some_and(&mut wanted);
            is_wanted.then_some(RequestId::new(index, entry.generation))
        })
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_works_once() {
        let mut slab = Slab::new(2).unwrap();
        let first = slab.insert('a').unwrap();
        let second = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!(slab.take_if(first, |value| *value != 'a'), None);
        assert_eq!(slab.take_if(first, |value| *value == 'a'), Some('a'));
        assert_eq!(slab.take(first), None);
        let third = slab.insert('c').unwrap();
        assert_ne!(first, third);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.find(|value| *value == 'c'), Some(third));
        assert_eq!(slab.used(), 2);
    }

    #[cfg(feature = "host")]
    #[test]
    fn entries_can_be_moved_to_another_table_under_their_ids() {
        let mut old = Slab::new(4).unwrap();
        let ids: Vec<RequestId> = (0..4).map(|value| old.insert(value).unwrap()).collect();
        old.take(ids[1]);
        let again = old.insert(7).unwrap();
        old.take(ids[0]);
        let mut new = Slab::new(4).unwrap();
        let mut index = 0;
        while let Some((id, next)) = old.next_used(index) {
            new.insert_at(id, *old.get_mut(id).unwrap()).unwrap();
            assert_eq!(new.insert_at(id, 9), Err(9));
            index = next;
        }
        assert_eq!(new.insert_at(RequestId(4 | 1 << 32), 9), Err(9));
        assert_eq!(new.insert_at(RequestId(0), 9), Err(9));
        assert_eq!(new.get_mut(again), Some(&mut 7));
        let free = new.insert(5).unwrap();
        assert_eq!(free.index(), 0);
        assert_eq!(new.insert(6), Err(6));
        assert_eq!(new.used(), 4);
    }

    #[test]
    fn a_table_without_entries_refuses() {
        assert_eq!(Slab::new(0).unwrap().insert(1), Err(1));
    }

    #[test]
    fn q2_generations_wrap_without_an_id_of_zero() {
        let mut slab = Slab::new(1).unwrap();
        let first = slab.insert(0).unwrap();
        assert_eq!(first, RequestId(1 << 32), "not from the first one on");
        slab.take(first).unwrap();
        slab.entries[0].generation = u32::MAX;
        let last = slab.insert(1).unwrap();
        slab.take(last).unwrap();
        let next = slab.insert(2).unwrap();
        assert_eq!(next, RequestId(1 << 32));
    }

    proptest! {
        /// Q1: whatever ids a peer invents, only the live ones are found, each once.
        #[test]
        fn q1_guessed_ids_find_nothing(guesses in prop::collection::vec(any::<u64>(), 0..64), capacity in 1..8_u32) {
            let mut slab = Slab::new(capacity).unwrap();
            let live: Vec<RequestId> = (0..capacity).map(|value| slab.insert(value).unwrap()).collect();
            for guess in guesses {
                let guess = RequestId(guess);
                prop_assert_eq!(slab.get_mut(guess).is_some(), live.contains(&guess));
            }
            for (value, id) in (0..).zip(live.iter().copied()) {
                prop_assert_eq!(slab.take(id), Some(value));
                prop_assert_eq!(slab.take(id), None);
            }
            prop_assert_eq!(slab.used(), 0);
            // The same places with others in them: who comes late finds nothing.
            let next: Vec<RequestId> = (0..capacity).map(|value| slab.insert(value).unwrap()).collect();
            for id in &live {
                prop_assert!(slab.get_mut(*id).is_none() && slab.take(*id).is_none());
            }
            prop_assert!(next.iter().all(|id| !live.contains(id)));
        }
    }
}
