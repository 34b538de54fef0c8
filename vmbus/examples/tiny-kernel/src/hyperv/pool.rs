//! [`Spare`]: the memory that the host may have.

use alloc::vec::Vec;

use vmbus::device::dynamic_memory::{Figures, MemoryPool, PageRange};

/// The memory that the kernel leaves alone, so that the host may have it.
pub(crate) struct Spare {
    free: Vec<PageRange>,
    total_pages: u64,
    committed_pages: u64,
}

impl Spare {
    /// Makes the pool of the pages `free` in a machine of `total_pages`.
    pub(crate) fn new(free: Vec<PageRange>, total_pages: u64) -> Self {
        let free_pages: u64 = free.iter().map(|run| run.page_count()).sum();
        let committed_pages = total_pages.saturating_sub(free_pages);
        Self {
            free,
            total_pages,
            committed_pages,
        }
    }
}

impl MemoryPool for Spare {
    fn figures(&self) -> Figures {
        Figures {
            total_pages: self.total_pages,
            free_pages: self.free.iter().map(|run| run.page_count()).sum(),
            committed_pages: self.committed_pages,
        }
    }

    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        let (taken, rest) = self.free.pop()?.split_at(max_pages);
        self.free.extend(rest);
        taken
    }

    fn give_back(&mut self, pages: PageRange) {
        for run in &mut self.free {
            let first = run.start().min(pages.start());
            if (run.end() == pages.start() || pages.end() == run.start())
                && let Some(joined) = PageRange::new(first, run.page_count() + pages.page_count())
            {
                *run = joined;
                return;
            }
        }
        self.free.push(pages);
    }
}
