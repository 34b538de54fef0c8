//! The host's end of a channel: [`HostChannel`].

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::bytes::to_usize;
use super::ring;
use super::{ChannelCounters, FakePlatform, GuestRange, Host, Packet, RingError, State};

/// The host's end of a channel.
#[derive(Clone, Copy, Debug)]
pub struct HostChannel<'a> {
    pub(super) host: &'a Host,
    pub(super) id: u32,
}

impl HostChannel<'_> {
    /// Returns the host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.host
    }

    /// Returns the channel's number.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    fn with<R>(&self, work: impl FnOnce(&mut State, u32) -> R) -> R {
        work(&mut self.host.lock(), self.id)
    }

    /// Returns whether the guest has it open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .is_some_and(|channel| channel.opening.is_some())
        })
    }

    /// Returns whether the channel was rescinded and the guest still has its number.
    #[must_use]
    pub fn is_rescinded(&self) -> bool {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .is_some_and(|channel| channel.is_rescinded)
        })
    }

    /// Returns what the guest gave with the open.
    #[must_use]
    pub fn user_data(&self) -> Option<[u8; 120]> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.opening.as_ref()?.user_data))
    }

    /// Returns the virtual processor to which signals go.
    #[must_use]
    pub fn target_vp(&self) -> Option<u32> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.opening.as_ref()?.target_vp))
    }

    /// Returns what the host counted of the channel.
    #[must_use]
    pub fn counters(&self) -> ChannelCounters {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .map_or_else(ChannelCounters::default, |it| it.counters)
        })
    }

    /// Counts a packet that the device could not send.
    pub fn count_dropped(&self) {
        self.with(|state, id| {
            if let Some(channel) = state.server.channels.get_mut(&id) {
                channel.counters.dropped += 1;
            }
        });
    }

    /// Takes the next packet from the guest. A broken ring is a violation, and nothing is received.
    #[must_use]
    pub fn receive(&self) -> Option<Packet> {
        let (packet, is_signal_due) = self.with(|state, id| {
            let channel = state.server.channels.get_mut(&id)?;
            match channel.rings.as_mut()?.receive(state.platform) {
                Ok(outcome) => {
                    channel.counters.received += u64::from(outcome.value.is_some());
                    outcome.value.map(|packet| (packet, outcome.is_signal_due))
                }
                Err(problem) => {
                    // As hosts do: the worker of the device stops.
                    channel.rings = None;
                    state.violation(format!("channel {id}: {problem}"));
                    None
                }
            }
        })?;
        if is_signal_due {
            self.signal();
        }
        Some(packet)
    }

    fn send(
        &self,
        send: impl FnOnce(&mut ring::Rings, &FakePlatform) -> Result<ring::Outcome<()>, RingError>,
    ) -> Result<(), RingError> {
        let is_signal_due = self.with(|state, id| {
            let channel = state.server.channels.get_mut(&id).ok_or(RingError::Closed)?;
            let rings = channel.rings.as_mut().ok_or(RingError::Closed)?;
            let outcome = send(rings, state.platform);
            if outcome.is_ok() {
                channel.counters.sent += 1;
            }
            if let Err(RingError::Broken) = outcome {
                state.violation(format!(
                    "channel {id}: the guest's read index is outside the ring or not aligned"
                ));
            }
            outcome.map(|outcome| outcome.is_signal_due)
        })?;
        if is_signal_due {
            self.signal();
        }
        Ok(())
    }

    /// Sends an in-band packet; bit 0 of `flags` asks for a completion.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_in_band(&self, transaction: u64, flags: u16, payload: &[u8]) -> Result<(), RingError> {
        self.send_packet(6, flags, transaction, &[], payload)
    }

    /// Sends a completion.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_completion(&self, transaction: u64, payload: &[u8]) -> Result<(), RingError> {
        self.send_packet(11, 0, transaction, &[], payload)
    }

    /// Sends a GPA-direct packet.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_gpa_direct(
        &self,
        transaction: u64,
        flags: u16,
        ranges: &[GuestRange],
        payload: &[u8],
    ) -> Result<(), RingError> {
        self.send_packet(9, flags, transaction, &ring::gpa_direct_descriptor(ranges), payload)
    }

    /// Sends a transfer-page packet: the number of the page set, and length and offset of each range in it.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_transfer_pages(
        &self,
        transaction: u64,
        flags: u16,
        set: u16,
        ranges: &[(u32, u32)],
        payload: &[u8],
    ) -> Result<(), RingError> {
        self.send_packet(
            7,
            flags,
            transaction,
            &ring::transfer_page_descriptor(set, ranges),
            payload,
        )
    }

    /// Sends a packet of any type, with any descriptor between its first 16 bytes and the payload.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_packet(
        &self,
        kind: u16,
        flags: u16,
        transaction: u64,
        descriptor: &[u8],
        payload: &[u8],
    ) -> Result<(), RingError> {
        let bytes = ring::packet_bytes(kind, flags, transaction, descriptor, payload);
        self.send(|rings, platform| rings.send(platform, &bytes))
    }

    /// Sends bytes as they are, with a right index but without a trailer: a broken packet, say.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), RingError> {
        self.send(|rings, platform| rings.send_exactly(platform, bytes))
    }

    /// Signals the guest, whether there is a reason or not.
    pub fn signal(&self) {
        self.with(|state, id| {
            let Some(channel) = state.server.channels.get_mut(&id) else {
                return;
            };
            let Some(opening) = &channel.opening else { return };
            let (vp, flag) = (opening.target_vp, opening.event_flag);
            channel.counters.signals_sent += 1;
            let sint = state.server.contact.as_ref().map_or(2, |contact| contact.sint);
            if let Some(processor) = state.processor_of_vp(vp) {
                state.set_event_flag(processor, sint, flag);
            }
        });
        self.host.settle();
    }

    /// Masks or unmasks the guest's signals, as a device does while it polls: 1 masks.
    pub fn set_mask(&self, value: u32) {
        self.with(|state, id| {
            if let Some(rings) = state
                .server
                .channels
                .get_mut(&id)
                .and_then(|channel| channel.rings.as_mut())
            {
                rings.set_mask(value);
                rings.publish_mask(state.platform);
            }
        });
    }

    /// Sets what the host asks to wait for when the ring to the guest is full: `None` for what it needs, the ring's size
    /// minus one as some hosts do, or any other number.
    pub fn set_pending_send_size(&self, value: Option<u32>) {
        self.with(|state, id| {
            if let Some(rings) = state
                .server
                .channels
                .get_mut(&id)
                .and_then(|channel| channel.rings.as_mut())
            {
                rings.pending_override = value;
            }
        });
    }

    /// Records that the guest did something wrong: for devices.
    pub fn violation(&self, what: String) {
        self.with(|state, id| state.violation(format!("channel {id}: {what}")));
    }

    /// Returns the guest-physical addresses of the two control pages, of the ring from the guest and of that to it: for
    /// bad indices and the like.
    #[must_use]
    pub fn control_pages(&self) -> Option<(u64, u64)> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.rings.as_ref()?.controls()))
    }

    /// Returns the guest-physical addresses of all pages of the ring from the guest and of that to it, the control page first.
    #[must_use]
    pub fn ring_pages(&self) -> Option<(Vec<u64>, Vec<u64>)> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.rings.as_ref()?.pages()))
    }

    /// Returns the guest-physical address of a byte in the ring to the guest, counted from where the next packet begins:
    /// for bytes that change under its feet.
    #[must_use]
    pub fn address_of_next(&self, offset: u32) -> Option<u64> {
        self.with(|state, id| {
            let rings = state.server.channels.get(&id)?.rings.as_ref()?;
            Some(rings.address_to_guest(rings.write_index().wrapping_add(offset)))
        })
    }

    /// Returns the pages of a GPADL of this channel.
    #[must_use]
    pub fn gpadl(&self, id: u32) -> Option<Vec<GuestRange>> {
        self.with(|state, channel| {
            let gpadl = state.server.gpadls.get(&id).filter(|gpadl| gpadl.channel == channel)?;
            Some(gpadl.ranges.clone())
        })
    }

    /// Copies guest memory that a range describes.
    #[must_use]
    pub fn read_range(&self, range: &GuestRange) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(u64::from(range.len_bytes))];
        let mut done = 0;
        while let Some((gpa, part)) = part_of(range, done, bytes.len()) {
            let _ = self.host.platform.guest_read(gpa, &mut bytes[done..done + part]);
            done += part;
        }
        bytes
    }

    /// Writes guest memory that a range describes, from its beginning on.
    pub fn write_range(&self, range: &GuestRange, bytes: &[u8]) {
        let end = bytes.len().min(to_usize(u64::from(range.len_bytes)));
        let mut done = 0;
        while let Some((gpa, part)) = part_of(range, done, end) {
            let _ = self.host.platform.guest_write(gpa, &bytes[done..done + part]);
            done += part;
        }
    }

    /// Takes the channel away from the guest.
    pub fn rescind(&self) {
        self.host.rescind(self.id);
    }
}

/// The address of a byte of a range, and how many up to `end` are in the same page. `None` behind the range.
fn part_of(range: &GuestRange, index: usize, end: usize) -> Option<(u64, usize)> {
    let offset = to_usize(u64::from(range.offset)) + index;
    let (page, in_page) = (offset / 4096, offset % 4096);
    let part = (4096 - in_page).min(end.checked_sub(index)?);
    let gpa = range.page_numbers.get(page)? * 4096 + in_page as u64;
    (part > 0).then_some((gpa, part))
}
