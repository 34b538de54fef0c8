//! Packets that go out: [`OutgoingPacket`] (KMCL: `VMBPACKET`), and who waits for what comes back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::task::Waker;

use zerocopy::IntoBytes;

use super::external::Lent;
use super::settings::Settings;
use super::{Channel, Context, Error, Refused};
use crate::fallible::{OutOfMemory, try_box, try_vec_zeroed};
use crate::memory::Mdl;
use crate::protocol::packet::PacketType;

bitflags::bitflags! {
    /// How a packet is sent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SendFlags: u32 {
        /// The packet is not complete until the peer's completion comes (`VMBUS_CHANNEL_FORMAT_FLAG_WAIT_FOR_COMPLETION`).
        const WAIT_FOR_COMPLETION = 1;
        /// The payload may be paged out (`VMBUS_CHANNEL_FORMAT_FLAG_PAGED_BUFFER`). Payloads are always copied before a call
        /// returns, so this changes nothing.
        const PAGED_BUFFER = 2;
        /// The length given counts, even if it passes the end of the memory, up to the end of the page
        /// (`VMBUS_CHANNEL_FORMAT_FLAG_FORCE_MDL_LENGTH`).
        const FORCE_MDL_LENGTH = 4;
    }
}

/// A completion routine (`EvtVmbPacketCompletionRoutine`): called once for each packet that was sent, with the packet and what
/// became of it. The completion's bytes and the memory that was lent are in the packet, which may be sent again; dropping it
/// puts it back among the channel's free ones.
pub type CompletionRoutine<C> = fn(&Channel<C>, OutgoingPacket<C>, Result<(), Error>);

/// Who waits for a request.
pub(crate) enum Waiter {
    /// The packet's completion routine.
    Routine,
    /// A task that blocks or a future that was polled; it looks for itself.
    Task(Option<Waker>),
    /// Nobody any more: time was up, or the future was dropped.
    Nobody,
    /// The packet tells what became of it.
    Done,
}

/// The memory of a packet object, as it is handed around: a pointer's move.
pub(crate) type PacketMemory<C> = Box<Body<C>>;

/// The memory of a packet object.
pub(crate) struct Body<C: Context> {
    /// The payload while it waits in line, then the completion.
    words: Vec<u64>,
    pub(crate) len: usize,
    pub(crate) lent: Option<Lent>,
    pub(crate) routine: Option<CompletionRoutine<C>>,
    pub(crate) pointer: usize,
    pub(crate) inline: Vec<u8>,
    pub(crate) of_pool: bool,
    /// It counts among the caller's own that are on their way.
    pub(crate) is_counted: bool,
    pub(crate) in_line: bool,
    /// What became of it: the full length of the completion, whose beginning lies in `words`, or why there is none.
    pub(crate) outcome: Result<usize, Error>,
}

impl<C: Context> Body<C> {
    pub(crate) fn new(settings: &Settings, of_pool: bool) -> Result<Box<Self>, OutOfMemory> {
        try_box(Self {
            words: try_vec_zeroed(settings.maximum_packet_size.div_ceil(8))?,
            len: 0,
            lent: None,
            routine: None,
            pointer: 0,
            inline: try_vec_zeroed(settings.inline_packet_context_size)?,
            of_pool,
            is_counted: false,
            in_line: false,
            outcome: Ok(0),
        })
    }

    /// Returns the bytes that one packet object takes.
    pub(crate) const fn size(settings: &Settings) -> usize {
        size_of::<Self>()
            .saturating_add(settings.maximum_packet_size.saturating_add(7) & !7)
            .saturating_add(settings.inline_packet_context_size)
    }

    pub(crate) const fn packet_type(&self) -> PacketType {
        match self.lent {
            Some(_) => PacketType::GPA_DIRECT,
            None => PacketType::IN_BAND,
        }
    }

    /// Keeps the payload until there is room in the ring; its length was checked against the channel's maximum.
    pub(crate) fn keep(&mut self, payload: &[u8]) {
        self.in_line = true;
        self.len = payload.len();
        for (target, source) in self.words.as_mut_bytes().iter_mut().zip(payload) {
            *target = *source;
        }
    }

    pub(crate) fn kept(&self) -> &[u8] {
        self.words.as_bytes().get(..self.len).unwrap_or_default()
    }

