//! The receiving side of a channel, behind its lock: [`Incoming`].
//!
//! Each packet is copied once, from the ring to memory that was reserved for it, and handed on with that memory. At the
//! quota, or without free memory, the ring is simply not read. Whoever waits for a completion reads the ring, too: packets in
//! front of it go to their memory and stand ready for the next `process`, which takes what is ready before it reads.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use super::counters::{LiveCounters, add_alone};
use super::packet::PacketMemory;
use super::settings::Settings;
use super::slab::RequestId;
use super::transport::RingPages;
use super::{Context, Level};
use crate::fallible::{
    OutOfMemory, ReservedQueue, ReservedVec, TryPush, try_box, try_vec_with_capacity, try_vec_zeroed,
};
use crate::memory::Mdl;
use crate::protocol::packet::PacketType;
use crate::ring::{Consumer, Corruption, External, Peek, ReadError};

/// The memory of an incoming packet, as it is handed around: a pointer's move.
pub(crate) type Slot = Box<IncomingBody>;

/// The memory of an incoming packet.
#[derive(Debug)]
pub(crate) struct IncomingBody {
    /// Page list and payload; later the answer, if that has to wait in line.
    words: Vec<u64>,
    /// In bytes; the words have more, for a page list.
    longest_payload: usize,
    list_len: usize,
    len: usize,
    pub(crate) transaction_id: u64,
    pub(crate) packet_type: PacketType,
    pub(crate) wants_completion: bool,
    /// Bytes for the driver's use.
    pub(crate) context: Vec<u8>,
    /// The external data, once it has been asked for.
    pub(crate) pinned: Option<Mdl>,
    /// The external data is not there yet.
    pub(crate) is_pending: bool,
    /// Only to be delivered at `PASSIVE`.
    pub(crate) needs_passive: bool,
    /// Where it was delivered last.
    pub(crate) level: Level,
}

impl IncomingBody {
    fn new(settings: &Settings) -> Result<Box<Self>, OutOfMemory> {
        try_box(Self {
            words: try_vec_zeroed(settings.packet_words())?,
            longest_payload: settings.maximum_packet_size.next_multiple_of(8),
            list_len: 0,
            len: 0,
            transaction_id: 0,
            packet_type: PacketType::IN_BAND,
            wants_completion: false,
            context: try_vec_zeroed(settings.client_context_size)?,
            pinned: None,
            is_pending: false,
            needs_passive: false,
            level: Level::Dispatch,
        })
    }

    /// Returns the bytes that one slot takes.
    pub(crate) const fn size(settings: &Settings) -> usize {
        let content = settings.packet_words().saturating_mul(8);
        size_of::<Self>()
            .saturating_add(content)
            .saturating_add(settings.client_context_size)
    }

    #[inline(always)]
    fn take(&mut self, peek: Peek<'_, RingPages>) -> Result<(), ReadError> {
        let (packet_type, id) = (peek.packet_type(), peek.transaction_id());
        let (wants_completion, len, words) = (
            peek.is_completion_requested(),
            peek.payload_len() as usize,
            peek.words(),
        );
        if len > self.longest_payload {
            // It would fit where a page list has room, but the driver was promised that there is none.
            let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
            return Err(ReadError::Corrupt(Corruption::TooLong {
                length: length(len),
                limit: length(self.longest_payload),
            }));
        }
        peek.take_into(&mut self.words)?;
        self.packet_type = packet_type;
        self.transaction_id = id;
        self.wants_completion = wants_completion;
        self.len = len;
        // The ring has checked that the payload is part of the words.
        self.list_len = words.wrapping_mul(8).saturating_sub(len);
        // One that was put back may have had some.
        if self.pinned.is_some() {
            self.pinned = None;
        }
        if !self.context.is_empty() {
            self.context.fill(0);
        }
        self.is_pending = false;
        self.needs_passive = false;
        Ok(())
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.words
            .as_bytes()
            .get(self.list_len..self.list_len.wrapping_add(self.len))
            .unwrap_or_default()
    }

