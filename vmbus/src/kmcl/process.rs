//! Delivery: [`Core::process`] reads the ring and calls the driver, one callback at a time; [`Core::absorb`] only reads.

use core::sync::atomic::Ordering;

use super::completions::Settled;
use super::counters::{add, add_alone};
use super::endpoint::{Core, Phase};
use super::gate::Inside;
use super::incoming::IncomingPacket;
use super::receive::{Incoming, Nothing, Read, Ready, Slot};
use super::settings::gone_code;
use super::{Channel, Context, Gone, Level};
use crate::sync::LockGuard;

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// After this many packets in a row the peer is asked not to signal until the batch ends.
const MASK_AFTER: u32 = 4;

/// A batch ends after this many packets, and goes on in the next `process`.
const BATCH_LIMIT: u32 = 1024;

/// Whoever finds notes of others makes up for them so often.
const TURNS_IN_A_ROW: u32 = 16;

/// What a look at the ring brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something; there may be more.
    Taken,
    /// The last one.
    Last,
    /// Nothing, and there is nothing more.
    Nothing,
    /// Nothing, with packets held back.
    Held,
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
        if Self::process_once(channel, level) {
            Self::process_again(channel, level);
        }
    }

    /// The peer has signalled: counts that, and delivers what there is.
    pub(crate) fn process_signalled(channel: &Channel<C>) {
        let this = channel.core();
        let counter = &this.counters.signals_received;
        if this.lends_handles() {
            add_alone(counter, 1);
        } else {
            add(counter, 1);
        }
        Self::process(channel, Level::Dispatch);
    }

    /// As often as others leave notes, but not for ever: then the next one is called soon.
    #[cold]
    #[inline(never)]
    fn process_again(channel: &Channel<C>, level: Level) {
        for _ in 0..TURNS_IN_A_ROW {
            if !Self::process_once(channel, level) {
                return;
            }
        }
        channel.core().reschedule();
    }

    /// Returns true if there is a reason to do it again. By itself, so that nothing is made ready for a second time that seldom
    /// comes.
    #[inline(never)]
    fn process_once(channel: &Channel<C>, level: Level) -> bool {
        let this = channel.core();
        let Some(entered) = this.gate.enter(this.current_task(), Inside::Callback) else {
            return false;
        };
        this.run_down_if_ending(channel);
        this.batch(channel, level);
        this.run_down_if_ending(channel);
        entered.leave()
    }

    #[inline]
    fn may_deliver(&self, level: Level) -> bool {
        self.phase() == Phase::Running && (level == Level::Passive || !self.at_passive.load(Ordering::Relaxed))
    }

    // Inlined, as is all that a packet's way needs; what is seldom needed is not, so that this one stays short.
    #[inline(always)]
    fn batch(&self, channel: &Channel<C>, level: Level) {
        let (mut processed, mut taken) = (0_u32, 0_u32);
        let mut step;
        loop {
            step = self.step(channel, level, &mut processed);
            // A callback may have put a packet back.
            if step != Step::Taken && (step != Step::Last || !self.stirred.load(Ordering::Relaxed)) {
                break;
            }
            self.stirred.store(false, Ordering::Relaxed);
            taken = taken.wrapping_add(1);
            if taken == MASK_AFTER {
                self.mask();
            }
            if taken == BATCH_LIMIT {
                self.rest();
                break;
            }
        }
        if processed > 0
            && let Some(callback) = &self.callbacks.processing_complete
        {
            callback(channel, processed);
        }
        if step == Step::Held && level != Level::Passive {
            self.wake_passive(channel);
        }
    }

    /// Takes the next thing and delivers it: first what is ready, then from the ring. Packets that may not be delivered are put in
    /// line.
    #[inline(always)]
    fn step(&self, channel: &Channel<C>, level: Level, processed: &mut u32) -> Step {
        let mut incoming = self.incoming();
        if !self.may_deliver(level) || !incoming.is_plain() {
            return self.step_slowly(incoming, channel, level, processed);
        }
        match incoming.read(&self.counters) {
            Read::Packet(body) => {
                self.indicate();
                let step = self.look_behind(incoming);
                *processed = processed.wrapping_add(1);
                self.deliver(channel, level, body);
                step
            }
            Read::Completion(id, peek) => match self.routine_completion(id, peek) {
                Ok(body) => {
                    let step = self.look_behind(incoming);
                    Self::call_routine(channel, body);
                    step
                }
                Err(peek) => {
                    let settled = self.other_completion(id, peek);
                    self.settle(incoming, settled, channel)
                }
            },
            Read::Nothing(nothing) => match self.nothing(incoming, nothing) {
                Ok(incoming) => self.step_slowly(incoming, channel, level, processed),
                Err(step) => step,
            },
        }
    }

    /// Whether what was just read is the last one: the ring was empty after its room was given back, so that what comes later is
    /// signalled, and there is no need to look again.
    #[inline(always)]
    fn look_behind(&self, mut incoming: LockGuard<'_, Incoming<C>>) -> Step {
        // The ring was not sealed a moment ago; what stands ready is another turn's.
        if incoming.has_more() || self.end_of_reading(incoming, false).again {
            Step::Taken
        } else {
            Step::Last
        }
    }

    /// [`step`](Self::step) where more than the ring is to be looked at.
    #[inline(never)]
    fn step_slowly(
        &self,
        mut incoming: LockGuard<'_, Incoming<C>>,
        channel: &Channel<C>,
        level: Level,
        processed: &mut u32,
    ) -> Step {
        let packets = self.may_deliver(level) && !incoming.stopped;
        let (packet, step) = match incoming.next_ready(level, packets) {
            Some(Ready::Packet(body)) => {
                self.indicate();
                drop(incoming);
                (body, Step::Taken)
            }
            Some(Ready::Completed(body)) => {
                drop(incoming);
                Self::call_routine(channel, body);
                return Step::Taken;
            }
            None => loop {
                // Nothing overtakes a packet that stands ready and may not be delivered.
                let deliver = packets && incoming.held == 0;
                match incoming.read_seldom(&self.counters) {
                    Read::Packet(body) if deliver => {
                        self.indicate();
                        break (body, self.look_behind(incoming));
                    }
                    Read::Packet(body) => {
                        incoming.held = incoming.held.wrapping_add(1);
                        incoming.make_ready(Ready::Packet(body));
                    }
                    Read::Completion(id, peek) => {
                        let settled = self.completion(id, peek);
                        return self.settle(incoming, settled, channel);
                    }
                    Read::Nothing(nothing) => match self.nothing(incoming, nothing) {
                        Ok(refilled) => incoming = refilled,
                        Err(step) => return step,
                    },
                }
            },
        };
        *processed = processed.wrapping_add(1);
        self.deliver(channel, level, packet);
        step
    }

    #[inline(always)]
    fn deliver(&self, channel: &Channel<C>, level: Level, mut body: Slot) {
        add_alone(&self.counters.packets_processed, 1);
        body.level = level;
        let packet = IncomingPacket::new(body, channel);
        match &self.callbacks.process_packet {
            Some(callback) => callback(channel, packet),
            // Completed empty, and counted, by being dropped.
            None => drop(packet),
        }
    }

    /// Asks the peer not to signal until the batch ends.
    #[cold]
    #[inline(never)]
    fn mask(&self) {
        let incoming = &mut *self.incoming();
        if let Some(ring) = &mut incoming.ring {
            ring.mask();
            incoming.masked = true;
        }
    }

    /// Ends a batch that is long enough: a peer that never stops does not keep others from their turn.
    #[cold]
    #[inline(never)]
    fn rest(&self) {
        let _ = self.end_of_reading(self.incoming(), false);
        self.reschedule();
    }

    fn wake_passive(&self, channel: &Channel<C>) {
        if self.phase() == Phase::Running {
            self.passive_pending.store(true, Ordering::Release);
            if let Some(callback) = &self.callbacks.passive_wake {
                callback(channel);
            }
        }
    }

    /// Gives the room of what was read back, and sends what waits in line.
    #[inline(always)]
    fn end_of_reading(&self, mut incoming: LockGuard<'_, Incoming<C>>, is_blocked: bool) -> End {
        let held = incoming.held > 0 && !incoming.stopped;
        let (signal, more) = if incoming.masked {
            incoming.unmask()
        } else {
            incoming.give_back()
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
        let mut outgoing = self.outgoing();
        if signal {
            outgoing.signal(&self.counters);
        }
        if outgoing.has_line() {
            outgoing.flush(&self.counters);
        }
        let placed = outgoing.stock.has_placed();
        let returned = outgoing.returned.take_news();
        let broken = outgoing.broken.then(|| outgoing.fault());
        drop(outgoing);
        if placed {
            self.collect_placed();
        }
        if let Some(fault) = broken {
            match fault {
                Some(corruption) => self.corrupt(corruption),
                None => self.corrupt("a packet in line cannot be sent"),
            }
        }
        placed || returned
    }

    /// Nothing came from the ring: ends the reading, unless there is memory to read on with. Then the lock comes back.
    #[inline(never)]
    fn nothing<'c>(
        &self,
        mut incoming: LockGuard<'c, Incoming<C>>,
        nothing: Nothing,
    ) -> Result<LockGuard<'c, Incoming<C>>, Step> {
        let is_blocked = match nothing {
            Nothing::NoSlot if self.refill(&mut incoming) => return Ok(incoming),
            Nothing::NoSlot => true,
            Nothing::Empty => false,
            Nothing::Corrupt(corruption) => {
                drop(incoming);
                self.corrupt(corruption);
                return Err(Step::Nothing);
            }
        };
        Err(match self.end_of_reading(incoming, is_blocked) {
            End { again: true, .. } => Step::Taken,
            End { held: true, .. } => Step::Held,
            End { .. } => Step::Nothing,
        })
    }

    /// Ends a request that a completion settled.
    #[inline(never)]
    fn settle(&self, incoming: LockGuard<'_, Incoming<C>>, settled: Settled<C>, channel: &Channel<C>) -> Step {
        match settled {
            Settled::Routine(body) => {
                let step = self.look_behind(incoming);
                Self::call_routine(channel, body);
                step
            }
            Settled::Task(waker) => {
                let step = self.look_behind(incoming);
                if let Some(waker) = waker {
                    waker.wake();
                }
                step
            }
            Settled::Dropped(request) => {
                drop(incoming);
                if let Some(body) = request {
                    drop(self.free_packet(body));
                }
                Step::Taken
            }
        }
    }

    /// A packet is delivered. Changed under the lock of the receiving side.
    #[inline]
    fn indicate(&self) {
        add_alone(&self.counters.incoming_outstanding, 1);
    }

    /// The channel ends for a broken ring. Holding no lock.
    fn corrupt(&self, corruption: impl core::fmt::Display) {
        self.say_corrupt(corruption);
        self.end(Gone::Corrupt);
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
        // Once: a broken ring is met again by each look at it. Soon: nobody may be at work, and such a peer signals no more.
        if first.is_ok() {
            self.schedule();
            if why == Gone::Corrupt {
                // Their requests end with the channel, when somebody closes it, but they need not wait for that.
                self.wake_tasks();
            }
        }
    }

    /// Reads the ring without delivering anything: completions go to those who wait, all else is put in line.
    ///
    /// What is put in line needs a `process` of its own: the peer's signal for it may have been taken by one that found the ring
    /// empty, and with all slots in line the peer has no reason to signal again.
    pub(crate) fn absorb(&self) {
        let mut has_lined_up = false;
        loop {
            let mut incoming = self.incoming();
            let (waker, freed) = match incoming.read_seldom(&self.counters) {
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
                Read::Nothing(nothing @ (Nothing::Empty | Nothing::NoSlot)) => {
                    let is_blocked = matches!(nothing, Nothing::NoSlot);
                    if is_blocked && self.refill(&mut incoming) {
                        continue;
                    }
                    if !incoming.ready.is_empty() {
                        self.gate.leave_note();
                    }
                    // More has come while the peer was not to signal, or packets went out whose routines are to be called.
                    if self.end_of_reading(incoming, is_blocked).again {
                        has_lined_up = true;
                        continue;
                    }
                    if has_lined_up {
                        self.reschedule();
                    }
                    return;
                }
                Read::Nothing(Nothing::Corrupt(corruption)) => {
                    drop(incoming);
                    self.corrupt(corruption);
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
}