    /// Returns the memory for a completion.
    pub(crate) fn memory(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Returns what became of the packet, and notes how many bytes of completion lie in its memory.
    #[inline]
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        let capacity = self.words.as_bytes().len();
        self.len = self.outcome.map_or(0, |len| len.min(capacity));
        match self.outcome {
            Ok(len) if len > capacity => Err(Error::CompletionTruncated { len }),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn reset(&mut self) {
        debug_assert!(self.lent.is_none(), "given up outside the lock");
        self.len = 0;
        self.routine = None;
        self.pointer = 0;
        if !self.inline.is_empty() {
            self.inline.fill(0);
        }
        self.in_line = false;
    }
}

/// A packet object (KMCL: `VMBPACKET`), from the channel's pool or in the caller's memory; sent with a completion routine.
///
/// Dropping one from the pool frees it (`VmbPacketFree`).
pub struct OutgoingPacket<C: Context> {
    pub(crate) body: Option<PacketMemory<C>>,
    channel: Channel<C>,
}

impl<C: Context> OutgoingPacket<C> {
    /// Makes a packet of memory that was not in the pool a moment ago, or that the channel keeps itself for.
    pub(crate) fn new(body: PacketMemory<C>, channel: &Channel<C>) -> Self {
        if !body.of_pool {
            return Self::counted(body, channel);
        }
        Self {
            body: Some(body),
            channel: channel.for_packet_of_pool(),
        }
    }

    /// Makes a packet that is an owner of the channel, whatever keeps that.
    pub(crate) fn counted(body: PacketMemory<C>, channel: &Channel<C>) -> Self {
        Self {
            body: Some(body),
            channel: channel.uncounted(),
        }
    }

    /// Returns the channel that the packet belongs to (`VmbPacketGetChannel`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let packet = channel.packet_allocate()?;
    /// assert_eq!(packet.channel().id(), channel.id());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn channel(&self) -> &Channel<C> {
        &self.channel
    }

    /// Replaces the completion routine (`VmbPacketSetCompletionRoutine`). Without one, a completed packet is freed.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let mut packet = channel.packet_allocate()?;
    /// packet.set_completion_routine(|_, packet, status| match status {
    ///     Ok(()) => log::info!("{:02x?}", packet.completion()),
    ///     Err(error) => log::warn!("{error}"),
    /// });
    /// packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # Ok::<(), Error>(())
    /// ```
    pub fn set_completion_routine(&mut self, routine: CompletionRoutine<C>) {
        if let Some(body) = &mut self.body {
            body.routine = Some(routine);
        }
    }

    /// Stores a number of the driver's with the packet (`VmbPacketSetPointer`), say an index into its own table.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let mut packet = channel.packet_allocate()?;
    /// // Which of the driver's own requests it is.
    /// packet.set_pointer(7);
    /// packet.set_completion_routine(|_, packet, _| assert_eq!(packet.pointer(), 7));
    /// packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # Ok::<(), Error>(())
    /// ```
    pub fn set_pointer(&mut self, pointer: usize) {
        if let Some(body) = &mut self.body {
            body.pointer = pointer;
        }
    }

    /// Returns the number that was stored last, 0 at first (`VmbPacketGetPointer`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert_eq!(channel.packet_allocate()?.pointer(), 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn pointer(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.pointer)
    }

