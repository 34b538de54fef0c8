//! What a test has a [`Host`] do: offers, rescinds, messages of any kind.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::processor::SlotMessage;
use super::server::Channel;
use super::{ChannelCounters, Device, Host, HostChannel, Offer, Personality};

impl Host {
    /// Offers a channel without a device: the test itself is the device, by [`Host::channel`]. Returns its number.
    pub fn offer(&self, offer: Offer) -> u32 {
        self.add_channel(None, offer, None)
    }

    /// Offers a channel with a device. Returns its number.
    pub fn offer_with(&self, offer: Offer, device: impl Device + 'static) -> u32 {
        self.add_channel(None, offer, Some(Box::new(device)))
    }

    /// Offers a channel with a number that the test chooses: also one that is in use, or impossible.
    pub fn offer_as(&self, channel: u32, offer: Offer) {
        self.add_channel(Some(channel), offer, None);
    }

    fn add_channel(&self, id: Option<u32>, offer: Offer, device: Option<Box<dyn Device>>) -> u32 {
        let id = {
            let mut state = self.lock();
            let id = id.unwrap_or_else(|| {
                while state.server.channels.contains_key(&state.server.next_channel) {
                    state.server.next_channel += 1;
                }
                state.server.next_channel += 1;
                state.server.next_channel - 1
            });
            let base = if state.config.personality == Personality::Qemu {
                16
            } else {
                0x1_1000
            };
            let connection = offer.connection.unwrap_or(base + id);
            if state.server.channels.contains_key(&id) {
                // Only told, not kept: the channel that is there stays.
                let message = offer.message(id, connection);
                state.send_message(message);
            } else {
                state.server.released.remove(&id);
                let channel = Channel {
                    offer,
                    connection,
                    is_offered: false,
                    is_rescinded: false,
                    opening: None,
                    rings: None,
                    device,
                    is_device_out: false,
                    missed: Vec::new(),
                    has_failed_open: false,
                    counters: ChannelCounters::default(),
                };
                state.server.channels.insert(id, channel);
                state.send_offer(id);
            }
            id
        };
        self.settle();
        id
    }

    /// Takes a channel away from the guest.
    pub fn rescind(&self, channel: u32) {
        self.lock().rescind(channel);
        self.settle();
    }

    /// Returns the host's end of a channel.
    #[must_use]
    pub const fn channel(&self, id: u32) -> HostChannel<'_> {
        HostChannel { host: self, id }
    }

    /// Returns the numbers of the channels that are there.
    #[must_use]
    pub fn channels(&self) -> Vec<u32> {
        self.lock().server.channels.keys().copied().collect()
    }

    /// Sends the guest a channel message as it is, up to 240 bytes.
    pub fn send_raw(&self, message: &[u8]) {
        self.lock().send_message(message.to_vec());
        self.settle();
    }

    /// Sends the guest a slot with any type and any length, whatever the payload's.
    pub fn send_slot(&self, kind: u32, claimed_len: u8, payload: &[u8]) {
        self.lock().send_slot_message(SlotMessage {
            kind,
            payload: payload.to_vec(),
            claimed_len,
        });
        self.settle();
    }

    /// Sets an event flag of a SINT on a processor, whoever it belongs to.
    pub fn set_event_flag(&self, processor: u32, sint: usize, flag: u16) {
        self.lock().set_event_flag(processor as usize, sint, flag);
        self.settle();
    }

    /// Returns the guest-physical address of a message slot, or `None` while the page is off.
    #[must_use]
    pub fn slot_address(&self, processor: u32, sint: usize) -> Option<u64> {
        let state = self.lock();
        let page = state.processors.get(processor as usize)?.message_page;
        (page & 1 != 0).then_some((page & !0xfff) + sint as u64 * 256)
    }
}
