//! A run of guest pages: [`PageRange`].

use core::fmt;

use crate::memory::Pfn;

/// The first page number that no guest-physical address of 64 bits lies in.
const END_OF_PAGES: u64 = 1 << 52;

/// One or more consecutive guest pages. Never empty, never beyond the last address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    start: u64,
    page_count: u64,
}

impl PageRange {
    /// Makes the range of `page_count` pages from `start`; `None` if it would be empty or leave the address space.
    #[must_use]
    pub const fn new(start: Pfn, page_count: u64) -> Option<Self> {
        match start.get().checked_add(page_count) {
            Some(end) if page_count > 0 && end <= END_OF_PAGES => Some(Self {
                start: start.get(),
                page_count,
            }),
            _ => None,
        }
    }

    /// Returns the first page.
    #[must_use]
    pub const fn start(self) -> Pfn {
        Pfn::new(self.start)
    }

    /// Returns the page after the last one.
    #[must_use]
    pub const fn end(self) -> Pfn {
        Pfn::new(self.start.saturating_add(self.page_count))
    }

    /// Returns the number of pages, at least 1.
    #[must_use]
    pub const fn page_count(self) -> u64 {
        self.page_count
    }

    /// Returns true if every page of `other` is in this range.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end().get() <= self.end().get()
    }

    /// Returns the first `page_count` pages (all of them if there are fewer), and what follows them. `None` stands for
    /// an empty part.
    #[must_use]
    pub const fn split_at(self, page_count: u64) -> (Option<Self>, Option<Self>) {
        let first = if page_count < self.page_count {
            page_count
        } else {
            self.page_count
        };
        (
            Self::new(self.start(), first),
            Self::new(
                Pfn::new(self.start.saturating_add(first)),
                self.page_count.saturating_sub(first),
            ),
        )
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "pages {:#x}..{:#x}", self.start, self.end().get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_never_empty_and_never_leaves_the_address_space() {
        assert_eq!(PageRange::new(Pfn::new(7), 0), None);
        assert_eq!(PageRange::new(Pfn::new(u64::MAX), 2), None);
        assert_eq!(PageRange::new(Pfn::new(END_OF_PAGES - 1), 2), None);
        let last = PageRange::new(Pfn::new(END_OF_PAGES - 1), 1).unwrap();
        assert_eq!(last.end().get(), END_OF_PAGES);
    }

    #[test]
    fn splitting_keeps_every_page() {
        let range = PageRange::new(Pfn::new(10), 5).unwrap();
        let part = |start, count| PageRange::new(Pfn::new(start), count);
        assert_eq!(range.split_at(0), (None, part(10, 5)));
        assert_eq!(range.split_at(2), (part(10, 2), part(12, 3)));
        assert_eq!(range.split_at(5), (part(10, 5), None));
        assert_eq!(range.split_at(u64::MAX), (part(10, 5), None));
    }

    #[test]
    fn covering_counts_both_ends() {
        let outer = PageRange::new(Pfn::new(10), 10).unwrap();
        let covers = |start, count| outer.covers(PageRange::new(Pfn::new(start), count).unwrap());
        assert!(covers(10, 10) && covers(10, 1) && covers(19, 1));
        assert!(!covers(9, 2) && !covers(19, 2) && !covers(20, 1));
    }

    #[test]
    fn a_range_is_shown_from_its_first_page_to_behind_its_last() {
        let range = PageRange::new(Pfn::new(0x10), 16).unwrap();
        assert_eq!(std::format!("{range} {range:?}"), "pages 0x10..0x20 pages 0x10..0x20");
    }
}