    /// Returns the page list, which the ring has checked.
    pub(crate) fn external(&self) -> Result<External<'_>, Corruption> {
        External::parse(
            self.packet_type,
            self.words.as_bytes().get(..self.list_len).unwrap_or_default(),
        )
    }

    /// Returns page list and payload, and how long the list is.
    #[cfg(feature = "host")]
    pub(crate) fn content(&self) -> (&[u8], usize) {
        let content = self.words.as_bytes().get(..self.list_len.wrapping_add(self.len));
        (content.unwrap_or_default(), self.list_len)
    }

    /// Becomes a packet that an earlier server had taken from the ring; false if there is no room for it.
    #[cfg(feature = "host")]
    pub(crate) fn become_saved(&mut self, content: &[u8], list_len: usize) -> bool {
        let (Some(target), Some(len)) = (
            self.words.as_mut_bytes().get_mut(..content.len()),
            content.len().checked_sub(list_len),
        ) else {
            return false;
        };
        target.copy_from_slice(content);
        self.list_len = list_len;
        self.len = len;
        self.context.fill(0);
        self.pinned = None;
        self.is_pending = false;
        self.needs_passive = false;
        true
    }

    /// Keeps an answer that has to wait in line; it is not longer than the largest packet.
    pub(crate) fn keep(&mut self, answer: &[u8]) {
        for (target, source) in self.words.as_mut_bytes().iter_mut().zip(answer) {
            *target = *source;
        }
    }

    pub(crate) fn kept(&self, len: usize) -> &[u8] {
        self.words.as_bytes().get(..len).unwrap_or_default()
    }
}

/// Makes slots, outside any lock.
pub(crate) fn new_slots(settings: &Settings, count: u32) -> Result<Vec<Slot>, OutOfMemory> {
    let mut slots = try_vec_with_capacity(count as usize)?;
    for _ in 0..count {
        slots.try_push(IncomingBody::new(settings)?)?;
    }
    Ok(slots)
}

/// What is ready to be delivered.
pub(crate) enum Ready<C: Context> {
    /// A packet of the peer.
    Packet(Slot),
    /// A packet of ours whose routine is to be called.
    Completed(PacketMemory<C>),
}

/// What the ring held.
pub(crate) enum Read<'r> {
    /// A packet, now in reserved memory.
    Packet(Slot),
    /// A completion, still in the ring: to be taken or skipped.
    Completion(RequestId, Peek<'r, RingPages>),
    /// Nothing that can be taken.
    Nothing(Nothing),
}

/// Why nothing came from the ring.
pub(crate) enum Nothing {
    /// There is nothing.
    Empty,
    /// Packets, but no free memory for them here, or the quota is reached.
    NoSlot,
    /// The peer broke the ring.
    Corrupt(Corruption),
}

/// The receiving side.
pub(crate) struct Incoming<C: Context> {
    /// None while the channel is not open.
    pub(crate) ring: Option<Consumer<RingPages>>,
    /// Free slots; the one that came back last is used next.
    pool: Vec<Slot>,
    slots: u32,
    /// Packets that wait to be delivered, and completions whose routine is to be called.
    pub(crate) ready: VecDeque<Ready<C>>,
    /// Packets in `ready`.
    pub(crate) held: u32,
    pub(crate) quota: u32,
    /// The peer was asked not to signal.
    pub(crate) masked: bool,
    /// The driver failed a packet: nothing is delivered any more.
    pub(crate) stopped: bool,
    /// The ring is not read: the channel's state is being saved or restored.
    pub(crate) sealed: bool,
}

impl<C: Context> Incoming<C> {
    pub(crate) fn new(settings: &Settings) -> Result<Self, OutOfMemory> {
        let mut incoming = Self {
            ring: None,
            pool: Vec::new(),
            slots: 0,
            ready: VecDeque::new(),
            held: 0,
            quota: 0,
            masked: false,
            stopped: false,
            sealed: false,
        };
        incoming.set_quota(settings, settings.quota, &mut new_slots(settings, settings.quota)?)?;
        Ok(incoming)
    }

