//! How much a channel may hold and send: what it reserves when it is enabled.

use super::DisabledChannel;
use crate::kmcl::settings::MAX_RANGES;
use crate::kmcl::{Context, Error, Refused};

/// The longest payload: what a descriptor can tell, less a page list.
const MAX_PACKET: usize = 256 * 1024;
/// The most memory that one packet may describe: its page list has to fit as well.
const MAX_EXTERNAL: usize = 64 * 1024 * 1024;
/// The largest ring: 64 MiB.
const MAX_RING_PAGES: usize = 16 * 1024;

impl<C: Context> DisabledChannel<C> {
    /// Reserves `count` buffers of `bytes` bytes for [`Channel::allocate_bounce_buffer`](crate::kmcl::Channel::allocate_bounce_buffer)
    /// (`VmbChannelInitSetBounceBufferSizes`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_bounce_buffer_sizes(4, 4096).enable(Deadline::seconds(1))?;
    /// let buffer = channel.allocate_bounce_buffer(512)?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_bounce_buffer_sizes(mut self, count: usize, bytes: usize) -> Self {
        self.settings.bounce_buffers = if bytes == 0 { 0 } else { count };
        self.settings.bounce_buffer_size = bytes;
        self
    }

    /// Sets the longest payload that is sent or received (`VmbChannelInitSetMaximumPacketSize`). A longer packet of the peer
    /// breaks the channel; of a longer completion, the beginning is kept.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_maximum_packet_size(64)?.enable(Deadline::seconds(1))?;
    /// assert_eq!(channel.send(&[0; 65]), Err(Error::PacketTooLarge { len: 65, limit: 64 }));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidPacketSize`] for 0, or more than a packet can have.
    pub fn init_set_maximum_packet_size(mut self, bytes: usize) -> Result<Self, Refused<Self>> {
        if bytes == 0 || bytes > MAX_PACKET {
            return Err(Refused {
                error: Error::InvalidPacketSize(bytes),
                given: self,
            });
        }
        self.settings.maximum_packet_size = bytes;
        Ok(self)
    }

    /// Sets how much memory a packet may describe, and in how many parts (`VmbChannelInitSetMaximumExternalData`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// // 1 MiB in at most 8 parts.
    /// let channel = channel.init_set_maximum_external_data(1 << 20, 8)?;
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidExternalDataSize`] or [`Error::InvalidChainLength`] if one is 0 or
    /// more than a packet can describe.
    pub fn init_set_maximum_external_data(mut self, bytes: usize, chain_length: usize) -> Result<Self, Refused<Self>> {
        let error = if bytes == 0 || bytes > MAX_EXTERNAL {
            Error::InvalidExternalDataSize
        } else if chain_length == 0 || chain_length > MAX_RANGES {
            Error::InvalidChainLength(chain_length)
        } else {
            self.settings.maximum_external_data = bytes;
            self.settings.maximum_chain_length = chain_length;
            return Ok(self);
        };
        Err(Refused { error, given: self })
    }

    /// Sets how many packets may be in flight or in line at a time (`VmbChannelInitSetMaximumPacketCount`); 0 means 1.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_maximum_packet_count(1).enable(Deadline::seconds(1))?;
    /// let only_one = channel.packet_allocate()?;
    /// assert_eq!(channel.packet_allocate().unwrap_err(), Error::TooManyPackets);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_maximum_packet_count(mut self, packets: u32) -> Self {
        self.settings.maximum_packet_count = packets.clamp(1, u32::MAX / 4);
        self
    }

    /// Sets how many incoming packets may be held uncompleted; see [`Channel::set_transaction_quota`](crate::kmcl::Channel::set_transaction_quota). 0 means 1.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_transaction_quota(256).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_transaction_quota(mut self, quota: u32) -> Self {
        self.settings.quota = quota.clamp(1, u32::MAX / 4);
        self
    }

    /// Sets how many bytes each incoming packet has for the driver's use (`VmbChannelInitSetClientContextSize`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel
    ///     .init_set_client_context_size(8)
    ///     .init_set_process_packet_callback(|_, mut packet| packet.client_context().fill(1));
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_client_context_size(mut self, bytes: usize) -> Self {
        self.settings.client_context_size = bytes;
        self
    }

    /// Sets how many bytes each packet object has for the driver's use (`VmbChannelInitSetInlinePacketContextSize`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_inline_packet_context_size(8).enable(Deadline::seconds(1))?;
    /// assert_eq!(channel.packet_allocate()?.inline_context(), [0; 8]);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_inline_packet_context_size(mut self, bytes: usize) -> Self {
        self.settings.inline_packet_context_size = bytes;
        self
    }

    /// Sets the data pages of both rings (`VmbClientChannelInitSetRingBufferPageCount`); one control page each comes on top. Too
    /// few for the largest packet are rounded up.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// // 32 KiB in, 128 KiB out.
    /// let channel = channel.init_set_ring_buffer_page_count(8, 32).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_ring_buffer_page_count(mut self, incoming: usize, outgoing: usize) -> Self {
        self.settings.incoming_pages = incoming.clamp(1, MAX_RING_PAGES);
        self.settings.outgoing_pages = outgoing.clamp(1, MAX_RING_PAGES);
        self
    }
}
