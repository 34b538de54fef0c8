//! One bit per frame: set means free.
//!
//! Single frames are taken from the low end, long runs for the balloon from the high end, so that they do not break up each
//! other's memory. Two bounds remember where free frames can be at all, which makes long sequences of calls cheap: whole words
//! (64 frames) are skipped, taken and given back at once.

/// Bits in a word.
const BITS: usize = u64::BITS as usize;

/// The frames named are not all taken (or do not exist): nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames were given back that are not taken")]
pub struct NotTaken;

/// Which of a row of frames are free.
#[derive(Debug)]
pub struct Bitmap {
    words: &'static mut [u64],
    frames: usize,
    free: usize,
    /// No word below this one has a free frame.
    low: usize,
    /// No word from this one on has a free frame.
    high: usize,
}

/// The bits `from..to` of a word.
const fn mask(from: usize, to: usize) -> u64 {
    below(to) & !below(from)
}

/// The bits below `bit`.
const fn below(bit: usize) -> u64 {
    if bit >= BITS { u64::MAX } else { (1 << bit) - 1 }
}

impl Bitmap {
    /// Words needed for so many frames.
    #[must_use]
    pub const fn words_for(frames: usize) -> usize {
        frames.div_ceil(BITS)
    }

    /// A bitmap over `words`, in which the frames from `taken` on are free. There are as many frames as are asked for, or as fit.
    #[must_use]
    pub fn new(words: &'static mut [u64], frames: usize, taken: usize) -> Self {
        let frames = frames.min(words.len() * BITS);
        words.fill(0);
        let high = words.len();
        let mut bitmap = Self {
            words,
            frames,
            free: 0,
            low: 0,
            high,
        };
        if taken < frames {
            bitmap.set(taken, frames - taken);
            bitmap.free = frames - taken;
        }
        bitmap
    }

    /// Free frames.
    #[must_use]
    pub const fn free_count(&self) -> usize {
        self.free
    }

    /// All frames.
    #[must_use]
    pub const fn frame_count(&self) -> usize {
        self.frames
    }

