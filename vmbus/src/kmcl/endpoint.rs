//! What all handles of a channel share: [`Core`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use super::completions::Left;
use super::counters::{LiveCounters, add};
use super::external::Lent;
use super::gate::{Gate, Inside};
use super::outgoing::{IfFull, Outgoing};
use super::packet::{Body, PacketMemory, Waiter};
use super::receive::{Incoming, IncomingBody, Ready};
use super::settings::{Callbacks, Settings, gone_from};
use super::transport::{OfferFacts, Provider, Transport};
use super::{Context, Error, Gone, SendFlags, Side};
use crate::fallible::{Shared, TryPush, try_vec_with_capacity};
use crate::memory::{DmaBuffer, Mdl};
use crate::platform::{Callers, TaskId, Wait};
use crate::sync::{Lock, LockGuard};
use crate::{Deadline, Instant, Platform};

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// Where a channel is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Not open (yet, or between two openings of a server): what is sent waits in line.
    Closed = 0,
    /// The opened callback runs.
    Opening = 1,
    /// Open, no traffic of packets.
    Paused = 2,
    /// The started callback runs: what is sent waits in line.
    Starting = 3,
    /// The post-started callback runs: completions flow.
    Receiving = 4,
    /// All flows.
    Running = 5,
    /// Stopping: nothing is delivered any more, packets that the driver holds are awaited.
    Suspending = 6,
    /// Over.
    Ended = 7,
}

impl Phase {
    const fn from(number: u8) -> Self {
        match number {
            0 => Self::Closed,
            1 => Self::Opening,
            2 => Self::Paused,
            3 => Self::Starting,
            4 => Self::Receiving,
            5 => Self::Running,
            6 => Self::Suspending,
            _ => Self::Ended,
        }
    }
}

/// What all handles of a channel share.
pub(crate) struct Core<C: Context> {
    pub(crate) side: Side,
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) platform: &'static dyn Platform,
    pub(crate) settings: Settings,
    pub(crate) callbacks: Callbacks<C>,
    pub(crate) context: Shared<C>,
    pub(crate) gate: Gate,
    pub(crate) outgoing: Lock<Outgoing<C>>,
    pub(crate) incoming: Lock<Incoming<C>>,
    pub(crate) offer: Lock<OfferFacts>,
    pub(crate) counters: LiveCounters,
    pub(crate) at_passive: AtomicBool,
    pub(crate) passive_pending: AtomicBool,
    /// A callback has put a packet back: its batch looks again. Used in the gate alone.
    pub(crate) stirred: AtomicBool,
    /// Handles in the hands of the driver.
    pub(crate) users: AtomicUsize,
    phase: AtomicU8,
    /// Why this opening ends, as [`gone_from`] has it.
    pub(crate) ending: AtomicU8,
    /// A server pauses at its next opening.
    pub(crate) paused_at_open: AtomicBool,
    /// How far saving or restoring has come: see [`super::saving::Progress`].
    #[cfg(feature = "host")]
    pub(crate) saving: AtomicU8,
    pub(crate) reserved_bytes: usize,
    /// Buffers to lend; one that nobody else owns is free.
    pub(crate) bounce: Lock<Vec<DmaBuffer>>,
}

