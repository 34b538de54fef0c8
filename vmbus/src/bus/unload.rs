//! The end of a connection: in order, or in a crash.

use core::hint;
use core::sync::atomic::Ordering;
use core::time::Duration;

use super::error::Error;
use super::inner::{BusInner, Phase};
use super::processor::SINT;
use super::replies::Key;
use crate::hyperv;
use crate::platform::ProcessorIndex;
use crate::protocol::contact::{Unload, UnloadResponse};
use crate::protocol::gpadl::GpadlTeardown;
use crate::protocol::{ChannelMessage, Version};
use crate::{Deadline, Instant};

/// How often the log says that the wait goes on.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// An emergency ends after so many looks even if the clock stands still.
const EMERGENCY_LOOKS: u32 = 1 << 28;
/// How long the other processors have to turn their interrupt controllers off.
const PROCESSORS_TIMEOUT: Duration = Duration::from_secs(1);

/// Something that is due now and then.
struct Interval {
    due: Instant,
    length: Duration,
}

impl Interval {
    const fn new(start: Instant, length: Duration) -> Self {
        let due = start.saturating_add(length);
        Self { due, length }
    }

    /// Returns true once for each interval that has passed, if somebody looks in each.
    fn has_passed(&mut self, now: Instant) -> bool {
        let has_passed = now >= self.due;
        if has_passed {
            self.due = now.saturating_add(self.length);
        }
        has_passed
    }
}

impl BusInner {
    pub(super) fn disconnect(&self, deadline: Deadline) -> Result<(), Error> {
        let start = self.now();
        let limit = start.saturating_add(self.config.unload_timeout);
        let until = deadline.resolve(start).map_or(limit, |until| until.min(limit));
        let can_unload = self.version() >= Version::V3_0;
        self.close_channels(until);
        self.pay_debts();
        if !can_unload {
            self.pay_closes(until);
            self.take_memory_back(until);
        }
        if !self.advance(Phase::Connected, Phase::Unloading) {
            return Err(Error::Disconnected);
        }
        self.replies.disconnect();
        let result = if can_unload { self.unload(start, until) } else { Ok(()) };
        // From here on nobody waits for the host.
        self.advance(Phase::Unloading, Phase::Down);
        self.table.withdraw_all();
        for place in 0..self.table.len() {
            self.table.with_open(place, |core| core.rescind());
        }
        self.free_if_given_up();
        if !self.is_given_up() {
            // What is still parked when the last handle goes is lost with it.
            self.counters.lost_blocks.add(self.gpadls.lose_parked());
        }
        self.tell_offer_events();
        result.and(self.leave_processors())
    }

    /// Frees what is parked if the host has given up everything.
    pub(super) fn free_if_given_up(&self) {
        while self.is_given_up()
            && let Some(memory) = self.gpadls.take_parked()
        {
            self.counters.unparked_blocks.add(memory.blocks());
            drop(memory);
        }
    }

    /// Tells the host of every open channel that it closes, without ending our side of it.
    fn close_channels(&self, until: Instant) {
        for place in 0..self.table.len() {
            if let Some(core) = self.table.enter(place, |_| true) {
                if let Err(error) = core.tell_closed(Some(until)) {
                    log::warn!("{} could not be closed: {error}", core.id());
                    core.stays_open_there();
                }
                core.leave();
            }
        }
    }

    /// Before version 3.0 no message gives everything up: memory is taken back piece by piece.
    fn take_memory_back(&self, until: Instant) {
        while let Some((channel, id)) = self.gpadls.next_live() {
            self.gpadls.begin_teardown(id);
            let request = GpadlTeardown::new(channel, id).encode();
            if let Err(error) = self.post(&request, Some(until), None) {
                log::warn!("the memory of {id} could not be asked for: {error}");
            }
        }
        if self.wait_until(Some(until), || !self.gpadls.is_tearing_down()).is_err() {
            log::warn!("the host has not given up all memory");
        }
    }

