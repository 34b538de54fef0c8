//! Requests that are waited for: [`Channel::send_synchronous_request`] for those who block, [`Channel::request`] for `async`
//! code.
//!
//! Both put the request into the channel's table with nobody's routine, and look for the completion there. A request that is
//! given up, because time is up or its future is dropped, stays in the table with all that it lent until the peer completes it
//! or the channel ends.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Poll, Waker};

use super::counters::add;
use super::endpoint::Core;
use super::external::Lent;
use super::gate::Inside;
use super::outgoing::IfFull;
use super::packet::{Body, PacketMemory, Waiter};
use super::slab::RequestId;
use super::{Channel, Context, Error, Gone, OutgoingPacket, Refused, SendFlags, Side};
use crate::Deadline;
use crate::memory::Mdl;

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// A synchronous request was sent, and completed if it asked for that.
#[derive(Debug)]
pub struct Sent {
    /// Bytes of the completion that were written to the caller's buffer.
    pub len: usize,
    /// The memory that the request had lent.
    pub mdl: Option<Mdl>,
}

/// A synchronous request with everything that it may say, for [`Channel::send_synchronous`].
#[derive(Debug)]
pub struct SynchronousRequest<'a> {
    /// What goes through the ring.
    pub payload: &'a [u8],
    /// Memory to describe to the peer.
    pub mdl: Option<Mdl>,
    /// Whether to wait for the peer.
    pub flags: SendFlags,
    /// Where the completion goes; its length is a multiple of 8. `None`: dropped.
    pub completion: Option<&'a mut [u8]>,
    /// How long to wait: for room in the ring, and for the completion.
    pub deadline: Deadline,
}

/// The completion of a request, in the packet's memory.
pub struct Reply<C: Context> {
    packet: OutgoingPacket<C>,
}

impl<C: Context> Reply<C> {
    /// Returns the completion's payload, padded to a multiple of 8 bytes.
    ///
    /// ```
    /// # async fn example(channel: &vmbus::kmcl::Channel) -> Result<(), vmbus::kmcl::Error> {
    /// let reply = channel.request(b"question", None).await?;
    /// let status = reply.payload().first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.packet.completion()
    }

    /// Takes back the memory that the request had lent.
    ///
    /// ```
    /// # async fn example(channel: &vmbus::kmcl::Channel, buffer: vmbus::memory::DmaBuffer) -> Result<(), vmbus::kmcl::Error> {
    /// let mut reply = channel.request(b"read", Some(buffer.into())).await?;
    /// let memory = reply.take_mdl();
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_mdl(&mut self) -> Option<Mdl> {
        self.packet.take_mdl()
    }
}

impl<C: Context> fmt::Debug for Reply<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Reply").field(&self.payload()).finish()
    }
}

impl<C: Context> Core<C> {
    /// Sends a request that a task waits for.
    fn begin_request(
        &self,
        payload: &[u8],
        lent: Option<Lent>,
        waker: Option<Waker>,
        if_full: IfFull,
    ) -> Result<RequestId, (Error, Option<Mdl>)> {
        let whole = |lent: Option<Lent>| lent.map(Lent::into_whole);
        if let Err(error) = self.may_send(payload.len()) {
            return Err((error, whole(lent)));
        }
        let mut outgoing = self.outgoing();
        let Some(mut body) = outgoing.stock.take() else {
            drop(outgoing);
            add(&self.counters.refused, 1);
            return Err((Error::TooManyPackets, whole(lent)));
        };
        body.lent = lent;
        // A waker is somebody else's code, and goes in only when nothing can drop it under the lock any more.
        match outgoing.send_request(body, Waiter::Task(None), payload, if_full, &self.counters) {
            Ok(id) => {
                if let Some(waker) = waker
                    && let Some(request) = outgoing.table.get_mut(id)
                {
                    request.waiter = Waiter::Task(Some(waker));
                }
                Ok(id)
            }
            Err((error, mut body)) => {
                let lent = body.lent.take();
                drop(outgoing);
                drop(self.free_packet(body));
                Err((error, whole(lent)))
            }
        }
    }

    /// Takes the request out if it is completed.
    fn take_done(&self, id: RequestId) -> Option<(PacketMemory<C>, Result<(), Error>)> {
        let mut outgoing = self.outgoing();
        let request = outgoing.table.get_mut(id)?;
        if !matches!(request.waiter, Waiter::Done) {
            return None;
        }
        let mut body = outgoing.take_request(id, &self.counters)?.body;
        let status = body.settle();
        Some((body, status))
    }

