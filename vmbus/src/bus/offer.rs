//! [`Offer`]: a channel that can be opened.

use core::fmt;

use crate::protocol::offer::{OfferChannel, OfferFlags, USER_DEFINED_LEN};
use crate::protocol::{ChannelId, ConnectionId, Guid, class};

/// Who offers a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The host.
    Host,
    /// Another part of this kernel, by the host that is attached to the bus (`Bus::attach_host`, feature `host`). Such a
    /// channel is opened by [`crate::kmcl`].
    Local,
}

/// The first channel id of offers that another part of this kernel makes; the host's are all below.
pub const LOCAL_CHANNEL_IDS: u32 = 0x8000_0000;

/// A channel that the host, or another part of this kernel, offers. A copy: the offer may have been withdrawn since.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Offer {
    /// Who offers it.
    pub origin: Origin,
    /// The class of the device (`InterfaceType`).
    pub class: Guid,
    /// Which device of its class (`InterfaceInstance`).
    pub instance: Guid,
    /// The channel, by which it is opened.
    pub channel: ChannelId,
    /// Which channel of its device: 0 is the primary one, others are subchannels of it.
    pub subchannel_index: u16,
    /// The connection by which the other end is signalled.
    pub connection: ConnectionId,
    /// The channel's bit in the monitor pages, if it has one.
    pub monitor: Option<u8>,
    /// Megabytes of MMIO space that the device needs.
    pub mmio_megabytes: u16,
    /// Megabytes of MMIO space that the device can use beyond those.
    pub mmio_megabytes_optional: u16,
    /// What else the offer says.
    pub flags: OfferFlags,
    /// Bytes from the offering side; their meaning is the device's.
    pub user_defined: [u8; USER_DEFINED_LEN],
    /// True if the other end wants no bit in the interrupt page with a signal.
    pub is_dedicated_interrupt: bool,
    /// Counts up from offer to offer of its origin, so that a channel id that is offered anew can be told from the earlier one.
    pub sequence: u64,
}

impl Offer {
    pub(super) const fn new(message: &OfferChannel) -> Self {
        Self {
            origin: Origin::Host,
            class: message.class(),
            instance: message.instance(),
            channel: message.channel(),
            subchannel_index: message.subchannel_index(),
            connection: message.connection(),
            monitor: message.monitor(),
            mmio_megabytes: message.mmio_megabytes(),
            mmio_megabytes_optional: message.mmio_megabytes_optional(),
            flags: message.flags(),
            user_defined: *message.user_defined(),
            is_dedicated_interrupt: message.is_dedicated_interrupt(),
            sequence: 0,
        }
    }

    /// An offer of this kernel.
    #[cfg(feature = "host")]
    pub(crate) fn local(channel: ChannelId, class: Guid, instance: Guid) -> Self {
        Self {
            origin: Origin::Local,
            class,
            instance,
            channel,
            subchannel_index: 0,
            connection: ConnectionId::default(),
            monitor: None,
            mmio_megabytes: 0,
            mmio_megabytes_optional: 0,
            flags: OfferFlags::empty(),
            user_defined: [0; USER_DEFINED_LEN],
            is_dedicated_interrupt: false,
            // Numbers of channels are given out once, in order.
            sequence: channel.0.into(),
        }
    }

    /// Returns true if both are the same channel of the same device, whatever their ids.
    #[must_use]
    pub fn is_same_device(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.class == other.class
            && self.instance == other.instance
            && self.subchannel_index == other.subchannel_index
    }

    /// Returns the name of the device's class, `"unknown"` if we do not know it.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        class::name(self.class).unwrap_or("unknown")
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:<16} {}  {{{}}}  {}",
            self.class_name(),
            self.class,
            self.instance,
            self.channel
        )?;
        if self.subchannel_index != 0 {
            write!(formatter, "  subchannel {}", self.subchannel_index)?;
        }
        if self.origin == Origin::Local {
            formatter.write_str("  of this kernel")?;
        }
        Ok(())
    }
}
