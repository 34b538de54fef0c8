//! Server endpoints: what KMCL reserves to the offering side.

use super::Host;
use super::provider::HostProvider;
use crate::kmcl::transport::UserDefined;
use crate::kmcl::{Channel, Context, DisabledChannel, Error, Instance, Refused, Side};
use crate::protocol::Guid;

impl Channel<()> {
    /// Makes a server endpoint (`VmbChannelAllocate` with `IsServer` true).
    ///
    /// ```
    /// # use vmbus::{Deadline, host::Host, kmcl::*, protocol::Guid, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let host: &Host = both.host();
    /// const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    /// let server = Channel::allocate_server(host)?
    ///     .init_set_target(CLASS, Instance::Any)
    ///     .init_set_process_packet_callback(|_, packet| drop(packet.complete(b"answer")))
    ///     .enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_server(host: &Host) -> Result<DisabledChannel<()>, Error> {
        Self::allocate_server_with(host, ())
    }

    /// Makes a server endpoint with data of the driver's own (`VmbChannelAllocate` and `VmbChannelSetPointer`).
    ///
    /// ```
    /// # use vmbus::{kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let host = both.host();
    /// struct Clock { ticks: u64 }
    /// let server = Channel::allocate_server_with(host, Clock { ticks: 7 })?;
    /// assert_eq!(server.context().ticks, 7);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_server_with<C: Context>(host: &Host, context: C) -> Result<DisabledChannel<C>, Error> {
        DisabledChannel::new(Side::Server, HostProvider::boxed(host, Side::Server)?, context)
    }
}

/// The functions of a server endpoint. On a client they change nothing that it uses.
impl<C: Context> DisabledChannel<C> {
    /// Sets class and instance of the offer (`VmbServerChannelInitSetTargetInterfaceId`).
    ///
    /// ```
    /// # use vmbus::{kmcl::*, protocol::Guid, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let host = both.host();
    /// const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    /// const INSTANCE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-000000000001");
    /// let server = Channel::allocate_server(host)?.init_set_target_interface_id(CLASS, INSTANCE);
    /// # assert_eq!(server.enable(vmbus::Deadline::seconds(1))?.interface_instance(), INSTANCE);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_target_interface_id(self, class: Guid, instance: Guid) -> Self {
        self.init_set_target(class, Instance::Only(instance))
    }

    /// Asks the client to set aside MMIO space (`VmbServerChannelInitSetMmioMegabytes`): so many MiB, and more if it can.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// // 8 MiB, and 8 more if there is room.
    /// let both = Loopback::with(|server| server.init_set_mmio_megabytes(8, 8).unwrap())?;
    /// assert_eq!(both.open()?.mmio_megabytes(), 16);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidMmio`] if both are 0.
    pub fn init_set_mmio_megabytes(mut self, megabytes: u16, optional: u16) -> Result<Self, Refused<Self>> {
        if megabytes == 0 && optional == 0 {
            return Err(Refused {
                error: Error::InvalidMmio,
                given: self,
            });
        }
        self.settings.mmio_megabytes = megabytes.saturating_add(optional);
        Ok(self)
    }

    /// Offers the channel to this virtual trust level only (`VmbServerChannelInitSetTargetVtl`). Clients in this kernel are
    /// all at level 0.
    ///
    /// ```
    /// # use vmbus::{kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let server = Channel::allocate_server(both.host())?.init_set_target_vtl(0)?;
    /// assert_eq!(server.init_set_target_vtl(2).unwrap_err().error, Error::InvalidVtl(2));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidVtl`] for any level but 0.
    pub const fn init_set_target_vtl(self, vtl: u8) -> Result<Self, Refused<Self>> {
        if vtl != 0 {
            return Err(Refused {
                error: Error::InvalidVtl(vtl),
                given: self,
            });
        }
        Ok(self)
    }

    /// Sets flags of the offer (`VmbServerChannelInitSetFlags`). None are documented, so none are known.
    ///
    /// ```
    /// # use vmbus::{kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let server = Channel::allocate_server(both.host())?.init_set_server_flags(0)?;
    /// assert_eq!(server.init_set_server_flags(8).unwrap_err().error, Error::InvalidFlags(8));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidFlags`] for any bit.
    pub const fn init_set_server_flags(self, flags: u32) -> Result<Self, Refused<Self>> {
        if flags != 0 {
            return Err(Refused {
                error: Error::InvalidFlags(flags),
                given: self,
            });
        }
        Ok(self)
    }

    /// Sets the bytes of the offer that its device defines.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// let both = Loopback::with(|server| server.init_set_offer_data([7; 120]))?;
    /// assert_eq!(both.open()?.offer_user_defined(), [7; 120]);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_offer_data(mut self, data: [u8; 120]) -> Self {
        self.settings.offer_data = UserDefined(data);
        self
    }
}

/// An instance id for a server that names none: unique in this host.
pub(super) fn instance_of(host: &Host) -> Guid {
    let number = host.new_channel_id().0.to_le_bytes();
    let mut wire = *b"in-kernel offer\0";
    for (target, source) in wire.iter_mut().zip(number) {
        *target = source;
    }
    Guid::from_wire(wire)
}
