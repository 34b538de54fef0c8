//! One request of a caller on its way: [`Operation`], cut into commands, several of them in flight, each sent again where that
//! helps. Allocates nothing.

use core::pin::Pin;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::Error;
use super::link::{Link, Ticket, Unit, count};
use super::probe::spare_buffer;
use super::protocol::{Answer, Direction, Execute};
use super::scsi::{Cdb, unmap_parameters};
use super::verdict::{Verdict, judge};
use crate::bus::Suppressed;
use crate::fallible::Shared;
use crate::kmcl::{self, Refused, Reply, Request};
use crate::memory::{Mdl, PageSpan};
use crate::{Deadline, Instant};

/// How many commands of one request are in flight at a time.
const PARTS: usize = 4;

/// How often a command is sent in all: one that fails at once, and one to a device that is busy.
const MAX_ATTEMPTS: u8 = 8;
const MAX_BUSY_ATTEMPTS: u8 = 13;

/// How long a busy device is left alone: at first, doubled each time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(512);

/// How often a task that waits for a packet of the channel looks whether there is one.
const STARVED_PAUSE: Duration = Duration::from_millis(1);

/// What an operation does, in the unit that it is cut in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    /// Reads to memory, in bytes.
    Read { lba: u64, block_shift: u8 },
    /// Writes from memory, in bytes.
    Write {
        lba: u64,
        block_shift: u8,
        is_through: bool,
    },
    /// Discards, in blocks, so many at a time at most.
    Unmap { lba: u64, max_blocks: u32 },
    /// One command.
    Command { cdb: Cdb, direction: Direction },
}

/// A piece of the operation: one command.
struct Part {
    from: u64,
    len: u64,
    attempts: u8,
    /// It was sent with all of the operation's memory.
    has_all: bool,
    flight: Flight,
}

enum Flight {
    /// The host has it.
    Sent(Request<'static, Link>),
    /// It is to be sent then.
    Later(Instant),
}

/// A request of a caller on its way.
pub(super) struct Operation {
    unit: Shared<Unit>,
    plan: Plan,
    /// All that the caller lends; empty while one command has all of it.
    pub(super) memory: Mdl,
    /// The memory takes more than one range to describe, so it is cut where these end.
    is_scattered: bool,
    next: u64,
    end: u64,
    parts: [Option<Part>; PARTS],
    /// So many places of `parts` have been used: most operations need one.
    used: usize,
    /// Bytes transferred, or the first error.
    outcome: Result<u32, Error>,
    /// The channel has ended, and left the host with memory that it had not answered for.
    is_withheld: bool,
    /// All packets of the channel are in use.
    is_starved: bool,
    /// It waits for one, or was woken for one.
    ticket: Option<Ticket>,
    /// Something was sent that has not been looked at.
    has_fresh: bool,
    is_over: bool,
}

impl Operation {
    /// Makes an operation and sends what can be sent at once. `len` is in the plan's unit; for a command it is ignored.
    pub(super) fn start(unit: &Shared<Unit>, plan: Plan, memory: Mdl, len: u64) -> Self {
        let is_scattered = memory.wire_extent().ranges > 1;
        if is_scattered
            && let Plan::Read { block_shift, .. } | Plan::Write { block_shift, .. } = plan
            && !ends_at_blocks(&memory, block_shift)
        {
            return Self::failed(unit, memory, Error::Unaligned);
        }
        let mut this = Self {
            unit: unit.clone(),
            plan,
            memory,
            is_scattered,
            next: 0,
            end: if matches!(plan, Plan::Command { .. }) { 1 } else { len },
            parts: [const { None }; PARTS],
            used: 0,
            outcome: Ok(0),
            is_withheld: false,
            is_starved: false,
            ticket: None,
            has_fresh: false,
            is_over: false,
        };
        this.fill();
        this
    }

    /// Makes an operation that has failed already.
    pub(super) fn failed(unit: &Shared<Unit>, memory: Mdl, error: Error) -> Self {
        Self {
            unit: unit.clone(),
            plan: Plan::Unmap { lba: 0, max_blocks: 1 },
            memory,
            is_scattered: false,
            next: 0,
            end: 0,
            parts: [const { None }; PARTS],
            used: 0,
            outcome: Err(error),
            is_withheld: false,
            is_starved: false,
            ticket: None,
            has_fresh: false,
            is_over: false,
        }
    }

