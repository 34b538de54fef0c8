//! The guest's side of the conversation: [`Engine`].
//!
//! ```text
//!            start                 version accepted         capabilities accepted
//!  Closed ----------> Negotiating -------------------> Capabilities -----------> Running
//!    ^                  |   ^ refused: next older           |
//!    |   on_closed      +---+                               |   refused, or no answer in time
//!    +------------------------- Faulted <-------------------+---  (start tries again)
//! ```
//!
//! While running there is at most one *job*: a balloon, unballoon or hot add request. It advances in slices. Until it is
//! done the next request is answered with [`Delivery::Busy`] and stays with the caller, so nothing has to be queued and
//! no host can make the guest keep more than one message.

mod types;
mod work;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(super) mod support;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod work_tests;

use alloc::vec::Vec;
use core::time::Duration;

use super::protocol::{
    Capabilities, CapabilitiesAnswer, Information, MAX_MESSAGE_BYTES, MAX_RANGES, Message, ParseError, ProtocolVersion,
    Ranges, Status, WireRange,
};
use super::{Figures, HeldPages, MemoryPool};
use crate::fallible::{OutOfMemory, try_vec_with_capacity, try_vec_zeroed};
use crate::time::Instant;
pub use types::{Config, Counters, Delivery, Fault, Inbox, Outbox, Progress, SendError, State};
use work::Job;

/// How many packets one call of [`Engine::pump`] takes.
const PACKETS_PER_PUMP: usize = 16;

/// How long to wait before looking again whether there is room for a message: a host that makes room signals, so this is
/// for those that do not.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The `log` target of this module.
const LOG: &str = "vmbus::dynamic_memory";

/// The guest's side of dynamic memory. It lives as long as the operating system, through any number of openings of the
/// channel.
///
/// All methods are called in one context at a time, one that may work for a slice: deferred work or a task. None waits.
#[derive(Debug)]
pub struct Engine<P> {
    config: Config,
    pool: P,
    held: HeldPages,
    state: State,
    /// The handshake's message of this state is still to be sent.
    is_handshake_due: bool,
    /// When the host's answer to it is too late.
    answer_due: Option<Instant>,
    /// When the next report is due, if the host wants them.
    status_due: Option<Instant>,
    /// When to look again whether there is room for a message.
    retry_due: Option<Instant>,
    last_status: Option<Status>,
    host_limit_pages: Option<u64>,
    job: Job,
    /// The job's ranges: taken and not yet sent, or given back and not yet worked through. Never grows.
    ranges: Vec<WireRange>,
    /// The message that is being sent.
    buffer: Vec<u8>,
    transaction: u32,
    counters: Counters,
}