    /// Returns true if the request is completed.
    fn is_done(&self, id: RequestId) -> bool {
        let mut outgoing = self.outgoing();
        outgoing
            .table
            .get_mut(id)
            .is_some_and(|request| matches!(request.waiter, Waiter::Done))
    }

    /// Gives a request up. If it was not sent yet, or is completed by now, its packet comes back.
    fn abandon(&self, id: RequestId) -> Option<PacketMemory<C>> {
        let mut outgoing = self.outgoing();
        let request = outgoing.table.get_mut(id)?;
        add(&self.counters.cancelled, 1);
        let is_ours = request.body.in_line || matches!(request.waiter, Waiter::Done);
        let old = core::mem::replace(&mut request.waiter, Waiter::Nobody);
        let request = is_ours.then(|| outgoing.take_request(id, &self.counters)).flatten();
        drop(outgoing);
        // A waker is somebody else's code.
        drop(old);
        request.map(|request| request.body)
    }
}

impl<C: Context> Channel<C> {
    /// Sends a request and waits for its completion (`VmbChannelSendSynchronousRequest` with the flag
    /// `WAIT_FOR_COMPLETION`). The completion's beginning is copied to `completion`, whose length is a multiple of 8.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let mut answer = [0; 16];
    /// let memory = both.memory(b"lent")?;
    /// let sent = channel.send_synchronous_request(b"question", Some(memory), Deadline::seconds(1), &mut answer)?;
    /// assert_eq!(&answer[..sent.len], b"question");
    /// assert_eq!(sent.mdl.unwrap().len(), 4, "it is ours again");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The memory comes back where the peer does not have it:
    /// - nothing was sent: [`Error::InvalidCapacity`], [`Error::PacketTooLarge`], [`Error::InvalidExternalData`],
    ///   [`Error::TooManyPackets`], [`Error::WouldDeadlock`] (from a callback of this channel other than post-started),
    ///   [`Error::ServerMayNotWait`], [`Error::RingFull`] (no room, and a deadline of zero), [`Error::WrongState`] (paused after
    ///   its first start), [`Error::Corrupt`] (the peer has broken the ring, which ends the channel soon), [`Error::Gone`];
    /// - [`Error::Cancelled`]: time was up; a request that is in the ring already may still be seen by the peer, and its
    ///   memory stays lent until the peer completes it or the channel ends;
    /// - [`Error::CompletionTruncated`]: the buffer holds the completion's beginning.
    pub fn send_synchronous_request(
        &self,
        payload: &[u8],
        mdl: Option<Mdl>,
        deadline: Deadline,
        completion: &mut [u8],
    ) -> Result<Sent, Refused<Option<Mdl>>> {
        self.send_synchronous(SynchronousRequest {
            payload,
            mdl,
            flags: SendFlags::WAIT_FOR_COMPLETION,
            completion: Some(completion),
            deadline,
        })
    }

