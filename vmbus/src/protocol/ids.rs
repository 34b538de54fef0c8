//! The small numbers by which guest and host name things. All of them are allegations when they come from the host.

use core::fmt;

macro_rules! id {
    ($(#[$attribute:meta])* $name:ident, $label:literal) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($label, " {}"), self.0)
            }
        }
    };
}

id!(
    /// A channel, as the offer names it (`ChildRelId`).
    ChannelId,
    "channel"
);
id!(
    /// A guest memory area shared with the host (`Gpadl`). Chosen by the guest.
    GpadlId,
    "GPADL"
);
id!(
    /// One opening of a channel (`OpenId`). Chosen by the guest.
    OpenId,
    "opening"
);
id!(
    /// A port of the hypervisor to which messages are posted or events signalled (`HV_CONNECTION_ID`).
    ConnectionId,
    "connection"
);
id!(
    /// A virtual processor in the hypervisor's counting (`HV_VP_INDEX`); not the operating system's, not the APIC's.
    VpIndex,
    "virtual processor"
);
