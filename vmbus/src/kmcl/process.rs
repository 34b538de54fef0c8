//! Delivery: [`Core::process`] reads the ring and calls the driver, one callback at a time; [`Core::absorb`] only reads.

use core::sync::atomic::Ordering;
use core::task::Waker;

use super::counters::{add, add_alone};
use super::endpoint::{Core, Phase};
use super::gate::Inside;
use super::incoming::IncomingPacket;
use super::outgoing::InFlight;
use super::packet::{OutgoingPacket, PacketMemory, Waiter};

use super::receive::{Incoming, Read, Ready};
use super::settings::gone_code;
use super::slab::RequestId;
use super::transport::RingPages;
use super::{Channel, Context, Error, Gone, Level};
use crate::ring::Peek;
use crate::sync::LockGuard;

/// After this many packets in a row the peer is asked not to signal until the batch ends.
const MASK_AFTER: u32 = 4;

/// A batch ends after this many packets, and goes on in the next `process`.
const BATCH_LIMIT: u32 = 1024;

/// What a look at the ring brought.
enum Found<C: Context> {
    Ready(Ready<C>),
    /// A completion that went to its task or to nobody.
    Handled(Option<Waker>),
    /// No more; whether to look again, and whether packets are held back.
    Nothing {
        again: bool,
        held: bool,
    },
}

impl<C: Context> Core<C> {
    /// Delivers what there is: packets to the packet callback, completions to routines. If another one is doing that, it is
    /// told to look again.
    pub(crate) fn process(channel: &Channel<C>, level: Level) {
        let this = channel.core();
        let task = this.platform.current_task();
        loop {
            let Some(entered) = this.gate.enter(task, Inside::Callback) else {
                return;
            };
            this.run_down_if_ending(channel);
            this.batch(channel, level);
            this.run_down_if_ending(channel);
            drop(entered);
            if !this.gate.has_note() {
                return;
            }
        }
    }

    /// Whether packets may be delivered at this level.
    fn may_deliver(&self, level: Level) -> bool {
        self.phase() == Phase::Running && (level == Level::Passive || !self.at_passive.load(Ordering::Relaxed))
    }

