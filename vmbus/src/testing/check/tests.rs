//! Each mistake in a platform is found and named.
#![expect(unsafe_code, reason = "implements the platform, wrongly")]

use std::boxed::Box;
use std::string::ToString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::*;
use crate::platform::{CannotMapTwice, DispatchToken, NotMapped, OutOfPages, ProcessorIndex};
use crate::testing::FakePlatform;

/// What is wrong with a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    NoPages,
    Unaligned,
    Dirty,
    DirtyAgain,
    SameBlockTwice,
    AliasedBlock,
    NoTranslation,
    OffsetLost,
    FirstPageForAll,
    HalfPages,
    BeyondPhysical,
    MovesPages,
    ProcessorNumber,
    PromisesTooMuch,
    PromisesNowThis,
    WaitReturnsAtOnce,
    WaitNeverLate,
    WaitGivesUp,
    WaitSkipsLastLook,
    DispatchLeaks,
    NotMirrored,
    WrongPages,
}

struct Broken {
    inner: &'static FakePlatform,
    mistake: Mistake,
    depth: AtomicUsize,
    translations: AtomicUsize,
    first: AtomicPtr<u8>,
    allocations: AtomicUsize,
}

static LEAKED: Mutex<Vec<&'static Broken>> = Mutex::new(Vec::new());

impl Broken {
    fn leak(mistake: Mistake) -> &'static Self {
        let leaked: &'static Self = Box::leak(Box::new(Self {
            inner: FakePlatform::with_double_mapping().unwrap_or_else(FakePlatform::new),
            mistake,
            depth: AtomicUsize::new(0),
            translations: AtomicUsize::new(0),
            first: AtomicPtr::new(core::ptr::null_mut()),
            allocations: AtomicUsize::new(0),
        }));
        LEAKED.lock().unwrap().push(leaked);
        leaked
    }
}

// SAFETY: not kept, on purpose, in ways that only `check_platform` sees; the memory itself is always there.
unsafe impl Platform for Broken {
    fn allocate_pages(&self, page_count: usize, page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        let number = self.allocations.fetch_add(1, Ordering::Relaxed);
        match self.mistake {
            Mistake::NoPages => return Err(OutOfPages { page_count }),
            Mistake::SameBlockTwice if number == 1 => {
                return Ok(NonNull::new(self.first.load(Ordering::Relaxed)).unwrap());
            }
            Mistake::AliasedBlock if number == 1 => {
                // The same memory at another address.
                let first = NonNull::new(self.first.load(Ordering::Relaxed)).unwrap();
                let pages: Vec<Pfn> = (0..page_count)
                    .map(|index| {
                        // SAFETY: inside the block.
                        let at = unsafe { first.add(index * PAGE_SIZE) };
                        self.inner.translate(at).unwrap().page()
                    })
                    .collect();
                return self.inner.map_twice(&pages).map_err(|_| OutOfPages { page_count });
            }
            _ => {}
        }
        // One page more, for the mistakes that shift the block.
        let base = self.inner.allocate_pages(page_count + 1, page_use)?;
        if number == 0 {
            self.first.store(base.as_ptr(), Ordering::Relaxed);
        }
        let write = |offset: usize, value: u8| {
            let at = base.as_ptr().wrapping_add(offset);
            // SAFETY: inside the block, which nobody else uses yet.
            unsafe { at.write(value) };
        };
        match self.mistake {
            Mistake::Dirty => write(4096 + 7, 9),
            Mistake::DirtyAgain if number == 2 => write(5, 3),
            _ => {}
        }
        let shift = if self.mistake == Mistake::Unaligned { 64 } else { 0 };
        // SAFETY: inside the block.
        Ok(unsafe { base.add(shift) })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        let shift = if self.mistake == Mistake::Unaligned { 64 } else { 0 };
        let is_first = base.as_ptr() == self.first.load(Ordering::Relaxed);
        if self.mistake == Mistake::SameBlockTwice && is_first {
            // Once is enough.
            self.first.store(core::ptr::null_mut(), Ordering::Relaxed);
        } else if self.mistake == Mistake::SameBlockTwice {
            return;
        }
        if self.mistake == Mistake::AliasedBlock && !is_first && self.inner.double_mappings() > 0 {
            // SAFETY: what `allocate_pages` mapped.
            unsafe { self.inner.unmap_twice(base, page_count) };
            return;
        }
        // SAFETY: undoes the shift.
        let base = unsafe { base.sub(shift) };
        // SAFETY: as the caller promised, with the page that was added.
        unsafe { self.inner.release_pages(base, page_count + 1) };
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        let number = self.translations.fetch_add(1, Ordering::Relaxed);
        let gpa = self.inner.translate(address)?.get();
        Ok(Gpa::new(match self.mistake {
            Mistake::NoTranslation => {
                return Err(NotMapped {
                    address: address.addr().get(),
                });
            }
            Mistake::OffsetLost => gpa & !0xfff,
            Mistake::FirstPageForAll => 0x40_0000 + gpa % 4096,
            Mistake::HalfPages => gpa + if gpa & 0x400 != 0 { 4096 } else { 0 },
            Mistake::BeyondPhysical => gpa | 0xffff_8000_0000_0000,
            Mistake::MovesPages => gpa + if number > 32 { 0x1000_0000 } else { 0 },
            _ => gpa,
        }))
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(if self.mistake == Mistake::ProcessorNumber { 7 } else { 1 })
    }

