//! Memory: frames are counted right, the balloon takes and gives back, page permissions hold, pages that lie apart are mapped in a
//! row, the heap grows.

use super::{Verdict, ensure};
use crate::memory::pages::{Mapping, Pages};
use crate::memory::{self, layout};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use x86_64::structures::paging::PageTableFlags;

pub(super) fn run() -> Verdict {
    // First of all, so that what it takes for tables for the first time does not disturb the counting.
    drop(pages_are_zeroed_and_known()?);
    // The heap may grow meanwhile: what is free in it counts too.
    let before = memory::heap::free_in_all();
    balloon()?;
    drop(pages_are_zeroed_and_known()?);
    let after = memory::heap::free_in_all();
    ensure!(
        after == before,
        "memory was lost: {before} bytes were free, {after} are"
    );
    permissions()?;
    heap()
}

/// Takes all but a little as a balloon does, under time, and gives it back in another order.
fn balloon() -> Verdict {
    let before = memory::statistics();
    let mut held = Vec::with_capacity(1024);
    let begin = crate::time::now_ns();
    while held.len() < held.capacity()
        && let Some(range) = memory::balloon_take(512)
    {
        held.push(range);
    }
    let frames: u64 = held.iter().map(|range| range.count).sum();
    let during = memory::statistics();
    ensure!(
        during.ballooned - before.ballooned == frames * layout::PAGE_SIZE,
        "ballooned {frames} frames, told {during:?}"
    );
    let (even, odd): (Vec<_>, Vec<_>) = held.iter().enumerate().partition(|(index, _)| index % 2 == 0);
    for (_, range) in odd.into_iter().chain(even) {
        memory::balloon_give_back(*range).map_err(|error| error.to_string())?;
    }
    log::info!(
        "{frames} frames taken and given back in {} us",
        (crate::time::now_ns() - begin) / 1000
    );
    if let Some(first) = held.first() {
        ensure!(
            memory::balloon_give_back(*first).is_err(),
            "frames were taken back twice"
        );
    }
    Ok(())
}

fn pages_are_zeroed_and_known() -> Result<Pages, String> {
    let pages = Pages::allocate(5).map_err(|error| error.to_string())?;
    let physical: Option<Vec<u64>> = (0..5).map(|page| pages.physical(page)).collect();
    let physical = physical.ok_or("a page has no physical address")?;
    // The same pages twice in a row, the last one first.
    let twice = physical.iter().rev().chain(physical.iter().rev()).copied();
    let mapping = Mapping::of(twice).map_err(|error| error.to_string())?;
    for (index, expected) in physical.iter().rev().enumerate() {
        let second = mapping.as_ptr().as_ptr().wrapping_add((index + 5) * 4096);
        ensure!(
            memory::translate(second) == Some(*expected),
            "page {index} is mapped to the wrong place"
        );
    }
    drop(mapping);
    for page in 0..pages.count() * 512 {
        ensure!(
            read(pages.as_ptr().as_ptr().wrapping_add(page * 8)) == 0,
            "a page is not zero"
        );
    }
    Ok(pages)
}

#[expect(unsafe_code, reason = "looks at raw pages")]
fn read(pointer: *const u8) -> u64 {
    // SAFETY: The callers pass aligned addresses inside of pages that they own.
    unsafe { pointer.cast::<u64>().read_volatile() }
}

fn permissions() -> Verdict {
    #[cfg(target_os = "none")]
    {
        let flags = |address| memory::page_flags(address).unwrap_or(PageTableFlags::empty());
        let writable = |address| flags(address).contains(PageTableFlags::WRITABLE);
        let executable = |address| !flags(address).contains(PageTableFlags::NO_EXECUTE);
        let (text, rodata, image) = (layout::text().start, layout::rodata().start, layout::image());
        ensure!(executable(text) && !writable(text), "code is {:?}", flags(text));
        ensure!(
            !executable(rodata) && !writable(rodata),
            "constants are {:?}",
            flags(rodata)
        );
        let data = layout::rodata().end();
        ensure!(!executable(data) && writable(data), "variables are {:?}", flags(data));
        ensure!(
            memory::page_flags(layout::boot_stack_guard()).is_none(),
            "the boot stack has no guard page"
        );
        ensure!(
            memory::page_flags(image.end()).is_none(),
            "something is mapped behind the image"
        );
        ensure!(memory::page_flags(0).is_none(), "page 0 is mapped");
    }
    let direct = memory::page_flags(layout::DIRECT_MAP + layout::LOAD_ADDRESS).ok_or("no direct map")?;
    ensure!(
        direct.contains(PageTableFlags::NO_EXECUTE),
        "the direct map is executable"
    );
    Ok(())
}

fn heap() -> Verdict {
    let size = usize::try_from((memory::statistics().free / 4).min(16 << 20)).map_err(|error| error.to_string())?;
    let mut large: Vec<u8> = Vec::new();
    large.try_reserve_exact(size).map_err(|error| error.to_string())?;
    large.resize(size, 0x5a);
    ensure!(large.iter().all(|byte| *byte == 0x5a), "the heap lost a byte");
    let mut too_large: Vec<u8> = Vec::new();
    ensure!(too_large.try_reserve_exact(1 << 40).is_err(), "the heap has a TiB");
    Ok(())
}