    /// Sends a request, with or without waiting for its completion (`VmbChannelSendSynchronousRequest`). A server may only send
    /// with a deadline of zero and without waiting.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// // Only if it fits into the ring now, and without waiting for anybody.
    /// channel.send_synchronous(SynchronousRequest {
    ///     payload: b"notice",
    ///     mdl: None,
    ///     flags: SendFlags::empty(),
    ///     completion: None,
    ///     deadline: Deadline::IMMEDIATE,
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send_synchronous_request`](Self::send_synchronous_request); and [`Error::CompletionNeeded`] for memory without
    /// [`SendFlags::WAIT_FOR_COMPLETION`].
    pub fn send_synchronous(&self, request: SynchronousRequest<'_>) -> Result<Sent, Refused<Option<Mdl>>> {
        let SynchronousRequest {
            payload,
            mdl,
            flags,
            completion,
            deadline,
        } = request;
        let core = self.core();
        let waits = flags.contains(SendFlags::WAIT_FOR_COMPLETION);
        let immediate = deadline == Deadline::IMMEDIATE;
        if let Some(buffer) = &completion
            && !buffer.len().is_multiple_of(8)
        {
            return Err(refuse(Error::InvalidCapacity(buffer.len()), mdl));
        }
        if core.side == Side::Server && (waits || !immediate) {
            return Err(refuse(Error::ServerMayNotWait, mdl));
        }
        if !immediate && core.inside() == Some(Inside::Callback) {
            return Err(refuse(Error::WouldDeadlock, mdl));
        }
        let if_full = if immediate { IfFull::Refuse } else { IfFull::Queue };
        if !waits {
            if mdl.is_some() {
                return Err(refuse(Error::CompletionNeeded, mdl));
            }
            return self
                .place(payload, if_full, deadline)
                .map_err(|error| refuse(error, None));
        }
        let until = core.until(deadline);
        let lent = match mdl.map(|mdl| core.lend(mdl, 0, 0, flags)).transpose() {
            Ok(lent) => lent,
            Err((error, mdl)) => return Err(refuse(error, Some(mdl))),
        };
        let id = core
            .begin_request(payload, lent, None, if_full)
            .map_err(|(error, mdl)| refuse(error, mdl))?;
        let outcome = core.wait(until, |core| match core.take_done(id) {
            Some(done) => Some(Ok(done)),
            None if core.gone() == Some(Gone::Corrupt) => Some(Err(Error::Gone(Gone::Corrupt))),
            None => None,
        });
        match outcome {
            Ok(Ok((mut body, status))) => {
                let result = copy_completion(&body, status, completion);
                let mdl = body.lent.take().map(Lent::into_whole);
                drop(core.free_packet(body));
                match result {
                    Ok(len) => Ok(Sent { len, mdl }),
                    Err(error) => Err(refuse(error, mdl)),
                }
            }
            Ok(Err(error)) => Err(refuse(error, self.given_up(id))),
            Err(_) => Err(refuse(Error::Cancelled, self.given_up(id))),
        }
    }

    /// Gives a request up; returns its memory if the peer does not have it.
    fn given_up(&self, id: RequestId) -> Option<Mdl> {
        let mut body = self.core().abandon(id)?;
        let mdl = body.lent.take().map(Lent::into_whole);
        drop(self.core().free_packet(body));
        mdl
    }

    /// Puts a packet into the ring that nobody waits for, waiting for room.
    fn place(&self, payload: &[u8], if_full: IfFull, deadline: Deadline) -> Result<Sent, Error> {
        let core = self.core();
        let sent = Sent { len: 0, mdl: None };
        match core.send_plain(payload, IfFull::Refuse) {
            Ok(()) => return Ok(sent),
            Err(Error::RingFull) if if_full == IfFull::Queue => {}
            Err(error) => return Err(error),
        }
        core.outgoing().begin_waiting();
        let outcome = core.wait(core.until(deadline), |core| {
            match core.send_plain(payload, IfFull::Refuse) {
                Ok(()) => Some(Ok(())),
                Err(Error::RingFull) => {
                    core.outgoing().await_room(payload.len());
                    None
                }
                Err(error) => Some(Err(error)),
            }
        });
        core.outgoing().stop_waiting();
        match outcome {
            Ok(Ok(())) => Ok(sent),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Cancelled),
        }
    }

    /// Sends a request whose completion is awaited by `async` code. It is sent when the future is first polled; a future that is
    /// dropped gives the request up like a time-out does.
    ///
    /// ```
    /// # use vmbus::kmcl::{Channel, Error};
    /// # async fn example(channel: Channel) -> Result<(), Error> {
    /// let reply = channel.request(b"question", None).await?;
    /// log::info!("{:02x?}", reply.payload());
    /// # Ok(())
    /// # }
    /// ```
    pub fn request<'a>(&self, payload: &'a [u8], mdl: Option<Mdl>) -> Request<'a, C> {
        Request {
            channel: self.uncounted(),
            payload,
            state: State::New(mdl),
        }
    }

    /// Sends a request now, and returns what its completion is awaited with, which borrows nothing: for those who keep many in
    /// flight, in the order in which they send. Otherwise as [`request`](Self::request).
    ///
    /// ```
    /// # use vmbus::kmcl::{Channel, Error};
    /// async fn both(channel: &Channel) -> Result<(), Error> {
    ///     let first = channel.send_request(b"one", None)?;
    ///     let second = channel.send_request(b"two", None)?;
    ///     log::info!("{:?} and {:?}", first.await?, second.await?);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The memory comes back, and nothing was sent: [`Error::PacketTooLarge`], [`Error::InvalidExternalData`],
    /// [`Error::TooManyPackets`], [`Error::ServerMayNotWait`], [`Error::WrongState`] on a channel that is paused after its first
    /// start, [`Error::Corrupt`] if the peer has broken the ring, which ends the channel soon, [`Error::Gone`].
    pub fn send_request(&self, payload: &[u8], mdl: Option<Mdl>) -> Result<Request<'static, C>, Refused<Option<Mdl>>> {
        let id = self.begin(payload, mdl, None)?;
        Ok(Request {
            channel: self.uncounted(),
            payload: &[],
            state: State::Sent(id),
        })
    }

    /// Sends a request for a future.
    fn begin(&self, payload: &[u8], mdl: Option<Mdl>, waker: Option<Waker>) -> Result<RequestId, Refused<Option<Mdl>>> {
        let core = self.core();
        if core.side == Side::Server {
            return Err(refuse(Error::ServerMayNotWait, mdl));
        }
        let lent = mdl
            .map(|mdl| core.lend(mdl, 0, 0, SendFlags::WAIT_FOR_COMPLETION))
            .transpose()
            .map_err(|(error, mdl)| refuse(error, Some(mdl)))?;
        core.begin_request(payload, lent, waker, IfFull::Queue)
            .map_err(|(error, mdl)| refuse(error, mdl))
    }
}

