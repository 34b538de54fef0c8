//! Locks and words under each promise that a platform may make.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::test_platform::TestPlatform;

const ALL: [Callers; 3] = [Callers::Anywhere, Callers::OneProcessor, Callers::OneAtATime];

#[test]
fn words_change_alike_under_each_promise() {
    for callers in ALL {
        let word = Word::new(callers, 1);
        assert_eq!(word.compare_exchange(0, 5), Err(1), "{callers:?}");
        assert_eq!(word.compare_exchange(1, 0x40), Ok(()));
        assert_eq!(word.set(3), 0x40);
        assert_eq!(word.clear(0x41), 0x43);
        assert_eq!(word.load(), 2);
        assert_eq!(word.replace_alone(2, 9), callers == Callers::OneAtATime, "{callers:?}");
        if callers != Callers::OneAtATime {
            word.store(9);
        }
        assert_eq!(word.load(), 9);
    }
}

#[test]
fn a_lock_is_held_by_one_and_free_again_behind_it() {
    let platform = TestPlatform::leak();
    for callers in ALL {
        let mut lock = Lock::for_callers(callers, 7);
        let mut guard = lock.lock(platform);
        assert!(lock.try_lock_in_emergency().is_none(), "{callers:?}");
        assert_eq!(format!("{lock:?}"), "Lock(held)");
        *guard += 1;
        drop(guard);
        assert_eq!(*lock.try_lock_in_emergency().unwrap(), 8);
        assert_eq!(format!("{lock:?}"), "Lock(free)");
        *lock.get_mut() = 9;
        assert_eq!(*lock.lock(platform), 9);
    }
}

/// Both implementations fit a type that is sent or shared, and then the compiler cannot say which one is meant.
trait IsNot<How> {
    fn here() {}
}
struct Sent;
struct Shared;
impl<T: ?Sized> IsNot<()> for T {}
impl<T: Send + ?Sized> IsNot<Sent> for T {}
impl<T: Sync + ?Sized> IsNot<Shared> for T {}

#[test]
fn a_guard_stays_where_it_is_and_a_lock_is_shared_with_what_is_sent() {
    // A cell may be sent and not shared: two tasks with one guard would have it at the same time.
    <LockGuard<'_, core::cell::Cell<u8>> as IsNot<_>>::here();
    <LockGuard<'_, u8> as IsNot<_>>::here();
    fn is_shared<T: Sync>() {}
    is_shared::<Lock<core::cell::Cell<u8>>>();
}

/// What is not to be printed.
struct Secret<'a>(&'a AtomicUsize);
impl fmt::Debug for Secret<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_lock_is_not_taken_to_be_printed() {
    let looks = AtomicUsize::new(0);
    let _ = format!("{:?}", Lock::new(Secret(&looks)));
    assert_eq!(looks.load(Ordering::Relaxed), 0);
}

#[test]
fn locks_for_anywhere_keep_threads_apart() {
    let platform = TestPlatform::leak();
    let lock = Lock::new(0_usize);
    let rounds = if cfg!(miri) { 50 } else { 20_000 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    *lock.lock(platform) += 1;
                }
            });
        }
    });
    assert_eq!(*lock.lock(platform), 4 * rounds);
}

#[test]
fn who_finds_a_lock_held_waits_until_it_is_free() {
    let platform = TestPlatform::leak();
    let lock = Lock::new(0_u8);
    let has_it = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let mut guard = lock.lock(platform);
        scope.spawn(|| {
            let guard = lock.lock(platform);
            has_it.store(usize::from(*guard), Ordering::SeqCst);
        });
        std::thread::sleep(core::time::Duration::from_millis(30));
        *guard = 7;
        assert_eq!(has_it.load(Ordering::SeqCst), 0);
        drop(guard);
    });
    assert_eq!(has_it.load(Ordering::SeqCst), 7);
}

#[cfg(feature = "host")]
#[test]
fn a_mark_is_there_once_for_each_time_that_it_was_set_and_taken() {
    for callers in ALL {
        let mark = Mark::new(callers);
        assert!(!mark.is_set() && !mark.take(), "{callers:?}");
        mark.set();
        mark.set();
        assert!(mark.is_set() && mark.take(), "{callers:?}");
        assert!(!mark.is_set() && !mark.take(), "{callers:?}");
    }
}

/// Counts sections, and says who calls.
struct Sections {
    callers: Callers,
    open: AtomicUsize,
    entered: AtomicUsize,
}

impl Sections {
    fn leak(callers: Callers) -> &'static Self {
        Box::leak(Box::new(Self {
            callers,
            open: AtomicUsize::new(0),
            entered: AtomicUsize::new(0),
        }))
    }
}

mod platform {
    #![expect(unsafe_code, reason = "implements the platform trait")]
    use core::ptr::NonNull;

    use super::*;
    use crate::memory::Gpa;
    use crate::platform::{NotMapped, OutOfPages, PageUse, ProcessorIndex};

    // SAFETY: it has no memory, and each test that makes a promise calls from one thread.
    unsafe impl Platform for Sections {
        fn allocate_pages(&self, page_count: usize, _: PageUse) -> Result<NonNull<u8>, OutOfPages> {
            Err(OutOfPages { page_count })
        }
        unsafe fn release_pages(&self, _: NonNull<u8>, _: usize) {}
        fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
            let address = address.addr().get();
            Err(NotMapped { address })
        }
        fn current_processor(&self) -> ProcessorIndex {
            ProcessorIndex(0)
        }
        fn schedule_deferred(&self, _: ProcessorIndex) {}
        fn callers(&self) -> Callers {
            self.callers
        }
        fn enter_dispatch(&self) -> DispatchToken {
            self.entered.fetch_add(1, Ordering::Relaxed);
            DispatchToken(self.open.fetch_add(1, Ordering::Relaxed))
        }
        fn leave_dispatch(&self, token: DispatchToken) {
            assert_eq!(self.open.fetch_sub(1, Ordering::Relaxed), token.0 + 1);
        }
    }
}

#[test]
fn a_lock_needs_a_dispatch_section_unless_calls_come_one_at_a_time() {
    for callers in ALL {
        let platform = Sections::leak(callers);
        let lock = Lock::new_on(platform, ());
        let guard = lock.lock(platform);
        let expected = usize::from(callers != Callers::OneAtATime);
        assert_eq!(platform.open.load(Ordering::Relaxed), expected, "{callers:?}");
        drop(guard);
        assert_eq!(platform.open.load(Ordering::Relaxed), 0);
        assert_eq!(platform.entered.load(Ordering::Relaxed), expected);
    }
}
