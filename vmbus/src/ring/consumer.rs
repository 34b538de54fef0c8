//! The reading half of a ring.

use zerocopy::IntoBytes;

use super::Signal;
use super::control::FEATURE_PENDING_SEND_SIZE;
use super::error::{Corruption, InvalidRing, ReadError};
use super::geometry::Geometry;
use super::memory::RingMemory;
use super::packet::{DESCRIPTOR, Descriptor, Packet, TRAILER};
use super::sync::{Ordering, fence, observe};
use crate::protocol::packet::{PacketFlags, PacketType};

/// Reads packets from a ring: takes any number, then gives their room back at once.
///
/// `S` is the scratch area that [`next`](Self::next) copies packets to: an array, a mutable slice or a box of words. A packet
/// must fit into it without its 16-byte descriptor; so its size is the largest packet that the peer may send. Those who bring
/// memory for each packet ([`peek`](Self::peek), [`next_into`](Self::next_into)) use an empty array.
///
/// All state is private; what the control page says of our own index is never read.
#[derive(Debug)]
pub struct Consumer<M, S = [u64; 0]> {
    state: State,
    memory: M,
    scratch: S,
}

/// Alone on its cache lines (two: adjacent lines are fetched together), since the other half of the channel may run elsewhere.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct State {
    geometry: Geometry,
    /// Where the next packet starts.
    read: u32,
    /// The read index that the peer knows.
    published: u32,
    /// Bytes known to be unread from `read` on; 0 once the ring is broken, so that the fast path needs no second check.
    available: u32,
    /// Whether the peer has been seen to announce that it tells how much room it waits for.
    peer_tells_wait: bool,
    fault: Option<Corruption>,
}

/// What [`Consumer::unmask`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "packets that came while signals were masked are not signalled"]
pub struct Unmasked {
    /// Whether there are packets: then mask again and go on reading, no signal will come for these.
    pub more: bool,
    /// Whether the peer must be told of the room that was published with it.
    pub signal: Signal,
}

impl<M: RingMemory, S: AsMut<[u64]>> Consumer<M, S> {
    /// Makes an empty ring of the memory, whatever it held before, and reads from it.
    ///
    /// Right only while no peer knows of the ring: before its channel is opened.
    #[must_use]
    pub fn create(memory: M, scratch: S) -> Self {
        memory.control().initialise(0);
        let geometry = Geometry::of(&memory);
        Self {
            state: State::new(geometry, 0),
            memory,
            scratch,
        }
    }

    /// Reads from a ring that exists: made by the peer, or left by an earlier owner.
    ///
    /// # Errors
    ///
    /// [`InvalidRing::Corrupt`] if its read index is none.
    pub fn attach(memory: M, scratch: S) -> Result<Self, InvalidRing> {
        let geometry = Geometry::of(&memory);
        let read = geometry.check_read_index(memory.control().read_index.load(Ordering::Relaxed))?;
        Ok(Self {
            state: State::new(geometry, read),
            memory,
            scratch,
        })
    }

