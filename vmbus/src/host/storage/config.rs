//! How a controller is offered: [`Config`], [`Version`], and where its disks are: [`Address`].

use crate::protocol::{Guid, class};

/// A version of the storage protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// What counts first.
    pub major: u8,
    /// What counts then.
    pub minor: u8,
}

impl Version {
    /// Windows Server 2008 R2.
    pub const V4_2: Self = Self { major: 4, minor: 2 };
    /// Windows Server 2012: longer requests, more channels.
    pub const V5_1: Self = Self { major: 5, minor: 1 };
    /// Windows Server 2012 R2.
    pub const V6_0: Self = Self { major: 6, minor: 0 };
    /// Windows 10 and later.
    pub const V6_2: Self = Self { major: 6, minor: 2 };
    const ALL: [Self; 4] = [Self::V6_2, Self::V6_0, Self::V5_1, Self::V4_2];

    /// The version that is written so on the wire, if hosts know it.
    pub(super) fn from_wire(value: u16) -> Option<Self> {
        let [minor, major] = value.to_le_bytes();
        Self::ALL.into_iter().find(|known| *known == Self { major, minor })
    }
}

/// Where a disk is on a controller. Hosts only use path and target 0 on SCSI controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    /// The path.
    pub path: u8,
    /// The target.
    pub target: u8,
    /// The logical unit.
    pub lun: u8,
}

impl Address {
    /// A logical unit of the first target.
    #[must_use]
    pub const fn lun(lun: u8) -> Self {
        Self {
            path: 0,
            target: 0,
            lun,
        }
    }
}

/// Which kind of controller is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// A SCSI controller.
    #[default]
    Scsi,
    /// The accelerated way to one disk of an IDE controller, on the machine's channel 0 or 1, as device 0 or 1. The disk is at this path and
    /// target, LUN 0; requests find it whatever path they name.
    Ide {
        /// The IDE channel: the path of the disk.
        channel: u8,
        /// The device on it: the target of the disk.
        device: u8,
    },
}

/// Whether REPORT LUNS is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReportLuns {
    /// With the disks that there are.
    #[default]
    Answered,
    /// As an unknown command: a client has to ask each logical unit.
    Refused,
}

/// What a reset does to requests that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reset {
    /// Nothing: they end when they end. So do hosts.
    #[default]
    Ignored,
    /// They end with "bus reset", and each disk raises a unit attention.
    Aborts,
}

/// How a controller is offered. The default is what a machine of today has.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// SCSI or IDE.
    pub kind: Kind,
    /// The instance id of a SCSI controller; `None`: one of its own.
    pub instance: Option<Guid>,
    /// The newest version that is spoken.
    pub max_version: Version,
    /// The most that one request may move, in bytes.
    pub max_transfer_bytes: u32,
    /// How many requests are taken from the ring before one of them is answered.
    pub queue_depth: u32,
    /// Whether REPORT LUNS is answered.
    pub report_luns: ReportLuns,
    /// What a reset does.
    pub reset: Reset,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::Scsi,
            instance: None,
            max_version: Version::V6_2,
            max_transfer_bytes: 0x4_0000,
            queue_depth: 64,
            report_luns: ReportLuns::Answered,
            reset: Reset::Ignored,
        }
    }
}

/// Device 0 of channel 0 and so on: instance ids that drivers know by heart.
const IDE_INSTANCE: Guid = Guid::literal("00000000-0000-8899-0000-000000000000");

impl Config {
    pub(super) const fn class(&self) -> Guid {
        match self.kind {
            Kind::Scsi => class::STORAGE,
            Kind::Ide { .. } => class::IDE,
        }
    }

    pub(super) const fn instance(&self) -> Option<Guid> {
        match self.kind {
            Kind::Scsi => self.instance,
            Kind::Ide { channel, device } => {
                let mut wire = IDE_INSTANCE.to_wire();
                wire[0] = channel;
                wire[4] = device;
                Some(Guid::from_wire(wire))
            }
        }
    }

    /// What the offer says of the device: for IDE, where the disk is.
    pub(super) const fn offer_data(&self) -> [u8; 120] {
        let mut data = [0; 120];
        if let Kind::Ide { channel, device } = self.kind {
            data[2] = channel;
            data[3] = device;
            // "An IDE device".
            data[8] = 2;
        }
        data
    }

    /// The path that counts, whatever a request says.
    pub(super) const fn forced_path(&self) -> Option<u8> {
        match self.kind {
            Kind::Scsi => None,
            Kind::Ide { channel, .. } => Some(channel),
        }
    }
}
