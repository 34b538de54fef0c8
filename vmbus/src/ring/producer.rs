//! The writing half of a ring.

use super::Signal;
use super::control::FEATURE_PENDING_SEND_SIZE;
use super::error::{Corruption, InvalidRing, WriteError};
use super::external::ExternalToSend;
use super::geometry::{Geometry, padded};
use super::memory::RingMemory;
use super::packet::{DESCRIPTOR, Header, MAX_LENGTH, PacketToSend, TRAILER};
use super::reservation::Reservation;
use super::sync::{Ordering, observe, publish_and_signal};

/// Writes packets into a ring: stages any number, then makes all of them visible at once.
///
/// All state is private; what the control page says of our own index is never read. The peer's read index is read only when
/// the known room runs out, and at each commit.
#[derive(Debug)]
pub struct Producer<M> {
    state: State,
    memory: M,
}

/// Alone on its cache lines (two: adjacent lines are fetched together), since the other half of the channel may run elsewhere.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct State {
    geometry: Geometry,
    /// Where the next packet goes.
    write: u32,
    /// The write index that the peer knows.
    committed: u32,
    /// Bytes known to be free behind `write`; 0 once the ring is broken, so that the fast path needs no second check.
    room: u32,
    /// What the peer was told that we wait for; 0 for nothing.
    waiting_for: u32,
    /// The last commit found that the peer had read all, and wanted a signal: the next one is likely to. False once the ring is
    /// broken.
    sleeps: bool,
    fault: Option<Corruption>,
}

/// What became of waiting for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "whoever goes to sleep although there is room may never wake up"]
pub enum Room {
    /// There is enough: do not sleep.
    Available,
    /// The peer has been told to signal when there is enough; its signal may also come too early.
    Awaited,
}

impl<M: RingMemory> Producer<M> {
    /// Makes an empty ring of the memory, whatever it held before, and writes to it.
    ///
    /// Right only while no peer knows of the ring: before its channel is opened.
    #[must_use]
    pub fn create(memory: M) -> Self {
        memory.control().initialise(FEATURE_PENDING_SEND_SIZE);
        let geometry = Geometry::of(&memory);
        Self {
            state: State::new(geometry, 0, geometry.capacity()),
            memory,
        }
    }

    /// Writes to a ring that exists: made by the peer, or left by an earlier owner.
    ///
    /// # Errors
    ///
    /// [`InvalidRing::Corrupt`] if its indices are none.
    pub fn attach(memory: M) -> Result<Self, InvalidRing> {
        let geometry = Geometry::of(&memory);
        let control = memory.control();
        let write = geometry.check_write_index(control.write_index.load(Ordering::Relaxed))?;
        let read = geometry.check_read_index(observe(&control.read_index))?;
        control.pending_send_size.store(0, Ordering::Relaxed);
        control.features.store(FEATURE_PENDING_SEND_SIZE, Ordering::Release);
        // `distance` is at most the size less 8: positions are multiples of 8.
        let room = geometry.capacity().wrapping_sub(geometry.distance(read, write));
        Ok(Self {
            state: State::new(geometry, write, room),
            memory,
        })
    }

    /// Stages one packet with a payload that lies in one piece, without page list.
    ///
    /// The payload is padded with zeroes to a multiple of 8.
    ///
    /// # Errors
    ///
    /// [`WriteError::Full`] now, [`WriteError::TooLarge`] or [`WriteError::Corrupt`] for ever. Nothing is staged then.
    #[inline(always)]
    pub fn send(&mut self, header: Header, payload: &[u8]) -> Result<(), WriteError> {
        let claim = self.state.claim(&self.memory, padded(payload.len()))?;
        self.state.stage(claim.total());
        let trailer = u64::from(claim.start) << 32;
        let first = header.encode(DESCRIPTOR, claim.length);
        self.memory
            .store_packet(claim.start, first, header.transaction_id, payload, trailer);
        Ok(())
    }

    /// Stages one packet of any kind, its payload gathered from pieces.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`WriteError::PageList`] for a page list that hosts would refuse.
    pub fn write(&mut self, packet: &PacketToSend<'_>) -> Result<(), WriteError> {
        let external = packet
            .external
            .length()
            .map_err(|index| WriteError::PageList { index })?;
        let payload = packet
            .pieces
            .iter()
            .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let mut reservation = self.reserve(packet.header, external, payload)?;
        match packet.external {
            ExternalToSend::None => {}
            ExternalToSend::GpaDirect(ranges) => {
                reservation.write_external(&u64::to_le_bytes((ranges.len() as u64) << 32))?;
                for range in ranges {
                    reservation.write_external(&u64::to_le_bytes(
                        u64::from(range.byte_count) | u64::from(range.byte_offset) << 32,
                    ))?;
                    reservation.write_external(zerocopy::IntoBytes::as_bytes(range.pfns))?;
                }
            }
            ExternalToSend::TransferPages { set_id, ranges } => {
                reservation.write_external(&u64::to_le_bytes(u64::from(set_id) | (ranges.len() as u64) << 32))?;
                reservation.write_external(zerocopy::IntoBytes::as_bytes(ranges))?;
            }
        }
        for piece in packet.pieces {
            reservation.write(piece)?;
        }
        reservation.finish();
        Ok(())
    }

