//! The jobs of the engine: balloon, unballoon and hot add requests, worked through in slices.

use super::{Delivery, Engine, LOG, Outbox, Progress, SendError, count, is_worth_a_line};
use crate::device::dynamic_memory::protocol::{MAX_RANGES, Message, Ranges, WireRange};
use crate::device::dynamic_memory::{AddRefused, MemoryPool, PageRange};
use crate::fallible::ReservedVec;

/// The most pages that the pool is asked to take or add at once: 128 MiB.
const MAX_PAGES_PER_CALL: u64 = 32_768;

/// Hyper-V counts in units of 2 MiB: a request in whole units that cannot be met in full is met in whole units.
const UNIT_PAGES: u64 = 512;

const PAGES_PER_STEP: u64 = 64;

/// A request of the host that is being worked on.
#[derive(Debug)]
pub(super) enum Job {
    None,
    Balloon(Balloon),
    Unballoon(Unballoon),
    HotAdd(HotAdd),
}

/// Pages taken and not yet sent are in [`Engine::ranges`] and in [`Engine::held`].
#[derive(Debug)]
pub(super) struct Balloon {
    requested_pages: u64,
    /// How many are still to be taken; `None` until the first slice has looked how many there are.
    remaining_pages: Option<u64>,
    taken_pages: u64,
}

/// What the host gives back and has not been dealt with is in [`Engine::ranges`], from `next_range` on.
#[derive(Debug)]
pub(super) struct Unballoon {
    next_range: usize,
    /// False for all messages of a transaction but the last, and when the host is no longer there.
    is_answer_due: bool,
    returned_pages: u64,
    unknown_pages: u64,
}

#[derive(Debug)]
pub(super) struct HotAdd {
    rest: Option<PageRange>,
    added_pages: u64,
    refused: Option<AddRefused>,
}

/// What is left of a slice.
struct Slice {
    steps: u32,
}

impl Slice {
    const fn is_over(&self) -> bool {
        self.steps == 0
    }

    const fn spend(&mut self, steps: u32) {
        self.steps = self.steps.saturating_sub(steps);
    }

    /// Spends for one run of this many pages.
    fn spend_run(&mut self, pages: u64) {
        let steps = u32::try_from(pages / PAGES_PER_STEP).unwrap_or(u32::MAX);
        self.spend(steps.max(1));
    }
}

impl<P: MemoryPool> Engine<P> {
    const fn is_busy(&self) -> bool {
        !matches!(self.job, Job::None)
    }

    pub(super) fn accept_balloon(&mut self, page_count: u32) -> Delivery {
        if self.is_busy() {
            return Delivery::Busy;
        }
        log::debug!(target: LOG, "the host asks for {page_count} pages");
        self.ranges.clear();
        self.job = Job::Balloon(Balloon {
            requested_pages: page_count.into(),
            remaining_pages: None,
            taken_pages: 0,
        });
        Delivery::Taken
    }

    pub(super) fn accept_unballoon(&mut self, ranges: Ranges<'_>, more: bool) -> Delivery {
        if self.is_busy() {
            return Delivery::Busy;
        }
        self.ranges.clear();
        let named_pages = ranges
            .as_slice()
            .iter()
            .fold(0_u64, |sum, range| sum.saturating_add(range.page_count()));
        if named_pages > self.held.page_count() {
            // No host that keeps books does this, so nothing in the message can be believed. This also bounds the work.
            count(&mut self.counters.refused_unballoons);
            if is_worth_a_line(self.counters.refused_unballoons) {
                log::warn!(
                    target: LOG,
                    "refused an unballoon message: it names {named_pages:#x} pages, the host has {:#x} ({} so far)",
                    self.held.page_count(),
                    self.counters.refused_unballoons
                );
            }
        } else {
            for range in ranges.as_slice() {
                let kept = self.ranges.push_within(*range);
                debug_assert!(kept.is_ok(), "a message has no more ranges than there is room for");
            }
        }
        // Refused or not, the host waits for the answer.
        self.job = Job::Unballoon(Unballoon {
            next_range: 0,
            is_answer_due: !more,
            returned_pages: 0,
            unknown_pages: 0,
        });
        Delivery::Taken
    }

