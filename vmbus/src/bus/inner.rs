//! What the handles of one bus share: [`BusInner`], with the parts that everything else stands on: posting, waiting,
//! signalling, and telling a processor that there is work.
//!
//! Locks, in the order in which they may nest: the lock of messages, then those of replies and GPADLs, then the table's.
//! The gate of posting nests with none. No lock is held while anybody else's code runs: callbacks, the platform's wait,
//! a server in this kernel, the logger.

use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use super::config::Config;
use super::counters::{Counting, Throttle};
use super::error::{ConnectError, Error};
use super::gpadls::Gpadls;
use super::offer::Offer;
use super::processor::Processor;
use super::replies::{Key, Replies, Ticket};
use super::table::Table;
use crate::fallible::try_vec_of;
use crate::hyperv::{HypercallError, Hypervisor, MessageInput};
use crate::memory::SharedPages;
use crate::platform::{ProcessorIndex, TimedOut, Wait};
use crate::protocol::channel::RelIdReleased;
use crate::protocol::contact::FeatureFlags;
use crate::protocol::message::CHANNEL_MESSAGE;
use crate::protocol::{ChannelId, ChannelMessage, ConnectionId, MessageBytes, Version, VpIndex};
use crate::sync::Lock;
use crate::{Deadline, Instant, Platform};

/// Where the connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Looking for a version.
    Contacting,
    Connected,
    /// The host was asked to end the connection: nothing may be posted.
    Unloading,
    /// The connection has ended.
    Down,
}

impl Phase {
    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Contacting,
            1 => Self::Connected,
            2 => Self::Unloading,
            _ => Self::Down,
        }
    }
}

/// Pages that the host uses as long as there is a connection. Lost rather than freed if it does not end with its word.
pub(super) struct HostPages {
    interrupt: SharedPages,
    monitor: [SharedPages; 2],
}

/// Delays between attempts to post: from the first to the last, doubling.
const FIRST_POST_DELAY: Duration = Duration::from_micros(10);
pub(super) const LAST_POST_DELAY: Duration = Duration::from_millis(10);
/// Where the bits of channels for the host begin in the interrupt page.
const GUEST_TO_HOST_BITS: usize = 2048;
/// How many offers that have been withdrawn are given back in one go.
const RELEASES_AT_ONCE: usize = 64;

pub(super) struct BusInner {
    pub(super) hypervisor: &'static Hypervisor,
    pub(super) platform: &'static dyn Platform,
    pub(super) config: Config,
    phase: AtomicU8,
    /// The host has said that it has given up everything.
    is_given_up: AtomicBool,
    version: AtomicU32,
    features: AtomicU32,
    connection: AtomicU32,
    /// Held for one attempt of posting.
    gate: Lock<()>,
    input: MessageInput,
    emergency_input: MessageInput,
    pub(super) is_in_emergency: AtomicBool,
    pages: Option<HostPages>,
    /// Somebody tells the host what it was too busy for.
    pub(super) is_paying: AtomicBool,
    /// When it may be tried again, in reference units.
    pub(super) pay_again_at: AtomicU64,
    /// Held while a message is taken and its effects are made: they happen in the order of the messages.
    pub(super) messages: Lock<()>,
    pub(super) processors: Vec<Processor>,
    pub(super) message_processor: AtomicU32,
    pub(super) table: Table,
    pub(super) replies: Replies,
    pub(super) gpadls: Gpadls,
    pub(super) has_all_offers: AtomicBool,
    pub(super) accepts_offers: AtomicBool,
    pub(super) next_open_id: AtomicU32,
    pub(super) counters: Counting,
    pub(super) complaints: Throttle,
    pub(super) arrivals: Throttle,
    pub(super) told_generation: AtomicU64,
    /// A host inside this kernel whose offers are the bus's as well.
    #[cfg(feature = "host")]
    pub(super) host: spin::Once<crate::host::Host>,
}

/// A request failed.
pub(super) struct NotGranted {
    pub(super) error: Error,
    /// The other end was asked, and may have done it.
    pub(super) is_asked: bool,
}

impl From<Error> for NotGranted {
    fn from(error: Error) -> Self {
        Self { error, is_asked: false }
    }
}

impl From<NotGranted> for Error {
    fn from(failure: NotGranted) -> Self {
        failure.error
    }
}