impl<P: MemoryPool> Engine<P> {
    /// Makes an engine without held pages. Everything that it ever allocates besides [`HeldPages`] is allocated here.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(config: Config, pool: P) -> Result<Self, OutOfMemory> {
        Ok(Self {
            config,
            pool,
            held: HeldPages::new(),
            state: State::Closed,
            is_handshake_due: false,
            answer_due: None,
            status_due: None,
            retry_due: None,
            last_status: None,
            host_limit_pages: None,
            job: Job::None,
            ranges: try_vec_with_capacity(MAX_RANGES)?,
            buffer: try_vec_zeroed(MAX_MESSAGE_BYTES)?,
            transaction: 0,
            counters: Counters::default(),
        })
    }

    /// Starts with pages that an earlier engine held ([`Engine::into_parts`]).
    #[must_use]
    pub fn with_held_pages(mut self, held: HeldPages) -> Self {
        self.held = held;
        self
    }

    /// Ends the engine. The pages in the second part stay the host's; who drops it, loses them.
    pub fn into_parts(mut self) -> (P, HeldPages) {
        self.on_closed();
        while let Job::Unballoon(_) = self.job {
            self.work_without_channel(u32::MAX);
        }
        (self.pool, self.held)
    }

    /// Begins the conversation on a channel that has just been opened. [`Engine::poll`] sends the first message.
    ///
    /// Pages held from an earlier conversation stay held: whether the host remembers them or not (Hyper-V is expected to,
    /// QEMU forgets), they stay untouched until it gives them back.
    pub fn start(&mut self) {
        self.on_closed();
        self.propose(self.config.newest_version);
    }

    /// Takes note that the channel is closed, or gone, and the host sees and says nothing more.
    ///
    /// Pages that the host was told of stay held. Those of a message that was not sent go back to the pool. Those that
    /// the host has given back go on to the pool in the slices to come ([`Engine::poll`] returns [`Progress::More`]).
    pub fn on_closed(&mut self) {
        if self.state != State::Closed {
            log::info!(target: LOG, "dynamic memory closed, the host keeps {} pages", self.held.page_count());
        }
        self.state = State::Closed;
        self.is_handshake_due = false;
        self.answer_due = None;
        self.status_due = None;
        self.retry_due = None;
        self.abandon_job();
    }

    /// Looks at one packet from the host. Short work; sends nothing.
    pub fn on_packet(&mut self, packet: &[u8]) -> Delivery {
        // No known host sends longer ones, and what is accepted has to fit in one message's ranges.
        let message = match Message::parse(packet) {
            Ok((_, message)) => message,
            Err(ParseError::UnknownType { message_type }) => {
                count(&mut self.counters.unknown);
                if is_worth_a_line(self.counters.unknown) {
                    log::warn!(target: LOG, "ignored a message of unknown type {message_type} ({} so far)", self.counters.unknown);
                }
                return Delivery::Taken;
            }
            Err(error) => {
                count(&mut self.counters.malformed);
                if is_worth_a_line(self.counters.malformed) {
                    log::warn!(target: LOG, "ignored a packet: {error} ({} so far)", self.counters.malformed);
                }
                return Delivery::Taken;
            }
        };
        match (self.state, message) {
            (State::Negotiating { version }, Message::VersionResponse { is_accepted }) if !self.is_handshake_due => {
                self.on_version_response(version, is_accepted);
            }
            (State::Capabilities { version }, Message::CapabilitiesResponse(answer)) if !self.is_handshake_due => {
                self.on_capabilities_response(version, answer);
            }
            (State::Running { .. }, Message::BalloonRequest { page_count }) => return self.accept_balloon(page_count),
            (State::Running { .. }, Message::UnballoonRequest { ranges, more }) => {
                return self.accept_unballoon(ranges, more);
            }
            (State::Running { .. }, Message::HotAddRequest { pages, region }) => {
                return self.accept_hot_add(pages, region);
            }
            (State::Capabilities { .. } | State::Running { .. }, Message::Information(information)) => {
                self.on_information(information);
            }
            (state, message) => {
                count(&mut self.counters.unexpected);
                if is_worth_a_line(self.counters.unexpected) {
                    log::warn!(
                        target: LOG,
                        "ignored an unexpected message in state {state:?}: {message:?} ({} so far)",
                        self.counters.unexpected
                    );
                }
            }
        }
        Delivery::Taken
    }

    /// Sends what is due and works for one slice. To be called after each packet and when [`Engine::next_wakeup`] has
    /// come.
    pub fn poll(&mut self, now: Instant, outbox: &mut dyn Outbox) -> Progress {
        let talked = self.shake_hands(now, outbox).and_then(|()| self.report(now, outbox));
        // What the host has given back is worked through even if it reads nothing.
        let result = match talked {
            Ok(()) => self.work(outbox),
            Err(SendError::Full) => match self.work(outbox) {
                Ok(Progress::Idle) => Ok(Progress::Blocked),
                result => result,
            },
            Err(SendError::Gone) => Err(SendError::Gone),
        };
        let progress = match result {
            Ok(progress) => progress,
            Err(SendError::Full) => Progress::Blocked,
            Err(SendError::Gone) => {
                self.on_closed();
                self.work_without_channel(self.config.slice_steps)
            }
        };
        self.retry_due = (progress == Progress::Blocked).then(|| now.saturating_add(RETRY_AFTER));
        progress
    }

    /// Does everything that there is to do, up to one slice of a long job or a few short ones: takes packets from `inbox`
    /// in their order, works, sends. This is what a driver calls when the host has signalled, when
    /// [`Engine::next_wakeup`] has come, and again as long as it returns [`Progress::More`].
    pub fn pump(&mut self, now: Instant, inbox: &mut dyn Inbox, outbox: &mut dyn Outbox) -> Progress {
        for _ in 0..PACKETS_PER_PUMP {
            let progress = self.poll(now, outbox);
            if progress == Progress::More {
                return Progress::More;
            }
            let Some(packet) = inbox.front() else {
                return progress;
            };
            match self.on_packet(packet) {
                Delivery::Taken => inbox.pop(),
                // Not even its answer could be sent: nothing goes on until there is room.
                Delivery::Busy => return progress,
            }
        }
        Progress::More
    }

    /// Returns when [`Engine::poll`] is due even if no packet comes, or `None` if never.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Instant> {
        [self.answer_due, self.status_due, self.retry_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns how far the conversation has come.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Returns the pages that the host has.
    #[must_use]
    pub const fn held(&self) -> &HeldPages {
        &self.held
    }

    /// Returns what has happened.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the last status report sent.
    #[must_use]
    pub const fn last_status(&self) -> Option<Status> {
        self.last_status
    }

    /// Returns the most memory that this machine will ever have, in pages, if the host has told. An allegation.
    #[must_use]
    pub const fn host_limit_pages(&self) -> Option<u64> {
        self.host_limit_pages
    }

    /// Returns the operating system's pool.
    #[must_use]
    pub const fn pool(&self) -> &P {
        &self.pool
    }

    /// Returns the operating system's pool.
    pub const fn pool_mut(&mut self) -> &mut P {
        &mut self.pool
    }

    /// Returns what a status report would say now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.pool
            .figures()
            .status(self.held.page_count(), self.pool.reserve_pages())
    }

    const fn propose(&mut self, version: ProtocolVersion) {
        self.state = State::Negotiating { version };
        self.is_handshake_due = true;
        self.answer_due = None;
    }

    fn on_version_response(&mut self, version: ProtocolVersion, is_accepted: bool) {
        let next_older = ProtocolVersion::LADDER.into_iter().find(|older| *older < version);
        self.answer_due = None;
        match (is_accepted, next_older) {
            (true, _) => {
                self.state = State::Capabilities { version };
                self.is_handshake_due = true;
            }
            (false, Some(older)) => self.propose(older),
            (false, None) => {
                let newest = self.config.newest_version;
                self.fail(Fault::VersionsRefused { newest });
            }
        }
    }

    fn on_capabilities_response(&mut self, version: ProtocolVersion, answer: CapabilitiesAnswer) {
        self.answer_due = None;
        if !answer.contains(CapabilitiesAnswer::ACCEPTED) {
            self.fail(Fault::CapabilitiesRefused {
                capabilities: self.capabilities(),
                answer: answer.bits(),
            });
            return;
        }
        log::info!(target: LOG, "dynamic memory {version} running");
        self.state = State::Running { version };
        // Due at once; the host may say that it does not want any.
        let wants_reports = !answer.contains(CapabilitiesAnswer::SUPPRESS_STATUS);
        self.status_due = wants_reports.then_some(Instant::default());
    }

    fn on_information(&mut self, information: Information) {
        match information {
            Information::MaxPageCount(pages) => {
                if self.host_limit_pages.replace(pages) != Some(pages) {
                    log::debug!(target: LOG, "the host will give this machine {pages} pages at most");
                }
            }
            Information::Other { kind, claimed_bytes } => {
                log::debug!(target: LOG, "information of kind {kind:#x}, {claimed_bytes} bytes");
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        log::warn!(target: LOG, "dynamic memory does not work: {fault}");
        self.state = State::Faulted(fault);
        self.is_handshake_due = false;
        self.answer_due = None;
    }

    const fn capabilities(&self) -> Capabilities {
        match self.config.hot_add_alignment {
            Some(alignment) => Capabilities::BALLOON.union(Capabilities::hot_add(alignment)),
            None => Capabilities::BALLOON,
        }
    }

    /// Gives up on an answer that is late, or sends the handshake's message that is due.
    fn shake_hands(&mut self, now: Instant, outbox: &mut dyn Outbox) -> Result<(), SendError> {
        let timeout = self.config.answer_timeout;
        if self.answer_due.is_some_and(|due| due <= now) {
            match self.state {
                State::Negotiating { version } => self.fail(Fault::NoAnswerToVersion { version, timeout }),
                State::Capabilities { .. } => self.fail(Fault::NoAnswerToCapabilities { timeout }),
                State::Closed | State::Running { .. } | State::Faulted(_) => self.answer_due = None,
            }
        }
        if !self.is_handshake_due {
            return Ok(());
        }
        // A host that does not even make room for the message is late, too.
        self.answer_due.get_or_insert(now.saturating_add(timeout));
        match self.state {
            State::Negotiating { version } => {
                let is_last_attempt = !ProtocolVersion::LADDER.into_iter().any(|older| older < version);
                let message = Message::VersionRequest {
                    version,
                    is_last_attempt,
                };
                self.send(outbox, message)?;
            }
            State::Capabilities { .. } => {
                // Hosts do not look at the two numbers; these are what Windows and Linux send.
                let message = Message::CapabilitiesReport {
                    capabilities: self.capabilities(),
                    min_page_count: 0,
                    max_page_number: u64::MAX,
                };
                self.send(outbox, message)?;
            }
            State::Closed | State::Running { .. } | State::Faulted(_) => {}
        }
        self.is_handshake_due = false;
        self.answer_due = Some(now.saturating_add(timeout));
        Ok(())
    }

    /// Sends the status report if it is due. One that does not fit is left out: the next will be fresher.
    fn report(&mut self, now: Instant, outbox: &mut dyn Outbox) -> Result<(), SendError> {
        let Some(due) = self.status_due.filter(|due| now >= *due) else {
            return Ok(());
        };
        // Half a period after the first one, and then each period. QEMU's timer for the end of its 50 s of waiting goes off whole
        // seconds after the handshake, and looks at the ring outside of the bracket that its own code asserts: a report that lies
        // there at that moment ends QEMU (hw/hyperv/hv-balloon.c up to version 10.0).
        let is_first = due == Instant::default();
        let period = if is_first {
            self.config.status_period.checked_div(2).unwrap_or_default()
        } else {
            self.config.status_period
        };
        self.status_due = Some(now.saturating_add(period));
        let status = self.status();
        match self.send(outbox, Message::StatusReport(status)) {
            Ok(()) => {
                self.last_status = Some(status);
                count(&mut self.counters.status_reports);
            }
            Err(SendError::Full) => count(&mut self.counters.status_reports_left_out),
            Err(SendError::Gone) => return Err(SendError::Gone),
        }
        Ok(())
    }

    fn send(&mut self, outbox: &mut dyn Outbox, message: Message<'_>) -> Result<(), SendError> {
        let transaction = self.transaction.wrapping_add(1);
        send_from(&mut self.buffer, transaction, outbox, message)?;
        self.transaction = transaction;
        Ok(())
    }

    /// Sends the job's ranges.
    fn send_ranges(&mut self, outbox: &mut dyn Outbox, more: bool) -> Result<(), SendError> {
        let transaction = self.transaction.wrapping_add(1);
        let ranges = Ranges::new(&self.ranges).unwrap_or_default();
        debug_assert_eq!(ranges.as_slice().len(), self.ranges.len(), "never more than fit");
        let message = Message::BalloonResponse { ranges, more };
        send_from(&mut self.buffer, transaction, outbox, message)?;
        self.transaction = transaction;
        self.ranges.clear();
        Ok(())
    }
}

fn send_from(
    buffer: &mut [u8],
    transaction: u32,
    outbox: &mut dyn Outbox,
    message: Message<'_>,
) -> Result<(), SendError> {
    match message.emit(transaction, buffer) {
        Ok(bytes) => outbox.send(bytes),
        Err(error) => {
            debug_assert!(false, "the buffer has room for every message: {error}");
            Ok(())
        }
    }
}

impl Figures {
    /// Returns the report of these figures, as the host reckons: what it holds and what the guest wants to keep free
    /// count as committed, or it would take them, too.
    #[must_use]
    pub const fn status(self, held_pages: u64, reserve_pages: u64) -> Status {
        Status {
            available_pages: self.free_pages,
            committed_pages: self
                .committed_pages
                .saturating_add(held_pages)
                .saturating_add(reserve_pages),
            page_file_pages: 0,
            zero_and_free_pages: self.free_pages,
            page_file_writes: 0,
            io_difference: 0,
        }
    }
}

/// Counts one more.
const fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

/// Returns true for the 1st, 2nd, 4th, 8th, ... time: what a host repeats fills no log.
const fn is_worth_a_line(count: u64) -> bool {
    count.is_power_of_two()
}