    fn link(&self) -> &Link {
        self.unit.inner.link()
    }

    fn now(&self) -> Instant {
        self.unit.inner.channel.now()
    }

    fn live(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().take(self.used).flatten()
    }

    /// Returns true if the host has part of the memory.
    pub(super) fn is_lent(&self) -> bool {
        self.is_withheld || self.is_in_flight()
    }

    fn is_in_flight(&self) -> bool {
        self.live().any(|part| matches!(part.flight, Flight::Sent(_)))
    }

    /// Looks at what came back, and sends what is to be sent.
    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Result<u32, Error>> {
        if self.is_over {
            return Poll::Pending;
        }
        self.is_starved = false;
        let mut context = Context::from_waker(waker);
        loop {
            self.has_fresh = false;
            for index in 0..self.used {
                self.poll_part(index, &mut context);
            }
            self.fill();
            // What was sent just now does not know yet whom to wake.
            if !self.has_fresh {
                break;
            }
        }
        if self.next >= self.end && self.live().next().is_none() {
            self.is_over = true;
            self.leave_line();
            if self.outcome.is_err() {
                count(&self.link().counting.failures);
            }
            return Poll::Ready(self.outcome);
        }
        if !self.is_starved {
            self.leave_line();
        }
        if self.next_pause().is_some() {
            // No timer here: whoever runs this future runs others, and comes back.
            waker.wake_by_ref();
        } else if self.is_starved && !self.is_in_flight() {
            self.unit.inner.link().await_packet(&mut self.ticket, waker);
        }
        Poll::Pending
    }

    /// It waits for no packet, or no more.
    fn leave_line(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.link().leave_line(ticket);
        }
    }

    /// Returns when a part is to be sent again, if one is.
    fn next_pause(&self) -> Option<Instant> {
        let due = self.live().filter_map(|part| match part.flight {
            Flight::Later(due) => Some(due),
            Flight::Sent(_) => None,
        });
        due.min()
    }

    /// Waits until it is over.
    pub(super) fn wait(&mut self, deadline: Deadline) -> Result<u32, Error> {
        // Once without a look at the clock, which would be a good part of a short wait.
        let channel = &self.unit.inner.channel;
        if (self.is_done() || channel.look())
            && let Poll::Ready(result) = self.poll(Waker::noop())
        {
            return result;
        }
        self.wait_longer(deadline)
    }

    /// Returns true if something came back for it.
    fn is_done(&self) -> bool {
        self.live().any(|part| match &part.flight {
            Flight::Sent(request) => request.is_done(),
            Flight::Later(_) => false,
        })
    }