    /// Returns the packet's bytes for the driver's use, as many as `init_set_inline_packet_context_size` asked for, zero at
    /// first (`VmbPacketGetInlinePacketContextPointer`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = both.client()?.init_set_inline_packet_context_size(8).enable(Deadline::seconds(1))?;
    /// let mut packet = channel.packet_allocate()?;
    /// packet.inline_context().copy_from_slice(b"my bytes");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn inline_context(&mut self) -> &mut [u8] {
        self.body.as_mut().map_or(&mut [], |body| &mut body.inline)
    }

    /// Returns the payload of the completion, padded to a multiple of 8 bytes; only its beginning if it is longer than the
    /// channel's maximum packet size. Nothing before the packet was completed.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let mut packet = channel.packet_allocate()?;
    /// packet.set_completion_routine(|_, packet, _| assert_eq!(packet.completion(), b"question"));
    /// packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn completion(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], |body| body.kept())
    }

    /// Takes back the memory that the packet had lent, once it is completed.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let mut packet = channel.packet_allocate()?;
    /// packet.set_completion_routine(|_, mut packet, _| {
    ///     let memory = packet.take_mdl();
    ///     assert_eq!(memory.unwrap().len(), 8);
    /// });
    /// packet.send(b"look", Some(both.memory(b"external")?), SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 0);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn take_mdl(&mut self) -> Option<Mdl> {
        self.body.as_mut()?.lent.take().map(Lent::into_whole)
    }

    /// Sends the packet (`VmbPacketSend`), with `payload` in the ring and the memory of `mdl` described. The packet waits in
    /// line if the ring is full. The completion routine is called when the peer has completed it, or, without
    /// [`SendFlags::WAIT_FOR_COMPLETION`], once it is in the ring.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// // Nobody has to answer.
    /// channel.packet_allocate()?.send(b"notice", None, SendFlags::empty())?;
    /// // Memory is lent until the completion.
    /// let memory = both.memory(b"external")?;
    /// channel.packet_allocate()?.send(b"look", Some(memory), SendFlags::WAIT_FOR_COMPLETION)?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Everything comes back, and nothing was sent: [`Error::PacketTooLarge`], [`Error::InvalidExternalData`],
    /// [`Error::CompletionNeeded`] (an `mdl` without the flag), [`Error::TooManyPackets`], [`Error::WrongState`] on a channel that is
    /// paused after its first start, [`Error::Corrupt`] if the peer has broken the ring, which ends the channel soon, [`Error::Gone`].
    pub fn send(self, payload: &[u8], mdl: Option<Mdl>, flags: SendFlags) -> Result<(), Refused<(Self, Option<Mdl>)>> {
        match mdl {
            Some(mdl) => self
                .send_with_external_mdl(payload, mdl, 0, 0, flags)
                .map_err(|refused| Refused {
                    error: refused.error,
                    given: (refused.given.0, Some(refused.given.1)),
                }),
            None => self.transmit(payload, flags).map_err(|(error, packet)| Refused {
                error,
                given: (packet, None),
            }),
        }
    }

    /// Sends the packet with the bytes `offset..offset + len` of `mdl` described (`VmbPacketSendWithExternalMdl`); a `len` of
    /// 0 means to the end. [`SendFlags::WAIT_FOR_COMPLETION`] must be set.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let memory = both.memory(&[7; 8192])?;
    /// // 512 bytes from byte 4096 on.
    /// channel
    ///     .packet_allocate()?
    ///     .send_with_external_mdl(b"write", memory, 4096, 512, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn send_with_external_mdl(
        mut self,
        payload: &[u8],
        mdl: Mdl,
        offset: usize,
        len: usize,
        flags: SendFlags,
    ) -> Result<(), Refused<(Self, Mdl)>> {
        if !flags.contains(SendFlags::WAIT_FOR_COMPLETION) {
            return Err(Refused {
                error: Error::CompletionNeeded,
                given: (self, mdl),
            });
        }
        let lent = match self.channel.core().lend(mdl, offset, len, flags) {
            Ok(lent) => lent,
            Err((error, mdl)) => {
                return Err(Refused {
                    error,
                    given: (self, mdl),
                });
            }
        };
        if let Some(body) = &mut self.body {
            body.lent = Some(lent);
        }
        self.transmit(payload, flags).map_err(|(error, mut packet)| {
            let lent = packet.body.as_mut().and_then(|body| body.lent.take());
            // It was put there above.
            let mdl = lent.map_or_else(Mdl::empty, Lent::into_whole);
            Refused {
                error,
                given: (packet, mdl),
            }
        })
    }

    #[inline]
    fn transmit(mut self, payload: &[u8], flags: SendFlags) -> Result<(), (Error, Self)> {
        let Some(body) = self.body.take() else {
            return Err((Error::WrongState, self));
        };
        match self.channel.core().send_packet(body, payload, flags) {
            Ok(()) => {
                if self.channel.is_lent() {
                    // Nothing is left in it to be dropped.
                    core::mem::forget(self);
                }
                Ok(())
            }
            Err((error, body)) => {
                self.body = Some(body);
                Err((error, self))
            }
        }
    }
}

impl<C: Context> Drop for OutgoingPacket<C> {
    #[inline]
    fn drop(&mut self) {
        // It has none as a rule: it was sent.
        if let Some(body) = self.body.take() {
            self.give_back(body);
        }
    }
}

impl<C: Context> OutgoingPacket<C> {
    #[inline(never)]
    fn give_back(&self, body: PacketMemory<C>) {
        let last = self.channel.core().free_packet(body);
        // The channel may end with its last packet: nothing looks at it from here on.
        drop(last);
    }
}

impl<C: Context> fmt::Debug for OutgoingPacket<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OutgoingPacket")
            .field("channel", &self.channel)
            .field("pointer", &self.pointer())
            .finish_non_exhaustive()
    }
}
