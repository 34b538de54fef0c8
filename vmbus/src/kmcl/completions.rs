//! Completions of the channel's own packets: from the ring to the packet that they answer, and to whoever waits for that.

use alloc::vec::Vec;
use core::task::Waker;

use super::counters::{add, subtract_alone};
use super::endpoint::Core;
use super::external::Lent;
use super::outgoing::InFlight;
use super::packet::{OutgoingPacket, PacketMemory, Waiter};
use super::receive::Ready;
use super::slab::RequestId;
use super::transport::RingPages;
use super::{Channel, Context, Gone};
use crate::fallible::{ReservedVec, try_vec_with_capacity};
use crate::ring::Peek;

/// Whose a completion was.
pub(super) enum Settled<C: Context> {
    /// A routine's.
    Routine(PacketMemory<C>),
    /// A task's, which is to be woken.
    Task(Option<Waker>),
    /// Nobody's; a cancelled request ends with it.
    Dropped(Option<PacketMemory<C>>),
}

impl<C: Context> Core<C> {
    /// Calls the routines of all packets that are completed.
    pub(crate) fn deliver_routines(&self, channel: &Channel<C>) {
        loop {
            let next = self.incoming().next_completed();
            match next {
                Some(Ready::Completed(body)) => Self::call_routine(channel, body),
                _ => return,
            }
        }
    }

    /// Hands a packet back: to its routine, or to the pool if it has none.
    #[inline(always)]
    pub(super) fn call_routine(channel: &Channel<C>, mut body: PacketMemory<C>) {
        let Some(routine) = body.routine else {
            drop(channel.core().free_packet(body));
            return;
        };
        if body.is_counted {
            let core = channel.core();
            core.outgoing().stock.discount(&mut body);
        }
        let status = body.settle();
        routine(channel, OutgoingPacket::new(body, channel), status);
    }

    /// Copies a completion in the ring to the packet that it answers, if that one was sent with a routine: as a rule.
    #[inline(always)]
    pub(super) fn routine_completion<'r>(
        &self,
        id: RequestId,
        peek: Peek<'r, RingPages>,
    ) -> Result<PacketMemory<C>, Peek<'r, RingPages>> {
        let is_usual = |request: &InFlight<C>| matches!(request.waiter, Waiter::Routine) && !request.body.in_line;
        let mut outgoing = self.outgoing();
        let Some(mut request) = outgoing.table.take_if(id, is_usual) else {
            return Err(peek);
        };
        subtract_alone(&self.counters.outgoing_outstanding, 1);
        drop(outgoing);
        request.body.outcome = Ok(peek.payload_len() as usize);
        peek.take_payload_into(request.body.memory());
        Ok(request.body)
    }

    /// Settles the request that a completion names, whoever waits for it. The completion is copied out of the ring, once, to the
    /// packet's memory.
    #[inline(never)]
    pub(super) fn completion(&self, id: RequestId, peek: Peek<'_, RingPages>) -> Settled<C> {
        match self.routine_completion(id, peek) {
            Ok(body) => Settled::Routine(body),
            Err(peek) => self.other_completion(id, peek),
        }
    }

    /// Settles a request that was not sent with a routine.
    #[inline(never)]
    pub(super) fn other_completion(&self, id: RequestId, peek: Peek<'_, RingPages>) -> Settled<C> {
        let mut outgoing = self.outgoing();
        match outgoing.table.get_mut(id) {
            // Not sent yet: the peer guesses.
            Some(InFlight { body, .. }) if body.in_line => {}
            Some(InFlight {
                body,
                waiter: waiter @ Waiter::Task(_),
            }) => {
                body.outcome = Ok(peek.payload_len() as usize);
                peek.take_payload_into(body.memory());
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
                waiter: Waiter::Routine | Waiter::Done,
                ..
            })
            | None => {}
        }
        drop(outgoing);
        peek.skip();
        add(&self.counters.unknown_completions, 1);
        Settled::Dropped(None)
    }

    /// Wakes the tasks that wait for answers, so that they see that none will come. Their requests stay as they are.
    pub(crate) fn wake_tasks(&self) {
        let mut index = 0;
        loop {
            let waker = {
                let mut outgoing = self.outgoing();
                let Some((id, next)) = outgoing.table.next_used(index) else {
                    break;
                };
                index = next;
                match outgoing.table.get_mut(id).map(|request| &mut request.waiter) {
                    Some(Waiter::Task(waker)) => waker.take(),
                    _ => None,
                }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Ends all requests with an error. What those lend that the peer has seen, and may still write to, goes to `left`; with `None` it
    /// has given up everything.
    pub(crate) fn fail_requests(&self, why: Gone, mut left: Option<&mut Left>) {
        loop {
            let mut outgoing = self.outgoing();
            let Some(id) = outgoing.table.find(|request| !matches!(request.waiter, Waiter::Done)) else {
                break;
            };
            let Some(request) = outgoing.table.get_mut(id) else {
                continue;
            };
            if let Some(left) = &mut left
                && !request.body.in_line
                && request.body.lent.is_some()
            {
                if !left.has_room {
                    drop(outgoing);
                    left.make_room(self.settings.maximum_packet_count);
                    continue;
                }
                left.put(request.body.lent.take());
            }
            request.body.outcome = Err(why.into());
            match &mut request.waiter {
                waiter @ Waiter::Task(_) => {
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
                            self.incoming().make_ready(ready);
                        }
                        _ => drop(self.free_packet(request.body)),
                    }
                }
            }
        }
    }
}

/// What requests lend when they end, and the peer has not given up.
#[derive(Default)]
pub(crate) struct Left {
    memory: Vec<Lent>,
    /// It was asked for, at least.
    has_room: bool,
    /// How many found no memory to be noted in, and stay lent for good.
    pub(crate) lost: u64,
}

impl Left {
    #[cold]
    fn make_room(&mut self, requests: u32) {
        self.memory = try_vec_with_capacity(requests as usize).unwrap_or_default();
        self.has_room = true;
    }

    fn put(&mut self, lent: Option<Lent>) {
        if let Some(lent) = lent
            && let Err(lent) = self.memory.push_within(lent)
        {
            core::mem::forget(lent);
            self.lost = self.lost.wrapping_add(1);
        }
    }

    /// Returns the memory that was noted, and what stays of the note.
    pub(crate) fn take(&mut self) -> Vec<Lent> {
        core::mem::take(&mut self.memory)
    }
}
