//! Open channels: [`ChannelCore`] is what the bus, the callbacks and the owner share;
//! [`Channel`](super::Channel) is the owner's handle.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::Bus;
use super::error::Error;
use super::gpadl::Gpadl;
use super::gpadl::GpadlMemory;
use super::gpadls::Keeping;
use super::inner::BusInner;
use super::offer::Offer;
use super::parked::{Kept, Parked};
use super::rings::{ChannelRing, RingPages};
use crate::fallible::Shared;
use crate::platform::ProcessorIndex;
use crate::protocol::channel::{CloseChannel, ModifyChannel};
use crate::protocol::{ChannelId, ChannelMessage, GpadlId, OpenId, Version};
use crate::ring::{Consumer, Producer};
use crate::sync::{Lock, LockGuard};
use crate::{Deadline, Instant};

/// The half of a channel that sends.
pub type Outgoing = Producer<ChannelRing>;
/// The half of a channel that receives.
pub type Incoming = Consumer<ChannelRing, Vec<u64>>;

/// What is told when something happens to a channel.
///
/// The calls come from [`Bus::process`] of the channel's target processor, one at a time for each channel, without any
/// lock of the bus. They begin when the channel is open and end before it is closed.
pub trait ChannelSink: Send + Sync + 'static {
    /// The other end has signalled, or [`ChannelCore::schedule`] was called: there may be packets, or room.
    fn signalled(&self, channel: &ChannelCore);

    /// The offer was withdrawn, or the connection has ended: nothing more will come. Called once. The owner closes the
    /// channel; until then its memory stays.
    fn rescinded(&self, channel: &ChannelCore);
}

/// How a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// The other end has been asked, and has not answered.
    Opening,
    /// Open.
    Open,
    /// Open on our side only: the offer was withdrawn, or the connection has ended.
    Rescinded,
    /// Being closed.
    Closing,
    /// Closed. It can be opened anew with [`Bus::open`] if its offer still stands.
    Closed,
}

/// Whether the host has confirmed where a channel's interrupts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retargeted {
    /// It has: no further interrupt goes to the earlier processor.
    Confirmed,
    /// The version of the protocol has no confirmation; interrupts may still go to the earlier processor.
    Unconfirmed,
}

/// What happened on a channel, in numbers. A snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounters {
    /// Signals sent to the other end.
    pub signals_sent: u64,
    /// Signals received from the other end.
    pub signals_received: u64,
    /// Calls of [`ChannelSink::signalled`].
    pub callbacks: u64,
}

const OPENING: u8 = 0;
const OPEN: u8 = 1;
const CLOSING: u8 = 2;
const CLOSED: u8 = 3;

/// Whether the other end is told that a channel closes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Farewell {
    Close,
    Silent,
}

/// The channel is not being moved.
const NOWHERE: u32 = u32::MAX;
/// Nobody runs a callback.
const NOBODY: usize = usize::MAX;
/// How often the callback is called in a row before others get their turn.
const CALLBACKS_IN_A_ROW: u32 = 4;

/// An open channel: what is shared by the bus, its callbacks and its owner.
pub struct ChannelCore {
    bus: Shared<BusInner>,
    offer: Offer,
    place: usize,
    open_id: OpenId,
    target: AtomicU32,
    /// Where the host has been asked to send the interrupts, as long as its answer may come: [`NOWHERE`] if it was not.
    next_target: AtomicU32,
    outgoing: Lock<Outgoing>,
    incoming: Lock<Incoming>,
    rings: Lock<Rings>,
    sink: Box<dyn ChannelSink>,
    state: AtomicU8,
    /// The other end may have the channel open, and nobody has told it, or tells it, that it closes.
    is_open_there: AtomicBool,
    is_rescinded: AtomicBool,
    is_rescind_told: AtomicBool,
    /// A signal has come that no callback has seen.
    has_signal: AtomicBool,
    /// [`ChannelCore::schedule`] was called.
    has_kick: AtomicBool,
    /// A callback runs.
    is_running: AtomicBool,
    /// Which task runs it, or which processor's deferred work ([`Platform::current_task`](crate::Platform::current_task)).
    runner: AtomicUsize,
    /// The owner dropped its handle in a callback of this channel.
    is_orphan: AtomicBool,
    /// Everything is undone but the entry in the table.
    is_undone: AtomicBool,
    /// The entry in the table is given back.
    is_finished: AtomicBool,
    /// Who is between taking this channel out of the table and the end of its callback.
    in_flight: AtomicU32,
    signals_sent: AtomicU64,
    signals_received: AtomicU64,
    callbacks: AtomicU64,
}