impl BusInner {
    pub(super) fn new(
        hypervisor: &'static Hypervisor,
        platform: &'static dyn Platform,
        config: Config,
    ) -> Result<Self, ConnectError> {
        let processors = usize::try_from(config.processors.clamp(1, 4096)).unwrap_or(1);
        let pages = HostPages {
            interrupt: SharedPages::allocate(platform, 1)?,
            monitor: [SharedPages::allocate(platform, 1)?, SharedPages::allocate(platform, 1)?],
        };
        Ok(Self {
            hypervisor,
            platform,
            config,
            phase: AtomicU8::new(Phase::Contacting as u8),
            is_given_up: AtomicBool::new(true),
            version: AtomicU32::new(0),
            features: AtomicU32::new(0),
            connection: AtomicU32::new(0),
            gate: Lock::new(()),
            input: MessageInput::allocate(platform)?,
            emergency_input: MessageInput::allocate(platform)?,
            is_in_emergency: AtomicBool::new(false),
            pages: Some(pages),
            is_paying: AtomicBool::new(false),
            pay_again_at: AtomicU64::new(0),
            messages: Lock::new(()),
            processors: try_vec_of(processors, |_| Processor::new())?,
            message_processor: AtomicU32::new(0),
            table: Table::new(platform, config.offers, config.channel_ids)?,
            replies: Replies::new(platform, config.requests)?,
            gpadls: Gpadls::new(platform, config.gpadls)?,
            has_all_offers: AtomicBool::new(false),
            accepts_offers: AtomicBool::new(false),
            next_open_id: AtomicU32::new(1),
            counters: Counting::default(),
            complaints: Throttle::default(),
            arrivals: Throttle::default(),
            told_generation: AtomicU64::new(0),
            #[cfg(feature = "host")]
            host: spin::Once::new(),
        })
    }

