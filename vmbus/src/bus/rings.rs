//! The memory of a channel's two rings: [`RingPages`].
#![expect(unsafe_code, reason = "makes rings of pages that both ends reach, and lends them")]

use super::error::Error;
use super::gpadl::GpadlMemory;
use crate::Platform;
use crate::fallible::Shared;
use crate::memory::{PAGE_SIZE, Pfn, SharedPages};
use crate::platform::NotMapped;
use crate::protocol::gpadl::MAX_GPADL_PAGES;
use crate::ring::{InvalidRing, SharedRing};

/// One ring in the memory of a channel, which it keeps.
pub type ChannelRing = SharedRing<Shared<SharedPages>>;

/// The memory of a channel's two rings: each a control page and data pages, in one GPADL. First the ring from the end
/// that opened the channel to the end that offered it, then the other one.
///
/// The pages are reached only as rings: this type keeps them to itself.
#[derive(Clone, Debug)]
pub struct RingPages {
    pages: Shared<SharedPages>,
    first_ring_pages: usize,
}

impl RingPages {
    /// Allocates rings with so many data pages each.
    pub(super) fn allocate(
        platform: &'static dyn Platform,
        first_data_pages: u32,
        second_data_pages: u32,
    ) -> Result<Self, Error> {
        let invalid = |pages: u32| InvalidRing::Size {
            size: pages.saturating_mul(4096),
        };
        let pages_of = |data_pages: u32| {
            // With the control page; a GPADL holds no more.
            let pages = usize::try_from(data_pages).ok().and_then(|pages| pages.checked_add(1));
            pages
                .filter(|pages| (2..=MAX_GPADL_PAGES).contains(pages))
                .ok_or(invalid(data_pages))
        };
        let (first, second) = (pages_of(first_data_pages)?, pages_of(second_data_pages)?);
        let pages = SharedPages::allocate(platform, first.saturating_add(second))?;
        Ok(Self {
            pages: Shared::try_new(pages)?,
            first_ring_pages: first,
        })
    }

    /// Returns the page at which the second ring begins, its control page.
    #[must_use]
    pub const fn second_ring_page(&self) -> usize {
        self.first_ring_pages
    }

    /// Returns how many pages there are.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.page_count()
    }

    /// Returns the first ring: the opening end writes to it, the offering end reads from it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRing`] if the pages make no ring.
    pub fn first(&self) -> Result<ChannelRing, Error> {
        self.ring(0, self.first_ring_pages)
    }

    /// Returns the second ring: the offering end writes to it, the opening end reads from it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRing`] if the pages make no ring.
    pub fn second(&self) -> Result<ChannelRing, Error> {
        self.ring(self.first_ring_pages, self.pages.page_count())
    }

    /// Makes a ring of the pages from `start` to `end`.
    fn ring(&self, start: usize, end: usize) -> Result<ChannelRing, Error> {
        let data_bytes = end.saturating_sub(start).saturating_sub(1).saturating_mul(PAGE_SIZE);
        let size = u32::try_from(data_bytes).map_err(|_| InvalidRing::Size { size: u32::MAX })?;
        if end > self.pages.page_count() || size == 0 {
            return Err(InvalidRing::Size { size }.into());
        }
        // SAFETY: page `start` lies inside the block, as just checked.
        let control = unsafe { self.pages.base().add(start.wrapping_mul(PAGE_SIZE)) };
        // SAFETY: there is at least one page behind it, as just checked.
        let data = unsafe { control.add(PAGE_SIZE) };
        // SAFETY: 1. control page and data lie inside the block, which the keeper keeps. 2. The block was allocated here
        // and is not handed out, so that it is reached only as rings.
        Ok(unsafe { SharedRing::new(control, data, size, self.pages.clone()) }?)
    }
}

// SAFETY: the pages are the value's own, and it keeps them; they are reached only as rings.
unsafe impl GpadlMemory for RingPages {
    fn len_bytes(&self) -> usize {
        self.pages.len_bytes()
    }

    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        self.pages.pfn(index)
    }
}

// SAFETY: the pages are the value's own, made for the host to write to, and it lets nobody reach them by references.
unsafe impl GpadlMemory for SharedPages {
    fn len_bytes(&self) -> usize {
        Self::len_bytes(self)
    }

    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        Self::pfn(self, index)
    }
}

// SAFETY: as above; this is one of their owners.
unsafe impl GpadlMemory for Shared<SharedPages> {
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }

    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        (**self).pfn(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Words;
    use crate::testing::FakePlatform;

    #[test]
    fn two_rings_lie_one_behind_the_other() {
        let rings = RingPages::allocate(FakePlatform::new(), 2, 3).unwrap();
        assert_eq!((rings.page_count(), rings.second_ring_page()), (7, 3));
        assert_eq!(
            (rings.first().unwrap().size(), rings.second().unwrap().size()),
            (8192, 12288)
        );
    }

    #[test]
    fn no_ring_is_made_of_pages_that_are_not_there() {
        let platform = FakePlatform::new();
        let split_at = |first_ring_pages| {
            let pages = SharedPages::allocate(platform, 4).unwrap();
            RingPages {
                pages: Shared::try_new(pages).unwrap(),
                first_ring_pages,
            }
        };
        let sizes = [0, 1, 2, 3, 4, 5].map(|first| {
            let rings = split_at(first);
            [rings.first(), rings.second()].map(|ring| ring.ok().map(|ring| ring.size()))
        });
        assert_eq!(
            sizes,
            [
                [None, Some(12288)],
                [None, Some(8192)],
                [Some(4096), Some(4096)],
                [Some(8192), None],
                [Some(12288), None],
                [None, None]
            ]
        );
    }
}
