//! What others do while a task is about to take a lock, so that no test depends on who is faster.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use super::{FakePlatform, locked};

type Work = Box<dyn FnOnce() + Send>;

/// Something that is done once, a few locks from now.
#[derive(Default)]
pub(super) struct Meanwhile {
    is_due: AtomicBool,
    /// So many locks from now.
    later: AtomicUsize,
    work: Mutex<Option<Work>>,
}

impl FakePlatform {
    /// Has `work` done once, before the lock that is taken when `later` others have been. Only locks count that are taken while
    /// none is held: there deferred work may come in between, or another processor be faster.
    pub(crate) fn before_lock(&self, later: usize, work: impl FnOnce() + Send + 'static) {
        *locked(&self.meanwhile.work) = Some(Box::new(work));
        self.meanwhile.later.store(later, Ordering::SeqCst);
        self.meanwhile.is_due.store(true, Ordering::SeqCst);
    }

    /// Returns true if the work of [`Self::before_lock`] has not been done, and forgets it.
    pub(crate) fn forget_meanwhile(&self) -> bool {
        self.meanwhile.is_due.store(false, Ordering::SeqCst);
        locked(&self.meanwhile.work).take().is_some()
    }

    pub(super) fn do_what_others_do(&self) {
        if Self::dispatch_depth() != 0 || !self.meanwhile.is_due.load(Ordering::SeqCst) {
            return;
        }
        let later = self.meanwhile.later.load(Ordering::SeqCst);
        if later > 0 {
            self.meanwhile.later.store(later - 1, Ordering::SeqCst);
            return;
        }
        self.meanwhile.is_due.store(false, Ordering::SeqCst);
        let work = locked(&self.meanwhile.work).take();
        if let Some(work) = work {
            work();
        }
    }
}

impl fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Meanwhile({:?})", self.later)
    }
}
