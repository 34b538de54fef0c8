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
use super::{Channel, Context, Gone, Level};
use crate::ring::Peek;
use crate::sync::LockGuard;

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// After this many packets in a row the peer is asked not to signal until the batch ends.
const MASK_AFTER: u32 = 4;

/// A batch ends after this many packets, and goes on in the next `process`.
const BATCH_LIMIT: u32 = 1024;

/// What a look at the ring brought.
enum Found<C: Context> {
    Ready(Ready<C>),
    /// A completion that went to its task or to nobody.
    Handled(Option<Waker>),
    /// No more.
    Nothing(End),
}

/// How the reading of the ring ended.
#[derive(Clone, Copy)]
struct End {
    /// Look again.
    again: bool,
    /// Packets are held back.
    held: bool,
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
            if !entered.leave() {
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
            let (found, is_last) = self.next(level, may_deliver);
            match found {
                Found::Ready(Ready::Packet(mut body)) => {
                    processed = processed.wrapping_add(1);
                    add_alone(&self.counters.packets_processed, 1);
                    body.level = level;
                    let packet = IncomingPacket::new(body, channel);
                    match &self.callbacks.process_packet {
                        Some(callback) => callback(channel, packet),
                        // Completed empty, and counted, by being dropped.
                        None => drop(packet),
                    }
                }
                Found::Ready(Ready::Completed(body)) => Self::call_routine(channel, body),
                Found::Handled(waker) => {
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Found::Nothing(End { again: true, .. }) => {}
                Found::Nothing(End { held, .. }) => break held,
            }
            if is_last && !self.stirred.load(Ordering::Relaxed) {
                break false;
            }
            self.stirred.store(false, Ordering::Relaxed);
            taken = taken.wrapping_add(1);
            if taken == BATCH_LIMIT {
                // A peer that never stops does not keep others from their turn.
                let _ = self.end_of_reading(self.incoming.lock(self.platform), false);
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
                Some(Ready::Completed(body)) => Self::call_routine(channel, body),
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
    #[inline]
    fn call_routine(channel: &Channel<C>, mut body: PacketMemory<C>) {
        let Some(routine) = body.routine else {
            drop(channel.core().free_packet(body));
            return;
        };
        if body.is_counted {
            let core = channel.core();
            core.outgoing.lock(core.platform).discount(&mut body);
        }
        let status = body.settle();
        routine(channel, OutgoingPacket::new(body, channel), status);
    }

    /// Gives the room of what was read back, and sends what waits in line.
    #[inline]
    fn end_of_reading(&self, mut incoming: LockGuard<'_, Incoming<C>>, is_blocked: bool) -> End {
        let held = incoming.held > 0 && !incoming.stopped;
        let masked = core::mem::take(&mut incoming.masked);
        let (signal, more) = match &mut incoming.ring {
            None => (false, false),
            Some(ring) if masked => ring
                .unmask()
                .map_or((false, false), |found| (found.signal.is_needed(), found.more)),
            Some(ring) => (ring.commit().is_needed(), false),
        };
        drop(incoming);
        let again = (signal || self.counters.outgoing_work.load(Ordering::Acquire)) && self.outgoing_work(signal);
        End {
            again: (more && !is_blocked) || again,
            held,
        }
    }

    /// Signals, sends what waits in line, and takes packets that went out; true if that makes something to do here.
    #[cold]
    #[inline(never)]
    fn outgoing_work(&self, signal: bool) -> bool {
        let mut outgoing = self.outgoing.lock(self.platform);
        if signal {
            outgoing.signal(&self.counters);
        }
        if outgoing.has_line() {
            outgoing.flush(&self.counters);
        }
        let placed = outgoing.has_placed();
        let returned = outgoing.take_returned_for_reader();
        let broken = outgoing.broken.then(|| outgoing.fault());
        drop(outgoing);
        if placed {
            self.collect_placed();
        }
        if let Some(fault) = broken {
            match fault {
                Some(corruption) => self.say_corrupt(corruption),
                None => self.say_corrupt("a packet in line cannot be sent"),
            }
            self.end(Gone::Corrupt);
        }
        placed || returned
    }

    /// Takes the next thing: first what is ready, then from the ring. Without `packets`, packets are put in line. True if it is
    /// the last one, the ring is empty and its room given back: what comes later is signalled, so there is no need to look again.
    fn next(&self, level: Level, packets: bool) -> (Found<C>, bool) {
        let mut incoming = self.incoming.lock(self.platform);
        let packets = packets && !incoming.stopped;
        if !incoming.ready.is_empty()
            && let Some(ready) = incoming.next_ready(level, packets)
        {
            if let Ready::Packet(_) = ready {
                self.indicate();
            }
            return (Found::Ready(ready), false);
        }
        loop {
            // Nothing overtakes a packet that stands ready and may not be delivered.
            let deliver = packets && incoming.held == 0;
            let found = match incoming.read(&self.counters) {
                Read::Packet(body) if deliver => {
                    self.indicate();
                    Found::Ready(Ready::Packet(body))
                }
                Read::Packet(body) => {
                    incoming.held = incoming.held.wrapping_add(1);
                    incoming.make_ready(Ready::Packet(body));
                    continue;
                }
                Read::Completion(id, peek) => match self.completion(id, peek) {
                    Settled::Routine(body) => Found::Ready(Ready::Completed(body)),
                    Settled::Task(waker) => Found::Handled(waker),
                    Settled::Dropped(request) => {
                        drop(incoming);
                        if let Some(body) = request {
                            drop(self.free_packet(body));
                        }
                        return (Found::Handled(None), false);
                    }
                },
                Read::Empty => return (Found::Nothing(self.end_of_reading(incoming, false)), false),
                Read::NoSlot => {
                    if self.refill(&mut incoming) {
                        continue;
                    }
                    return (Found::Nothing(self.end_of_reading(incoming, true)), false);
                }
                Read::Corrupt(corruption) => {
                    drop(incoming);
                    return (self.corrupt(corruption), false);
                }
            };
            let is_last = incoming.is_drained() && !self.end_of_reading(incoming, false).again;
            return (found, is_last);
        }
    }

    /// A packet is delivered. Changed under the lock of the receiving side.
    #[inline]
    fn indicate(&self) {
        add_alone(&self.counters.incoming_outstanding, 1);
    }

    fn corrupt(&self, corruption: impl core::fmt::Display) -> Found<C> {
        self.say_corrupt(corruption);
        self.end(Gone::Corrupt);
        Found::Nothing(End {
            again: false,
            held: false,
        })
    }

    /// Says once what was wrong, and with which channel of which device. Holding no lock.
    fn say_corrupt(&self, corruption: impl core::fmt::Display) {
        if self.ending.load(Ordering::Relaxed) != 0 {
            return;
        }
        let (channel, instance) = {
            let offer = self.offer.lock(self.platform);
            (offer.channel, offer.instance)
        };
        log::warn!(
            target: "vmbus::kmcl",
            "{}, {channel} of device {instance}, ends: the peer broke its ring: {corruption}",
            self.settings.name.as_str()
        );
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
                    Settled::Routine(body) => {
                        incoming.make_ready(Ready::Completed(body));
                        has_lined_up = true;
                        (None, None)
                    }
                    Settled::Task(waker) => (waker, None),
                    Settled::Dropped(request) => (None, request),
                },
                nothing @ (Read::Empty | Read::NoSlot) => {
                    let is_blocked = matches!(nothing, Read::NoSlot);
                    if is_blocked && self.refill(&mut incoming) {
                        continue;
                    }
                    if !incoming.ready.is_empty() {
                        self.gate.leave_note();
                    }
                    // More has come while the peer was not to signal.
                    if self.end_of_reading(incoming, is_blocked).again {
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
            if let Some(body) = freed {
                drop(self.free_packet(body));
            }
        }
    }

    /// Settles the request that a completion names. The completion is copied out of the ring, once, to the packet's memory.
    #[inline]
    fn completion(&self, id: RequestId, peek: Peek<'_, RingPages>) -> Settled<C> {
        let len = peek.payload_len() as usize;
        let mut outgoing = self.outgoing.lock(self.platform);
        match outgoing.table.get_mut(id) {
            // Not sent yet: the peer guesses.
            Some(InFlight { body, .. }) if body.in_line => {}
            Some(InFlight {
                body,
                waiter: Waiter::Routine,
            }) => {
                peek.take_payload_into(body.memory());
                body.outcome = Ok(len);
                let request = outgoing.take_sent(id, &self.counters);
                return request.map_or(Settled::Dropped(None), |request| Settled::Routine(request.body));
            }
            Some(InFlight {
                body,
                waiter: waiter @ Waiter::Task(_),
            }) => {
                peek.take_payload_into(body.memory());
                body.outcome = Ok(len);
                return Settled::Task(match core::mem::replace(waiter, Waiter::Done) {
                    Waiter::Task(waker) => waker,
                    _ => None,
                });
            }
            Some(InFlight {
                waiter: Waiter::Nobody, ..
            }) => {
                peek.skip();
                add(&self.counters.late_completions, 1);
                let request = outgoing.take_sent(id, &self.counters);
                return Settled::Dropped(request.map(|request| request.body));
            }
            // Completed already, or never asked: the peer guesses.
            Some(InFlight {
                waiter: Waiter::Done, ..
            })
            | None => {}
        }
        drop(outgoing);
        peek.skip();
        add(&self.counters.unknown_completions, 1);
        Settled::Dropped(None)
    }

    /// Ends all requests with an error; the peer has given up their memory.
    pub(crate) fn fail_requests(&self, why: Gone) {
        loop {
            let mut outgoing = self.outgoing.lock(self.platform);
            let Some(id) = outgoing.table.find(|request| !matches!(request.waiter, Waiter::Done)) else {
                break;
            };
            let request = outgoing.table.get_mut(id).map(|request| {
                request.body.outcome = Err(why.into());
                &mut request.waiter
            });
            match request {
                Some(waiter @ Waiter::Task(_)) => {
                    let waker = match core::mem::replace(waiter, Waiter::Done) {
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
                            let ready = Ready::Completed(request.body);
                            self.incoming.lock(self.platform).make_ready(ready);
                        }
                        _ => drop(self.free_packet(request.body)),
                    }
                }
            }
        }
    }
}

/// Whose a completion was.
enum Settled<C: Context> {
    /// A routine's.
    Routine(PacketMemory<C>),
    /// A task's, which is to be woken.
    Task(Option<Waker>),
    /// Nobody's; a cancelled request ends with it.
    Dropped(Option<PacketMemory<C>>),
}