/// The memory of the rings.
enum Rings {
    /// Not shared yet.
    None,
    /// The other end has it under this number, and may have what is kept along with it.
    Lent(GpadlId, Box<RingPages>, Option<Kept>),
    /// It was given back, or is parked.
    Over(GpadlId),
}

/// What a channel is made of.
pub(super) struct Parts {
    pub(super) bus: Shared<BusInner>,
    pub(super) offer: Offer,
    pub(super) place: usize,
    pub(super) open_id: OpenId,
    pub(super) target: ProcessorIndex,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) sink: Box<dyn ChannelSink>,
}

impl ChannelCore {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            bus: parts.bus,
            offer: parts.offer,
            place: parts.place,
            open_id: parts.open_id,
            target: AtomicU32::new(parts.target.0),
            next_target: AtomicU32::new(NOWHERE),
            outgoing: Lock::new(parts.outgoing),
            incoming: Lock::new(parts.incoming),
            rings: Lock::new(Rings::None),
            sink: parts.sink,
            state: AtomicU8::new(OPENING),
            is_open_there: AtomicBool::new(false),
            is_rescinded: AtomicBool::new(false),
            is_rescind_told: AtomicBool::new(false),
            has_signal: AtomicBool::new(false),
            has_kick: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            runner: AtomicUsize::new(NOBODY),
            is_orphan: AtomicBool::new(false),
            is_undone: AtomicBool::new(false),
            is_finished: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            signals_sent: AtomicU64::new(0),
            signals_received: AtomicU64::new(0),
            callbacks: AtomicU64::new(0),
        }
    }

    /// Returns the channel's id.
    #[must_use]
    pub const fn id(&self) -> ChannelId {
        self.offer.channel
    }

    /// Returns the offer that was opened.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns which opening this is, counting up over all channels of the bus.
    #[must_use]
    pub const fn open_id(&self) -> OpenId {
        self.open_id
    }

    /// Returns the bus.
    #[must_use]
    pub fn bus(&self) -> Bus {
        Bus(self.bus.clone())
    }

    /// Returns the processor on which the callbacks run.
    #[must_use]
    pub fn target(&self) -> ProcessorIndex {
        ProcessorIndex(self.target.load(Ordering::Relaxed))
    }

    /// Returns how the channel is at this moment.
    #[must_use]
    pub fn state(&self) -> ChannelState {
        match self.state.load(Ordering::Acquire) {
            CLOSING => ChannelState::Closing,
            CLOSED => ChannelState::Closed,
            _ if self.is_rescinded.load(Ordering::Acquire) => ChannelState::Rescinded,
            OPENING => ChannelState::Opening,
            _ => ChannelState::Open,
        }
    }

    /// Locks the half that sends. Not across a wait; the other end is signalled with [`ChannelCore::signal`].
    ///
    /// # Safety
    ///
    /// Packets with page lists have the other end, the host, read and write the pages that they name. Those of the packets that are
    /// staged here are memory that it may write to until it completes the packet, or has closed the channel, and that this program
    /// reaches only as such. [`crate::kmcl`] sees to that for its users.
    ///
    /// ```compile_fail,E0133
    /// # use vmbus::{bus::ChannelCore, ring::*};
    /// # fn lend(channel: &ChannelCore, any_page: u64) {
    /// let range = GpaRangeToSend { byte_count: 4096, byte_offset: 0, pfns: &[any_page] };
    /// let external = ExternalToSend::GpaDirect(&[range]);
    /// let packet = PacketToSend { header: Header::gpa_direct(1), external, pieces: &[] };
    /// let _ = channel.outgoing().write(&packet);
    /// # }
    /// ```
    #[expect(unsafe_code, reason = "whoever calls it vouches for what is lent by packets")]
    pub unsafe fn outgoing(&self) -> LockGuard<'_, Outgoing> {
        self.outgoing.lock(self.bus.platform)
    }

    /// Locks the half that receives. Not across a wait.
    pub fn incoming(&self) -> LockGuard<'_, Incoming> {
        self.incoming.lock(self.bus.platform)
    }

    /// Signals the other end. A host may punish needless signals with a pause: only when the ring says so.
    ///
    /// # Errors
    ///
    /// [`Error::Rescinded`] or [`Error::NotOpen`]; [`Error::Hypercall`] if the hypervisor refuses.
    pub fn signal(&self) -> Result<(), Error> {
        match self.state() {
            ChannelState::Open => {}
            ChannelState::Rescinded => return Err(Error::Rescinded(self.id())),
            _ => return Err(Error::NotOpen(self.id())),
        }
        // Relaxed: a number for people.
        self.signals_sent.fetch_add(1, Ordering::Relaxed);
        self.bus.signal(&self.offer)
    }

    /// Makes [`ChannelSink::signalled`] be called soon, on the target processor, without a signal of the other end: for
    /// example after incoming packets were left in the ring for want of room. Context: any but the interrupt entry.
    pub fn schedule(&self) {
        self.has_kick.store(true, Ordering::Release);
        self.bus.kick(self.target());
    }

    /// Returns the channel's numbers.
    #[must_use]
    pub fn counters(&self) -> ChannelCounters {
        ChannelCounters {
            signals_sent: self.signals_sent.load(Ordering::Relaxed),
            signals_received: self.signals_received.load(Ordering::Relaxed),
            callbacks: self.callbacks.load(Ordering::Relaxed),
        }
    }

    /// Returns true if this code runs in a callback of this channel: as [`Platform::current_task`](crate::Platform::current_task)
    /// tells it.
    #[must_use]
    pub fn is_in_callback(&self) -> bool {
        // Relaxed: whoever runs it sees its own store, and nobody else's number is the same.
        self.runner.load(Ordering::Relaxed) == self.bus.platform.current_task().0
    }

    /// Shares `memory` with the other end and returns the GPADL that names it. The memory comes back with
    /// [`Gpadl::teardown`]. Context: task.
    ///
    /// # Errors
    ///
    /// [`Error`]; the memory is dropped, or parked until the other end has given it up.
    pub fn create_gpadl<M: GpadlMemory>(&self, memory: M, deadline: Deadline) -> Result<Gpadl<M>, Error> {
        match self.state() {
            ChannelState::Open => Gpadl::create(Bus(self.bus.clone()), &self.offer, self.place, memory, deadline),
            ChannelState::Rescinded => Err(Error::Rescinded(self.id())),
            _ => Err(Error::NotOpen(self.id())),
        }
    }

    /// Makes the channel's interrupts and callbacks go to another processor.
    ///
    /// The callbacks move when the interrupts do; flags that the earlier processor still gets are honoured there. If the host
    /// answers only after the deadline, the channel moves then, and neither processor goes off-line before.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcessor`] if it is not on-line for the bus, [`Error::NotSupported`] before version 4.1,
    /// [`Error::TooManyRequests`] while the host still owes an answer to an earlier call, and what a request may meet. The
    /// earlier target stays then.
    pub fn retarget(&self, target: ProcessorIndex, deadline: Deadline) -> Result<Retargeted, Error> {
        let bus = &*self.bus;
        if self.state() != ChannelState::Open {
            return Err(Error::NotOpen(self.id()));
        }
        let vp = bus.online_vp(target).ok_or_else(|| bus.no_such_processor(target))?;
        let version = bus.version();
        if version < Version::V4_1 {
            return Err(Error::NotSupported { version });
        }
        // One at a time: an answer does not say which request it is for. SeqCst: see `is_aimed_at`.
        self.next_target
            .compare_exchange(NOWHERE, target.0, Ordering::SeqCst, Ordering::Relaxed)
            .map_err(|_| Error::TooManyRequests)?;
        if !bus.stays_online(target) {
            self.stays();
            return Err(bus.no_such_processor(target));
        }
        let request = ModifyChannel::new(self.id(), vp).encode();
        if version >= Version::V5_3 {
            let key = super::replies::Key::Modify(self.id());
            // What its answer means is done as it is taken: it may come when nobody waits any more.
            bus.request(&self.offer, self.place, key, &request, deadline)
                .map_err(|failure| {
                    if !failure.is_asked {
                        self.stays();
                    }
                    failure.error
                })?;
            Ok(Retargeted::Confirmed)
        } else {
            bus.post(&request, deadline.resolve(bus.now()), None)
                .inspect_err(|_| self.stays())?;
            self.moved(true);
            Ok(Retargeted::Unconfirmed)
        }
    }

    /// The host was not asked to move the interrupts.
    fn stays(&self) {
        self.next_target.store(NOWHERE, Ordering::Release);
    }

    /// The host has answered, or does not answer, to the request to move the interrupts.
    pub(super) fn moved(&self, is_moved: bool) {
        let target = self.next_target.load(Ordering::Acquire);
        if target == NOWHERE {
            return;
        }
        if is_moved {
            let before = self.target.swap(target, Ordering::SeqCst);
            // Whatever came to the earlier processor until now is looked at there, and here.
            self.bus.mark(ProcessorIndex(before));
            self.schedule();
        }
        self.next_target.store(NOWHERE, Ordering::Release);
    }

    /// Returns true if the host may send interrupts to `processor`.
    pub(super) fn is_aimed_at(&self, processor: ProcessorIndex) -> bool {
        // In this order: a channel that moves meanwhile is seen in one of the two. SeqCst: either a processor that leaves sees
        // where the channel goes, or who moves it sees that the processor leaves.
        self.next_target.load(Ordering::SeqCst) == processor.0 || self.target.load(Ordering::SeqCst) == processor.0
    }

    // ----- what the bus does with it

    pub(super) fn enter(&self) {
        // Relaxed: made under the table's lock, which orders it before the owner's look.
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends what [`ChannelCore::enter`] began, and what the owner left to the last callback.
    pub(super) fn leave(&self) {
        // Release: what the callback did happens before the owner goes on. SeqCst: see `finish`.
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.is_orphan.swap(false, Ordering::AcqRel)
            && let Err(error) = self.close(Deadline::IMMEDIATE)
        {
            log::debug!(
                "{} was dropped in its callback and closed without waiting: {error}",
                self.id()
            );
        }
        self.finish();
    }

    /// Gives the entry in the table back, once, when the channel is undone and no callback can run.
    fn finish(&self) {
        // SeqCst: either the last callback sees that the channel is undone, or the owner sees that it was the last.
        if self.is_undone.load(Ordering::SeqCst)
            && self.in_flight.load(Ordering::SeqCst) == 0
            && !self.is_finished.swap(true, Ordering::AcqRel)
        {
            self.bus.table.closed(self.place);
            self.bus.flush_releases();
        }
    }

    pub(super) fn note_signal(&self) {
        self.signals_received.fetch_add(1, Ordering::Relaxed);
        self.has_signal.store(true, Ordering::Release);
    }

    /// Takes a kick that is meant for `processor`.
    pub(super) fn take_kick(&self, processor: ProcessorIndex) -> bool {
        self.target() == processor
            && self.has_kick.load(Ordering::Relaxed)
            && self.has_kick.swap(false, Ordering::AcqRel)
    }

    /// Turns a kick into something that [`ChannelCore::run`] sees.
    pub(super) fn note_kick(&self) {
        self.has_signal.store(true, Ordering::Release);
    }

    pub(super) fn rescind(&self) {
        self.is_rescinded.store(true, Ordering::Release);
        self.schedule();
    }

    /// Calls the callbacks that are due. Between [`ChannelCore::enter`] and [`ChannelCore::leave`].
    pub(super) fn run(&self) {
        let mut left = CALLBACKS_IN_A_ROW;
        while self.state.load(Ordering::Acquire) == OPEN && self.is_due() {
            if left == 0 {
                self.schedule();
                return;
            }
            // Not 0, as just seen.
            left = left.wrapping_sub(1);
            // SeqCst here and below: whoever finds it running must be seen by the runner's next look at what is due.
            if self.is_running.swap(true, Ordering::SeqCst) {
                return;
            }
            self.runner.store(self.bus.platform.current_task().0, Ordering::Relaxed);
            if self.has_signal.swap(false, Ordering::SeqCst) {
                self.callbacks.fetch_add(1, Ordering::Relaxed);
                self.sink.signalled(self);
            }
            if self.is_rescinded.load(Ordering::Acquire) && !self.is_rescind_told.swap(true, Ordering::AcqRel) {
                self.sink.rescinded(self);
            }
            self.runner.store(NOBODY, Ordering::Relaxed);
            self.is_running.store(false, Ordering::SeqCst);
        }
    }

    fn is_due(&self) -> bool {
        self.has_signal.load(Ordering::SeqCst)
            || (self.is_rescinded.load(Ordering::Acquire) && !self.is_rescind_told.load(Ordering::Acquire))
    }

    /// Returns the memory of the rings, for who makes halves of its own: those of this channel are not to be used then.
    pub(crate) fn ring_pages(&self) -> Option<RingPages> {
        match &*self.rings.lock(self.bus.platform) {
            Rings::Lent(_, rings, _) => Some((**rings).clone()),
            Rings::None | Rings::Over(_) => None,
        }
    }

    /// Keeps the memory of the rings, which the other end has under `id`.
    pub(super) fn lend_rings(&self, id: GpadlId, rings: Box<RingPages>) {
        *self.rings.lock(self.bus.platform) = Rings::Lent(id, rings, None);
    }

    /// Keeps memory from use that the other end may have until it gives up the rings. Once for each channel: more is lost.
    pub(crate) fn keep(&self, kept: Kept) {
        let blocks = kept.blocks();
        let counters = &self.bus.counters;
        let mut rings = self.rings.lock(self.bus.platform);
        let keeping = match &mut *rings {
            Rings::Lent(_, _, place @ None) => {
                *place = Some(kept);
                return;
            }
            Rings::Lent(..) => Keeping::Refused(kept),
            Rings::None => Keeping::GivenUp(kept),
            Rings::Over(id) => {
                let id = *id;
                drop(rings);
                let keeping = self.bus.gpadls.keep(id, kept);
                if matches!(keeping, Keeping::Kept | Keeping::Lost) {
                    counters.parked_blocks.add(blocks);
                    self.bus.free_if_given_up();
                }
                return self.is_kept(keeping, blocks);
            }
        };
        drop(rings);
        self.is_kept(keeping, blocks);
    }

    fn is_kept(&self, keeping: Keeping, blocks: u64) {
        match keeping {
            Keeping::Kept => {}
            Keeping::Lost => self.bus.counters.lost_blocks.add(blocks),
            Keeping::GivenUp(kept) => drop(kept),
            Keeping::Refused(kept) => {
                kept.lose();
                self.bus.counters.lost_blocks.add(blocks);
            }
        }
    }

    fn take_rings(&self) -> Option<(GpadlId, Parked)> {
        let mut rings = self.rings.lock(self.bus.platform);
        match core::mem::replace(&mut *rings, Rings::None) {
            Rings::Lent(id, memory, kept) => {
                *rings = Rings::Over(id);
                Some((id, Parked::new(memory, kept)))
            }
            other => {
                *rings = other;
                None
            }
        }
    }

    /// The owner is gone, in a callback of this channel: it is closed when that has ended.
    pub(super) fn orphan(&self) {
        self.is_orphan.store(true, Ordering::Release);
    }

    /// The other end is about to be asked to open.
    pub(super) fn asking(&self) {
        // Relaxed: whoever closes has found the channel in the table, or is its opener.
        self.is_open_there.store(true, Ordering::Relaxed);
    }

    /// Returns true if the offer was withdrawn. The channel itself hears of it only as long as it stands in the table.
    fn is_withdrawn(&self) -> bool {
        self.is_rescinded.load(Ordering::Acquire) || self.bus.table.is_rescinded(self.place)
    }

    /// Tells the other end that the channel closes, unless it knows, or has withdrawn it. Between [`ChannelCore::enter`] and
    /// [`ChannelCore::leave`], or when nobody is any more: so that no two tell it at a time.
    pub(super) fn tell_closed(&self, until: Option<Instant>) -> Result<(), Error> {
        if self.is_withdrawn() || !self.is_open_there.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let close = CloseChannel::new(self.id()).encode();
        let told = self.bus.post(&close, until, None);
        if told.is_err() {
            self.is_open_there.store(true, Ordering::Release);
        }
        told
    }

    /// The other end could not be told that the channel closes: it is not to be asked for the rings.
    pub(super) fn stays_open_there(&self) {
        if let Rings::Lent(id, ..) = &*self.rings.lock(self.bus.platform) {
            self.bus.gpadls.stays_in_use(*id);
        }
    }

    /// The other end has agreed: callbacks may come.
    pub(super) fn opened(&self) {
        self.state.store(OPEN, Ordering::Release);
        // What came meanwhile is looked at now.
        self.schedule();
    }

    /// Undoes an opening that failed. A channel that is certain not to be open at the other end is not closed there.
    pub(super) fn abandon(&self, is_closed: bool, deadline: Deadline) {
        let until = deadline.resolve(self.bus.now());
        let farewell = if is_closed { Farewell::Silent } else { Farewell::Close };
        // The caller is told why it failed; what the other end keeps meanwhile is parked.
        let _ = self.undo(OPENING, farewell, until);
    }

    /// Ends the channel: see [`Channel::close`](super::Channel::close).
    pub(super) fn close(&self, deadline: Deadline) -> Result<(), Error> {
        if self.is_in_callback() {
            return Err(Error::WouldDeadlock);
        }
        let until = deadline.resolve(self.bus.now());
        self.undo(OPEN, Farewell::Close, until)
    }

    fn undo(&self, from: u8, farewell: Farewell, until: Option<Instant>) -> Result<(), Error> {
        let bus = &*self.bus;
        let begun = self
            .state
            .compare_exchange(from, CLOSING, Ordering::AcqRel, Ordering::Acquire);
        if begun.is_err() {
            return Err(Error::NotOpen(self.id()));
        }
        bus.table.clear_open(self.place);
        // Acquire: pairs with `leave`.
        let is_idle = || self.in_flight.load(Ordering::Acquire) == 0;
        let idle = bus.wait_until(until, is_idle);
        let mut result = idle.map_err(Error::from);
        let told = match farewell {
            Farewell::Close => self.tell_closed(until),
            Farewell::Silent => Ok(()),
        };
        if let Some((id, memory)) = self.take_rings() {
            // A host that could not be told still has the channel open, and its word about the memory would mean nothing.
            let is_open_there = told.is_err() && !bus.is_given_up() && !self.is_withdrawn();
            let given_up = if is_open_there {
                told.inspect_err(|error| bus.note_untold(error, self.place, id))
            } else {
                bus.teardown(&self.offer, self.place, id, until)
            };
            result = result.and(told);
            match given_up {
                Ok(()) => drop(memory),
                Err(error) => {
                    bus.park(self.place, id, memory);
                    // A withdrawn channel is closed all the same.
                    if !matches!(error, Error::Rescinded(_) | Error::Disconnected) {
                        result = result.and(Err(error));
                    }
                }
            }
        }
        self.state.store(CLOSED, Ordering::Release);
        // The entry is given back only when no callback can run; if one does, it is the one that gives it back.
        self.is_undone.store(true, Ordering::SeqCst);
        self.finish();
        result
    }
}

impl fmt::Debug for ChannelCore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChannelCore")
            .field("id", &self.id())
            .field("state", &self.state())
            .field("target", &self.target())
            .finish_non_exhaustive()
    }
}
