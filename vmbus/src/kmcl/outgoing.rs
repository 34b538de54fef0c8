//! The sending side of a channel, behind its lock: [`Outgoing`].
//!
//! A packet goes straight into the ring if nothing waits in front of it and there is room; otherwise it waits in line, in
//! memory that was reserved for it: a packet object's own, or, for a completion, that of the packet that it answers. What
//! the peer has room for is sent in order, requests and completions alike.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::counters::{LiveCounters, add, add_alone, subtract_alone};
use super::endpoint::Core;
use super::external::Lent;
use super::packet::{Body, PacketMemory, Waiter};
use super::receive::Slot;
use super::slab::{RequestId, Slab};
use super::transport::{RingPages, Transport};
use super::{Context, Error, Gone};
use crate::fallible::{OutOfMemory, ReservedQueue, ReservedVec, Shared, try_vec_with_capacity};
use core::sync::atomic::Ordering;

use crate::protocol::packet::{PacketFlags, PacketType};
use crate::ring::{Corruption, Header, Producer, Room, WriteError};

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// A request that waits for its completion: its packet, and who waits.
pub(crate) struct InFlight<C: Context> {
    pub(crate) body: PacketMemory<C>,
    pub(crate) waiter: Waiter,
}

/// What waits in line for room in the ring.
enum Queued<C: Context> {
    /// A request; its packet lies in the table.
    Request(RequestId),
    /// A packet that asks for no completion.
    Notice(PacketMemory<C>),
    /// The answer to the packet that lent its memory, which holds this many bytes of it.
    Completion(Slot, usize),
}

/// What to do if the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfFull {
    Queue,
    Refuse,
}

/// A packet was not written, and never will be.
struct Failed;

/// What a packet without page list is, in one register.
#[derive(Clone, Copy)]
struct Kind(u32);

impl Kind {
    const REQUEST: Self = Self::of(Header::in_band_with_completion(0));
    const NOTICE: Self = Self::of(Header::in_band(0));
    const COMPLETION: Self = Self::of(Header::completion(0));

    const fn of(header: Header) -> Self {
        Self(header.packet_type.0 as u32 | (header.flags.bits() as u32) << 16)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    const fn header(self, transaction_id: u64) -> Header {
        Header {
            packet_type: PacketType(self.0 as u16),
            flags: PacketFlags::from_bits_retain((self.0 >> 16) as u16),
            transaction_id,
        }
    }
}

/// The sending side.
pub(crate) struct Outgoing<C: Context> {
    /// None while the channel is not open.
    pub(crate) ring: Option<Producer<RingPages>>,
    pub(crate) transport: Option<Shared<Box<dyn Transport>>>,
    /// False until the driver's started callback has returned: everything waits in line until then.
    pub(crate) flowing: bool,
    pub(crate) table: Slab<InFlight<C>>,
    /// Free packets.
    pub(crate) pool: Vec<PacketMemory<C>>,
    queue: VecDeque<Queued<C>>,
    /// Packets that went out without asking for a completion, whose routine is to be called.
    placed: Vec<PacketMemory<C>>,
    /// Memory of packets that are completed, until the receiving side runs out of it: so a completion takes one lock, not two.
    returned: Vec<Slot>,
    /// The receiving side does not read on for want of memory, or at its quota: the next completion brings `process` back.
    reader_waits: bool,
    /// What keeps the channel for packets whose handles are lent: see [`Channel::for_packet_of_pool`](super::Channel).
    pub(crate) keeper: Option<Shared<Core<C>>>,
    /// The channel has ended.
    is_over: bool,
    /// Nothing is sent any more, and nothing may wait in line: why.
    pub(crate) closed: Option<Gone>,
    /// How many wait for room without standing in line, and the least that one of them has asked for.
    waiting: u32,
    least_room: u32,
    /// The peer broke the ring.
    pub(crate) broken: bool,
    /// Why the last packet was not written, until that is told.
    failure: Option<Error>,
    packets: u32,
    /// Packets in the caller's memory that were sent and whose routine was not called. At most as many as the channel has of its
    /// own: with this, there is room in every line for all that may be in it.
    callers: u32,
}

/// How many may stand in line: the channel's own packets, as many of callers, and completions.
const fn line_len(packets: u32, completions: u32) -> usize {
    (packets as usize)
        .saturating_mul(2)
        .saturating_add(completions as usize)
}

impl<C: Context> Outgoing<C> {
    /// Reserves what sending needs: a table of `packets` requests, and room in line for these and for `completions`.
    pub(crate) fn new(packets: u32, completions: u32) -> Result<Self, OutOfMemory> {
        let mut queue = VecDeque::new();
        queue
            .try_reserve_exact(line_len(packets, completions))
            .map_err(|_| OutOfMemory)?;
        Ok(Self {
            ring: None,
            transport: None,
            flowing: false,
            table: Slab::new(packets)?,
            pool: try_vec_with_capacity(packets as usize)?,
            queue,
            placed: try_vec_with_capacity(line_len(packets, 0))?,
            returned: try_vec_with_capacity(completions as usize)?,
            reader_waits: false,
            keeper: None,
            is_over: false,
            closed: None,
            waiting: 0,
            least_room: u32::MAX,
            broken: false,
            failure: None,
            packets,
            callers: 0,
        })
    }