    /// Takes the next packet, copied to the scratch area.
    ///
    /// Not an iterator: the packet borrows the scratch area.
    ///
    /// # Errors
    ///
    /// [`ReadError::Empty`] now, [`ReadError::Corrupt`] for ever.
    #[expect(
        clippy::should_implement_trait,
        reason = "a lending iterator cannot implement Iterator"
    )]
    #[inline(always)]
    pub fn next(&mut self) -> Result<Packet<'_>, ReadError> {
        self.state.next(&self.memory, self.scratch.as_mut())
    }

    /// Takes the next packet, copied to the caller's memory.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next); a packet that does not fit is [`Corruption::TooLong`].
    #[inline(always)]
    pub fn next_into<'b>(&mut self, slot: &'b mut [u64]) -> Result<Packet<'b>, ReadError> {
        self.state.next(&self.memory, slot)
    }

    /// Looks at the next packet without taking it: its descriptor is copied and checked, its content still lies in the ring.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Peek<'_, M>, ReadError> {
        Peek::new(&mut self.state, &self.memory)
    }

    /// Whether there is a packet. Looks at shared memory only if none is known of.
    ///
    /// # Errors
    ///
    /// [`ReadError::Corrupt`] if the peer broke the ring.
    #[inline]
    pub fn has_packets(&mut self) -> Result<bool, ReadError> {
        if self.is_at_end() { Ok(false) } else { self.has_more() }
    }

    #[inline(never)]
    fn has_more(&mut self) -> Result<bool, ReadError> {
        match self.state.refill(&self.memory) {
            Ok(()) => Ok(true),
            Err(ReadError::Empty) => Ok(false),
            Err(corrupt) => Err(corrupt),
        }
    }

    /// Returns true if the peer has written nothing beyond what was read: its index is our own position.
    #[inline]
    fn is_at_end(&self) -> bool {
        let state = &self.state;
        state.available == 0 && state.fault.is_none() && observe(&self.memory.control().write_index) == state.read
    }

    /// Gives back the room of all packets taken, and says whether the peer sleeps for it: whether the free room has just
    /// reached what it waits for.
    #[inline]
    pub fn commit(&mut self) -> Signal {
        self.commit_here()
    }

    /// [`commit`](Self::commit) for where one packet at a time is read: inlined.
    #[inline(always)]
    pub(crate) fn commit_here(&mut self) -> Signal {
        let state = &mut self.state;
        if state.read == state.published {
            return Signal::NotNeeded;
        }
        // Publishing orders the copies out of the ring in front of the index, and the index in front of the load of what the
        // peer waits for: the peer sees the room, or we see that it waits.
        self.memory.publish(&self.memory.control().read_index, state.read);
        state.room_given(&self.memory)
    }

    /// Asks the peer not to signal, while we read anyway.
    pub fn mask(&mut self) {
        self.memory.control().interrupt_mask.store(1, Ordering::Relaxed);
        // Before the loads of the drain that follows.
        fence(Ordering::SeqCst);
    }

    /// Asks the peer to signal again, gives back the room of all packets taken, and looks once more for what came meanwhile.
    ///
    /// If there are packets, [`mask`](Self::mask) again and read on; else the next one is signalled.
    ///
    /// # Errors
    ///
    /// [`ReadError::Corrupt`] if the peer broke the ring.
    pub fn unmask(&mut self) -> Result<Unmasked, ReadError> {
        let state = &mut self.state;
        let control = self.memory.control();
        // Release: as in `commit`. The read index goes first: a peer that sees us unmasked must not take the ring for not
        // empty, or it would not signal.
        control.read_index.store(state.read, Ordering::Release);
        control.interrupt_mask.store(0, Ordering::Release);
        // In front of the loads of the write index and of what the peer waits for.
        fence(Ordering::SeqCst);
        let signal = if state.read == state.published {
            Signal::NotNeeded
        } else {
            state.room_given(&self.memory)
        };
        let more = self.has_packets()?;
        Ok(Unmasked { more, signal })
    }

    /// Whether the peer announces that it tells how much room it waits for, and so that it answers our waits.
    ///
    /// A peer that does not must be polled for room.
    #[must_use]
    pub fn peer_signals_room(&self) -> bool {
        self.state.peer_tells_wait || tells_wait(&self.memory)
    }

    /// What the peer did to break the ring, if it did.
    #[must_use]
    pub const fn fault(&self) -> Option<Corruption> {
        self.state.fault
    }

    /// The ring's memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }
}

fn tells_wait<M: RingMemory>(memory: &M) -> bool {
    memory.control().features.load(Ordering::Relaxed) & FEATURE_PENDING_SEND_SIZE != 0
}

impl State {
    const fn new(geometry: Geometry, read: u32) -> Self {
        Self {
            geometry,
            read,
            published: read,
            available: 0,
            peer_tells_wait: false,
            fault: None,
        }
    }

    /// Makes sure that there is as much to read as the shortest packet takes, one without payload.
    #[inline(always)]
    fn refill<M: RingMemory>(&mut self, memory: &M) -> Result<(), ReadError> {
        if self.available < DESCRIPTOR + TRAILER {
            self.refresh(memory)
        } else {
            Ok(())
        }
    }

