//! A page allocator that knows of each page who has it, and fails when a page is given back that was not taken.

use vmbus::device::dynamic_memory::{AddRefused, Figures, HeldPages, MemoryPool, PageRange};
use vmbus::memory::Pfn;

/// The first page of the machine.
pub(crate) const FIRST: u64 = 0x1000;
/// How many pages there can be.
pub(crate) const PAGES: u64 = 2048;
/// How many there are at boot.
const BOOT: u64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Absent,
    Host,
    System,
}

#[derive(Debug)]
pub(crate) struct Pool {
    owners: Vec<Owner>,
    counts: [u64; 4],
    longest_run: u64,
    reserve: u64,
    /// What `take` returns next, whatever it is, if its pages are not the pool's to give.
    pub(crate) broken: Option<(u64, u64)>,
    next: usize,
}

impl Pool {
    pub(crate) fn new(longest_run: u64, reserve: u64) -> Self {
        let mut pool = Self {
            owners: vec![Owner::Absent; PAGES as usize],
            counts: [0, PAGES, 0, 0],
            longest_run,
            reserve,
            broken: None,
            next: 0,
        };
        for index in 0..BOOT as usize {
            // A hole each 64 pages.
            let owner = if index % 64 == 63 { Owner::System } else { Owner::Nobody };
            pool.set(index, owner);
        }
        pool
    }

    fn set(&mut self, index: usize, owner: Owner) {
        let old = core::mem::replace(&mut self.owners[index], owner);
        self.counts[old as usize] -= 1;
        self.counts[owner as usize] += 1;
    }

    /// The operating system takes or frees pages of its own.
    pub(crate) fn system(&mut self, pages: u64, takes: bool) {
        let (from, to) = if takes {
            (Owner::Nobody, Owner::System)
        } else {
            (Owner::System, Owner::Nobody)
        };
        let mut left = pages;
        for index in 0..self.owners.len() {
            if left > 0 && self.owners[index] == from {
                self.set(index, to);
                left -= 1;
            }
        }
    }

    /// The host has as many pages as the engine says.
    pub(crate) fn check_count(&self, held: &HeldPages) {
        assert_eq!(
            held.page_count(),
            self.counts[Owner::Host as usize],
            "no page is lost, none is made"
        );
    }

    /// The host has what the engine says.
    pub(crate) fn check(&self, held: &HeldPages) {
        self.check_count(held);
        let mut seen = 0;
        held.for_each_run(|run| {
            for page in run.start().get()..run.end().get() {
                assert_eq!(self.owners[(page - FIRST) as usize], Owner::Host, "page {page:#x}");
                seen += 1;
            }
        });
        assert_eq!(seen, held.page_count());
    }
}

impl MemoryPool for Pool {
    fn figures(&self) -> Figures {
        Figures {
            total_pages: PAGES - self.counts[Owner::Absent as usize],
            free_pages: self.counts[Owner::Nobody as usize],
            committed_pages: self.counts[Owner::System as usize],
        }
    }

    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        assert!((1..=32_768).contains(&max_pages), "{max_pages}");
        if let Some((start, count)) = self.broken.take() {
            // Only what the engine can see to be wrong: pages that the host has already.
            let has = |page: u64| {
                let index = page.checked_sub(FIRST).unwrap_or(u64::MAX) as usize;
                self.owners.get(index) == Some(&Owner::Host)
            };
            if (1..=max_pages).contains(&count) && (start..start + count).all(has) {
                return PageRange::new(Pfn::new(start), count);
            }
        }
        let free = |owner: &Owner| *owner == Owner::Nobody;
        let start = self.next + self.owners[self.next..].iter().position(free)?;
        let mut count = 0;
        while count < max_pages.min(self.longest_run) && self.owners.get(start + count as usize).is_some_and(free) {
            self.set(start + count as usize, Owner::Host);
            count += 1;
        }
        self.next = 0;
        PageRange::new(Pfn::new(FIRST + start as u64), count)
    }

    fn give_back(&mut self, pages: PageRange) {
        for page in pages.start().get()..pages.end().get() {
            let index = (page - FIRST) as usize;
            assert_eq!(
                self.owners[index],
                Owner::Host,
                "page {page:#x} was given back and not taken"
            );
            self.set(index, Owner::Nobody);
        }
    }

    fn add(&mut self, pages: PageRange) -> Result<u64, AddRefused> {
        assert!(pages.page_count() <= 32_768, "{pages}");
        let mut added = 0;
        for page in pages.start().get()..pages.end().get() {
            let index = page.checked_sub(FIRST).unwrap_or(u64::MAX) as usize;
            if self.owners.get(index) != Some(&Owner::Absent) {
                break;
            }
            self.set(index, Owner::Nobody);
            added += 1;
        }
        match added {
            0 => Err(AddRefused::Never),
            added => Ok(added),
        }
    }

    fn reserve_pages(&self) -> u64 {
        self.reserve
    }
}