    /// Ends the connection and waits for the host's word that it has given up everything.
    fn unload(&self, start: Instant, until: Instant) -> Result<(), Error> {
        let ticket = self.replies.expect(Key::Unload, None)?;
        let unload = Unload {}.encode();
        self.retry(Some(until), None, || self.post_last(unload.as_slice()))?;
        let mut line = Interval::new(start, PROGRESS_INTERVAL);
        // The ticket tells below whether the answer came.
        let _ = self.wait_until(Some(until), || {
            // A processor that does not look at its slot must not keep the answer from us.
            self.pump_others();
            let now = self.now();
            if line.has_passed(now) {
                log::info!(
                    "the host takes its time to end the connection: {} s so far",
                    now.saturating_duration_since(start).as_secs()
                );
            }
            ticket.is_answered()
        });
        if !ticket.is_answered() {
            log::warn!("the host did not confirm the end of the connection: what it may still use is lost");
            return Err(Error::TimedOut);
        }
        self.set_given_up(true);
        Ok(())
    }

    /// Turns the interrupt controllers off: this processor's, and the others' by work on them.
    fn leave_processors(&self) -> Result<(), Error> {
        self.leave_processor(self.platform.current_processor());
        for index in self.processor_indices() {
            if self.online_vp(index).is_some() {
                self.mark(index);
            }
        }
        let until = self.now().saturating_add(PROCESSORS_TIMEOUT);
        let left = || self.processor_indices().find(|index| self.online_vp(*index).is_some());
        // What is left tells the outcome.
        let _ = self.wait_until(Some(until), || left().is_none());
        match left() {
            Some(index) => Err(Error::ProcessorInUse(index)),
            None => Ok(()),
        }
    }

    fn processor_indices(&self) -> impl Iterator<Item = ProcessorIndex> {
        (0_u32..).zip(&self.processors).map(|(index, _)| ProcessorIndex(index))
    }

    /// Ends the connection in a crash: no lock, no allocation, an input area of its own.
    pub(super) fn emergency_unload(&self) -> bool {
        if self.is_in_emergency.swap(true, Ordering::AcqRel) {
            // A crash within the crash.
            return false;
        }
        let phase = self.end_in_emergency();
        if phase != Phase::Connected || self.version() < Version::V3_0 {
            return false;
        }
        let until = self.now().saturating_add(self.config.emergency_timeout);
        let mut looks_left = EMERGENCY_LOOKS;
        let mut is_late = || {
            looks_left = looks_left.saturating_sub(1);
            hint::spin_loop();
            looks_left == 0 || self.now() >= until
        };
        let unload = Unload {}.encode();
        while let Err(error) = self.post_in_emergency(unload.as_slice()) {
            let may_pass = error.is_transient() || error == hyperv::HypercallError::InvalidConnection;
            if !may_pass || is_late() {
                return false;
            }
            // A host that is busy may wait for us to take what it has sent.
            if self.take_unload_response() {
                return true;
            }
        }
        loop {
            if self.take_unload_response() {
                return true;
            }
            if is_late() {
                return false;
            }
        }
    }

    /// Looks once at every processor's slot, frees what is there, and returns true if it was the answer to the end.
    fn take_unload_response(&self) -> bool {
        let mut is_answered = false;
        for processor in &self.processors {
            // Held by a writer only while a processor comes or goes.
            let Some(synic) = processor.synic.try_read() else {
                continue;
            };
            let message = synic.as_ref().and_then(|synic| synic.take_message_in_emergency(SINT));
            is_answered |= message.is_some_and(|message| {
                message.message_type() == hyperv::MessageType::CHANNEL
                    && UnloadResponse::decode(message.payload()).is_ok()
            });
        }
        is_answered
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn an_interval_passes_again_and_again_and_once_each_time() {
        let at = |seconds: u64| Instant::from_reference_units(seconds * 10_000_000);
        let mut interval = Interval::new(at(100), Duration::from_secs(5));
        let passed: Vec<u64> = (100..130).filter(|second| interval.has_passed(at(*second))).collect();
        assert_eq!(passed, [105, 110, 115, 120, 125]);
        // Nobody looked for a long time.
        assert!(interval.has_passed(at(200)) && !interval.has_passed(at(204)) && interval.has_passed(at(205)));
    }
}
