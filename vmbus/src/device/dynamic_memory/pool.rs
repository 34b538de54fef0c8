//! What the operating system's page allocator offers to the engine: [`MemoryPool`].

use super::PageRange;
use crate::memory::PAGE_SIZE;

/// What the page allocator knows of itself, in pages of 4 KiB. True figures: the host decides by them.
///
/// Pages that the host holds ([`HeldPages`](super::HeldPages)) are neither free nor committed; the engine adds them
/// where the host expects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Figures {
    /// All pages that the operating system was given, at boot and by hot add, whoever has them now.
    pub total_pages: u64,
    /// Pages that could be had at once: free ones, and caches that can be dropped without writing.
    pub free_pages: u64,
    /// Pages in use or promised. May exceed what there is where the system promises more than it has.
    pub committed_pages: u64,
}

/// Why no page of a hot-added range was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddRefused {
    /// Not at the moment, for instance for want of memory for page tables. The host may try again later.
    #[error("memory cannot be added at the moment")]
    NotNow,
    /// Not at this address, ever: it is memory or device space already, or beyond what can be mapped.
    #[error("memory cannot be added there")]
    Never,
}

/// The operating system's page allocator, as the engine uses it.
///
/// All calls come from within [`Engine::poll`](super::Engine::poll) or
/// [`Engine::on_closed`](super::Engine::on_closed), in the context in which the operating system calls those: usually
/// deferred work or a task. None may wait. One `poll` makes a bounded number of calls, so what bounds the time of a
/// slice is that each of these is quick.
pub trait MemoryPool {
    /// Returns the current figures. Asked for once a slice and once a report: it should not walk the allocator.
    fn figures(&self) -> Figures;

    /// Takes up to `max_pages` (at least 1, at most 32,768) consecutive free pages out of use for the host, or returns
    /// `None` if there are none. Long runs are better than short ones: each run costs 8 bytes in a message.
    ///
    /// From here on nobody in the guest touches these pages, not even to clear them: the host removes them. It must not
    /// dig into what the system needs to go on; how far it is asked to go is [`MemoryPool::reserve_pages`]' matter.
    fn take(&mut self, max_pages: u64) -> Option<PageRange>;

    /// Gets pages back that [`MemoryPool::take`] gave, though perhaps cut differently: a run may join parts of several
    /// earlier ones. Their contents are lost; they may hold anything.
    fn give_back(&mut self, pages: PageRange);

    /// Takes memory into use that the host has added at new addresses: at most 32,768 pages a call, in ascending order
    /// for one request. Returns how many pages, from the first one on, were taken; fewer than given ends the request.
    ///
    /// The range is what the host says: an implementation refuses what overlaps memory or devices that it knows.
    /// The contents are not promised to be zero.
    ///
    /// # Errors
    ///
    /// [`AddRefused`] if no page of the range could be taken. The default refuses everything, for systems that cannot
    /// grow; they also leave [`Config::hot_add_alignment`](super::Config) empty.
    fn add(&mut self, pages: PageRange) -> Result<u64, AddRefused> {
        let _ = pages;
        Err(AddRefused::Never)
    }

    /// Returns how many pages have to stay free after the host has taken what it asked for. The default is
    /// [`default_reserve_pages`] of the total.
    fn reserve_pages(&self) -> u64 {
        default_reserve_pages(self.figures().total_pages)
    }
}

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;

/// Up to this many MiB of memory (first field), the reserve grows by this fraction of it (second field).
const RESERVE_SLOPES: [(u64, u64); 4] = [(128, 8), (1024, 16), (8192, 32), (u64::MAX / PAGES_PER_MIB, 64)];

/// Returns a sensible number of pages to keep free in a system of `total_pages`.
///
/// It grows with the memory, ever more slowly, and without steps, so that adding memory never asks for more than was
/// added: 4 MiB of 32 MiB, 16 of 128, 72 of 1 GiB, 296 of 8 GiB, 1192 of 64 GiB. A system of 16 MiB or less
/// keeps 2 MiB. (Linux, which needs more to live on, keeps about one and a half to six times as much.)
#[must_use]
pub fn default_reserve_pages(total_pages: u64) -> u64 {
    let mut reserve = 0_u64;
    let mut covered = 0_u64;
    for (up_to_mib, fraction) in RESERVE_SLOPES {
        let up_to = total_pages.min(up_to_mib.saturating_mul(PAGES_PER_MIB));
        reserve = reserve.saturating_add(up_to.saturating_sub(covered).checked_div(fraction).unwrap_or(0));
        covered = covered.max(up_to);
    }
    reserve.max(2 * PAGES_PER_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_as_documented_and_grows_without_steps() {
        for (total_mib, reserve_mib) in [
            (0, 2),
            (8, 2),
            (16, 2),
            (32, 4),
            (128, 16),
            (1024, 72),
            (8192, 296),
            (65536, 1192),
        ] {
            assert_eq!(
                default_reserve_pages(total_mib * PAGES_PER_MIB),
                reserve_mib * PAGES_PER_MIB,
                "{total_mib} MiB"
            );
        }
        let mut before = default_reserve_pages(0);
        for total in (0..16 * 1024 * PAGES_PER_MIB).step_by(1000) {
            let reserve = default_reserve_pages(total);
            assert!(
                reserve >= before && reserve - before <= 126,
                "{total} pages: {before} then {reserve}"
            );
            before = reserve;
        }
        assert!(default_reserve_pages(u64::MAX) < u64::MAX / 32);
    }

    #[test]
    fn a_pool_that_cannot_grow_says_so() {
        struct Fixed;
        impl MemoryPool for Fixed {
            fn figures(&self) -> Figures {
                Figures {
                    total_pages: 32 * PAGES_PER_MIB,
                    ..Figures::default()
                }
            }
            fn take(&mut self, _max_pages: u64) -> Option<PageRange> {
                None
            }
            fn give_back(&mut self, _pages: PageRange) {}
        }
        let range = PageRange::new(crate::memory::Pfn::new(1), 1).unwrap();
        assert_eq!(Fixed.add(range), Err(AddRefused::Never));
        assert_eq!(Fixed.reserve_pages(), 4 * PAGES_PER_MIB);
    }
}