    /// Sets the quota. What it takes beyond the slots that there are comes out of `fresh`; others may have brought some meanwhile, and
    /// the rest stays there.
    pub(crate) fn set_quota(
        &mut self,
        settings: &Settings,
        quota: u32,
        fresh: &mut Vec<Slot>,
    ) -> Result<(), OutOfMemory> {
        let missing = fresh.len().min(quota.saturating_sub(self.slots) as usize);
        let slots = (self.slots as usize).saturating_add(missing);
        let ready = slots.saturating_add((settings.maximum_packet_count as usize).saturating_mul(2));
        self.pool
            .try_reserve_exact(slots.saturating_sub(self.pool.len()))
            .map_err(|_| OutOfMemory)?;
        self.ready
            .try_reserve_exact(ready.saturating_sub(self.ready.len()))
            .map_err(|_| OutOfMemory)?;
        for body in core::iter::from_fn(|| fresh.pop()).take(missing) {
            self.put_back(body);
            self.slots = self.slots.saturating_add(1);
        }
        self.quota = quota;
        Ok(())
    }

    /// Takes a free slot.
    #[cfg(feature = "host")]
    pub(crate) fn take_slot(&mut self) -> Option<Slot> {
        self.pool.pop()
    }

    /// Returns how many slots there are.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    /// Takes a slot back.
    pub(crate) fn put_back(&mut self, body: Slot) {
        let kept = self.pool.push_within(body);
        debug_assert!(kept.is_ok(), "slots come back once");
    }

    /// Takes slots back, all of them: there is room for all that there are.
    pub(crate) fn put_all_back(&mut self, slots: &mut Vec<Slot>) {
        // As one piece, and without a look at each.
        let has_room = self.pool.append_within(slots);
        debug_assert!(has_room, "slots come back once");
    }

    /// Puts something in line for delivery; there is room for all slots and all packets.
    pub(crate) fn make_ready(&mut self, ready: Ready<C>) {
        let kept = self.ready.push_back_within(ready);
        debug_assert!(kept.is_ok(), "reserved for all that there is");
    }

    /// Whether a packet could be taken from the ring.
    pub(crate) fn has_slot(&self, counters: &LiveCounters) -> bool {
        !self.pool.is_empty() && counters.indicated().saturating_add(u64::from(self.held)) < u64::from(self.quota)
    }

