//! Ranges of virtual addresses, given out and taken back: first fit over a sorted list of free ranges.

use super::layout::Span;
use alloc::vec::Vec;

/// Free ranges, sorted, never touching one another.
#[derive(Debug)]
pub struct Ranges {
    free: Vec<Span>,
    /// From here to the end nothing was ever given out.
    fresh: u64,
    end: u64,
}

impl Ranges {
    /// All of a span is free.
    #[must_use]
    pub const fn new(span: Span) -> Self {
        Self {
            free: Vec::new(),
            fresh: span.start,
            end: span.end(),
        }
    }

    /// Takes a range.
    pub fn allocate(&mut self, length: u64) -> Option<u64> {
        if let Some(position) = self.free.iter().position(|span| span.length >= length) {
            let span = self.free.get_mut(position)?;
            let start = span.start;
            if span.length == length {
                self.free.remove(position);
            } else {
                *span = Span {
                    start: start + length,
                    length: span.length - length,
                };
            }
            return Some(start);
        }
        if self.end - self.fresh < length {
            return None;
        }
        let start = self.fresh;
        self.fresh += length;
        Some(start)
    }

    /// Gives a range back. Without memory for the list the range is lost, which costs nothing but addresses.
    pub fn free(&mut self, start: u64, length: u64) {
        let position = self.free.partition_point(|span| span.start < start);
        let touches_next = self.free.get(position).is_some_and(|next| start + length == next.start);
        let previous = position
            .checked_sub(1)
            .and_then(|index| self.free.get(index).map(|span| (index, *span)));
        match previous {
            Some((index, span)) if span.end() == start => {
                let more = if touches_next {
                    self.free.remove(position).length
                } else {
                    0
                };
                if let Some(span) = self.free.get_mut(index) {
                    span.length += length + more;
                }
            }
            _ if touches_next => {
                if let Some(next) = self.free.get_mut(position) {
                    *next = Span {
                        start,
                        length: length + next.length,
                    };
                }
            }
            _ => {
                if self.free.try_reserve(1).is_ok() {
                    self.free.insert(position, Span { start, length });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_merged_and_given_out_again() {
        let mut ranges = Ranges::new(Span {
            start: 0x1000,
            length: 0x4000,
        });
        let all: Vec<_> = (0..4).map(|_| ranges.allocate(0x1000).unwrap()).collect();
        assert_eq!(all, [0x1000, 0x2000, 0x3000, 0x4000]);
        assert_eq!(ranges.allocate(1), None);
        ranges.free(0x1000, 0x1000);
        ranges.free(0x3000, 0x1000);
        assert_eq!(ranges.allocate(0x2000), None);
        ranges.free(0x2000, 0x1000);
        assert_eq!(ranges.free.len(), 1);
        assert_eq!(ranges.allocate(0x2000), Some(0x1000));
        assert_eq!(ranges.allocate(0x1000), Some(0x3000));
        ranges.free(0x4000, 0x1000);
        ranges.free(0x3000, 0x1000);
        assert_eq!(
            ranges.free,
            [Span {
                start: 0x3000,
                length: 0x2000
            }]
        );
    }
}
