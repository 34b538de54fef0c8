//! Messages that begin and end a connection.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ConnectionId, Guid, Version, VpIndex};

bitflags::bitflags! {
    /// Optional parts of version 6.0. A guest uses one only if it asked for it and the host agreed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct FeatureFlags: u32 {
        /// The guest may choose event flag and connection of a channel when opening it.
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 1 << 0;
        /// A channel's interrupts may be redirected.
        const CHANNEL_INTERRUPT_REDIRECTION = 1 << 1;
        /// The monitor pages of a living connection may be changed.
        const MODIFY_CONNECTION = 1 << 2;
        /// The contact names the guest's software by a GUID.
        const CLIENT_ID = 1 << 3;
        /// Offers may ask for memory that the host cannot see.
        const CONFIDENTIAL_CHANNELS = 1 << 4;
        /// The message flow may be paused.
        const PAUSE_RESUME = 1 << 5;
        const _ = !0;
    }
}

/// The connection to post the contact to, in versions from 5.0 on (`VMBUS_MESSAGE_CONNECTION_ID_4`).
pub const CONTACT_CONNECTION_SINCE_5_0: ConnectionId = ConnectionId(4);

/// The connection to post every message to, in versions before 5.0 (`VMBUS_MESSAGE_CONNECTION_ID`).
pub const MESSAGE_CONNECTION_BEFORE_5_0: ConnectionId = ConnectionId(1);

/// Returns the connection that a contact in `version` is posted to.
#[must_use]
pub const fn contact_connection(version: Version) -> ConnectionId {
    if version.to_wire() >= Version::V5_0.to_wire() {
        CONTACT_CONNECTION_SINCE_5_0
    } else {
        MESSAGE_CONNECTION_BEFORE_5_0
    }
}

/// `INITIATE_CONTACT`: the guest asks for a connection.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitiateContact {
    version: U32,
    target_vp: U32,
    /// Before 5.0 the address of the interrupt page; from 5.0 on SINT, VTL, two bytes of padding, feature flags.
    interrupt_page_or_target: U64,
    host_to_guest_monitor_page: U64,
    guest_to_host_monitor_page: U64,
    /// From 6.0 on, with [`FeatureFlags::CLIENT_ID`].
    client_id: Guid,
}
const _: () = assert!(size_of::<InitiateContact>() == 48);

/// The length of an `INITIATE_CONTACT` without the client id, header included: what every host knows.
pub const CONTACT_LEN_WITHOUT_CLIENT_ID: usize = 40;

/// Where messages of the host shall go: from version 5.0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTarget {
    /// The synthetic interrupt source.
    pub sint: u8,
    /// The virtual trust level.
    pub vtl: u8,
    /// Optional parts that the guest asks for: from version 6.0 on.
    pub features: FeatureFlags,
}

impl InitiateContact {
    /// Makes a contact for `version`. The pages are byte addresses; `interrupt_page` goes to hosts before 5.0 only,
    /// `target` to hosts from 5.0 on only.
    #[must_use]
    pub fn new(
        version: Version,
        target_vp: VpIndex,
        target: MessageTarget,
        interrupt_page: u64,
        [host_to_guest, guest_to_host]: [u64; 2],
        client_id: Option<Guid>,
    ) -> Self {
        let interrupt_page_or_target = if version >= Version::V5_0 {
            let features = if version >= Version::V6_0 {
                target.features.bits()
            } else {
                0
            };
            u64::from(features) << 32 | u64::from(target.vtl) << 8 | u64::from(target.sint)
        } else {
            interrupt_page
        };
        Self {
            version: version.to_wire().into(),
            target_vp: target_vp.0.into(),
            interrupt_page_or_target: interrupt_page_or_target.into(),
            host_to_guest_monitor_page: host_to_guest.into(),
            guest_to_host_monitor_page: guest_to_host.into(),
            client_id: client_id.unwrap_or(Guid::ZERO),
        }
    }

    /// Returns the version that is asked for.
    #[must_use]
    pub const fn version(&self) -> Version {
        Version::from_wire(self.version.get())
    }
}

/// `VERSION_RESPONSE`: the host's answer to a contact.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VersionResponse {
    supported: u8,
    state: u8,
    padding: U16,
    /// Before 5.0 the version again (some hosts leave it out), from 5.0 on the connection for further messages.
    version_or_connection: U32,
    /// From 6.0 on.
    features: U32,
}
const _: () = assert!(size_of::<VersionResponse>() == 12);

impl VersionResponse {
    /// Makes an answer, as the offering side sends it.
    #[must_use]
    pub fn new(supported: u8, state: ConnectionState, version_or_connection: u32, features: FeatureFlags) -> Self {
        Self {
            supported,
            state: state.0,
            padding: U16::ZERO,
            version_or_connection: version_or_connection.into(),
            features: features.bits().into(),
        }
    }

    /// Returns true if the host speaks the version that was asked for.
    #[must_use]
    pub const fn is_supported(&self) -> bool {
        self.supported != 0
    }

    /// Returns whether a supported version led to a connection.
    #[must_use]
    pub const fn state(&self) -> ConnectionState {
        ConnectionState(self.state)
    }

    /// Returns the connection for all further messages after a contact in `asked`: what the host names from 5.0 on (or
    /// the contact's own if it names none), and the only one there is before.
    #[must_use]
    pub const fn message_connection(&self, asked: Version) -> ConnectionId {
        let named = self.version_or_connection.get();
        if asked.to_wire() >= Version::V5_0.to_wire() && named != 0 {
            ConnectionId(named)
        } else {
            contact_connection(asked)
        }
    }

    /// Returns the optional parts that the host agrees to, which may be more than were asked for.
    #[must_use]
    pub const fn features(&self) -> FeatureFlags {
        FeatureFlags::from_bits_retain(self.features.get())
    }
}

/// Whether a host that speaks a version has made the connection (`VMBUS_CHANNEL_CONNECTION_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionState(pub u8);

impl ConnectionState {
    /// The connection stands.
    pub const SUCCESSFUL: Self = Self(0);
    /// The host has no memory for it.
    pub const LOW_RESOURCES: Self = Self(1);
    /// The host does not say why not.
    pub const UNKNOWN_FAILURE: Self = Self(2);
}

/// `UNLOAD`: the guest ends the connection.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Unload {}

/// `UNLOAD_RESPONSE`: the host has given up everything.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnloadResponse {}