    fn batch(&self, channel: &Channel<C>, level: Level) {
        let (mut processed, mut taken) = (0_u32, 0_u32);
        let waiting = loop {
            let may_deliver = self.may_deliver(level);
            match self.next(level, may_deliver) {
                Found::Ready(Ready::Packet(body)) => {
                    processed = processed.wrapping_add(1);
                    add_alone(&self.counters.packets_processed, 1);
                    let mut body = body;
                    body.level = level;
                    let packet = IncomingPacket::new(body, channel.uncounted());
                    match &self.callbacks.process_packet {
                        Some(callback) => callback(channel, packet),
                        // Completed empty, and counted, by being dropped.
                        None => drop(packet),
                    }
                }
                Found::Ready(Ready::Completed(body, result)) => Self::call_routine(channel, body, result),
                Found::Handled(waker) => {
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Found::Nothing { again: true, .. } => {}
                Found::Nothing { held, .. } => break held,
            }
            taken = taken.wrapping_add(1);
            if taken == BATCH_LIMIT {
                // A peer that never stops does not keep others from their turn.
                let _ = self.end_of_reading(self.incoming.lock(self.platform));
                self.reschedule();
                break false;
            }
            if taken == MASK_AFTER {
                let incoming = &mut *self.incoming.lock(self.platform);
                if let Some(ring) = &mut incoming.ring {
                    ring.mask();
                    incoming.masked = true;
                }
            }
        };
        if processed > 0
            && let Some(callback) = &self.callbacks.processing_complete
        {
            callback(channel, processed);
        }
        if waiting && level != Level::Passive {
            self.wake_passive(channel);
        }
    }

    /// Calls the routines of all packets that are completed.
    pub(crate) fn deliver_routines(&self, channel: &Channel<C>) {
        loop {
            let next = self.incoming.lock(self.platform).next_completed();
            match next {
                Some(Ready::Completed(body, result)) => Self::call_routine(channel, body, result),
                _ => return,
            }
        }
    }

    fn wake_passive(&self, channel: &Channel<C>) {
        if self.phase() == Phase::Running {
            self.passive_pending.store(true, Ordering::Release);
            if let Some(callback) = &self.callbacks.passive_wake {
                callback(channel);
            }
        }
    }

    /// Hands a packet back: to its routine, or to the pool if it has none.
    fn call_routine(channel: &Channel<C>, mut body: PacketMemory<C>, result: Result<usize, Error>) {
        let Some(routine) = body.routine else {
            channel.core().free_packet(body);
            return;
        };
        if body.is_counted {
            let core = channel.core();
            core.outgoing.lock(core.platform).discount(&mut body);
        }
        let status = body.settle(result);
        routine(channel, OutgoingPacket::new(body, channel.uncounted()), status);
    }

    /// Gives the room of what was read back, and sends what waits in line.
    fn end_of_reading(&self, mut incoming: LockGuard<'_, Incoming<C>>) -> Found<C> {
        let held = incoming.held > 0 && !incoming.stopped;
        let masked = core::mem::take(&mut incoming.masked);
        let (signal, more) = match &mut incoming.ring {
            None => (false, false),
            Some(ring) if masked => ring
                .unmask()
                .map_or((false, false), |found| (found.signal.is_needed(), found.more)),
            Some(ring) => (ring.commit().is_needed(), false),
        };
        let more = more && !incoming.blocked;
        drop(incoming);
        let again = (signal || self.counters.outgoing_work.load(Ordering::Acquire)) && self.outgoing_work(signal);
        Found::Nothing {
            again: more || again,
            held,
        }
    }

    /// Signals, sends what waits in line, and takes packets that went out; true if routines are to be called for these.
    fn outgoing_work(&self, signal: bool) -> bool {
        let mut outgoing = self.outgoing.lock(self.platform);
        if signal {
            outgoing.signal(&self.counters);
        }
        if outgoing.has_line() {
            outgoing.flush(&self.counters);
        }
        let placed = outgoing.has_placed();
        let broken = outgoing.broken;
        drop(outgoing);
        if placed {
            self.collect_placed();
        }
        if broken {
            self.end(Gone::Corrupt);
        }
        placed
    }

    /// Takes the next thing: first what is ready, then from the ring. Without `packets`, packets are put in line.
    fn next(&self, level: Level, packets: bool) -> Found<C> {
        let mut incoming = self.incoming.lock(self.platform);
        let packets = packets && !incoming.stopped;
        if !incoming.ready.is_empty()
            && let Some(ready) = incoming.next_ready(level, packets)
        {
            if let Ready::Packet(_) = ready {
                self.indicate(&mut incoming);
            }
            return Found::Ready(ready);
        }
        loop {
            // Nothing overtakes a packet that stands ready and may not be delivered.
            let deliver = packets && incoming.held == 0;
            match incoming.read(&self.counters) {
                Read::Packet(body) if deliver => {
                    self.indicate(&mut incoming);
                    return Found::Ready(Ready::Packet(body));
                }
                Read::Packet(body) => {
                    incoming.held = incoming.held.wrapping_add(1);
                    incoming.make_ready(Ready::Packet(body));
                }
                Read::Completion(id, peek) => match self.completion(id, peek) {
                    Settled::Routine(request, len) => {
                        return Found::Ready(Ready::Completed(request.body, Ok(len)));
                    }
                    Settled::Task(waker) => return Found::Handled(waker),
                    Settled::Dropped(request) => {
                        drop(incoming);
                        if let Some(request) = request {
                            self.free_packet(request.body);
                        }
                        return Found::Handled(None);
                    }
                },
                Read::Empty | Read::NoSlot => return self.end_of_reading(incoming),
                Read::Corrupt(corruption) => {
                    drop(incoming);
                    return self.corrupt(corruption);
                }
            }
        }
    }

    fn indicate(&self, incoming: &mut Incoming<C>) {
        incoming.indicated = incoming.indicated.wrapping_add(1);
        add_alone(&self.counters.incoming_outstanding, 1);
    }

    fn corrupt(&self, corruption: impl core::fmt::Display) -> Found<C> {
        if self.ending.load(Ordering::Relaxed) == 0 {
            log::warn!(target: "vmbus::kmcl", "{}: the peer broke the ring: {corruption}", self.settings.name.as_str());
        }
        self.end(Gone::Corrupt);
        Found::Nothing {
            again: false,
            held: false,
        }
    }

    /// The channel ends, for this reason unless it ends already; the next `process` or wait runs it down.
    pub(crate) fn end(&self, why: Gone) {
        let first = self
            .ending
            .compare_exchange(0, gone_code(why), Ordering::AcqRel, Ordering::Acquire);
        // Once: a broken ring is met again by each look at it.
        if first.is_ok() {
            self.gate.leave_note();
        }
    }

    /// Reads the ring without delivering anything: completions go to those who wait, all else is put in line.
    ///
    /// What is put in line needs a `process` of its own: the peer's signal for it may have been taken by one that found the ring
    /// empty, and with all slots in line the peer has no reason to signal again.
    pub(crate) fn absorb(&self) {
        let mut has_lined_up = false;
        loop {
            let mut incoming = self.incoming.lock(self.platform);
            let (waker, freed) = match incoming.read(&self.counters) {
                Read::Packet(body) => {
                    incoming.held = incoming.held.wrapping_add(1);
                    incoming.make_ready(Ready::Packet(body));
                    has_lined_up = true;
                    (None, None)
                }
                Read::Completion(id, peek) => match self.completion(id, peek) {
                    Settled::Routine(request, len) => {
                        incoming.make_ready(Ready::Completed(request.body, Ok(len)));
                        has_lined_up = true;
                        (None, None)
                    }
                    Settled::Task(waker) => (waker, None),
                    Settled::Dropped(request) => (None, request),
                },
                Read::Empty | Read::NoSlot => {
                    if !incoming.ready.is_empty() {
                        self.gate.leave_note();
                    }
                    // More has come while the peer was not to signal.
                    if let Found::Nothing { again: true, .. } = self.end_of_reading(incoming) {
                        continue;
                    }
                    if has_lined_up {
                        self.reschedule();
                    }
                    return;
                }
                Read::Corrupt(corruption) => {
                    drop(incoming);
                    let _ = self.corrupt(corruption);
                    return;
                }
            };
            drop(incoming);
            if let Some(waker) = waker {
                waker.wake();
            }
            if let Some(request) = freed {
                self.free_packet(request.body);
            }
        }
    }

    /// Settles the request that a completion names. The completion is copied out of the ring, once, to the packet's memory.
    fn completion(&self, id: RequestId, peek: Peek<'_, RingPages>) -> Settled<C> {
        let len = peek.payload_len() as usize;
        let mut outgoing = self.outgoing.lock(self.platform);
        let known = match outgoing.table.get_mut(id) {
            // Not sent yet, or completed already: the peer guesses.
            Some(request) if request.body.in_line || matches!(request.waiter, Waiter::Done(_)) => None,
            request => request,
        };
        let Some(request) = known else {
            drop(outgoing);
            peek.skip();
            add(&self.counters.unknown_completions, 1);
            return Settled::Dropped(None);
        };
        if matches!(request.waiter, Waiter::Nobody) {
            peek.skip();
            add(&self.counters.late_completions, 1);
            return Settled::Dropped(outgoing.take_request(id, &self.counters));
        }
        let memory = request.body.memory();
        let kept = len.min(memory.len());
        if let Some(target) = memory.get_mut(..kept) {
            // It lies inside the payload, so this copies.
            let _ = peek.load_payload(0, target);
        }
        peek.skip();
        match &mut request.waiter {
            Waiter::Task(waker) => {
                let waker = waker.take();
                request.waiter = Waiter::Done(Ok(len));
                Settled::Task(waker)
            }
            _ => outgoing
                .take_request(id, &self.counters)
                .map_or(Settled::Dropped(None), |request| Settled::Routine(request, len)),
        }
    }

    /// Ends all requests with an error; the peer has given up their memory.
    pub(crate) fn fail_requests(&self, why: Gone) {
        loop {
            let mut outgoing = self.outgoing.lock(self.platform);
            let Some(id) = outgoing
                .table
                .find(|request| !matches!(request.waiter, Waiter::Done(_)))
            else {
                break;
            };
            match outgoing.table.get_mut(id).map(|request| &mut request.waiter) {
                Some(waiter @ Waiter::Task(_)) => {
                    let waker = match core::mem::replace(waiter, Waiter::Done(Err(why.into()))) {
                        Waiter::Task(waker) => waker,
                        _ => None,
                    };
                    drop(outgoing);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                _ => {
                    let Some(request) = outgoing.take_request(id, &self.counters) else {
                        continue;
                    };
                    drop(outgoing);
                    match request.waiter {
                        Waiter::Routine if request.body.routine.is_some() => {
                            let ready = Ready::Completed(request.body, Err(why.into()));
                            self.incoming.lock(self.platform).make_ready(ready);
                        }
                        _ => self.free_packet(request.body),
                    }
                }
            }
        }
    }
}

/// Whose a completion was.
enum Settled<C: Context> {
    /// A routine's; so many bytes.
    Routine(InFlight<C>, usize),
    /// A task's, which is to be woken.
    Task(Option<Waker>),
    /// Nobody's; a cancelled request ends with it.
    Dropped(Option<InFlight<C>>),
}
