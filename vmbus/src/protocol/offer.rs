//! Messages about the channels that there are.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ChannelId, ConnectionId, Guid};

/// The bytes that offering side and opening side give each other with an offer and with an opening.
pub const USER_DEFINED_LEN: usize = 120;

bitflags::bitflags! {
    /// What an offer says about its channel (`VMBUS_CHANNEL_...`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct OfferFlags: u16 {
        /// The guest shall make a device interface of it.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// In a confidential guest the ring is in memory that the host cannot see.
        const CONFIDENTIAL_RING_BUFFER = 0x0002;
        /// In a confidential guest the other memory is in memory that the host cannot see.
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004;
        /// The channel is a pipe: packets have a header of their own.
        const NAMED_PIPE_MODE = 0x0010;
        /// The channel is a connection of a Hyper-V socket.
        const TLNPI_PROVIDER = 0x2000;
        const _ = !0;
    }
}

/// `OFFER_CHANNEL`: the host offers a channel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OfferChannel {
    class: Guid,
    instance: Guid,
    reserved: [U32; 4],
    flags: U16,
    mmio_megabytes: U16,
    user_defined: [u8; USER_DEFINED_LEN],
    subchannel_index: U16,
    mmio_megabytes_optional: U16,
    channel: U32,
    monitor: u8,
    /// Bit 0: the monitor id is valid.
    monitor_allocated: u8,
    /// Bit 0: the host wants no bit in the interrupt page with a signal.
    is_dedicated_interrupt: U16,
    connection: U32,
}
const _: () = assert!(size_of::<OfferChannel>() == 188);

impl OfferChannel {
    /// Makes an offer, as the offering side sends it: with a dedicated interrupt, without monitor and MMIO space.
    #[must_use]
    pub fn new(class: Guid, instance: Guid, channel: ChannelId, connection: ConnectionId) -> Self {
        Self {
            class,
            instance,
            channel: channel.0.into(),
            connection: connection.0.into(),
            is_dedicated_interrupt: U16::new(1),
            ..Self::new_zeroed()
        }
    }

    /// Returns this offer with other flags.
    #[must_use]
    pub fn with_flags(mut self, flags: OfferFlags) -> Self {
        self.flags = flags.bits().into();
        self
    }

    /// Returns this offer with MMIO space: megabytes that the device needs, and that it can use beyond them.
    #[must_use]
    pub fn with_mmio_megabytes(mut self, needed: u16, optional: u16) -> Self {
        self.mmio_megabytes = needed.into();
        self.mmio_megabytes_optional = optional.into();
        self
    }

    /// Returns this offer with other user-defined bytes.
    #[must_use]
    pub const fn with_user_defined(mut self, user_defined: [u8; USER_DEFINED_LEN]) -> Self {
        self.user_defined = user_defined;
        self
    }

    /// Returns this offer as subchannel `index` of its primary channel (0: the primary itself).
    #[must_use]
    pub fn with_subchannel_index(mut self, index: u16) -> Self {
        self.subchannel_index = index.into();
        self
    }

    /// Returns the class of the device (`InterfaceType`).
    #[must_use]
    pub const fn class(&self) -> Guid {
        self.class
    }

    /// Returns which device of its class it is (`InterfaceInstance`).
    #[must_use]
    pub const fn instance(&self) -> Guid {
        self.instance
    }

    /// Returns the flags, of which some may be unknown.
    #[must_use]
    pub const fn flags(&self) -> OfferFlags {
        OfferFlags::from_bits_retain(self.flags.get())
    }

    /// Returns the megabytes of MMIO space that the device needs.
    #[must_use]
    pub const fn mmio_megabytes(&self) -> u16 {
        self.mmio_megabytes.get()
    }

    /// Returns the megabytes of MMIO space that the device can use beyond those that it needs.
    #[must_use]
    pub const fn mmio_megabytes_optional(&self) -> u16 {
        self.mmio_megabytes_optional.get()
    }

    /// Returns the bytes that the offering side gives.
    #[must_use]
    pub const fn user_defined(&self) -> &[u8; USER_DEFINED_LEN] {
        &self.user_defined
    }

    /// Returns which channel of its device it is: 0 is the primary one.
    #[must_use]
    pub const fn subchannel_index(&self) -> u16 {
        self.subchannel_index.get()
    }

    /// Returns the channel's id: an allegation, unchecked.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the channel's bit in the monitor pages, if it has one.
    #[must_use]
    pub const fn monitor(&self) -> Option<u8> {
        if self.monitor_allocated & 1 != 0 {
            Some(self.monitor)
        } else {
            None
        }
    }

    /// Returns true if the host wants no bit in the interrupt page with a signal.
    #[must_use]
    pub const fn is_dedicated_interrupt(&self) -> bool {
        self.is_dedicated_interrupt.get() & 1 != 0
    }

    /// Returns the connection by which the host is signalled: an allegation, unchecked.
    #[must_use]
    pub const fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection.get())
    }
}

/// `RESCIND_CHANNEL_OFFER`: the host withdraws an offer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RescindChannelOffer {
    channel: U32,
}

impl RescindChannelOffer {
    /// Makes a withdrawal.
    #[must_use]
    pub fn new(channel: ChannelId) -> Self {
        Self {
            channel: channel.0.into(),
        }
    }

    /// Returns the channel's id: an allegation, unchecked.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }
}

/// `REQUEST_OFFERS`: the guest asks for the offers.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestOffers {}

/// `ALL_OFFERS_DELIVERED`: all offers that there are at the moment have been sent.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AllOffersDelivered {}