const fn refuse(error: Error, mdl: Option<Mdl>) -> Refused<Option<Mdl>> {
    Refused { error, given: mdl }
}

/// Copies the completion, or its beginning.
fn copy_completion<C: Context>(
    body: &Body<C>,
    status: Result<(), Error>,
    buffer: Option<&mut [u8]>,
) -> Result<usize, Error> {
    match status {
        Ok(()) | Err(Error::CompletionTruncated { .. }) => {}
        Err(error) => return Err(error),
    }
    // Nobody wants it.
    let Some(buffer) = buffer else { return Ok(0) };
    let bytes = body.kept();
    let len = bytes.len().min(buffer.len());
    for (target, source) in buffer.iter_mut().zip(bytes) {
        *target = *source;
    }
    status?;
    if len < bytes.len() {
        return Err(Error::CompletionTruncated { len: bytes.len() });
    }
    Ok(len)
}

enum State {
    New(Option<Mdl>),
    Sent(RequestId),
    Over,
}

/// A request that is being made: see [`Channel::request`].
#[must_use = "a future that is not polled sends nothing"]
pub struct Request<'a, C: Context> {
    channel: Channel<C>,
    payload: &'a [u8],
    state: State,
}

impl<C: Context> Request<'_, C> {
    /// Returns true if its completion is there.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Sent(id) if self.channel.core().is_done(id))
    }
}

// Nothing in it is ever pinned.
impl<C: Context> Unpin for Request<'_, C> {}

impl<C: Context> Future for Request<'_, C> {
    type Output = Result<Reply<C>, Refused<Option<Mdl>>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut core::task::Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let core = this.channel.core();
        let id = match core::mem::replace(&mut this.state, State::Over) {
            State::Over => return Poll::Pending,
            State::Sent(id) => id,
            State::New(mdl) => match this.channel.begin(this.payload, mdl, Some(context.waker().clone())) {
                Ok(id) => id,
                Err(refused) => return Poll::Ready(Err(refused)),
            },
        };
        if let Some((mut body, status)) = core.take_done(id) {
            return Poll::Ready(match status {
                Ok(()) => Ok(Reply {
                    packet: OutgoingPacket::new(body, &this.channel),
                }),
                Err(error) => {
                    let mdl = body.lent.take().map(Lent::into_whole);
                    drop(core.free_packet(body));
                    Err(refuse(error, mdl))
                }
            });
        }
        let fresh = context.waker().clone();
        let old = {
            let mut outgoing = core.outgoing();
            match outgoing.table.get_mut(id).map(|request| &mut request.waiter) {
                Some(Waiter::Task(waker)) => waker.replace(fresh),
                // Completed meanwhile: look again.
                _ => Some(fresh),
            }
        };
        // Behind the lock: whoever ends the channel for a broken ring wakes those that stand there.
        if core.gone() == Some(Gone::Corrupt) {
            let mdl = this.channel.given_up(id);
            return Poll::Ready(Err(refuse(Gone::Corrupt.into(), mdl)));
        }
        this.state = State::Sent(id);
        if core.is_done(id)
            && let Some(waker) = old
        {
            waker.wake();
        }
        Poll::Pending
    }
}

impl<C: Context> Drop for Request<'_, C> {
    fn drop(&mut self) {
        if let State::Sent(id) = self.state {
            drop(self.channel.given_up(id));
        }
    }
}

impl<C: Context> fmt::Debug for Request<'_, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}
