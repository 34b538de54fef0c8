//! The fake platform keeps the platform's promises, and notices when others do not keep theirs.

use std::vec;
use std::vec::Vec;

use super::*;
use core::sync::atomic::AtomicU8;

use crate::memory::SharedPages;

#[test]
fn guest_addresses_are_neither_identical_nor_contiguous_nor_used_twice() {
    let platform = FakePlatform::new();
    let mut seen = Vec::new();
    for _ in 0..50 {
        let block = SharedPages::allocate(platform, 4).unwrap();
        for index in 0..4 {
            let number = block.pfn(index).unwrap().get();
            assert!(!seen.contains(&number) && !seen.contains(&(number - 1)));
            assert_ne!(number, (block.base().addr().get() / PAGE_SIZE + index) as u64);
            seen.push(number);
        }
    }
    assert_eq!(
        (platform.live_pages(), platform.peak_pages(), platform.allocations()),
        (0, 4, 50)
    );
    platform.assert_no_faults();
}

#[test]
fn guest_and_host_see_the_same_memory() {
    let platform = FakePlatform::new();
    let block = SharedPages::allocate(platform, 2).unwrap();
    block.write_at(4100, b"guest").unwrap();
    let gpa = block.pfn(1).unwrap().base().unwrap().get();
    let mut seen = [0; 5];
    platform.guest_read(gpa + 4, &mut seen).unwrap();
    assert_eq!(&seen, b"guest");
    platform.guest_write(gpa + 4, b"host!").unwrap();
    block.read_at(4100, &mut seen).unwrap();
    assert_eq!(&seen, b"host!");
    assert_eq!(
        platform.guest_word32(gpa + 4, |word| word.swap(7, Ordering::SeqCst)),
        Ok(u32::from_le_bytes(*b"host"))
    );
    assert_eq!(
        platform.guest_word64(gpa + 4, |_| ()),
        Err(BadAccess::Unaligned(gpa + 4))
    );
    platform.assert_no_faults();
}

