//! Each single allocation fails once.

use core::fmt::Debug;

use vmbus::testing::{FakePlatform, TestHeap};

/// Does `work` again and again, with one more allocation going well each time before one fails, until none is left that could; `settle`
/// comes behind each. Neither heap nor pages may be held by what failed.
///
/// # Panics
///
/// If something is left behind, the last run fails, or fewer than `least` allocations are made or calls are refused: then this would
/// have shown nothing.
pub(crate) fn fail_each<E: Debug + PartialEq>(
    platform: &FakePlatform,
    least: u64,
    mut work: impl FnMut() -> Result<(), E>,
    mut settle: impl FnMut(),
) {
    let mut refused = 0;
    for number in 0.. {
        let before = (TestHeap::live(), platform.live_pages());
        TestHeap::fail_allocation(number);
        let outcome = work();
        let was_ahead = TestHeap::stop_failing();
        settle();
        let after = (TestHeap::live(), platform.live_pages());
        assert_eq!(after, before, "after allocation {number} failed: {outcome:?}");
        if was_ahead {
            assert_eq!(outcome, Ok(()));
            assert!(number > least, "only {number} allocations");
            break;
        }
        refused += u64::from(outcome.is_err());
    }
    assert!(refused > least, "{refused} calls were refused");
}