    /// Takes the next packet.
    #[inline(always)]
    fn next<'b, M: RingMemory>(&mut self, memory: &M, slot: &'b mut [u64]) -> Result<Packet<'b>, ReadError> {
        self.refill(memory)?;
        // Read once.
        let descriptor = Descriptor::new(memory.load_pair(self.read));
        let words = descriptor.body() as usize / 8;
        if !descriptor.is_usual() || descriptor.total() > self.available || words > slot.len() {
            return self.next_unusual(memory, descriptor, slot);
        }
        let start = self.read.wrapping_add(DESCRIPTOR);
        self.take(descriptor);
        // Never empty-handed: the length was just compared.
        let slot = slot.get_mut(..words).unwrap_or_default();
        memory.load(start, slot);
        Ok(Packet::new(descriptor, slot.as_bytes()))
    }

    /// Takes a packet that is no simple one, or none at all.
    #[inline(never)]
    fn next_unusual<'b, M: RingMemory>(
        &mut self,
        memory: &M,
        descriptor: Descriptor,
        slot: &'b mut [u64],
    ) -> Result<Packet<'b>, ReadError> {
        Peek::checked(self, memory, descriptor)?.take_into(slot)
    }

    /// Loads and checks the peer's write index.
    #[inline]
    fn refresh<M: RingMemory>(&mut self, memory: &M) -> Result<(), ReadError> {
        self.refresh_from(observe(&memory.control().write_index))?;
        match self.available {
            0 => Err(ReadError::Empty),
            available if available < DESCRIPTOR + TRAILER => {
                Err(self.break_ring(Corruption::Fragment { available }).into())
            }
            _ => Ok(()),
        }
    }

    #[inline]
    fn refresh_from(&mut self, raw: u32) -> Result<(), Corruption> {
        if self.fault.is_none() && self.geometry.contains(raw) {
            // From what the peer knows to be free: what we have read and not given back is still in its way.
            let kept = self.geometry.distance(self.published, self.read);
            let claimed = self.geometry.distance(self.published, raw);
            // Neither sum nor difference leaves the ring: known bytes were counted from the same position.
            if claimed >= kept.wrapping_add(self.available) {
                self.available = claimed.wrapping_sub(kept);
                return Ok(());
            }
        }
        Err(self.break_ring_at(raw))
    }

    /// After the read index was published: what the peer waits for, and whether it can go on now but could not before.
    #[inline(always)]
    fn room_given<M: RingMemory>(&mut self, memory: &M) -> Signal {
        let before = core::mem::replace(&mut self.published, self.read);
        let waiting_for = observe(&memory.control().pending_send_size);
        if waiting_for == 0 && self.peer_tells_wait {
            return Signal::NotNeeded;
        }
        self.signal_room(memory, before, waiting_for)
    }

    #[cold]
    #[inline(never)]
    fn signal_room<M: RingMemory>(&mut self, memory: &M, before: u32, waiting_for: u32) -> Signal {
        self.peer_tells_wait = tells_wait(memory);
        if waiting_for == 0 {
            // A peer that never tells either polls or expects a signal each time; it must not sleep for ever.
            return Signal::when(!self.peer_tells_wait);
        }
        let raw = observe(&memory.control().write_index);
        if self.refresh_from(raw).is_err() {
            return Signal::NotNeeded;
        }
        // Some hosts wait for a whole ring less one byte, which is not to be had: they mean an empty ring.
        let waiting_for = (waiting_for & !7).min(self.geometry.capacity());
        let room = |read| self.geometry.capacity().wrapping_sub(self.geometry.distance(read, raw));
        Signal::when(room(before) < waiting_for && room(self.read) >= waiting_for)
    }

    #[cold]
    #[inline(never)]
    fn break_ring_at(&mut self, raw: u32) -> Corruption {
        let corruption = match self.geometry.check_write_index(raw) {
            Err(corruption) => corruption,
            Ok(raw) => Corruption::WriteIndexBackwards {
                raw,
                known: self
                    .geometry
                    .distance(self.published, self.read)
                    .wrapping_add(self.available),
                claimed: self.geometry.distance(self.published, raw),
            },
        };
        self.break_ring(corruption)
    }

    /// The first corruption stays; nothing is read any more.
    #[cold]
    #[inline(never)]
    fn break_ring(&mut self, corruption: Corruption) -> Corruption {
        self.available = 0;
        *self.fault.get_or_insert(corruption)
    }
}

/// The next packet of a ring, not yet taken.
///
/// Its descriptor is a checked copy; its content lies in shared memory, where the peer may still change it: two loads of the same
/// bytes may differ. Whoever needs more than single fields takes a copy.
#[derive(Debug)]
pub struct Peek<'c, M> {
    state: &'c mut State,
    memory: &'c M,
    descriptor: Descriptor,
}

impl<'c, M: RingMemory> Peek<'c, M> {
    #[inline(always)]
    fn new(state: &'c mut State, memory: &'c M) -> Result<Self, ReadError> {
        state.refill(memory)?;
        // Read once.
        let descriptor = Descriptor::new(memory.load_pair(state.read));
        Self::checked(state, memory, descriptor)
    }

    #[inline(always)]
    fn checked(state: &'c mut State, memory: &'c M, descriptor: Descriptor) -> Result<Self, ReadError> {
        match descriptor.check(state.available) {
            Ok(descriptor) => Ok(Self {
                state,
                memory,
                descriptor,
            }),
            Err(corruption) => Err(state.break_ring(corruption).into()),
        }
    }

