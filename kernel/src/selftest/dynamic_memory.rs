//! Dynamic memory as the host drives it. The runner asks the host for what these tests wait for.

use alloc::string::String;

use super::{Verdict, ensure};
use crate::hyperv::dynamic_memory::{self, Shown, Wish};
use crate::memory;
use crate::memory::layout::PAGE_SIZE;
use crate::task;
use crate::time::{self, Deadline};

/// How long the host may take: QEMU begins 50 s after the handshake.
const PATIENCE_MS: u64 = 150_000;

/// How long the runner may take to compare its figures with the last mark before the guest ends.
const GRACE_NS: u64 = 3_000_000_000;

pub(super) fn open() -> Verdict {
    dynamic_memory::wish(Wish::Open);
    ensure!(
        dynamic_memory::await_wish(Deadline::after_ms(10_000)),
        "dynamic memory does not run but is {}",
        dynamic_memory::state()
    );
    Ok(())
}

fn shown_when(what: &str, mut condition: impl FnMut(&Shown) -> bool) -> Result<Shown, String> {
    let deadline = Deadline::after_ms(PATIENCE_MS);
    task::wait_until(deadline, || {
        dynamic_memory::shown().is_some_and(|shown| condition(&shown))
    });
    let shown = dynamic_memory::shown().ok_or("dynamic memory does not run")?;
    ensure!(
        condition(&shown),
        "waited {PATIENCE_MS} ms in vain for the host to {what}: {shown:?}"
    );
    Ok(shown)
}

/// The driver's account and the allocator's are one.
pub(super) fn compare(shown: &Shown) -> Verdict {
    let statistics = memory::statistics();
    ensure!(
        statistics.ballooned == shown.held_pages * PAGE_SIZE,
        "the driver says that the host has {} pages, the allocator says {} bytes",
        shown.held_pages,
        statistics.ballooned
    );
    ensure!(
        statistics.free + statistics.ballooned <= statistics.total,
        "figures that cannot be: {statistics:?}"
    );
    Ok(())
}

/// The host takes memory and gives it back.
pub(super) fn balloon() -> Verdict {
    open()?;
    let before = memory::statistics();
    let taken = shown_when("take memory", |shown| shown.held_pages > 0)?;
    compare(&taken)?;
    let during = memory::statistics();
    ensure!(
        before.free - during.free >= during.ballooned,
        "ballooned pages did not come from the free ones: {before:?}, {during:?}"
    );
    let returned = shown_when("give memory back", |shown| {
        shown.held_pages == 0 && shown.counters.unballooned_pages > 0
    })?;
    compare(&returned)?;
    ensure!(
        returned.counters.ballooned_pages == returned.counters.unballooned_pages,
        "not everything came back: {:?}",
        returned.counters
    );
    time::sleep_ns(GRACE_NS);
    let after = memory::statistics();
    ensure!(
        after.free.abs_diff(before.free) <= 64 * PAGE_SIZE,
        "{} bytes were free before, {} are now",
        before.free,
        after.free
    );
    Ok(())
}

/// The host adds memory, and it can be used.
pub(super) fn hot_add() -> Verdict {
    open()?;
    let before = memory::statistics();
    let shown = shown_when("add memory", |shown| shown.counters.hot_added_pages > 0)?;
    let after = memory::statistics();
    let added = shown.counters.hot_added_pages * PAGE_SIZE;
    ensure!(
        after.hot_added == added && after.total >= before.total + added,
        "the driver says {added} bytes, the allocator had {before:?} and has {after:?}"
    );
    use_added(before.total, added)?;
    time::sleep_ns(GRACE_NS);
    Ok(())
}

/// Takes more than there was before, writes to every page of it, and reads it back.
fn use_added(before: u64, added: u64) -> Verdict {
    let wanted = usize::try_from((before / PAGE_SIZE).min(added / PAGE_SIZE * 7 / 8)).unwrap_or(0);
    let pages = memory::pages::Pages::allocate(wanted).map_err(|error| alloc::format!("{error}"))?;
    for page in 0..pages.count() {
        pages.write(page, page as u64);
    }
    for page in 0..pages.count() {
        ensure!(
            pages.read(page) == page as u64,
            "page {page} of the added memory holds something else"
        );
    }
    let highest = (0..pages.count()).filter_map(|page| pages.physical(page)).max();
    ensure!(
        highest >= Some(32 << 30),
        "the added memory was not used: highest address {highest:x?}"
    );
    Ok(())
}