    pub(super) fn accept_hot_add(&mut self, pages: WireRange, region: Option<WireRange>) -> Delivery {
        if self.is_busy() {
            return Delivery::Busy;
        }
        // A region of zero pages at zero is how some hosts leave it out.
        let region = region.and_then(WireRange::pages);
        let rest = pages
            .pages()
            .filter(|pages| region.is_none_or(|region| region.covers(*pages)) && !self.held.overlaps(*pages));
        if rest.is_none() {
            count(&mut self.counters.refused_hot_adds);
            if is_worth_a_line(self.counters.refused_hot_adds) {
                log::warn!(
                    target: LOG,
                    "refused a hot add request: {pages:?} in {region:?} makes no sense ({} so far)",
                    self.counters.refused_hot_adds
                );
            }
        }
        let can_add = self.config.hot_add_alignment.is_some();
        self.job = Job::HotAdd(HotAdd {
            rest: rest.filter(|_| can_add),
            added_pages: 0,
            refused: None,
        });
        Delivery::Taken
    }

    /// Works for one slice on the job, if there is one.
    pub(super) fn work(&mut self, outbox: &mut dyn Outbox) -> Result<Progress, SendError> {
        let mut slice = Slice {
            steps: self.config.slice_steps.max(1),
        };
        match self.job {
            Job::None => Ok(Progress::Idle),
            Job::Balloon(_) => self.balloon(&mut slice, outbox),
            Job::Unballoon(_) => self.unballoon(&mut slice, Some(outbox)),
            Job::HotAdd(_) => self.hot_add(&mut slice, outbox),
        }
    }

    /// Goes on with what needs no host: giving back what it has given back.
    pub(super) fn work_without_channel(&mut self, steps: u32) -> Progress {
        let mut slice = Slice { steps: steps.max(1) };
        match self.job {
            Job::Unballoon(_) => self.unballoon(&mut slice, None).unwrap_or(Progress::Idle),
            Job::None | Job::Balloon(_) | Job::HotAdd(_) => Progress::Idle,
        }
    }

    /// Ends the job, or the part of it that concerns the host.
    pub(super) fn abandon_job(&mut self) {
        match &mut self.job {
            Job::None => {}
            Job::Balloon(_) => {
                // The host has not been told of these, so it has not taken them.
                for range in self.ranges.iter().filter_map(|range| range.pages()) {
                    let pool = &mut self.pool;
                    let removal = self.held.remove(range, u32::MAX, |run| pool.give_back(run));
                    debug_assert_eq!(removal.removed_pages, range.page_count(), "taken and recorded");
                }
                self.ranges.clear();
                self.job = Job::None;
            }
            Job::Unballoon(unballoon) => unballoon.is_answer_due = false,
            Job::HotAdd(hot_add) => {
                log::debug!(target: LOG, "closed while {} pages were added", hot_add.added_pages);
                self.counters.hot_added_pages = self.counters.hot_added_pages.saturating_add(hot_add.added_pages);
                self.job = Job::None;
            }
        }
    }

    fn balloon(&mut self, slice: &mut Slice, outbox: &mut dyn Outbox) -> Result<Progress, SendError> {
        let Job::Balloon(mut balloon) = core::mem::replace(&mut self.job, Job::None) else {
            return Ok(Progress::Idle);
        };
        let result = self.balloon_slice(&mut balloon, slice, outbox);
        match result {
            Ok(Progress::Idle) => {
                count(&mut self.counters.balloon_requests);
                if balloon.taken_pages < balloon.requested_pages {
                    count(&mut self.counters.balloon_requests_cut);
                }
                self.counters.ballooned_pages = self.counters.ballooned_pages.saturating_add(balloon.taken_pages);
                log::debug!(
                    target: LOG,
                    "the host took {} of {} pages and holds {}",
                    balloon.taken_pages,
                    balloon.requested_pages,
                    self.held.page_count()
                );
            }
            _ => self.job = Job::Balloon(balloon),
        }
        result
    }