    pub(crate) fn signal(&self, counters: &LiveCounters) {
        if let Some(transport) = &self.transport {
            add_alone(&counters.signals_sent, 1);
            transport.signal();
        }
    }

    /// Makes what was written visible, and tells the peer if it sleeps.
    #[inline]
    fn commit(&mut self, counters: &LiveCounters) {
        if let Some(ring) = &mut self.ring
            && ring.commit().is_needed()
        {
            self.signal(counters);
        }
    }

    /// Whether what is sent goes straight into the ring.
    #[inline]
    fn may_write(&self) -> bool {
        self.queue.is_empty() && self.flowing
    }

    /// Writes one packet, if nothing waits in front of it: `Ok(false)` if it has to wait.
    ///
    /// All that comes and goes here does so in registers: a result with an error in it, or a header, would go through memory.
    fn try_write(&mut self, kind: Kind, id: u64, payload: &[u8], counters: &LiveCounters) -> Result<bool, Failed> {
        if !self.may_write() {
            return Ok(false);
        }
        let Some(ring) = &mut self.ring else {
            return Ok(false);
        };
        match ring.send(kind.header(id), payload) {
            Ok(()) => {
                count_sent(counters, payload.len());
                if ring.commit_here().is_needed() {
                    self.signal(counters);
                }
                Ok(true)
            }
            Err(error) => self.not_written(&error, payload.len(), counters),
        }
    }