    /// Whether what is in the ring comes next, and may be taken.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.ready.is_empty() && !self.stopped && !self.sealed
    }

    /// Whether there is more to deliver, or perhaps to read.
    #[inline]
    pub(crate) fn has_more(&mut self) -> bool {
        let ring = self.ring.as_mut();
        !self.ready.is_empty() || ring.is_none_or(|ring| !matches!(ring.has_packets(), Ok(false)))
    }

    /// [`read`](Self::read) for where it is seldom called.
    #[inline(never)]
    pub(crate) fn read_seldom(&mut self, counters: &LiveCounters) -> Read<'_> {
        self.read(counters)
    }

    /// Has the peer signal again; returns whether it is to be signalled, and whether there is more to read.
    #[cold]
    #[inline(never)]
    pub(crate) fn unmask(&mut self) -> (bool, bool) {
        self.masked = false;
        let Some(ring) = &mut self.ring else {
            return (false, false);
        };
        // A ring that is broken is met by the next look.
        let (signal, more) = ring
            .unmask()
            .map_or((false, true), |found| (found.signal.is_needed(), found.more));
        (signal, more && !self.sealed)
    }

    /// Gives the room of what was read back; returns whether the peer is to be signalled, and whether there is more to read.
    ///
    /// Looked at behind it: a peer that wrote before it saw the room took the ring for one that is being read, and has not signalled.
    #[inline(always)]
    pub(crate) fn give_back(&mut self) -> (bool, bool) {
        let Some(ring) = &mut self.ring else {
            return (false, false);
        };
        let signal = ring.commit_here().is_needed();
        (signal, !matches!(ring.has_packets(), Ok(false)) && !self.sealed)
    }

    /// Looks at the ring; takes a packet out of it, or finds a completion in it.
    #[inline(always)]
    pub(crate) fn read(&mut self, counters: &LiveCounters) -> Read<'_> {
        let Some(ring) = &mut self.ring else {
            return Read::Nothing(Nothing::Empty);
        };
        if self.sealed {
            return Read::Nothing(Nothing::Empty);
        }
        let peek = match ring.peek() {
            Ok(peek) => peek,
            Err(ReadError::Empty) => return Read::Nothing(Nothing::Empty),
            Err(ReadError::Corrupt(corruption)) => return Read::Nothing(Nothing::Corrupt(corruption)),
            #[expect(unreachable_patterns, reason = "the enum may grow")]
            Err(_) => return Read::Nothing(Nothing::Empty),
        };
        if peek.packet_type() == PacketType::COMPLETION {
            add_alone(&counters.packets_received, 1);
            add_alone(&counters.bytes_received, u64::from(peek.payload_len()));
            return Read::Completion(RequestId(peek.transaction_id()), peek);
        }
        if counters.indicated().wrapping_add(u64::from(self.held)) >= u64::from(self.quota) {
            return Read::Nothing(Nothing::NoSlot);
        }
        // None is free if some of those that are completed are still with the sending side.
        let Some(mut body) = self.pool.pop() else {
            return Read::Nothing(Nothing::NoSlot);
        };
        let len = u64::from(peek.payload_len());
        match body.take(peek) {
            Ok(()) => {
                add_alone(&counters.packets_received, 1);
                add_alone(&counters.bytes_received, len);
                Read::Packet(body)
            }
            Err(error) => {
                let kept = self.pool.push_within(body);
                debug_assert!(kept.is_ok(), "it was taken out just now");
                match error {
                    ReadError::Corrupt(corruption) => Read::Nothing(Nothing::Corrupt(corruption)),
                    _ => Read::Nothing(Nothing::Empty),
                }
            }
        }
    }

    /// Drops what was not delivered; completions stay.
    pub(crate) fn drop_packets(&mut self) {
        for _ in 0..self.ready.len() {
            match self.ready.pop_front() {
                Some(Ready::Packet(body)) => {
                    self.held = self.held.wrapping_sub(1);
                    self.put_back(body);
                }
                Some(completed) => self.make_ready(completed),
                None => {}
            }
        }
    }

    /// Takes the next thing to deliver: in order, or, if packets may not be delivered, the next completion.
    pub(crate) fn next_ready(&mut self, level: Level, packets: bool) -> Option<Ready<C>> {
        let at = self.ready.iter().position(|ready| match ready {
            Ready::Packet(_) => packets,
            Ready::Completed(_) => true,
        })?;
        if let Some(Ready::Packet(body)) = self.ready.get(at)
            && body.needs_passive
            && level != Level::Passive
        {
            // Later packets do not overtake it, completions do.
            return self.next_completed();
        }
        let next = self.ready.remove(at);
        if let Some(Ready::Packet(_)) = next {
            self.held = self.held.wrapping_sub(1);
        }
        next
    }

    pub(crate) fn next_completed(&mut self) -> Option<Ready<C>> {
        let at = self
            .ready
            .iter()
            .position(|ready| matches!(ready, Ready::Completed(..)))?;
        self.ready.remove(at)
    }

    /// Puts a packet back in front of all others.
    pub(crate) fn put_first(&mut self, ready: Ready<C>) {
        let kept = self.ready.push_front_within(ready);
        debug_assert!(kept.is_ok(), "reserved for all that there is");
    }
}