    /// Reserves a place for one packet, to be filled where it lies: `external` bytes of page list, a multiple of 8, and
    /// `payload` bytes.
    ///
    /// A reservation that is dropped unfinished stages nothing.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[inline]
    pub fn reserve(
        &mut self,
        header: Header,
        external: usize,
        payload: usize,
    ) -> Result<Reservation<'_, M>, WriteError> {
        let claim = self
            .state
            .claim(&self.memory, padded(external).saturating_add(padded(payload)))?;
        // The claim found room for both: they fit.
        let external = u32::try_from(padded(external)).unwrap_or(0);
        let payload = u32::try_from(payload).unwrap_or(0);
        Ok(Reservation::new(
            &mut self.state,
            &self.memory,
            header,
            claim,
            external,
            payload,
        ))
    }

    /// Forgets all staged packets.
    pub const fn revert(&mut self) {
        let state = &mut self.state;
        if state.fault.is_none() {
            // What was staged had been taken out of the room.
            state.room = state
                .room
                .wrapping_add(state.geometry.distance(state.committed, state.write));
        }
        state.write = state.committed;
    }

    /// Makes all staged packets visible, and says whether the peer sleeps: whether the ring was empty and its signals are not
    /// masked.
    // By itself: once a batch, it would cost the loops around it more registers than the call does.
    #[inline(never)]
    pub fn commit(&mut self) -> Signal {
        self.commit_here()
    }

    /// [`commit`](Self::commit) for where one packet at a time is sent: inlined.
    #[inline(always)]
    pub(crate) fn commit_here(&mut self) -> Signal {
        let state = &mut self.state;
        if state.write == state.committed {
            return Signal::NotNeeded;
        }
        let control = self.memory.control();
        let before = state.committed;
        // Where the ring is empty and signals are not masked, the peer is signalled whatever it does meanwhile, and needs nothing
        // from us but that. A read index that is our own is a good one, and gives all of the room.
        if state.sleeps && observe(&control.read_index) == before && observe(&control.interrupt_mask) == 0 {
            state.room = state.geometry.capacity().wrapping_sub(state.staged());
            state.committed = state.write;
            publish_and_signal(&control.write_index, state.write);
            return Signal::Needed;
        }
        self.commit_to_awake()
    }

    /// Makes staged packets visible to a peer that may be awake.
    #[inline(never)]
    fn commit_to_awake(&mut self) -> Signal {
        let state = &mut self.state;
        let control = self.memory.control();
        let before = state.committed;
        // Not to signal needs a reason that holds after all is visible. Publishing orders the packets in front of the index, and
        // the index in front of the two loads below: a consumer that unmasks and then finds the ring empty has unmasked before
        // our load, or we have published before its.
        self.memory.publish(&control.write_index, state.write);
        state.committed = state.write;
        state.sleeps =
            observe(&control.interrupt_mask) == 0 && state.refresh(&self.memory).is_ok_and(|read| read == before);
        Signal::when(state.sleeps)
    }

    /// Tells the peer that we wait for this much room, unless there is as much by now.
    ///
    /// `needed` is what [`WriteError::Full`] told. After [`Room::Awaited`] the caller may sleep until the peer signals, and then
    /// calls this again; whoever gives up instead calls [`stop_waiting`](Self::stop_waiting). Staged packets should be committed
    /// before: the peer cannot make room of what it does not see. A peer that does not announce the feature
    /// ([`Consumer::peer_signals_room`](super::Consumer::peer_signals_room)) never signals; then poll.
    ///
    /// # Errors
    ///
    /// [`WriteError::TooLarge`] or [`WriteError::Corrupt`]: there will never be as much.
    pub fn wait_for_room(&mut self, needed: u32) -> Result<Room, WriteError> {
        let limit = self.state.geometry.capacity();
        if needed > limit {
            return Err(WriteError::TooLarge { needed, limit });
        }
        // Not larger than the limit, which is a multiple of 8: fits.
        let needed = needed.wrapping_add(7) & !7;
        if self.state.room < needed {
            // Publishing orders this in front of the load: the peer sees that we wait, or we see the room that it made.
            self.memory.publish(&self.memory.control().pending_send_size, needed);
            self.state.waiting_for = needed;
            let refreshed = self.state.refresh(&self.memory);
            if refreshed.is_ok() && self.state.room < needed {
                return Ok(Room::Awaited);
            }
            self.stop_waiting();
            refreshed?;
        } else {
            self.stop_waiting();
        }
        Ok(Room::Available)
    }

    /// Tells the peer that we wait for nothing.
    pub fn stop_waiting(&mut self) {
        if self.state.waiting_for != 0 {
            self.state.waiting_for = 0;
            // Relaxed: a peer that sees it late sends one signal too many.
            self.memory.control().pending_send_size.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes that are known to be free, without looking at shared memory; a packet takes its page list, its padded payload
    /// and 24 of them.
    #[must_use]
    pub const fn room(&self) -> u32 {
        self.state.room
    }

    /// Looks how far the peer has read.
    ///
    /// # Errors
    ///
    /// [`WriteError::Corrupt`] if that cannot be.
    pub fn refresh_room(&mut self) -> Result<u32, WriteError> {
        self.state.refresh(&self.memory)?;
        Ok(self.state.room)
    }

    /// Bytes that the largest packet may take, its 24 bytes of descriptor and trailer included.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.state.limit()
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

/// A place in the ring for one packet, not yet staged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Where it starts.
    pub(super) start: u32,
    /// Bytes without the trailer.
    pub(super) length: u32,
}

impl Claim {
    /// Bytes with the trailer.
    #[inline]
    pub(super) const fn total(self) -> u32 {
        // `length` is at most MAX_LENGTH: fits.
        self.length.wrapping_add(TRAILER)
    }
}

impl State {
    const fn new(geometry: Geometry, write: u32, room: u32) -> Self {
        Self {
            geometry,
            write,
            committed: write,
            room,
            waiting_for: 0,
            sleeps: true,
            fault: None,
        }
    }

    fn limit(&self) -> u32 {
        self.geometry.capacity().min(MAX_LENGTH.wrapping_add(TRAILER))
    }

    /// Finds room for a packet with this many bytes behind the descriptor, a multiple of 8.
    #[expect(clippy::cast_possible_truncation, reason = "masked to 20 bits")]
    #[inline(always)]
    fn claim<M: RingMemory>(&mut self, memory: &M, body: usize) -> Result<Claim, WriteError> {
        const FRAME: usize = (DESCRIPTOR + TRAILER) as usize;
        const MOST: usize = (MAX_LENGTH - DESCRIPTOR) as usize;
        if body > MOST || body.wrapping_add(FRAME) > self.room as usize {
            self.make_room(memory, body.saturating_add(FRAME))?;
        }
        // Not more than MAX_LENGTH, which has 19 bits.
        let length = ((body & 0xf_ffff) as u32).wrapping_add(DESCRIPTOR);
        Ok(Claim {
            start: self.write,
            length,
        })
    }

    /// Looks for room in shared memory, and says why there is none.
    #[cold]
    #[inline(never)]
    fn make_room<M: RingMemory>(&mut self, memory: &M, total: usize) -> Result<(), WriteError> {
        let limit = self.limit();
        let needed = match u32::try_from(total) {
            Ok(needed) if needed <= limit => needed,
            needed => {
                return Err(WriteError::TooLarge {
                    needed: needed.unwrap_or(u32::MAX),
                    limit,
                });
            }
        };
        self.refresh(memory)?;
        if needed > self.room {
            return Err(WriteError::Full { needed });
        }
        Ok(())
    }

    /// Takes a claimed packet in.
    #[inline(always)]
    pub(super) const fn stage(&mut self, total: u32) {
        // A claim is never larger than the room, and the room not larger than the ring.
        self.write = self.geometry.advance(self.write, total);
        self.room = self.room.wrapping_sub(total);
    }

    /// Bytes that the peer does not see yet.
    #[inline]
    const fn staged(&self) -> u32 {
        self.geometry.distance(self.committed, self.write)
    }

    /// Loads and checks the peer's read index, and knows the room again.
    #[inline]
    fn refresh<M: RingMemory>(&mut self, memory: &M) -> Result<u32, Corruption> {
        let raw = observe(&memory.control().read_index);
        if self.fault.is_none() && self.geometry.contains(raw) {
            let capacity = self.geometry.capacity();
            let used = self.geometry.distance(raw, self.write);
            let known = capacity.wrapping_sub(self.room);
            // The peer can only have read on, and only what was committed.
            if self.staged() <= used && used <= known {
                self.room = capacity.wrapping_sub(used);
                return Ok(raw);
            }
        }
        Err(self.break_ring(raw))
    }

    #[cold]
    #[inline(never)]
    fn break_ring(&mut self, raw: u32) -> Corruption {
        let known = self.geometry.capacity().wrapping_sub(self.room);
        self.room = 0;
        self.sleeps = false;
        *self.fault.get_or_insert(match self.geometry.check_read_index(raw) {
            Err(corruption) => corruption,
            Ok(raw) => Corruption::ReadIndexBackwards {
                raw,
                known,
                claimed: self.geometry.distance(raw, self.write),
            },
        })
    }
}