    /// Takes the lowest free frame.
    pub fn allocate(&mut self) -> Option<usize> {
        while self.low < self.high {
            let word = self.words.get_mut(self.low)?;
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                self.free -= 1;
                return Some(self.low * BITS + bit);
            }
            self.low += 1;
        }
        None
    }

    /// Takes the lowest `count` free frames in a row.
    pub fn allocate_exact(&mut self, count: usize) -> Option<usize> {
        if count == 0 || count > self.free {
            return None;
        }
        let mut run = 0;
        for index in self.low..self.high {
            let word = *self.words.get(index)?;
            if word == u64::MAX {
                run += BITS;
                if run >= count {
                    return Some(self.take((index + 1) * BITS - run, count));
                }
                continue;
            }
            // From free stretch to free stretch inside the word.
            let mut bit = 0;
            while bit < BITS {
                let rest = word >> bit;
                let ones = (rest.trailing_ones() as usize).min(BITS - bit);
                run += ones;
                if run >= count {
                    return Some(self.take(index * BITS + bit + ones - run, count));
                }
                bit += ones;
                if bit < BITS {
                    run = 0;
                    let zeros = ((word >> bit).trailing_zeros() as usize).min(BITS - bit);
                    bit += zeros;
                }
            }
        }
        None
    }

    /// Takes the highest free frames in a row, at most `limit`: first frame and count.
    pub fn allocate_up_to(&mut self, limit: usize) -> Option<(usize, usize)> {
        if limit == 0 {
            return None;
        }
        while self.high > self.low {
            let word = *self.words.get(self.high - 1)?;
            if word != 0 {
                break;
            }
            self.high -= 1;
        }
        let top = self.high.checked_sub(1)?;
        let word = *self.words.get(top)?;
        if word == 0 {
            return None;
        }
        let end = (top + 1) * BITS - word.leading_zeros() as usize;
        let mut start = end;
        while start > 0 && end - start < limit {
            let index = (start - 1) / BITS;
            let used = start - index * BITS; // bits of this word below `start`
            let word = *self.words.get(index)? << (BITS - used);
            let ones = (word.leading_ones() as usize).min(used).min(limit - (end - start));
            start -= ones;
            if ones < used {
                break;
            }
        }
        Some((self.take(start, end - start), end - start))
    }

    /// Gives frames back.
    ///
    /// # Errors
    ///
    /// [`NotTaken`] if one of them is free or does not exist; then none is given back.
    pub fn free(&mut self, start: usize, count: usize) -> Result<(), NotTaken> {
        let end = start
            .checked_add(count)
            .filter(|&end| end <= self.frames)
            .ok_or(NotTaken)?;
        let taken =
            Self::pieces(start, end).all(|(index, mask)| self.words.get(index).is_some_and(|word| word & mask == 0));
        if !taken {
            return Err(NotTaken);
        }
        self.set(start, count);
        self.free += count;
        self.low = self.low.min(start / BITS);
        self.high = self.high.max(end.div_ceil(BITS));
        Ok(())
    }

    /// Marks frames as taken that are known to be free.
    fn take(&mut self, start: usize, count: usize) -> usize {
        for (index, mask) in Self::pieces(start, start + count) {
            if let Some(word) = self.words.get_mut(index) {
                *word &= !mask;
            }
        }
        self.free -= count;
        start
    }

    fn set(&mut self, start: usize, count: usize) {
        for (index, mask) in Self::pieces(start, start + count) {
            if let Some(word) = self.words.get_mut(index) {
                *word |= mask;
            }
        }
    }

    /// The words that a range touches, each with the bits that belong to the range.
    fn pieces(start: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
        (start / BITS..end.div_ceil(BITS)).map(move |index| {
            (
                index,
                mask(start.saturating_sub(index * BITS), (end - index * BITS).min(BITS)),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bitmap(frames: usize, taken: usize) -> Bitmap {
        Bitmap::new(vec![0; Bitmap::words_for(frames)].leak(), frames, taken)
    }

    #[test]
    fn single_frames_come_from_the_low_end() {
        let mut bitmap = bitmap(130, 3);
        assert_eq!(bitmap.free_count(), 127);
        assert_eq!((bitmap.allocate(), bitmap.allocate()), (Some(3), Some(4)));
        bitmap.free(3, 1).unwrap();
        assert_eq!(bitmap.allocate(), Some(3));
        while bitmap.allocate().is_some() {}
        assert_eq!(bitmap.free_count(), 0);
        bitmap.free(129, 1).unwrap();
        assert_eq!(bitmap.allocate(), Some(129));
    }

    #[test]
    fn runs_for_the_balloon_come_from_the_high_end() {
        let mut bitmap = bitmap(1000, 10);
        assert_eq!(bitmap.allocate_up_to(300), Some((700, 300)));
        assert_eq!(bitmap.allocate_up_to(1), Some((699, 1)));
        assert_eq!(bitmap.allocate_up_to(5000), Some((10, 689)));
        assert_eq!(bitmap.allocate_up_to(5000), None);
        bitmap.free(700, 300).unwrap();
        assert_eq!(bitmap.allocate_exact(300), Some(700));
    }

    #[test]
    fn a_hole_ends_a_run() {
        let mut bitmap = bitmap(256, 0);
        assert_eq!(bitmap.allocate_exact(256), Some(0));
        bitmap.free(0, 60).unwrap();
        bitmap.free(61, 100).unwrap();
        assert_eq!(bitmap.allocate_exact(61), Some(61));
        assert_eq!(bitmap.allocate_up_to(50), Some((122, 39)));
        assert_eq!(bitmap.allocate_up_to(50), Some((10, 50)));
        assert_eq!(bitmap.allocate_exact(11), None);
        assert_eq!(bitmap.allocate_exact(10), Some(0));
    }

    #[test]
    fn giving_back_what_is_not_taken_changes_nothing() {
        let mut bitmap = bitmap(128, 0);
        assert_eq!(bitmap.allocate_exact(100), Some(0));
        assert_eq!(bitmap.free(50, 60), Err(NotTaken));
        assert_eq!(bitmap.free(120, 9), Err(NotTaken));
        assert_eq!(bitmap.free(usize::MAX, 2), Err(NotTaken));
        assert_eq!(bitmap.free_count(), 28);
        assert_eq!(bitmap.free(50, 50), Ok(()));
        assert_eq!(bitmap.free(50, 1), Err(NotTaken));
    }

    #[derive(Debug, Clone)]
    enum Action {
        One,
        Exact(usize),
        UpTo(usize),
        GiveBack(usize),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            Just(Action::One),
            (1usize..200).prop_map(Action::Exact),
            (1usize..200).prop_map(Action::UpTo),
            any::<usize>().prop_map(Action::GiveBack),
        ];
        prop::collection::vec(action, 1..200)
    }

    proptest! {
        /// Against a plain list of booleans.
        #[test]
        fn no_frame_is_given_out_twice_or_lost(frames in 1usize..700, actions in actions()) {
            let mut bitmap = bitmap(frames, 0);
            let mut free = vec![true; frames];
            let mut held: Vec<(usize, usize)> = Vec::new();
            let longest = |free: &[bool]| free.split(|f| !f).map(<[bool]>::len).max().unwrap_or(0);
            for action in actions {
                let got = match action {
                    Action::One => bitmap.allocate().map(|start| (start, 1)),
                    Action::Exact(count) => {
                        let got = bitmap.allocate_exact(count);
                        prop_assert_eq!(got.is_some(), longest(&free) >= count);
                        got.map(|start| (start, count))
                    }
                    Action::UpTo(limit) => {
                        let got = bitmap.allocate_up_to(limit);
                        prop_assert_eq!(got.is_some(), longest(&free) > 0);
                        if let Some((start, count)) = got {
                            prop_assert!(count <= limit);
                            prop_assert!(count == limit || start == 0 || !free[start - 1]);
                        }
                        got
                    }
                    Action::GiveBack(which) => {
                        if !held.is_empty() {
                            let (start, count) = held.swap_remove(which % held.len());
                            prop_assert_eq!(bitmap.free(start, count), Ok(()));
                            free[start..start + count].fill(true);
                        }
                        None
                    }
                };
                if let Some((start, count)) = got {
                    prop_assert!(free[start..start + count].iter().all(|f| *f));
                    free[start..start + count].fill(false);
                    held.push((start, count));
                }
                prop_assert_eq!(bitmap.free_count(), free.iter().filter(|f| **f).count());
            }
        }
    }
}