    #[inline(never)]
    fn wait_longer(&mut self, deadline: Deadline) -> Result<u32, Error> {
        let unit = self.unit.clone();
        let channel = &unit.inner.channel;
        let deadline = match deadline {
            Deadline::After(_) => deadline.fixed(channel.now()),
            fixed => fixed,
        };
        loop {
            let nap = self.nap();
            let planned = (self.next_pause(), self.is_starved);
            // Ends early where it turns out that something is to be sent again, which no signal would wake us for.
            let outcome = channel.wait_until(nap_deadline(deadline, nap), || match self.poll(Waker::noop()) {
                Poll::Ready(result) => Some(Some(result)),
                Poll::Pending => ((self.next_pause(), self.is_starved) != planned).then_some(None),
            });
            match outcome {
                Ok(Some(result)) => return result,
                Ok(None) => {}
                Err(kmcl::Error::TimedOut) if nap.is_none() || is_over(deadline, channel.now()) => {
                    return Err(Error::TimedOut);
                }
                Err(kmcl::Error::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns when to look again even if nothing comes.
    fn nap(&self) -> Option<Instant> {
        let pause = self.next_pause();
        if self.is_starved {
            let soon = self.now().saturating_add(STARVED_PAUSE);
            return Some(pause.map_or(soon, |pause| pause.min(soon)));
        }
        pause
    }

    fn poll_part(&mut self, index: usize, context: &mut Context<'_>) {
        let Some(place) = self.parts.get_mut(index) else { return };
        let Some(part) = place else { return };
        match &mut part.flight {
            Flight::Sent(request) => {
                let Poll::Ready(result) = Pin::new(request).poll(context) else {
                    return;
                };
                let Some(part) = place.take() else { return };
                // The packet is free before somebody is woken for it.
                self.settle(index, part, result);
                self.link().leave();
            }
            Flight::Later(due) => {
                let due = *due;
                if self.outcome.is_err() {
                    *place = None;
                } else if self.now() >= due
                    && let Some(part) = self.parts.get_mut(index).and_then(Option::take)
                {
                    self.send(index, part);
                }
            }
        }
    }

    /// Takes what became of a part.
    fn settle(&mut self, index: usize, part: Part, result: Result<Reply<Link>, Refused<Option<Mdl>>>) {
        let mut reply = match result {
            Ok(reply) => reply,
            Err(refused) => {
                self.is_withheld |= refused.given.is_none() && self.transfer_len(&part) > 0;
                if part.has_all {
                    self.take_back(refused.given);
                }
                return self.fail(refused.error.into());
            }
        };
        if part.has_all {
            self.take_back(reply.take_mdl());
        }
        let asked = self.transfer_len(&part);
        if reply.payload().is_empty() {
            // Whoever had the request has let go of it; perhaps the controller is about to go.
            drop(reply);
            count(&self.link().counting.malformed);
            return self.again(index, part, true, Error::Protocol);
        }
        let executed = Answer::parse(reply.payload()).and_then(|answer| answer.executed());
        let Ok(executed) = executed else {
            count(&self.link().counting.malformed);
            return self.fail(Error::Protocol);
        };
        if executed.transferred > asked && matches!(self.plan, Plan::Read { .. } | Plan::Write { .. }) {
            count(&self.link().counting.malformed);
        }
        let meaning = judge(&executed, asked);
        // The packet is free from here on.
        drop(reply);
        if meaning.is_news && !self.unit.is_probed {
            self.link().note_news();
        }
        match meaning.verdict {
            Verdict::Done(transferred) => {
                let is_whole = transferred == asked || !matches!(self.plan, Plan::Read { .. } | Plan::Write { .. });
                if !is_whole {
                    return self.again(index, part, false, Error::Short { transferred });
                }
                if let Ok(total) = &mut self.outcome {
                    *total = total.saturating_add(transferred);
                }
            }
            Verdict::Again { pause, error } => self.again(index, part, pause, error),
            Verdict::Failed(error) => {
                if error == Error::DiskGone {
                    self.unit.is_gone.store(true, Ordering::Release);
                }
                self.complain(&error);
                self.fail(error);
            }
        }
    }

    /// Sends a part once more, or fails with `error` if that has been tried often enough.
    fn again(&mut self, index: usize, mut part: Part, pause: bool, error: Error) {
        let most = if pause { MAX_BUSY_ATTEMPTS } else { MAX_ATTEMPTS };
        if part.attempts >= most || self.outcome.is_err() {
            self.complain(&error);
            return self.fail(error);
        }
        count(&self.link().counting.retries);
        if pause {
            let pause = FIRST_PAUSE
                .saturating_mul(1 << part.attempts.saturating_sub(1).min(15))
                .min(LONGEST_PAUSE);
            part.flight = Flight::Later(self.now().saturating_add(pause));
            self.put(index, part);
        } else {
            self.send(index, part);
        }
    }

    fn put(&mut self, index: usize, part: Part) {
        if let Some(place) = self.parts.get_mut(index) {
            *place = Some(part);
            self.used = self.used.max(index.saturating_add(1));
        }
    }

    /// The operation has failed: nothing more is sent, and what is in flight is awaited.
    const fn fail(&mut self, error: Error) {
        if self.outcome.is_ok() {
            self.outcome = Err(error);
        }
        self.next = self.end;
    }

    #[cold]
    fn complain(&self, error: &Error) {
        // A device may refuse a question; data is another matter.
        if !matches!(self.plan, Plan::Command { .. })
            && let Some(suppressed) = self.link().throttle.allow(self.now())
        {
            let address = self.unit.address;
            log::warn!(
                target: "vmbus::storage",
                "target {}, LUN {}: {error}{}",
                address.target,
                address.lun,
                Suppressed(suppressed)
            );
        }
    }

    /// Cuts and sends parts while there is room.
    fn fill(&mut self) {
        for index in 0..PARTS {
            if self.next >= self.end || self.is_starved {
                return;
            }
            if self.parts.get(index).is_some_and(Option::is_none) {
                let from = self.next;
                let Some(len) = self.cut(from) else {
                    return self.fail(Error::Unaligned);
                };
                self.next = from.saturating_add(len);
                let part = Part {
                    from,
                    len,
                    attempts: 0,
                    has_all: false,
                    flight: Flight::Later(Instant::default()),
                };
                self.send(index, part);
            }
        }
    }

    /// Returns how long the part from `from` is; `None` if it would not end at a block.
    fn cut(&self, from: u64) -> Option<u64> {
        let rest = self.end.saturating_sub(from);
        match self.plan {
            Plan::Command { .. } => Some(rest),
            Plan::Unmap { max_blocks, .. } => Some(rest.min(u64::from(max_blocks.max(1)))),
            Plan::Read { block_shift, .. } | Plan::Write { block_shift, .. } => {
                let mut len = rest.min(u64::from(self.unit.max_transfer));
                if self.is_scattered {
                    len = len.min(self.run_len(from, len));
                }
                let whole = len >> block_shift << block_shift;
                (whole > 0).then_some(whole)
            }
        }
    }

    /// Returns how many bytes from `from` on one range can describe, up to about `limit`.
    fn run_len(&self, from: u64, limit: u64) -> u64 {
        let Ok(rest) = usize::try_from(from).map_or(Err(()), |from| self.memory.range(from, 0).map_err(|_| ())) else {
            return 0;
        };
        let (mut len, mut last) = (0_u64, None);
        for span in rest.page_spans() {
            if len >= limit || last.is_some_and(|last: PageSpan| !last.continues_with(&span)) {
                break;
            }
            len = len.saturating_add(span.len as u64);
            last = Some(span);
        }
        len
    }

    /// Bytes that the command of a part transfers.
    fn transfer_len(&self, part: &Part) -> u32 {
        let bytes = match self.plan {
            Plan::Read { .. } | Plan::Write { .. } => part.len,
            Plan::Unmap { .. } => u64::from(UNMAP_LEN),
            Plan::Command { .. } => self.memory.len() as u64,
        };
        // At most the longest transfer of the channel.
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Sends a part. If all packets are in use, it stays to be sent later.
    fn send(&mut self, index: usize, mut part: Part) {
        let (memory, command) = match self.command(&mut part) {
            Ok(made) => made,
            Err(kmcl::Error::TooManyPackets) => return self.starve(index, part),
            Err(error) => return self.fail(error.into()),
        };
        let inner = &self.unit.inner;
        let packet = command.packet(inner.version);
        match inner.channel.send_request(packet.bytes(), memory) {
            Ok(request) => {
                inner.link().enter();
                part.attempts = part.attempts.saturating_add(1);
                part.flight = Flight::Sent(request);
                self.has_fresh = true;
                self.put(index, part);
            }
            Err(Refused { error, given }) => {
                if part.has_all {
                    self.take_back(given);
                }
                match error {
                    kmcl::Error::TooManyPackets | kmcl::Error::RingFull => self.starve(index, part),
                    error => self.fail(error.into()),
                }
            }
        }
    }

    /// Has the memory again that a command had all of.
    fn take_back(&mut self, memory: Option<Mdl>) {
        if let Some(memory) = memory {
            self.memory = memory;
        }
    }

    #[cold]
    fn starve(&mut self, index: usize, mut part: Part) {
        self.is_starved = true;
        if part.attempts == 0 && part.from.saturating_add(part.len) == self.next {
            // Not begun: it is cut again.
            self.next = part.from;
        } else {
            part.flight = Flight::Later(self.now());
            self.put(index, part);
        }
    }

    /// Makes the command of a part, and the memory for it.
    fn command(&mut self, part: &mut Part) -> Result<(Option<Mdl>, Execute), kmcl::Error> {
        let transfer_bytes = self.transfer_len(part);
        part.has_all = false;
        let (cdb, direction, memory) = match self.plan {
            Plan::Command { cdb, direction } => {
                let memory = (!self.memory.is_empty()).then(|| self.memory.clone());
                (cdb, direction, memory)
            }
            Plan::Read { lba, block_shift } => {
                let (lba, blocks) = blocks_of(lba, block_shift, part);
                (Cdb::read(lba, blocks), Direction::In, Some(self.piece(part)?))
            }
            Plan::Write {
                lba,
                block_shift,
                is_through,
            } => {
                let (lba, blocks) = blocks_of(lba, block_shift, part);
                let write = if is_through { Cdb::write_through } else { Cdb::write };
                (write(lba, blocks), Direction::Out, Some(self.piece(part)?))
            }
            Plan::Unmap { lba, .. } => {
                let (lba, blocks) = blocks_of(lba, 0, part);
                let buffer = spare_buffer(&self.unit.inner, usize::from(UNMAP_LEN))?;
                buffer
                    .write_at(0, &unmap_parameters(lba, blocks))
                    .map_err(|_| kmcl::Error::OutOfRange)?;
                (Cdb::unmap(UNMAP_LEN), Direction::Out, Some(buffer.into()))
            }
        };
        let command = Execute {
            address: self.unit.address,
            cdb,
            direction,
            transfer_bytes,
        };
        Ok((memory, command))
    }

    /// The memory of a part. All of it is handed on, and comes back with the answer: another owner would have to be counted.
    fn piece(&mut self, part: &mut Part) -> Result<Mdl, kmcl::Error> {
        let (Ok(from), Ok(len)) = (usize::try_from(part.from), usize::try_from(part.len)) else {
            return Err(kmcl::Error::OutOfRange);
        };
        if from == 0 && len == self.memory.len() {
            part.has_all = true;
            return Ok(core::mem::replace(&mut self.memory, Mdl::empty()));
        }
        self.memory.range(from, len).map_err(|_| kmcl::Error::OutOfRange)
    }
}

/// Bytes of UNMAP's parameters.
const UNMAP_LEN: u16 = 24;

/// Returns true if each range that it takes to describe `memory` ends at a block.
fn ends_at_blocks(memory: &Mdl, block_shift: u8) -> bool {
    let (mut len, mut last) = (0_u64, None::<PageSpan>);
    for span in memory.page_spans() {
        if last.is_some_and(|last| !last.continues_with(&span)) && len >> block_shift << block_shift != len {
            return false;
        }
        len = len.saturating_add(span.len as u64);
        last = Some(span);
    }
    true
}

/// Returns the first block of a part and how many there are.
fn blocks_of(lba: u64, block_shift: u8, part: &Part) -> (u64, u32) {
    // At most the longest transfer, or the most that UNMAP takes.
    let blocks = u32::try_from(part.len >> block_shift).unwrap_or(u32::MAX);
    (lba.saturating_add(part.from >> block_shift), blocks)
}

/// Returns the earlier of the two.
fn nap_deadline(deadline: Deadline, nap: Option<Instant>) -> Deadline {
    match (deadline, nap) {
        (Deadline::At(until), Some(nap)) => Deadline::At(until.min(nap)),
        (_, Some(nap)) => Deadline::At(nap),
        (deadline, None) => deadline,
    }
}

fn is_over(deadline: Deadline, now: Instant) -> bool {
    matches!(deadline, Deadline::At(until) if now >= until)
}

impl Drop for Operation {
    fn drop(&mut self) {
        for index in 0..self.used {
            if let Some(part) = self.parts.get_mut(index).and_then(Option::take)
                && let Flight::Sent(request) = part.flight
            {
                // The channel keeps its memory until the host is done with it.
                drop(request);
                self.link().leave();
            }
        }
        self.leave_line();
    }
}