    /// One of the four types that [`PacketType`] names.
    #[must_use]
    pub const fn packet_type(&self) -> PacketType {
        self.descriptor.packet_type()
    }

    /// The sender's number for the packet.
    #[must_use]
    pub const fn transaction_id(&self) -> u64 {
        self.descriptor.transaction_id
    }

    /// Whether the sender waits for a completion with this packet's transaction id.
    #[must_use]
    pub const fn is_completion_requested(&self) -> bool {
        self.descriptor.flags().contains(PacketFlags::COMPLETION_REQUESTED)
    }

    /// Bytes of the payload with its padding.
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        self.descriptor.payload()
    }

    /// Words that [`take_into`](Self::take_into) needs.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.descriptor.body() as usize / 8
    }

    /// Loads bytes of the payload from the ring; whether they lie in it.
    #[must_use]
    pub fn load_payload(&self, offset: u32, bytes: &mut [u8]) -> bool {
        let inside = match u32::try_from(bytes.len()) {
            Ok(len) => offset
                .checked_add(len)
                .is_some_and(|end| end <= self.descriptor.payload()),
            Err(_) => false,
        };
        if inside {
            // Within the packet, which lies within the ring.
            let start = DESCRIPTOR.wrapping_add(self.descriptor.external()).wrapping_add(offset);
            self.memory
                .load_bytes(self.state.geometry.advance(self.state.read, start), bytes);
        }
        inside
    }

    /// Takes the packet, copied to the caller's memory.
    ///
    /// # Errors
    ///
    /// [`Corruption::TooLong`] if it does not fit: the peer sends more than what was agreed on. Page lists are checked, too.
    #[inline(always)]
    pub fn take_into<'b>(self, slot: &'b mut [u64]) -> Result<Packet<'b>, ReadError> {
        let Self {
            state,
            memory,
            descriptor,
        } = self;
        let room = slot.len();
        let Some(slot) = slot.get_mut(..descriptor.body() as usize / 8) else {
            return Err(state.refuse(descriptor, room));
        };
        let start = state.read.wrapping_add(DESCRIPTOR);
        state.take(descriptor);
        memory.load(start, slot);
        let body = slot.as_bytes();
        if descriptor.has_page_list() {
            return Packet::with_page_list(descriptor, body)
                .map_err(|corruption| state.put_back(descriptor, corruption));
        }
        Ok(Packet::new(descriptor, body))
    }

    /// Takes the packet, and copies as much of its payload's beginning as fits to the caller's memory. Page lists are left out,
    /// unchecked.
    #[inline(always)]
    pub fn take_payload_into(self, slot: &mut [u64]) {
        let words = slot.len().min(self.descriptor.payload() as usize / 8);
        // Within the packet, which lies within the ring; never empty-handed, the length was just compared.
        let start = DESCRIPTOR.wrapping_add(self.descriptor.external());
        let slot = slot.get_mut(..words).unwrap_or_default();
        self.memory.load(self.state.read.wrapping_add(start), slot);
        self.skip();
    }

    /// Takes the packet and throws it away.
    pub const fn skip(self) {
        self.state.take(self.descriptor);
    }
}

impl State {
    /// Leaves a packet behind; [`Descriptor::decode`] has seen that it lies within what is available.
    #[inline(always)]
    const fn take(&mut self, descriptor: Descriptor) {
        self.read = self.geometry.advance(self.read, descriptor.total());
        self.available = self.available.wrapping_sub(descriptor.total());
    }

    /// Breaks the ring at a packet that was taken, and leaves it there.
    #[cold]
    #[inline(never)]
    fn put_back(&mut self, descriptor: Descriptor, corruption: Corruption) -> ReadError {
        // Back by the packet is on by the rest of the ring.
        self.read = self
            .geometry
            .advance(self.read, self.geometry.size().wrapping_sub(descriptor.total()));
        self.break_ring(corruption).into()
    }

    /// Breaks the ring at a packet that is longer than what was agreed on: `room` words and the descriptor.
    #[cold]
    #[inline(never)]
    fn refuse(&mut self, descriptor: Descriptor, room: usize) -> ReadError {
        let limit = u32::try_from(room.saturating_mul(8))
            .unwrap_or(u32::MAX)
            .saturating_add(DESCRIPTOR);
        let length = descriptor.body().wrapping_add(DESCRIPTOR);
        self.break_ring(Corruption::TooLong { length, limit }).into()
    }
}
