//! Server endpoints: what KMCL reserves to the offering side.

use super::Host;
use super::provider::HostProvider;
use crate::kmcl::transport::UserDefined;
use crate::kmcl::{Channel, Context, DisabledChannel, Error, Instance, Refused, Side};
use crate::protocol::Guid;

impl Channel<()> {
    /// Makes a server endpoint (`VmbChannelAllocate` with `IsServer` true).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_server(host: &Host) -> Result<DisabledChannel<()>, Error> {
        Self::allocate_server_with(host, ())
    }

    /// Makes a server endpoint with data of the driver's own (`VmbChannelAllocate` and `VmbChannelSetPointer`).
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
    #[must_use]
    pub fn init_set_target_interface_id(self, class: Guid, instance: Guid) -> Self {
        self.init_set_target(class, Instance::Only(instance))
    }

    /// Asks the client to set aside MMIO space (`VmbServerChannelInitSetMmioMegabytes`): so many MiB, and more if it can.
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
