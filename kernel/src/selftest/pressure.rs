//! The host asks for more memory than there is, while a task of this kernel holds most of it; then that task takes the rest, to the
//! last frame. The kernel works on, and gets everything back.
//!
//! The runner asks the host, and compares what the host counts with what is marked here.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt::Display;

use vmbus::device::dynamic_memory::default_reserve_pages;

use super::dynamic_memory::{compare, open};
use super::kmcl::{Pair, echo_once};
use super::{Verdict, ensure};
use crate::hyperv::{dynamic_memory, local};
use crate::memory::layout::PAGE_SIZE;
use crate::memory::pages::Pages;
use crate::memory::{self, MemoryError};
use crate::status::{self, Report};
use crate::task;
use crate::time::{self, Deadline};

/// What is free above the reserve when the host begins to ask: less than it wants by far.
const SPARE: u64 = 8 << 20;
/// How long the host may take to begin: QEMU does 50 s after the handshake.
const PATIENCE_MS: u64 = 150_000;
/// What the host has stands still when it is the same so long.
const STILL_NS: u64 = 5_000_000_000;
/// Requests that are answered while there is no memory.
const REQUESTS: u32 = 100;

fn text(error: impl Display) -> String {
    error.to_string()
}

fn held() -> u64 {
    dynamic_memory::shown().map_or(0, |shown| shown.held_pages * PAGE_SIZE)
}

/// Takes single frames until only `left` bytes are free, or none can be had.
fn hog(pages: &mut Vec<Pages>, left: u64) -> Verdict {
    while memory::statistics().free > left && pages.len() < pages.capacity() {
        match Pages::allocate(1) {
            Ok(page) => {
                page.write(0, pages.len() as u64);
                pages.push(page);
            }
            Err(MemoryError::OutOfMemory) => break,
            Err(error) => return Err(text(error)),
        }
    }
    Ok(())
}

/// The test.
pub(super) fn run() -> Verdict {
    let pair = Pair::open(local::host().ok_or("there is no host inside this kernel")?)?;
    open()?;
    echo_once(&pair, 0)?;
    let statistics = memory::statistics();
    let mut hogged = Vec::new();
    let all = usize::try_from(statistics.total / PAGE_SIZE).map_err(text)?;
    hogged.try_reserve_exact(all).map_err(text)?;
    let before = memory::statistics();
    let reserve = default_reserve_pages(before.total / PAGE_SIZE) * PAGE_SIZE;
    hog(&mut hogged, reserve + SPARE)?;
    let hungry = memory::statistics();
    status::mark("hungry", format_args!("{}", hungry.free));
    let taken = stands_still()?;
    compare(&dynamic_memory::shown().ok_or("dynamic memory does not run")?)?;
    ensure!(
        (SPARE / 2..hungry.free).contains(&taken),
        "of {} free bytes, with a reserve of {reserve}, the host got {taken}",
        hungry.free
    );
    status::mark("squeezed", format_args!("{taken}"));
    time::sleep_ns(STILL_NS);
    // And now to the last frame.
    let kept = hogged.len();
    hog(&mut hogged, 0)?;
    works_while_empty(&pair)?;
    for (number, page) in hogged.iter().enumerate() {
        ensure!(
            page.read(0) == number as u64,
            "page {number} of {kept} holds something else"
        );
    }
    hogged.clear();
    status::mark("relaxed", format_args!("{}", held()));
    ensure!(
        task::wait_until(Deadline::after_ms(PATIENCE_MS), || held() == 0),
        "the host does not give back {} bytes",
        held()
    );
    drop(hogged);
    time::sleep_ns(STILL_NS);
    let after = memory::statistics();
    ensure!(
        after.free.abs_diff(statistics.free) <= 64 * PAGE_SIZE && after.ballooned == 0,
        "before {statistics:?}, now {after:?}"
    );
    pair.revoke()
}

/// Waits until the host has something, and no more for a while; returns how much.
fn stands_still() -> Result<u64, String> {
    let deadline = Deadline::after_ms(PATIENCE_MS);
    ensure!(task::wait_until(deadline, || held() > 0), "the host takes nothing");
    loop {
        let taken = held();
        time::sleep_ns(STILL_NS);
        if held() == taken {
            return Ok(taken);
        }
        ensure!(!deadline.has_passed(), "the host takes more and more: {}", held());
    }
}

fn works_while_empty(pair: &Pair) -> Verdict {
    let free = memory::statistics().free;
    ensure!(
        memory::allocate_frame().is_none() && memory::balloon_take(1).is_none(),
        "the allocator is not empty but has {free} bytes"
    );
    for number in 0..REQUESTS {
        echo_once(pair, number)?;
    }
    let refused = task::spawn("too-much", || {}).err();
    ensure!(refused.is_some(), "there was memory for a task");
    let report = Report::collect().to_json();
    log::info!(
        "no free frame: {REQUESTS} requests answered, a task refused ({refused:?}), a report of {} bytes",
        report.len()
    );
    Ok(())
}