    fn schedule_deferred(&self, _processor: ProcessorIndex) {}

    fn callers(&self) -> Callers {
        match self.mistake {
            Mistake::PromisesTooMuch => Callers::OneProcessor,
            Mistake::PromisesNowThis if self.depth.fetch_xor(1, Ordering::Relaxed) == 0 => Callers::OneAtATime,
            _ => Callers::Anywhere,
        }
    }

    fn enter_dispatch(&self) -> DispatchToken {
        DispatchToken(self.depth.fetch_add(1, Ordering::Relaxed))
    }

    fn leave_dispatch(&self, token: DispatchToken) {
        let leak = usize::from(self.mistake == Mistake::DispatchLeaks);
        self.depth.store(token.0 + leak, Ordering::Relaxed);
    }

    fn wait(&self, wait: &mut Wait<'_>) -> Result<(), TimedOut> {
        match self.mistake {
            Mistake::WaitReturnsAtOnce => return Ok(()),
            Mistake::WaitGivesUp => return if wait.is_ready() { Ok(()) } else { Err(TimedOut) },
            Mistake::WaitNeverLate => {
                while !wait.is_ready() {}
                return Ok(());
            }
            Mistake::WaitSkipsLastLook => loop {
                if wait.is_late() {
                    return Err(TimedOut);
                }
                if wait.is_ready() {
                    return Ok(());
                }
            },
            _ => {}
        }
        self.inner.wait(wait)
    }

    fn map_twice(&self, pages: &[Pfn]) -> Result<NonNull<u8>, CannotMapTwice> {
        let mut list = pages.to_vec();
        match self.mistake {
            // In the order in which they lie.
            Mistake::WrongPages => list.reverse(),
            // The second half is other memory.
            Mistake::NotMirrored => {
                let more = self.inner.allocate_pages(pages.len(), PageUse::Data).unwrap();
                for index in 0..pages.len() {
                    // SAFETY: inside the block.
                    let at = unsafe { more.add(index * PAGE_SIZE) };
                    list.push(self.inner.translate(at).unwrap().page());
                }
            }
            _ => {}
        }
        self.inner.map_twice(&list)
    }

    unsafe fn unmap_twice(&self, base: NonNull<u8>, page_count: usize) {
        let factor = if self.mistake == Mistake::NotMirrored { 2 } else { 1 };
        // SAFETY: what `map_twice` mapped.
        unsafe { self.inner.unmap_twice(base, page_count * factor) };
    }
}

#[test]
fn a_right_platform_passes_and_gets_its_pages_back() {
    let platform = FakePlatform::new();
    let report = check_platform(platform, 1).unwrap();
    assert!(!report.maps_twice && !report.is_contiguous && !report.is_identity_mapped && report.has_hypercall_page);
    assert_eq!(platform.live_pages(), 0);
    platform.assert_no_faults();
    assert!(check_platform(Broken::leak(Mistake::None), 2).is_ok());
}