impl<C: Context> Core<C> {
    pub(crate) fn new(
        side: Side,
        provider: Box<dyn Provider>,
        settings: Settings,
        callbacks: Callbacks<C>,
        context: Shared<C>,
    ) -> Result<Shared<Self>, Error> {
        let mut outgoing = Outgoing::new(settings.maximum_packet_count, settings.quota)?;
        for _ in 0..settings.maximum_packet_count {
            outgoing.stock.add(Body::new(&settings, true)?)?;
        }
        let reserved_bytes = (settings.maximum_packet_count as usize)
            .saturating_mul(Body::<C>::size(&settings))
            .saturating_add((settings.quota as usize).saturating_mul(IncomingBody::size(&settings)));
        let platform = provider.platform();
        let mut bounce = try_vec_with_capacity(settings.bounce_buffers)?;
        for _ in 0..settings.bounce_buffers {
            bounce.try_push(DmaBuffer::allocate(platform, settings.bounce_buffer_size)?)?;
        }
        let core = Shared::try_new(Self {
            side,
            provider,
            platform,
            settings,
            callbacks,
            context,
            gate: Gate::new(platform.callers()),
            outgoing: Lock::new_on(platform, outgoing),
            incoming: Lock::new_on(platform, Incoming::new(&settings)?),
            offer: Lock::new_on(platform, OfferFacts::default()),
            counters: LiveCounters::default(),
            at_passive: AtomicBool::new(settings.at_passive),
            passive_pending: AtomicBool::new(false),
            stirred: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Closed as u8),
            ending: AtomicU8::new(0),
            paused_at_open: AtomicBool::new(settings.paused),
            #[cfg(feature = "host")]
            saving: AtomicU8::new(0),
            reserved_bytes,
            bounce: Lock::new_on(platform, bounce),
        })?;
        if core.lends_handles() {
            core.outgoing.lock(platform).keeper = Some(core.clone());
        }
        Ok(core)
    }

    /// Whether packets of the pools have lent handles: see [`Channel::for_packet_of_pool`](super::Channel).
    #[inline]
    pub(crate) const fn lends_handles(&self) -> bool {
        matches!(self.gate.callers(), Callers::OneAtATime)
    }

    /// The channel has ended, or will not come to be. What keeps it is returned if nothing else does.
    pub(crate) fn is_over(&self) -> Option<Shared<Self>> {
        self.outgoing().is_over(&self.counters)
    }

    /// Returns true if the driver holds no incoming packet.
    pub(crate) fn is_idle(&self) -> bool {
        // Completions are counted under this lock.
        let _outgoing = self.outgoing();
        self.counters.indicated() == 0
    }

    /// Takes the lock of the sending side.
    #[inline]
    pub(crate) fn outgoing(&self) -> LockGuard<'_, Outgoing<C>> {
        self.outgoing.lock_on(|| self.platform)
    }

    /// Takes the lock of the receiving side; that of the sending side may be taken behind it.
    #[inline]
    pub(crate) fn incoming(&self) -> LockGuard<'_, Incoming<C>> {
        self.incoming.lock_on(|| self.platform)
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        Phase::from(self.phase.load(Ordering::Acquire))
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(crate) fn now(&self) -> Instant {
        self.provider.now()
    }

    /// Returns why the channel ends or has ended.
    #[inline]
    pub(crate) fn gone(&self) -> Option<Gone> {
        gone_from(self.ending.load(Ordering::Acquire))
    }

    /// Returns what runs here. Where calls come one at a time, whoever calls while another call is in progress is within it.
    #[inline]
    pub(crate) fn current_task(&self) -> TaskId {
        match self.gate.callers() {
            Callers::OneAtATime => TaskId(0),
            Callers::OneProcessor | Callers::Anywhere => self.platform.current_task(),
        }
    }

    pub(crate) fn inside(&self) -> Option<Inside> {
        self.gate.inside(self.current_task())
    }

    /// Refuses a call that waits for a callback of this channel, if it comes from one.
    pub(crate) fn may_wait_for_callbacks(&self) -> Result<(), Error> {
        if self.inside().is_some() {
            Err(Error::WouldDeadlock)
        } else {
            Ok(())
        }
    }

    /// Waits until `ready` returns something: looks at messages and completions, delivers nothing.
    pub(crate) fn wait<T>(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, Error> {
        let mut found = None;
        let mut look = || {
            found = ready(self);
            if found.is_none() {
                self.look();
                found = ready(self);
            }
            found.is_some()
        };
        let outcome = self.platform.wait(&mut Wait::new(&mut look, &|| self.now(), until));
        match (found, outcome) {
            (Some(found), _) => Ok(found),
            _ => Err(Error::TimedOut),
        }
    }

    /// Looks at messages and completions, delivers nothing.
    pub(crate) fn look(&self) {
        self.provider.poll();
        self.absorb();
        self.notice_withdrawal();
    }

    /// Ends requests if the peer has taken the offer back: it has given up all memory with it, unless the connection has ended.
    fn notice_withdrawal(&self) {
        let withdrawn = {
            let outgoing = self.outgoing();
            let transport = outgoing.transport.as_ref();
            transport.filter(|transport| transport.is_withdrawn()).cloned()
        };
        if let Some(transport) = withdrawn {
            self.end(Gone::Rescinded);
            self.end_requests(Gone::Rescinded, &**transport, !transport.is_lost());
        }
    }

    /// Ends all requests. What they lend stays lent until the peer gives it up, unless it `is_given_up`.
    pub(crate) fn end_requests(&self, why: Gone, transport: &dyn Transport, is_given_up: bool) {
        let mut left = Left::default();
        self.fail_requests(why, (!is_given_up).then_some(&mut left));
        let memory = left.take();
        let mut lost = left.lost;
        if !memory.is_empty() {
            lost = lost.saturating_add(transport.keep(memory));
        }
        if lost != 0 {
            transport.note_lost(lost);
        }
    }

    /// Waits until `ready` returns something, without looking at this channel's ring.
    pub(crate) fn wait_plain<T>(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        if let Some(found) = ready() {
            return Ok(found);
        }
        let mut found = None;
        let mut look = || {
            found = ready();
            found.is_some()
        };
        let outcome = self.platform.wait(&mut Wait::new(&mut look, &|| self.now(), until));
        match (found, outcome) {
            (Some(found), _) => Ok(found),
            _ => Err(Error::TimedOut),
        }
    }

    pub(crate) fn until(&self, deadline: Deadline) -> Option<Instant> {
        match deadline {
            Deadline::Never => None,
            Deadline::At(instant) => Some(instant),
            // Only this one needs a look at the clock.
            Deadline::After(_) => deadline.resolve(self.now()),
        }
    }

    /// Checks what a send needs before anything is sent.
    #[inline]
    pub(crate) fn may_send(&self, len: usize) -> Result<(), Error> {
        if self.phase() == Phase::Running && self.gone().is_none() && len <= self.settings.maximum_packet_size {
            return Ok(());
        }
        self.may_send_unusual(len)
    }

    #[cold]
    #[inline(never)]
    fn may_send_unusual(&self, len: usize) -> Result<(), Error> {
        let limit = self.settings.maximum_packet_size;
        if len > limit {
            return Err(Error::PacketTooLarge { len, limit });
        }
        match self.phase() {
            Phase::Ended => Err(self.gone().unwrap_or(Gone::Disabled).into()),
            // A channel that is paused before its first start has sent nothing, and what it sends now waits in line.
            Phase::Suspending => Err(self.gone().map_or(Error::WrongState, Error::Gone)),
            Phase::Paused if self.outgoing().flowing => Err(Error::WrongState),
            _ => match self.gone() {
                Some(gone) if self.side == Side::Client => Err(gone.into()),
                _ => Ok(()),
            },
        }
    }

    pub(crate) fn lend(&self, mdl: Mdl, offset: usize, len: usize, flags: SendFlags) -> Result<Lent, (Error, Mdl)> {
        let mdl = if flags.contains(SendFlags::FORCE_MDL_LENGTH) && len != 0 {
            match mdl.first_part_extended(offset.saturating_add(len)) {
                Ok(extended) => extended,
                Err(_) => return Err((Error::InvalidExternalData { len, ranges: 0 }, mdl)),
            }
        } else {
            mdl
        };
        let settings = &self.settings;
        Lent::new(
            mdl,
            offset,
            len,
            settings.maximum_external_data,
            settings.maximum_chain_length,
        )
    }

    /// Returns the memory that the packet in flight with this id lends.
    #[cfg(feature = "host")]
    pub(crate) fn lent(&self, transaction_id: u64) -> Option<Mdl> {
        let mut outgoing = self.outgoing();
        let request = outgoing.table.get_mut(super::slab::RequestId(transaction_id))?;
        let body = &request.body;
        // What waits in line is not known to the peer.
        (!body.in_line).then(|| body.lent.as_ref().map(|lent| lent.described().clone()))?
    }

    /// Takes a free packet; says as well whether the channel keeps itself for it, which one that has ended does not do any more.
    pub(crate) fn take_packet(&self) -> Result<(PacketMemory<C>, bool), Error> {
        let mut outgoing = self.outgoing();
        let Some(body) = outgoing.stock.take() else {
            drop(outgoing);
            add(&self.counters.refused, 1);
            return Err(Error::TooManyPackets);
        };
        Ok((body, outgoing.keeper.is_some()))
    }

    /// Puts a packet back, or frees it if it is in the caller's memory. What keeps the channel comes back if this was the last
    /// thing that it was kept for; who has come with a handle of its own may drop that at once.
    pub(crate) fn free_packet(&self, mut body: PacketMemory<C>) -> Option<Shared<Self>> {
        if body.lent.is_some() {
            // Given up outside the lock.
            body.lent = None;
        }
        let mut outgoing = self.outgoing();
        let outside = outgoing.stock.put_back(body);
        let last = outgoing.keeper_if_all_is_home(&self.counters);
        drop(outgoing);
        drop(outside);
        last
    }

    /// Sends a packet object with its routine.
    pub(crate) fn send_packet(
        &self,
        mut body: PacketMemory<C>,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), (Error, PacketMemory<C>)> {
        if let Err(error) = self.may_send(payload.len()) {
            return Err((error, body));
        }
        let mut outgoing = self.outgoing();
        if !outgoing.stock.count(&mut body, &self.counters) {
            return Err((Error::TooManyPackets, body));
        }
        let sent = if flags.contains(SendFlags::WAIT_FOR_COMPLETION) {
            outgoing
                .send_request(body, Waiter::Routine, payload, IfFull::Queue, &self.counters)
                .map(|_| None)
        } else {
            outgoing.send_notice(body, payload, IfFull::Queue, &self.counters)
        };
        let gone_out = sent.map_err(|(error, mut body)| {
            outgoing.stock.discount(&mut body);
            (error, body)
        })?;
        if let Some(body) = gone_out {
            if body.routine.is_none() {
                drop(outgoing);
                drop(self.free_packet(body));
            } else {
                // The routine is a callback: it is called where callbacks are.
                outgoing.hand_back(body, &self.counters);
                if let Some(transport) = &outgoing.transport {
                    transport.schedule();
                }
                self.gate_note();
            }
        }
        Ok(())
    }

    fn gate_note(&self) {
        self.gate.leave_note();
    }

    /// Sends a packet that nobody waits for and that needs no packet object, unless it has to wait in line.
    pub(crate) fn send_plain(&self, payload: &[u8], if_full: IfFull) -> Result<(), Error> {
        self.may_send(payload.len())?;
        let mut outgoing = self.outgoing();
        if outgoing.try_send(payload, &self.counters)? {
            return Ok(());
        }
        if if_full == IfFull::Refuse {
            return Err(Error::RingFull);
        }
        let Some(body) = outgoing.stock.take() else {
            add(&self.counters.refused, 1);
            return Err(Error::TooManyPackets);
        };
        let (error, body) = match outgoing.send_notice(body, payload, if_full, &self.counters) {
            Ok(None) => return Ok(()),
            Ok(Some(body)) => (None, body),
            Err((error, body)) => (Some(error), body),
        };
        drop(outgoing);
        drop(self.free_packet(body));
        error.map_or(Ok(()), Err)
    }

    /// Moves packets that went out late to where they belong: those with a routine to be delivered, the others to the pool.
    pub(crate) fn collect_placed(&self) {
        loop {
            // Held from one place to the other: whoever ends the channel meanwhile finds the packet in one of them.
            let mut incoming = self.incoming();
            let next = self.outgoing().take_placed(&self.counters);
            match next {
                Some(body) if body.routine.is_some() => incoming.make_ready(Ready::Completed(body)),
                Some(body) => {
                    drop(incoming);
                    drop(self.free_packet(body));
                }
                None => return,
            }
        }
    }

    /// Takes memory of completed packets back to the receiving side. If it still cannot read on, the next completion brings
    /// `process` back.
    pub(crate) fn refill(&self, incoming: &mut Incoming<C>) -> bool {
        let mut outgoing = self.outgoing();
        incoming.put_all_back(outgoing.returned.slots());
        // Exact: completions are counted under this lock.
        let can_read = incoming.has_slot(&self.counters);
        outgoing.returned.set_reader_waits(!can_read);
        can_read
    }

    /// Has `process` run soon, by whoever processes now or by the next one.
    pub(crate) fn schedule(&self) {
        self.gate_note();
        self.reschedule();
    }

    /// Has `process` run again, after whoever processes now.
    pub(crate) fn reschedule(&self) {
        if let Some(transport) = &self.outgoing().transport {
            transport.schedule();
        }
    }
}

impl<C: Context> core::fmt::Debug for Core<C> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("Channel")
            .field("name", &self.settings.name)
            .field("side", &self.side)
            .field("phase", &Phase::from(self.phase.load(Ordering::Relaxed)))
            .finish_non_exhaustive()
    }
}
