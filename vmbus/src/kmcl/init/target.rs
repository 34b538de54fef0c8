//! What a channel is to be connected to: an offer, a processor, and what the offering side is told.

use super::DisabledChannel;
use crate::kmcl::{Context, Instance};
use crate::platform::ProcessorIndex;
use crate::protocol::{ChannelId, Guid};

impl<C: Context> DisabledChannel<C> {
    /// Chooses the offer by class and instance (`VmbClientChannelInitSetTargetPnp`).
    ///
    /// ```
    /// # use vmbus::{Bus, Deadline, kmcl::*, protocol::Guid};
    /// # fn example(bus: &Bus) -> Result<(), Error> {
    /// const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    /// const SECOND: Guid = Guid::literal("5a17e5a1-0000-4000-8000-000000000002");
    /// let any = Channel::allocate_client(bus)?.init_set_target(CLASS, Instance::Any);
    /// let second = Channel::allocate_client(bus)?.init_set_target(CLASS, Instance::Only(SECOND));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn init_set_target(mut self, class: Guid, instance: Instance) -> Self {
        self.settings.target.class = class;
        self.settings.target.instance = instance;
        self
    }

    /// Chooses exactly the offer with this number, whatever its class.
    ///
    /// ```
    /// # use vmbus::{Bus, Deadline, kmcl::*};
    /// # fn example(bus: &Bus) -> Result<(), Error> {
    /// for offer in bus.offers() {
    ///     let channel = Channel::allocate_client(bus)?.init_set_target_channel(offer.channel);
    ///     // ...
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn init_set_target_channel(mut self, channel: ChannelId) -> Self {
        self.settings.target.channel = Some(channel);
        self
    }

    /// Chooses a subchannel of this channel, instead of a primary one (`VmbChannelInitSetPrimaryChannel`).
    ///
    /// ```
    /// # use vmbus::{Bus, Deadline, kmcl::*, protocol::Guid};
    /// # fn example(bus: &Bus, class: Guid, primary: &Channel) -> Result<(), Error> {
    /// let second = Channel::allocate_client(bus)?
    ///     .init_set_target(class, Instance::Only(primary.interface_instance()))
    ///     .init_set_primary_channel(primary.id())
    ///     .enable(Deadline::seconds(10))?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn init_set_primary_channel(mut self, primary: ChannelId) -> Self {
        self.settings.target.primary = Some(primary);
        self
    }

    /// Chooses the processor that the host interrupts for this channel (`VmbClientChannelInitSetTargetProcessorIndex`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// use vmbus::platform::ProcessorIndex;
    /// let channel = channel.init_set_target_processor_index(ProcessorIndex(0)).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_target_processor_index(mut self, processor: ProcessorIndex) -> Self {
        self.settings.processor = processor;
        self
    }

    /// Sets the bytes that the host's device gets with the opening of the channel.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let mut data = [0; 120];
    /// data[0] = 1;
    /// let channel = channel.init_set_open_data(data).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_open_data(mut self, user_data: [u8; 120]) -> Self {
        self.settings.user_data = user_data;
        self
    }
}