    fn balloon_slice(
        &mut self,
        balloon: &mut Balloon,
        slice: &mut Slice,
        outbox: &mut dyn Outbox,
    ) -> Result<Progress, SendError> {
        // Looked at anew in each slice, because others take memory between two slices.
        let mut allowance = self.pool.figures().free_pages.saturating_sub(self.pool.reserve_pages());
        let mut remaining = match balloon.remaining_pages {
            Some(remaining) => remaining,
            None => first_target(balloon.requested_pages, allowance),
        };
        loop {
            balloon.remaining_pages = Some(remaining);
            if remaining == 0 || self.ranges.len() >= MAX_RANGES {
                let more = remaining > 0;
                self.send_ranges(outbox, more)?;
                if !more {
                    return Ok(Progress::Idle);
                }
            }
            if slice.is_over() {
                return Ok(Progress::More);
            }
            let Some(range) = self.take(remaining.min(allowance)) else {
                remaining = 0;
                continue;
            };
            let taken = range.page_count();
            slice.spend_run(taken);
            balloon.taken_pages = balloon.taken_pages.saturating_add(taken);
            remaining = remaining.saturating_sub(taken);
            allowance = allowance.saturating_sub(taken);
        }
    }

    /// Takes one run of pages and records it as held and to be sent. `None` if there is none to be had.
    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        let max_pages = max_pages.min(MAX_PAGES_PER_CALL);
        if max_pages == 0 {
            return None;
        }
        if self.held.reserve(max_pages).is_err() {
            count(&mut self.counters.bookkeeping_failures);
            if is_worth_a_line(self.counters.bookkeeping_failures) {
                log::warn!(target: LOG, "no memory to keep books, so no more pages for the host");
            }
            return None;
        }
        let range = self.pool.take(max_pages)?;
        let wire = WireRange::try_from(range)
            .ok()
            .filter(|_| range.page_count() <= max_pages);
        let Some(wire) = wire else {
            self.on_pool_fault("more pages than asked for, or beyond 40 bits", range);
            self.pool.give_back(range);
            return None;
        };
        if self.held.insert(range).is_err() {
            // The host has it already: nobody may have it now.
            self.on_pool_fault("pages that the host has", range);
            return None;
        }
        if !self.join_last(range) {
            let kept = self.ranges.push_within(wire);
            debug_assert!(kept.is_ok(), "the caller sends before the message is full");
        }
        Some(range)
    }

    /// Lengthens the last range to be sent by `range` if that follows it.
    fn join_last(&mut self, range: PageRange) -> bool {
        let joined = self.ranges.last().and_then(|last| last.pages()).and_then(|last| {
            let count = last.page_count().saturating_add(range.page_count());
            (last.end() == range.start()).then(|| WireRange::new(last.start(), count))?
        });
        match (joined, self.ranges.last_mut()) {
            (Some(joined), Some(last)) => {
                *last = joined;
                true
            }
            _ => false,
        }
    }

    fn on_pool_fault(&mut self, what: &str, range: PageRange) {
        count(&mut self.counters.pool_faults);
        if is_worth_a_line(self.counters.pool_faults) {
            log::error!(target: LOG, "the page allocator gave {what}: {range}");
        }
    }

    fn unballoon(&mut self, slice: &mut Slice, outbox: Option<&mut dyn Outbox>) -> Result<Progress, SendError> {
        let Job::Unballoon(unballoon) = &mut self.job else {
            return Ok(Progress::Idle);
        };
        while let Some(wire) = self.ranges.get_mut(unballoon.next_range) {
            if slice.is_over() {
                return Ok(Progress::More);
            }
            let Some(range) = wire.pages() else {
                slice.spend(1);
                unballoon.next_range = unballoon.next_range.saturating_add(1);
                continue;
            };
            let pool = &mut self.pool;
            let removal = self.held.remove(range, slice.steps, |run| pool.give_back(run));
            slice.spend(removal.steps);
            let unknown = removal.examined_pages.saturating_sub(removal.removed_pages);
            unballoon.unknown_pages = unballoon.unknown_pages.saturating_add(unknown);
            unballoon.returned_pages = unballoon.returned_pages.saturating_add(removal.removed_pages);
            match range.split_at(removal.examined_pages).1.map(WireRange::try_from) {
                Some(Ok(rest)) => *wire = rest,
                _ => unballoon.next_range = unballoon.next_range.saturating_add(1),
            }
        }
        if unballoon.is_answer_due
            && let Some(outbox) = outbox
        {
            self.send(outbox, Message::UnballoonResponse)?;
        }
        self.finish_unballoon();
        Ok(Progress::Idle)
    }

    fn finish_unballoon(&mut self) {
        let Job::Unballoon(unballoon) = core::mem::replace(&mut self.job, Job::None) else {
            return;
        };
        self.ranges.clear();
        count(&mut self.counters.unballoon_requests);
        self.counters.unballooned_pages = self.counters.unballooned_pages.saturating_add(unballoon.returned_pages);
        log::debug!(
            target: LOG,
            "the host gave back {} pages and holds {}",
            unballoon.returned_pages,
            self.held.page_count()
        );
        if unballoon.unknown_pages > 0 {
            let before = self.counters.unknown_pages;
            self.counters.unknown_pages = before.saturating_add(unballoon.unknown_pages);
            // A line for each doubling.
            if before.checked_ilog2() != self.counters.unknown_pages.checked_ilog2() {
                log::warn!(
                    target: LOG,
                    "the host wanted to give back {} pages that it does not have",
                    unballoon.unknown_pages
                );
            }
        }
    }

    fn hot_add(&mut self, slice: &mut Slice, outbox: &mut dyn Outbox) -> Result<Progress, SendError> {
        let Job::HotAdd(hot_add) = &mut self.job else {
            return Ok(Progress::Idle);
        };
        while let Some(rest) = hot_add.rest {
            if slice.is_over() {
                return Ok(Progress::More);
            }
            let (Some(part), rest) = rest.split_at(MAX_PAGES_PER_CALL) else {
                break;
            };
            slice.spend_run(part.page_count());
            let added = match self.pool.add(part) {
                Ok(added) => added.min(part.page_count()),
                Err(refused) => {
                    hot_add.refused = Some(refused);
                    0
                }
            };
            hot_add.added_pages = hot_add.added_pages.saturating_add(added);
            hot_add.rest = if added == part.page_count() { rest } else { None };
        }
        // No page, and yet "final": the host need not try again.
        let is_final = hot_add.added_pages > 0 || hot_add.refused != Some(AddRefused::NotNow);
        let added_pages = hot_add.added_pages;
        let refused = hot_add.refused;
        let page_count = u32::try_from(added_pages).unwrap_or(u32::MAX);
        self.send(outbox, Message::HotAddResponse { page_count, is_final })?;
        self.job = Job::None;
        count(&mut self.counters.hot_add_requests);
        self.counters.hot_added_pages = self.counters.hot_added_pages.saturating_add(added_pages);
        match refused {
            None => log::debug!(target: LOG, "the host added {added_pages} pages"),
            Some(refused) if is_worth_a_line(self.counters.hot_add_requests) => {
                log::warn!(target: LOG, "the host added memory, {added_pages} pages were taken into use: {refused}");
            }
            Some(_) => {}
        }
        Ok(Progress::Idle)
    }
}

/// Returns how many pages of `requested` to take if `allowance` are to be had.
const fn first_target(requested: u64, allowance: u64) -> u64 {
    if allowance >= requested {
        requested
    } else if requested.is_multiple_of(UNIT_PAGES) {
        allowance.saturating_sub(allowance % UNIT_PAGES)
    } else {
        allowance
    }
}