    pub(super) fn now(&self) -> Instant {
        self.hypervisor.now()
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Acquire))
    }

    /// Moves on from `from`; returns false if it was another phase.
    pub(super) fn advance(&self, from: Phase, to: Phase) -> bool {
        // Under the gate, so that no post that began before is still under way afterwards.
        let _gate = self.gate.lock(self.platform);
        self.phase
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// As [`BusInner::advance`], for the crash path.
    pub(super) fn end_in_emergency(&self) -> Phase {
        Phase::from_number(self.phase.swap(Phase::Down as u8, Ordering::AcqRel))
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    pub(super) fn set_given_up(&self, is_given_up: bool) {
        self.is_given_up.store(is_given_up, Ordering::Release);
    }

    pub(super) fn version(&self) -> Version {
        Version::from_wire(self.version.load(Ordering::Relaxed))
    }

    pub(super) fn features(&self) -> FeatureFlags {
        FeatureFlags::from_bits_retain(self.features.load(Ordering::Relaxed))
    }

    pub(super) fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection.load(Ordering::Relaxed))
    }

    pub(super) fn set_connection(&self, version: Version, connection: ConnectionId, features: FeatureFlags) {
        self.version.store(version.to_wire(), Ordering::Relaxed);
        self.connection.store(connection.0, Ordering::Relaxed);
        self.features.store(features.bits(), Ordering::Relaxed);
    }

    /// Returns the addresses of the pages for the contact: the interrupt page, and both monitor pages.
    pub(super) fn page_addresses(&self) -> Result<(u64, [u64; 2]), ConnectError> {
        match &self.pages {
            Some(pages) => {
                let [host_to_guest, guest_to_host] = &pages.monitor;
                let monitor = [host_to_guest.gpa()?.get(), guest_to_host.gpa()?.get()];
                Ok((pages.interrupt.gpa()?.get(), monitor))
            }
            None => Ok((0, [0; 2])),
        }
    }

    pub(super) fn processor(&self, index: ProcessorIndex) -> Option<&Processor> {
        self.processors.get(usize::try_from(index.0).ok()?)
    }

    /// Returns the hypervisor's number of a processor that is on-line for the bus.
    pub(super) fn online_vp(&self, index: ProcessorIndex) -> Option<VpIndex> {
        let processor = self.processor(index)?;
        let is_online = processor.with_synic(self.platform, |synic| synic.is_some());
        is_online.then(|| VpIndex(processor.vp.load(Ordering::Relaxed)))
    }

    /// Returns true if a processor is on-line for the bus and not about to leave. Asked when a channel that goes there can be seen:
    /// either this is false, or the processor sees the channel and stays.
    pub(super) fn stays_online(&self, index: ProcessorIndex) -> bool {
        let is_leaving = self
            .processor(index)
            .is_none_or(|processor| processor.is_leaving.load(Ordering::SeqCst));
        !is_leaving && self.online_vp(index).is_some()
    }

    /// Returns why a processor cannot be a channel's target: the end of the connection takes all off-line.
    pub(super) fn no_such_processor(&self, index: ProcessorIndex) -> Error {
        match self.phase() {
            Phase::Connected => Error::NoSuchProcessor(index),
            _ => Error::Disconnected,
        }
    }

    /// Returns true if the connection ends or has ended, and the host has not said that it has given up the memory that it was told of.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.phase(), Phase::Unloading | Phase::Down)
            && !self.is_given_up()
            && (self.version() >= Version::V3_0 || self.gpadls.is_tearing_down())
    }

    // ----- waiting

    /// Waits until `is_ready`, looking at messages meanwhile, and at nothing else.
    pub(super) fn wait_until(
        &self,
        until: Option<Instant>,
        mut is_ready: impl FnMut() -> bool,
    ) -> Result<(), TimedOut> {
        let mut look = || {
            self.pump();
            is_ready()
        };
        let now = || self.now();
        self.platform.wait(&mut Wait::new(&mut look, &now, until))
    }

    /// Waits for the answer to a request.
    pub(super) fn wait_for(&self, ticket: &Ticket<'_>, until: Option<Instant>) -> Result<(), Error> {
        // The outcome below tells whether it came.
        let _ = self.wait_until(until, || ticket.is_answered());
        ticket.outcome().unwrap_or(Err(Error::TimedOut))
    }

    /// Posts messages about a channel and waits for their answer.
    pub(super) fn request(
        &self,
        offer: &Offer,
        place: usize,
        key: Key,
        message: &MessageBytes,
        deadline: Deadline,
    ) -> Result<(), NotGranted> {
        let until = deadline.resolve(self.now());
        let ticket = self.replies.expect(key, Some(offer.channel))?;
        // After the waiter is noted, or a rescind could slip in between.
        if self.table.is_rescinded(place) {
            return Err(Error::Rescinded(offer.channel).into());
        }
        self.post(message, until, Some(&ticket))?;
        self.wait_for(&ticket, until)
            .map_err(|error| NotGranted { error, is_asked: true })
    }

    // ----- posting

    /// Posts a message: one attempt.
    pub(super) fn try_post(&self, message: &[u8]) -> Result<(), Error> {
        let _gate = self.gate.lock(self.platform);
        if !matches!(self.phase(), Phase::Connected) {
            return Err(Error::Disconnected);
        }
        self.post_once(message)
    }

    fn post_once(&self, message: &[u8]) -> Result<(), Error> {
        self.post_from(&self.input, self.connection(), message)?;
        self.counters.posts.add_one();
        Ok(())
    }

    #[expect(unsafe_code, reason = "some messages lend memory")]
    fn post_from(&self, input: &MessageInput, connection: ConnectionId, message: &[u8]) -> Result<(), HypercallError> {
        // SAFETY: two kinds of messages lend. A contact names pages of this bus, which keeps them until the host has given them up; a
        // GPADL's description those of a `GpadlMemory`, whose implementation vouches for them, and which is kept as long.
        unsafe {
            self.hypervisor
                .post_message(input, connection, CHANNEL_MESSAGE, message)
        }
    }

    /// Posts a contact: one attempt, to a connection of its own.
    pub(super) fn post_contact(&self, connection: ConnectionId, message: &[u8]) -> Result<(), HypercallError> {
        let _gate = self.gate.lock(self.platform);
        self.post_from(&self.input, connection, message)?;
        self.counters.posts.add_one();
        Ok(())
    }

    /// Posts the message that ends the connection, if `phase` is the phase; from then on nothing else is posted.
    pub(super) fn post_last(&self, message: &[u8]) -> Result<(), Error> {
        let _gate = self.gate.lock(self.platform);
        self.post_once(message)
    }

    /// As [`BusInner::post_last`], for the crash path: no lock, an input area of its own.
    pub(super) fn post_in_emergency(&self, message: &[u8]) -> Result<(), HypercallError> {
        self.post_from(&self.emergency_input, self.connection(), message)
    }

    /// Posts a message, again and again with growing delays while the host is busy, and gives up at `until`, after the
    /// configured time, or when the answer that `ticket` is for has come or become hopeless.
    pub(super) fn post(
        &self,
        message: &MessageBytes,
        until: Option<Instant>,
        ticket: Option<&Ticket<'_>>,
    ) -> Result<(), Error> {
        self.retry(until, ticket, || self.try_post(message.as_slice()))
    }

    /// Tries something again as [`BusInner::post`] does.
    pub(super) fn retry(
        &self,
        until: Option<Instant>,
        ticket: Option<&Ticket<'_>>,
        mut attempt: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let give_up = self.now().saturating_add(self.config.post_timeout);
        let end = until.map_or(give_up, |until| until.min(give_up));
        let mut delay = FIRST_POST_DELAY;
        loop {
            let busy = match attempt() {
                Err(Error::Hypercall(error)) if error.is_transient() => error,
                // After the contact some hosts mean "not now" by it.
                Err(Error::Hypercall(error @ HypercallError::InvalidConnection)) => error,
                result => return result,
            };
            self.counters.busy_posts.add_one();
            let now = self.now();
            if now >= end {
                let is_callers = until.is_some_and(|until| until <= give_up);
                return Err(if is_callers { Error::TimedOut } else { busy.into() });
            }
            let pause_end = now.saturating_add(delay).min(end);
            // Its deadline is the point of it.
            let _ = self.wait_until(Some(pause_end), || ticket.is_some_and(Ticket::is_answered));
            if let Some(outcome) = ticket.and_then(Ticket::outcome) {
                return outcome;
            }
            delay = delay.saturating_mul(2).min(LAST_POST_DELAY);
        }
    }

    /// Tells the other ends that channel ids are free, as far as they take it now, and the operating system of offers that
    /// were held back until then. Never waits.
    pub(super) fn flush_releases(&self) {
        let mut is_shown = false;
        for _ in 0..RELEASES_AT_ONCE {
            let Some((place, channel)) = self.table.next_release() else {
                break;
            };
            let message = RelIdReleased::new(channel).encode();
            match self.try_post(message.as_slice()) {
                Err(Error::Hypercall(error)) if error.is_transient() || error == HypercallError::InvalidConnection => {
                    self.counters.busy_posts.add_one();
                    self.table.release_later(place);
                    break;
                }
                // Nobody wants to know it any more.
                Err(_) => {}
                Ok(()) => self.counters.released_ids.add_one(),
            }
            is_shown |= self.table.released(place);
        }
        if is_shown {
            // Perhaps nobody looks at messages for a long time: the driver that closed the old channel made this happen.
            self.tell_offer_events();
        }
    }

    // ----- signals and work

    /// Signals the other end of a channel.
    pub(super) fn signal(&self, offer: &Offer) -> Result<(), Error> {
        self.counters.signals_sent.add_one();
        if !matches!(self.phase(), Phase::Connected) {
            return Err(Error::Disconnected);
        }
        if !offer.is_dedicated_interrupt && self.version() < Version::V5_0 {
            self.set_interrupt_bit(offer.channel);
        }
        Ok(self.hypervisor.signal_event(offer.connection, 0)?)
    }

    /// Sets a channel's bit in the half of the interrupt page that the host reads.
    fn set_interrupt_bit(&self, channel: ChannelId) {
        let offset = usize::try_from(channel.0 / 32)
            .ok()
            .and_then(|word| word.checked_mul(4));
        let offset = offset.and_then(|offset| offset.checked_add(GUEST_TO_HOST_BITS));
        let word = offset
            .zip(self.pages.as_ref())
            .and_then(|(offset, pages)| pages.interrupt.word::<AtomicU32>(offset).ok());
        if let Some(word) = word {
            // Release: the host sees what is in the ring when it sees the bit.
            word.fetch_or(1 << (channel.0 % 32), Ordering::Release);
        }
    }

    #[cfg(test)]
    pub(super) fn with_all_locks_for_test<T>(&self, work: impl FnOnce() -> T) -> T {
        let _gate = self.gate.lock(self.platform);
        let _messages = self.messages.lock(self.platform);
        self.replies
            .with_lock_for_test(|| self.gpadls.with_lock_for_test(|| self.table.with_lock_for_test(work)))
    }

    /// Makes a processor look at its kicks.
    pub(super) fn kick(&self, index: ProcessorIndex) {
        if let Some(processor) = self.processor(index) {
            processor.has_kicks.store(true, Ordering::Release);
            self.mark(index);
        }
    }

    /// Makes a processor do its work soon.
    pub(super) fn mark(&self, index: ProcessorIndex) {
        if let Some(processor) = self.processor(index) {
            // Release: what there is to do is seen by who clears the mark. SeqCst: see `process`.
            if !processor.is_marked.swap(true, Ordering::SeqCst) {
                self.platform.schedule_deferred(index);
            }
        }
    }

    /// As [`BusInner::mark`], and schedules in any case: the call that the mark stands for may have come and gone.
    pub(super) fn mark_again(&self, index: ProcessorIndex, processor: &Processor) {
        processor.is_marked.store(true, Ordering::SeqCst);
        self.platform.schedule_deferred(index);
    }
}

impl Drop for BusInner {
    fn drop(&mut self) {
        if !self.is_given_up() {
            // The host may still write to them: lost on purpose.
            mem::forget(self.pages.take());
        }
    }
}

impl core::fmt::Debug for BusInner {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("Bus")
            .field("phase", &self.phase())
            .field("version", &self.version())
            .field("connection", &self.connection())
            .finish_non_exhaustive()
    }
}