    /// The same for a request in the table that lends memory.
    #[inline(never)]
    fn try_write_lending(&mut self, id: RequestId, payload: &[u8], counters: &LiveCounters) -> Result<bool, Failed> {
        if !self.may_write() {
            return Ok(false);
        }
        let lent = self.table.get_mut(id).and_then(|request| request.body.lent.as_ref());
        let (Some(ring), Some(lent)) = (&mut self.ring, lent) else {
            return Ok(false);
        };
        match write_lending(ring, Header::gpa_direct(id.0), payload, lent) {
            Ok(()) => {
                count_sent(counters, payload.len());
                self.commit(counters);
                Ok(true)
            }
            Err(error) => self.not_written(&error, payload.len(), counters),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_written(&mut self, error: &WriteError, len: usize, counters: &LiveCounters) -> Result<bool, Failed> {
        if let WriteError::Full { .. } = error {
            return Ok(false);
        }
        self.failure = Some(self.fail(error, len, counters));
        Err(Failed)
    }

    /// Returns why the last packet was not written.
    #[cold]
    fn failure(&mut self) -> Error {
        self.failure.take().unwrap_or(Error::Corrupt)
    }

    fn fail(&mut self, error: &WriteError, len: usize, counters: &LiveCounters) -> Error {
        match error {
            WriteError::TooLarge { limit, .. } => Error::PacketTooLarge {
                len,
                limit: *limit as usize,
            },
            WriteError::PageList { .. } => Error::InvalidExternalData { len, ranges: 0 },
            _ => {
                self.break_ring(counters);
                Error::Corrupt
            }
        }
    }

    /// The peer broke the ring: whoever processes next ends the channel, and that is soon.
    #[cold]
    fn break_ring(&mut self, counters: &LiveCounters) {
        self.broken = true;
        self.note_work(counters);
        self.schedule();
    }

    /// Has `process` run soon.
    fn schedule(&self) {
        if let Some(transport) = &self.transport {
            transport.schedule();
        }
    }

    fn may_queue(&self, counters: &LiveCounters) -> bool {
        add_alone(&counters.ring_full, 1);
        self.queue.len() < self.queue.capacity()
    }

    fn queue_up(&mut self, queued: Queued<C>) {
        let kept = self.queue.push_back_within(queued);
        debug_assert!(
            kept.is_ok(),
            "there is room for some packets of ours, and for each of the peer's"
        );
    }

    /// After something was put in line: has the peer tell when there is room.
    fn watch_room(&mut self, counters: &LiveCounters) {
        // Before the peer is told: its signal may come before this returns, and who comes for it has to look here.
        counters.outgoing_work.store(true, Ordering::Release);
        if self.queue.len() == 1 {
            self.flush(counters);
            if self.has_placed() {
                // There was room after all, and no signal will say so.
                self.schedule();
            }
        }
        self.note_work(counters);
    }

    /// Sends a packet that waits for its completion; on an error the packet comes back.
    #[inline]
    pub(crate) fn send_request(
        &mut self,
        body: PacketMemory<C>,
        waiter: Waiter,
        payload: &[u8],
        if_full: IfFull,
        counters: &LiveCounters,
    ) -> Result<RequestId, (Error, PacketMemory<C>)> {
        let lends = body.lent.is_some();
        let id = match self.table.insert(InFlight { body, waiter }) {
            Ok(id) => id,
            Err(InFlight { body, .. }) => {
                add(&counters.refused, 1);
                return Err((Error::TooManyPackets, body));
            }
        };
        add_alone(&counters.outgoing_outstanding, 1);
        let written = if lends {
            self.try_write_lending(id, payload, counters)
        } else {
            self.try_write(Kind::REQUEST, id.0, payload, counters)
        };
        match written {
            Ok(true) => Ok(id),
            written => self.request_is_not_written(id, written.is_ok(), payload, if_full, counters),
        }
    }

    /// Puts a request that is in the table in line, if there is to be one and it may wait there; otherwise takes it back.
    #[inline(never)]
    fn request_is_not_written(
        &mut self,
        id: RequestId,
        may_wait: bool,
        payload: &[u8],
        if_full: IfFull,
        counters: &LiveCounters,
    ) -> Result<RequestId, (Error, PacketMemory<C>)> {
        let error = if !may_wait {
            self.failure()
        } else if let Some(why) = self.closed {
            // It has ended since the caller looked.
            why.into()
        } else if if_full == IfFull::Queue && self.may_queue(counters) {
            if let Some(InFlight { body, .. }) = self.table.get_mut(id) {
                body.keep(payload);
            }
            self.queue_up(Queued::Request(id));
            self.watch_room(counters);
            return Ok(id);
        } else {
            Error::RingFull
        };
        // It was put there just now.
        match self.take_sent(id, counters) {
            Some(InFlight { body, .. }) => Err((error, body)),
            None => Ok(id),
        }
    }

    /// Sends a packet that waits for nothing. It comes back when it is in the ring: at once (`Ok(Some)`), or later through
    /// `placed` or the pool.
    pub(crate) fn send_notice(
        &mut self,
        mut body: PacketMemory<C>,
        payload: &[u8],
        if_full: IfFull,
        counters: &LiveCounters,
    ) -> Result<Option<PacketMemory<C>>, (Error, PacketMemory<C>)> {
        // Once it is in the ring; it may have been sent before, and failed.
        body.outcome = Ok(0);
        match self.try_write(Kind::NOTICE, 0, payload, counters) {
            Ok(true) => Ok(Some(body)),
            Ok(false) if let Some(why) = self.closed => Err((why.into(), body)),
            Ok(false) if if_full == IfFull::Refuse || !self.may_queue(counters) => Err((Error::RingFull, body)),
            Ok(false) => {
                body.keep(payload);
                self.queue_up(Queued::Notice(body));
                self.watch_room(counters);
                Ok(None)
            }
            Err(Failed) => Err((self.failure(), body)),
        }
    }

    /// Writes a packet that waits for nothing and needs no packet object: `Ok(false)` if it has to wait.
    pub(crate) fn try_send(&mut self, payload: &[u8], counters: &LiveCounters) -> Result<bool, Error> {
        self.try_write(Kind::NOTICE, 0, payload, counters)
            .map_err(|Failed| self.failure())
    }

    /// Writes any packet at once: `Ok(false)` if the ring has no room now.
    pub(crate) fn try_send_raw(
        &mut self,
        header: Header,
        pieces: &[&[u8]],
        external: crate::ring::ExternalToSend<'_>,
        counters: &LiveCounters,
    ) -> Result<bool, Error> {
        if !self.may_write() {
            return Ok(false);
        }
        let Some(ring) = &mut self.ring else {
            return Ok(false);
        };
        let len = pieces.iter().map(|piece| piece.len()).sum();
        match ring.write(&crate::ring::PacketToSend {
            header,
            external,
            pieces,
        }) {
            Ok(()) => {
                count_sent(counters, len);
                self.commit(counters);
                Ok(true)
            }
            Err(error) => self.not_written(&error, len, counters).map_err(|Failed| self.failure()),
        }
    }

    /// Answers an incoming packet, if the peer asked for that. Its memory comes back at once, or, if the answer has to wait in
    /// line, goes to the receiving side behind it.
    pub(crate) fn complete(&mut self, mut body: Slot, answer: &[u8], counters: &LiveCounters) -> Option<Slot> {
        if body.wants_completion
            && let Ok(false) = self.try_write(Kind::COMPLETION, body.transaction_id, answer, counters)
            && (self.ring.is_some() || !self.flowing)
        {
            add_alone(&counters.ring_full, 1);
            body.keep(answer);
            self.queue_up(Queued::Completion(body, answer.len()));
            self.watch_room(counters);
            return None;
        }
        // Sent; or nobody is there to read it.
        Some(body)
    }

    /// Keeps memory for the receiving side.
    pub(crate) fn return_slot(&mut self, body: Slot) {
        let kept = self.returned.push_within(body);
        debug_assert!(kept.is_ok(), "slots come back once");
    }

    /// Returns the memory that is to go back to the receiving side.
    pub(crate) const fn returned(&mut self) -> &mut Vec<Slot> {
        &mut self.returned
    }

    /// Says whether the receiving side waits for a completion.
    pub(crate) const fn set_reader_waits(&mut self, waits: bool) {
        self.reader_waits = waits;
    }

    /// Returns true if it does and has not been told of one: to be told now.
    pub(crate) const fn wake_reader(&mut self) -> bool {
        core::mem::replace(&mut self.reader_waits, false)
    }

    /// The channel has ended: it is kept only as long as its packets are out.
    pub(crate) fn is_over(&mut self, counters: &LiveCounters) -> Option<Shared<Core<C>>> {
        self.is_over = true;
        self.keeper_if_all_is_home(counters)
    }

    /// Returns what keeps the channel, once it has ended and no packet is out. To be dropped outside the lock.
    #[inline]
    pub(crate) fn keeper_if_all_is_home(&mut self, counters: &LiveCounters) -> Option<Shared<Core<C>>> {
        if self.is_over && self.pool.len() == self.packets as usize && counters.indicated() == 0 {
            self.keeper.take()
        } else {
            None
        }
    }

    /// Sends what waits in line, as far as there is room. The peer is told what is waited for.
    pub(crate) fn flush(&mut self, counters: &LiveCounters) {
        self.send_line(counters);
        self.note_work(counters);
    }

    fn send_line(&mut self, counters: &LiveCounters) {
        while self.flowing {
            let (Some(ring), Some(first)) = (&mut self.ring, self.queue.front()) else {
                break;
            };
            let packet = match first {
                Queued::Request(id) => self.table.get_mut(*id).map(|InFlight { body, .. }| {
                    let header = request_header(body, *id);
                    (header, body.kept(), body.lent.as_ref())
                }),
                Queued::Notice(body) => Some((Header::in_band(0), body.kept(), None)),
                Queued::Completion(body, len) => Some((Header::completion(body.transaction_id), body.kept(*len), None)),
            };
            let result = packet.map_or(Ok(()), |(header, payload, lent)| {
                write(ring, header, payload, lent, counters)
            });
            match result {
                Ok(()) => self.first_is_written(),
                Err(WriteError::Full { needed }) => {
                    // What was written must be visible before we say that we wait.
                    self.commit(counters);
                    match self.ring.as_mut().map(|ring| ring.wait_for_room(needed)) {
                        Some(Ok(Room::Available)) => {}
                        Some(Ok(Room::Awaited)) | None => return,
                        Some(Err(_)) => {
                            self.break_ring(counters);
                            return;
                        }
                    }
                }
                Err(error) => {
                    // Sizes were checked when the packet came, so this is the ring.
                    log::warn!(target: "vmbus::kmcl", "a packet in line cannot be sent: {error}");
                    self.break_ring(counters);
                    return;
                }
            }
        }
        self.commit(counters);
        self.let_others_wait();
    }

    /// The first in line is in the ring.
    fn first_is_written(&mut self) {
        match self.queue.pop_front() {
            Some(Queued::Request(id)) => {
                if let Some(request) = self.table.get_mut(id) {
                    request.body.in_line = false;
                }
            }
            Some(Queued::Notice(body)) => self.put_placed(body),
            Some(Queued::Completion(body, _)) => self.return_slot(body),
            None => {}
        }
    }

    /// Has the peer tell when there is room for a payload of `len` bytes, for somebody who waits without standing in line.
    pub(crate) fn await_room(&mut self, len: usize) {
        if let Some(ring) = &mut self.ring
            && self.queue.is_empty()
            && let Ok(needed) = u32::try_from(len.saturating_add(7 + 24) & !7)
        {
            self.least_room = self.least_room.min(needed);
            // Who waits for less has looked as well, if that is there. Errors are met again by the next attempt to write.
            if let Ok(Room::Available) = ring.wait_for_room(self.least_room) {
                let _ = ring.wait_for_room(needed);
            }
        }
    }

    /// Somebody is going to wait for room without standing in line, until [`stop_waiting`](Self::stop_waiting).
    pub(crate) const fn begin_waiting(&mut self) {
        self.waiting = self.waiting.saturating_add(1);
    }

    /// One of them does not wait any more.
    pub(crate) fn stop_waiting(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.queue.is_empty() {
            self.let_others_wait();
        }
    }

    /// Has the peer tell when there is room for those who wait without standing in line, if there are any: others may have asked for
    /// something else meanwhile.
    fn let_others_wait(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if self.waiting == 0 {
            self.least_room = u32::MAX;
            ring.stop_waiting();
        } else if !matches!(ring.wait_for_room(self.least_room), Ok(Room::Awaited)) {
            // There is room already, and no signal will say so.
            self.schedule();
        }
    }

    /// Makes room in line for the completions of so many incoming packets.
    pub(crate) fn reserve_completions(&mut self, completions: u32) -> Result<(), OutOfMemory> {
        let line = line_len(self.packets, completions);
        self.queue
            .try_reserve_exact(line.saturating_sub(self.queue.len()))
            .map_err(|_| OutOfMemory)?;
        self.returned
            .try_reserve_exact((completions as usize).saturating_sub(self.returned.len()))
            .map_err(|_| OutOfMemory)
    }

    /// Tells those who process whether there is something to do here.
    fn note_work(&self, counters: &LiveCounters) {
        let is_work = !self.queue.is_empty() || self.has_placed() || self.broken || self.has_returned_for_reader();
        counters.outgoing_work.store(is_work, Ordering::Release);
    }

    /// Returns true if something waits in line.
    pub(crate) fn has_line(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Returns true if packets that went out late are to be collected.
    pub(crate) const fn has_placed(&self) -> bool {
        !self.placed.is_empty()
    }

    /// Returns true if the receiving side may read on, with memory that came back behind what had waited in line. Told once: whether
    /// that helped, the next look at the ring finds out.
    pub(crate) const fn take_returned_for_reader(&mut self) -> bool {
        let is_there = self.has_returned_for_reader();
        self.reader_waits &= !is_there;
        is_there
    }

    const fn has_returned_for_reader(&self) -> bool {
        self.reader_waits && !self.returned.is_empty()
    }

    /// Returns what the peer did to break the ring, if it did.
    pub(crate) fn fault(&self) -> Option<Corruption> {
        self.ring.as_ref().and_then(Producer::fault)
    }

    /// Takes the next packet that went out late.
    pub(crate) fn take_placed(&mut self, counters: &LiveCounters) -> Option<PacketMemory<C>> {
        let next = self.placed.pop();
        self.note_work(counters);
        next
    }

    /// Takes note that a packet goes out; false if too many of the caller's own are on their way.
    pub(crate) fn count(&mut self, body: &mut PacketMemory<C>, counters: &LiveCounters) -> bool {
        if body.of_pool {
            return true;
        }
        if self.callers >= self.packets {
            add(&counters.refused, 1);
            return false;
        }
        self.callers = self.callers.wrapping_add(1);
        body.is_counted = true;
        true
    }

    /// Takes note that a packet is not on its way any more.
    pub(crate) fn discount(&mut self, body: &mut PacketMemory<C>) {
        if core::mem::take(&mut body.is_counted) {
            self.callers = self.callers.saturating_sub(1);
        }
    }

    /// Has the packet's routine called by whoever processes.
    pub(crate) fn hand_back(&mut self, body: PacketMemory<C>, counters: &LiveCounters) {
        self.put_placed(body);
        self.note_work(counters);
    }

    fn put_placed(&mut self, body: PacketMemory<C>) {
        let kept = self.placed.push_within(body);
        debug_assert!(kept.is_ok(), "reserved for all packets");
    }

    /// Puts a packet back among the free ones; one in the caller's memory is returned.
    pub(crate) fn put_back(&mut self, mut body: PacketMemory<C>) -> Option<PacketMemory<C>> {
        self.discount(&mut body);
        if !body.of_pool {
            return Some(body);
        }
        body.reset();
        self.pool.push_within(body).err()
    }

    /// Takes a request out of the table that does not stand in line.
    #[inline]
    pub(crate) fn take_sent(&mut self, id: RequestId, counters: &LiveCounters) -> Option<InFlight<C>> {
        let request = self.table.take(id)?;
        subtract_alone(&counters.outgoing_outstanding, 1);
        Some(request)
    }

    /// Takes a request out of table and line; `counters` know it no more.
    #[inline]
    pub(crate) fn take_request(&mut self, id: RequestId, counters: &LiveCounters) -> Option<InFlight<C>> {
        let request = self.table.take(id)?;
        subtract_alone(&counters.outgoing_outstanding, 1);
        if request.body.in_line {
            let is_it = |queued: &Queued<C>| matches!(queued, Queued::Request(other) if *other == id);
            let place = self.queue.iter().position(is_it);
            place.map(|place| self.queue.remove(place));
        }
        Some(request)
    }

    /// The channel ends: what waits in line will not be sent, and its routines are told why. Requests stay in the table for their
    /// owners to be told.
    pub(crate) fn drop_queue(&mut self, why: Gone) {
        while let Some(first) = self.queue.front_mut() {
            match first {
                Queued::Notice(body) => body.outcome = Err(why.into()),
                Queued::Request(_) => {
                    // It still says of itself that it was in line: the peer has not seen it.
                    self.queue.pop_front();
                    continue;
                }
                Queued::Completion(..) => {}
            }
            self.first_is_written();
        }
    }
}

const fn request_header<C: Context>(body: &Body<C>, id: RequestId) -> Header {
    Header {
        packet_type: body.packet_type(),
        flags: PacketFlags::COMPLETION_REQUESTED,
        transaction_id: id.0,
    }
}

fn count_sent(counters: &LiveCounters, len: usize) {
    add_alone(&counters.packets_sent, 1);
    add_alone(&counters.bytes_sent, len as u64);
}

/// Writes one packet to the ring, not yet visible.
#[inline(always)]
fn write(
    ring: &mut Producer<RingPages>,
    header: Header,
    payload: &[u8],
    lent: Option<&Lent>,
    counters: &LiveCounters,
) -> Result<(), WriteError> {
    match lent {
        None => ring.send(header, payload)?,
        Some(lent) => write_lending(ring, header, payload, lent)?,
    }
    count_sent(counters, payload.len());
    Ok(())
}

#[inline(never)]
fn write_lending(
    ring: &mut Producer<RingPages>,
    header: Header,
    payload: &[u8],
    lent: &Lent,
) -> Result<(), WriteError> {
    debug_assert_eq!(header.packet_type, PacketType::GPA_DIRECT);
    let mut reservation = ring.reserve(header, lent.list_len(), payload.len())?;
    lent.write(&mut reservation)?;
    reservation.write(payload)?;
    reservation.finish();
    Ok(())
}