#[test]
fn an_access_that_leaves_its_page_meets_nothing() {
    let platform = FakePlatform::new();
    let block = SharedPages::allocate(platform, 2).unwrap();
    let gpa = block.gpa().unwrap().get();
    assert!(matches!(
        platform.guest_read(gpa + 4090, &mut [0; 8]),
        Err(BadAccess::Nowhere(_))
    ));
    assert_eq!(platform.faults().len(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "Miri itself stops at what this test does")]
fn what_happens_after_a_release_is_noticed() {
    let platform = FakePlatform::new();
    let block = SharedPages::allocate(platform, 1).unwrap();
    let (gpa, base) = (block.gpa().unwrap().get(), block.base());
    drop(block);
    assert_eq!(platform.guest_write(gpa, &[1]), Err(BadAccess::Released(gpa)));
    assert!(platform.translate(base).is_err());
    // SAFETY: the memory rests, so it is still there; that is what the test is about.
    unsafe { AtomicU8::from_ptr(base.as_ptr().wrapping_add(9)) }.store(1, Ordering::Relaxed);
    let faults = platform.faults();
    assert_eq!(faults.len(), 2);
    assert!(
        faults[1].contains("0x9") && faults[1].contains("after its release"),
        "{faults:?}"
    );
}

#[test]
fn wrong_releases_are_noticed_and_not_done() {
    let platform = FakePlatform::new();
    let base = platform.allocate_pages(2, PageUse::Data).unwrap();
    // SAFETY: wrong on purpose; the platform checks.
    unsafe { platform.release_pages(base, 1) };
    assert_eq!(platform.live_pages(), 2);
    // SAFETY: right.
    unsafe { platform.release_pages(base, 2) };
    // SAFETY: wrong on purpose; the platform checks.
    unsafe { platform.release_pages(base, 2) };
    assert_eq!((platform.live_pages(), platform.faults().len()), (0, 2));
}

#[test]
fn allocations_fail_where_they_are_told_to() {
    let platform = FakePlatform::new();
    platform.fail_allocation(1);
    let results = [0; 3].map(|_| SharedPages::allocate(platform, 1).is_ok());
    assert_eq!(results, [true, false, true]);
    platform.fail_allocations_from(1);
    let results = [0; 3].map(|_| SharedPages::allocate(platform, 1).is_ok());
    assert_eq!(results, [true, false, false]);
    platform.stop_failing();
    assert!(SharedPages::allocate(platform, 1).is_ok());
}

#[test]
fn a_wait_of_an_hour_takes_no_time_and_ends_at_its_deadline() {
    let platform = FakePlatform::new();
    let now = || crate::Instant::from_reference_units(platform.look_at_clock());
    let until = now().saturating_add(Duration::from_secs(3600));
    let started = std::time::Instant::now();
    let mut looks = 0_u32;
    let mut ready = || {
        looks += 1;
        false
    };
    assert_eq!(
        platform.wait(&mut Wait::new(&mut ready, &now, Some(until))),
        Err(TimedOut)
    );
    let late = now().saturating_duration_since(until);
    assert!(late < Duration::from_secs(1), "{late:?} too late");
    assert!(looks > 10 && started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_loop_that_only_looks_at_the_clock_ends() {
    let platform = FakePlatform::new();
    let start = platform.look_at_clock();
    let looks = (0..200_000)
        .take_while(|_| platform.look_at_clock() < start + 1_000_000_000)
        .count();
    assert!(looks < 100_000, "100 s in {looks} looks");
}

#[test]
fn deferred_work_runs_on_its_processor_also_in_waits() {
    let platform = FakePlatform::new();
    platform.set_processor_count(2);
    platform.schedule_deferred(ProcessorIndex(1));
    platform.schedule_deferred(ProcessorIndex(1));
    let mut ran = Vec::new();
    platform.run_deferred(|processor| ran.push((processor, platform.current_processor())));
    assert_eq!(ran, [(ProcessorIndex(1), ProcessorIndex(1))]);
    assert_eq!(platform.current_processor(), ProcessorIndex(0));

    let (sent, received) = std::sync::mpsc::channel();
    platform.set_deferred_handler(move |processor| sent.send(processor).unwrap());
    platform.schedule_deferred(ProcessorIndex(0));
    let now = || crate::Instant::from_reference_units(platform.look_at_clock());
    let mut arrived = None;
    let mut ready = || {
        arrived = arrived.or_else(|| received.try_recv().ok());
        arrived.is_some()
    };
    platform.wait(&mut Wait::new(&mut ready, &now, None)).unwrap();
    assert_eq!(arrived, Some(ProcessorIndex(0)));
}

#[test]
fn dispatch_sections_that_do_not_nest_and_waits_in_them_are_faults() {
    let platform = FakePlatform::new();
    let outer = platform.enter_dispatch();
    let inner = platform.enter_dispatch();
    assert_eq!(FakePlatform::dispatch_depth(), 2);
    let now = || crate::Instant::from_reference_units(0);
    platform.wait(&mut Wait::new(&mut || true, &now, None)).unwrap();
    platform.leave_dispatch(outer);
    platform.leave_dispatch(inner);
    assert_eq!(platform.faults().len(), 3);
    platform.leave_dispatch(DispatchToken(0));
}

#[test]
fn memory_of_the_test_can_be_made_the_guests() {
    let platform = FakePlatform::new();
    let mut memory = vec![0_u8; 6000];
    let base = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: the vector lives on, and is reached through `base` only until it is disowned.
    unsafe { platform.adopt(base, 6000) };
    // SAFETY: inside the vector.
    let last = unsafe { base.add(5999) };
    let gpa = platform.translate(last).unwrap().get();
    platform.guest_write(gpa, &[42]).unwrap();
    assert!(
        platform.guest_write(gpa + 1, &[43]).is_err(),
        "the page goes on, the memory does not"
    );
    platform.disown(base);
    assert!(platform.translate(base).is_err());
    assert_eq!(memory[5999], 42);
}

#[test]
fn pages_mapped_twice_are_the_same_memory() {
    let Some(platform) = FakePlatform::with_double_mapping() else {
        return;
    };
    let block = SharedPages::allocate(platform, 2).unwrap();
    let list = [block.pfn(0).unwrap(), block.pfn(1).unwrap()];
    let mapping = platform.map_twice(&list).unwrap();
    for offset in [10, 4106, 8202, 12_298] {
        // SAFETY: inside the mapping.
        let at = unsafe { mapping.add(offset) };
        // SAFETY: mapped until it is removed below.
        unsafe { AtomicU8::from_ptr(at.as_ptr()) }.fetch_add(1, Ordering::Relaxed);
    }
    let mut bytes = [0; 2];
    block.read_at(10, &mut bytes[..1]).unwrap();
    block.read_at(4106, &mut bytes[1..]).unwrap();
    assert_eq!(bytes, [2, 2]);
    // SAFETY: made above, and not used any more.
    unsafe { platform.unmap_twice(mapping, 2) };
    drop(block);
    platform.assert_no_faults();
}
