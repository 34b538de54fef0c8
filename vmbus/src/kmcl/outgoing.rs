//! The sending side of a channel, behind its lock: [`Outgoing`].
//!
//! A packet goes straight into the ring if nothing waits in front of it and there is room; otherwise it waits in line, in
//! memory that was reserved for it: a packet object's own, or, for a completion, that of the packet that it answers. What
//! the peer has room for is sent in order, requests and completions alike.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use super::counters::{LiveCounters, add, add_alone, subtract_alone};
use super::endpoint::Core;
use super::packet::{PacketMemory, Waiter};
use super::receive::Slot;
use super::slab::{RequestId, Slab};
use super::transport::{RingPages, Transport};
use super::{Context, Error, Gone};
use crate::fallible::{OutOfMemory, Shared};
use crate::ring::{Corruption, Header, Producer, Room, WriteError};

mod line;
mod returned;
mod stock;
#[cfg(test)]
#[cfg(feature = "host")]
mod tests;
mod write;

use line::{Line, Queued};
use returned::Returned;
use stock::Stock;
use write::{Kind, count_sent, request_header, write, write_lending};

/// A request that waits for its completion: its packet, and who waits.
pub(crate) struct InFlight<C: Context> {
    pub(crate) body: PacketMemory<C>,
    pub(crate) waiter: Waiter,
}

/// What to do if the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfFull {
    Queue,
    Refuse,
}

/// A packet was not written, and never will be.
struct Failed;

/// The sending side.
pub(crate) struct Outgoing<C: Context> {
    /// None while the channel is not open.
    pub(crate) ring: Option<Producer<RingPages>>,
    pub(crate) transport: Option<Shared<Box<dyn Transport>>>,
    /// False until the driver's started callback has returned: everything waits in line until then.
    pub(crate) flowing: bool,
    pub(crate) table: Slab<InFlight<C>>,
    pub(crate) stock: Stock<C>,
    line: Line<C>,
    pub(crate) returned: Returned,
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
        Ok(Self {
            ring: None,
            transport: None,
            flowing: false,
            table: Slab::new(packets)?,
            stock: Stock::new(packets)?,
            line: Line::with_room(line_len(packets, completions))?,
            returned: Returned::new(completions)?,
            keeper: None,
            is_over: false,
            closed: None,
            waiting: 0,
            least_room: u32::MAX,
            broken: false,
            failure: None,
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
        self.line.is_empty() && self.flowing
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
        // Once: each look meets it again, those of a channel that is only waiting to be closed, too.
        if core::mem::replace(&mut self.broken, true) {
            return;
        }
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
        self.line.has_room()
    }

    /// After something was put in line: has the peer tell when there is room.
    fn watch_room(&mut self, counters: &LiveCounters) {
        // Before the peer is told: its signal may come before this returns, and who comes for it has to look here.
        counters.outgoing_work.store(true, Ordering::Release);
        if self.line.len() == 1 {
            self.flush(counters);
            if self.stock.has_placed() {
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
            self.line.join(Queued::Request(id));
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
                self.line.join(Queued::Notice(body));
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
            self.line.join(Queued::Completion(body, answer.len()));
            self.watch_room(counters);
            return None;
        }
        // Sent; or nobody is there to read it.
        Some(body)
    }

    /// The channel has ended: it is kept only as long as its packets are out.
    pub(crate) fn is_over(&mut self, counters: &LiveCounters) -> Option<Shared<Core<C>>> {
        self.is_over = true;
        self.keeper_if_all_is_home(counters)
    }

    /// Returns what keeps the channel, once it has ended and no packet is out. To be dropped outside the lock.
    #[inline]
    pub(crate) fn keeper_if_all_is_home(&mut self, counters: &LiveCounters) -> Option<Shared<Core<C>>> {
        if self.is_over && self.stock.is_whole() && counters.indicated() == 0 {
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
            let (Some(ring), Some(first)) = (&mut self.ring, self.line.first()) else {
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
        match self.line.take_first() {
            Some(Queued::Request(id)) => {
                if let Some(request) = self.table.get_mut(id) {
                    request.body.in_line = false;
                }
            }
            Some(Queued::Notice(mut body)) => {
                // Its routine may send it again, as a request that does not wait here.
                body.in_line = false;
                self.stock.put_placed(body);
            }
            Some(Queued::Completion(body, _)) => self.returned.put(body),
            None => {}
        }
    }

    /// Has the peer tell when there is room for a payload of `len` bytes, for somebody who waits without standing in line.
    pub(crate) fn await_room(&mut self, len: usize) {
        if let Some(ring) = &mut self.ring
            && self.line.is_empty()
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
        if self.line.is_empty() {
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
        self.line.reserve(line_len(self.stock.packets(), completions))?;
        self.returned.reserve(completions)
    }

    /// Tells those who process whether there is something to do here.
    fn note_work(&self, counters: &LiveCounters) {
        let is_work = !self.line.is_empty() || self.stock.has_placed() || self.broken || self.returned.has_news();
        counters.outgoing_work.store(is_work, Ordering::Release);
    }

    /// Returns true if something waits in line.
    pub(crate) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Returns what the peer did to break the ring, if it did.
    pub(crate) fn fault(&self) -> Option<Corruption> {
        self.ring.as_ref().and_then(Producer::fault)
    }

    /// Takes the next packet that went out late.
    pub(crate) fn take_placed(&mut self, counters: &LiveCounters) -> Option<PacketMemory<C>> {
        let next = self.stock.take_placed();
        self.note_work(counters);
        next
    }

    /// Has the packet's routine called by whoever processes.
    pub(crate) fn hand_back(&mut self, body: PacketMemory<C>, counters: &LiveCounters) {
        self.stock.put_placed(body);
        self.note_work(counters);
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
        let mut request = self.table.take(id)?;
        subtract_alone(&counters.outgoing_outstanding, 1);
        // Its packet may be sent again, and does not wait then.
        if request.body.in_line {
            request.body.in_line = false;
            self.line.remove(id);
        }
        Some(request)
    }

    /// The channel ends: what waits in line will not be sent, and its routines are told why. Requests stay in the table for their
    /// owners to be told.
    pub(crate) fn drop_queue(&mut self, why: Gone) {
        while let Some(first) = self.line.first_mut() {
            match first {
                Queued::Notice(body) => body.outcome = Err(why.into()),
                Queued::Request(_) => {
                    // It still says of itself that it was in line: the peer has not seen it.
                    self.line.take_first();
                    continue;
                }
                Queued::Completion(..) => {}
            }
            self.first_is_written();
        }
    }
}