#[test]
fn a_platform_that_maps_twice_is_found_out_to_do_so() {
    let Some(platform) = FakePlatform::with_double_mapping() else {
        return;
    };
    assert!(check_platform(platform, 1).unwrap().maps_twice);
    assert_eq!((platform.live_pages(), platform.double_mappings()), (0, 0));
    platform.assert_no_faults();
}

#[test]
fn each_mistake_is_found_and_its_message_says_what_to_do() {
    type Expected = fn(&PlatformFault) -> bool;
    let cases: &[(Mistake, Expected)] = &[
        (Mistake::NoPages, |fault| matches!(fault, PlatformFault::NoPages { .. })),
        (Mistake::Unaligned, |fault| {
            matches!(fault, PlatformFault::NotAligned { .. })
        }),
        (Mistake::Dirty, |fault| {
            *fault == PlatformFault::NotZeroed { offset: 4103, value: 9 }
        }),
        (Mistake::DirtyAgain, |fault| {
            *fault == PlatformFault::NotZeroedAgain { offset: 5, value: 3 }
        }),
        (Mistake::SameBlockTwice, |fault| {
            matches!(fault, PlatformFault::Overlap { .. })
        }),
        (Mistake::NoTranslation, |fault| {
            matches!(fault, PlatformFault::NotTranslated { .. })
        }),
        (Mistake::OffsetLost, |fault| {
            matches!(fault, PlatformFault::OffsetLost { .. })
        }),
        (Mistake::FirstPageForAll, |fault| {
            matches!(fault, PlatformFault::SamePage { .. })
        }),
        (Mistake::HalfPages, |fault| {
            matches!(fault, PlatformFault::PageTorn { .. })
        }),
        (Mistake::BeyondPhysical, |fault| {
            matches!(fault, PlatformFault::NotPhysical { .. })
        }),
        (Mistake::MovesPages, |fault| {
            matches!(fault, PlatformFault::Moved { .. })
        }),
        (Mistake::ProcessorNumber, |fault| {
            *fault == PlatformFault::NoSuchProcessor { index: 7, count: 2 }
        }),
        (Mistake::PromisesTooMuch, |fault| {
            *fault
                == PlatformFault::PromisesOneProcessor {
                    promised: Callers::OneProcessor,
                    index: 1,
                    count: 2,
                }
        }),
        (Mistake::PromisesNowThis, |fault| {
            *fault
                == PlatformFault::PromiseChanged {
                    first: Callers::OneAtATime,
                    second: Callers::Anywhere,
                }
        }),
        (Mistake::WaitReturnsAtOnce, |fault| {
            *fault == PlatformFault::WaitIgnoresCondition
        }),
        (Mistake::WaitNeverLate, |fault| {
            *fault == PlatformFault::WaitIgnoresDeadline
        }),
        (Mistake::WaitGivesUp, |fault| *fault == PlatformFault::WaitEndsEarly),
        (Mistake::WaitSkipsLastLook, |fault| {
            *fault == PlatformFault::WaitMissesCondition
        }),
        (Mistake::DispatchLeaks, |fault| {
            *fault == PlatformFault::DispatchDoesNotNest
        }),
    ];
    // Each takes an interpreter half a minute.
    let step = if cfg!(miri) { 8 } else { 1 };
    for (mistake, expected) in cases.iter().step_by(step) {
        check_case(*mistake, *expected);
    }
    if FakePlatform::with_double_mapping().is_some() {
        check_case(Mistake::AliasedBlock, |fault| {
            matches!(fault, PlatformFault::DoesNotHold { .. })
        });
        check_case(Mistake::NotMirrored, |fault| {
            matches!(fault, PlatformFault::NotMirrored { .. })
        });
        check_case(Mistake::WrongPages, |fault| {
            matches!(fault, PlatformFault::MapsOtherPages { .. })
        });
    }
}

fn check_case(mistake: Mistake, expected: fn(&PlatformFault) -> bool) {
    let fault = check_platform(Broken::leak(mistake), 2).unwrap_err();
    assert!(expected(&fault), "{mistake:?} was taken for {fault:?}");
    assert!(fault.to_string().len() > 40, "a sentence that helps: {fault}");
}
