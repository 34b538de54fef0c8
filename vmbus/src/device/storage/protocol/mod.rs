//! The messages between guest and storage controller, as values: [`Operation`], [`Version`], [`Properties`], [`Execute`] and
//! [`Executed`].
//!
//! All packets have one length: [`SHORT_PACKET_LEN`] bytes before version 5.1 and while the version is not agreed on,
//! [`MAX_PACKET_LEN`] bytes then. The guest sends requests, of which each asks for a completion; the host sends these, and now
//! and then a packet of its own accord ([`Operation::ENUMERATE_BUS`], [`Operation::REMOVE_DEVICE`]), of which some hosts send
//! only the first four bytes. Parsing is total: any bytes give a value or an error.
//!
//! Sources: what Linux's `storvsc_drv.c`, FreeBSD's `hv_vstorage.h` and OpenVMM's `storvsp_protocol` say of the wire. Microsoft
//! has not published a specification.

mod status;
#[cfg(test)]
mod tests;
mod wire;

use core::fmt;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub use status::{ScsiStatus, Sense, SenseKey, SrbStatus};

use self::wire::PAYLOAD_LEN;
use super::scsi::Cdb;

/// Bytes of a packet before version 5.1, and until the version is agreed on.
pub const SHORT_PACKET_LEN: usize = 48;

/// Bytes of a packet from version 5.1 on.
pub const MAX_PACKET_LEN: usize = 64;

/// How long the host may take for a command before it gives it up, in seconds. Storage in a cloud may stand still for minutes.
pub const TIME_OUT_SECONDS: u32 = 180;

/// What a packet is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation(pub u32);

impl Operation {
    /// The host's answer to anything.
    pub const COMPLETE_IO: Self = Self(1);
    /// The host tells that a device has gone.
    pub const REMOVE_DEVICE: Self = Self(2);
    /// A SCSI command.
    pub const EXECUTE_SRB: Self = Self(3);
    /// Has a logical unit reset.
    pub const RESET_LUN: Self = Self(4);
    /// Has the adapter reset.
    pub const RESET_ADAPTER: Self = Self(5);
    /// Has the bus reset: what is in flight ends.
    pub const RESET_BUS: Self = Self(6);
    /// Begins the initialisation.
    pub const BEGIN_INITIALIZATION: Self = Self(7);
    /// Ends the initialisation.
    pub const END_INITIALIZATION: Self = Self(8);
    /// Asks whether the host speaks a version.
    pub const QUERY_PROTOCOL_VERSION: Self = Self(9);
    /// Asks for [`Properties`].
    pub const QUERY_PROPERTIES: Self = Self(10);
    /// The host tells that the devices on the bus have changed.
    pub const ENUMERATE_BUS: Self = Self(11);
    /// Data of fibre channel adapters.
    pub const FCHBA_DATA: Self = Self(12);
    /// Asks for further channels.
    pub const CREATE_SUB_CHANNELS: Self = Self(13);
    /// The host tells of an event at a device, say another medium.
    pub const EVENT_NOTIFICATION: Self = Self(14);
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Operation({})", self.0)
    }
}

/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u16);

impl Version {
    /// Windows 7, Windows Server 2008 R2.
    pub const V4_2: Self = Self::new(4, 2);
    /// Windows 8: longer packets, several channels.
    pub const V5_1: Self = Self::new(5, 1);
    /// Windows 8.1.
    pub const V6_0: Self = Self::new(6, 0);
    /// Windows 10 and later.
    pub const V6_2: Self = Self::new(6, 2);

    /// The versions that this crate speaks, the one that it likes best first.
    pub const LADDER: [Self; 4] = [Self::V6_2, Self::V6_0, Self::V5_1, Self::V4_2];

    const fn new(major: u8, minor: u8) -> Self {
        Self((major as u16) << 8 | minor as u16)
    }

    /// Returns the number on the wire.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the length of this version's packets in bytes.
    #[must_use]
    pub const fn packet_len(self) -> usize {
        if self.0 >= Self::V5_1.0 {
            MAX_PACKET_LEN
        } else {
            SHORT_PACKET_LEN
        }
    }

    /// Returns how many bytes of sense data a completion has room for.
    #[must_use]
    pub const fn sense_len(self) -> u8 {
        if self.0 >= Self::V5_1.0 { 20 } else { 18 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0 >> 8, self.0 & 0xff)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Where a logical unit is on its controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    /// The bus.
    pub path: u8,
    /// The target on it.
    pub target: u8,
    /// The logical unit of it.
    pub lun: u8,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the device.
    Out,
    /// From the device to the guest.
    In,
    /// There is none.
    None,
}

/// What the host tells of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Properties {
    /// The path that old hosts name.
    pub path: u8,
    /// The target that old hosts name.
    pub target: u8,
    /// How many further channels may be asked for; 0 if the host does not know of such.
    pub max_channels: u16,
    /// The longest transfer of one command.
    pub max_transfer_bytes: u32,
}

/// A packet on its way to the host.
#[derive(Clone, Copy)]
pub struct Packet {
    bytes: [u8; MAX_PACKET_LEN],
    len: usize,
}

impl Packet {
    /// Makes a packet without anything but its operation.
    #[must_use]
    pub fn control(operation: Operation, version: Option<Version>) -> Self {
        let mut packet = wire::LongPacket::new_zeroed();
        packet.short.header.operation = operation.0.into();
        packet.short.header.flags = COMPLETION_WANTED.into();
        Self {
            bytes: zerocopy::transmute!(packet),
            len: version.map_or(SHORT_PACKET_LEN, Version::packet_len),
        }
    }

    /// Makes the question whether the host speaks `version`.
    #[must_use]
    pub fn query_version(version: Version) -> Self {
        let mut packet = Self::control(Operation::QUERY_PROTOCOL_VERSION, None);
        let body = wire::ProtocolVersion {
            major_minor: version.0.into(),
            revision: 0.into(),
        };
        let _ = body.write_to_prefix(&mut packet.bytes[HEADER_LEN..]);
        packet
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Packet").field(&self.bytes()).finish()
    }
}

const HEADER_LEN: usize = size_of::<wire::Header>();
const COMPLETION_WANTED: u32 = 1;

/// A SCSI command to be executed.
#[derive(Clone, Copy, Debug)]
pub struct Execute {
    /// By whom.
    pub address: Address,
    /// What.
    pub cdb: Cdb,
    /// Which way its data goes.
    pub direction: Direction,
    /// How many bytes of it.
    pub transfer_bytes: u32,
}

// Flags of the extension (`SRB_FLAGS_*`): a queued command, which does not freeze the queue if it fails.
const QUEUE_ACTION_ENABLE: u32 = 1 << 1;
const DISABLE_SYNCH_TRANSFER: u32 = 1 << 3;
const DATA_IN: u32 = 1 << 6;
const DATA_OUT: u32 = 1 << 7;
const NO_QUEUE_FREEZE: u32 = 1 << 8;
const UNTAGGED: u8 = 0xff;
const SIMPLE_QUEUE: u8 = 0x20;

impl Execute {
    /// Makes the packet in the form of `version`.
    #[must_use]
    pub fn packet(&self, version: Version) -> Packet {
        let len = version.packet_len();
        let (data_in, flags) = match self.direction {
            Direction::Out => (0, DATA_OUT),
            Direction::In => (1, DATA_IN),
            Direction::None => (2, 0),
        };
        let mut payload = [0; PAYLOAD_LEN];
        for (target, source) in payload.iter_mut().zip(self.cdb.bytes()) {
            *target = *source;
        }
        #[expect(clippy::cast_possible_truncation, reason = "36 or 52, and at most 16")]
        let (length, cdb_length) = (len.saturating_sub(HEADER_LEN) as u16, self.cdb.bytes().len() as u8);
        let packet = wire::LongPacket {
            short: wire::ShortPacket {
                header: wire::Header {
                    operation: Operation::EXECUTE_SRB.0.into(),
                    flags: COMPLETION_WANTED.into(),
                    status: 0.into(),
                },
                request: wire::Request {
                    length: length.into(),
                    srb_status: 0,
                    scsi_status: 0,
                    port: 0,
                    path: self.address.path,
                    target: self.address.target,
                    lun: self.address.lun,
                    cdb_length,
                    sense_length: version.sense_len(),
                    data_in,
                    reserved: 0,
                    transfer_length: self.transfer_bytes.into(),
                    payload,
                },
            },
            extension: wire::Extension {
                reserved: 0.into(),
                queue_tag: UNTAGGED,
                queue_action: SIMPLE_QUEUE,
                srb_flags: (flags | QUEUE_ACTION_ENABLE | DISABLE_SYNCH_TRANSFER | NO_QUEUE_FREEZE).into(),
                time_out_seconds: TIME_OUT_SECONDS.into(),
                queue_sort_key: 0.into(),
            },
        };
        Packet {
            bytes: zerocopy::transmute!(packet),
            len,
        }
    }
}

/// The bytes are no packet of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Too few bytes for what the packet is.
    #[error("a packet of {len} bytes is too short")]
    TooShort {
        /// How many there are.
        len: usize,
    },
    /// An answer says that it is something else.
    #[error("an answer with operation {0}")]
    NotAnAnswer(u32),
}

/// Returns what a packet that the host sends of its own accord is about.
///
/// # Errors
///
/// [`ParseError::TooShort`].
pub fn parse_notice(bytes: &[u8]) -> Result<Operation, ParseError> {
    match zerocopy::little_endian::U32::read_from_prefix(bytes) {
        Ok((operation, _)) => Ok(Operation(operation.get())),
        Err(_) => Err(ParseError::TooShort { len: bytes.len() }),
    }
}

/// The host's answer: its status, and a body whose meaning depends on the request.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// A Windows status; 0 is success.
    pub status: u32,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Parses a completion.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let Ok((header, body)) = wire::Header::ref_from_prefix(bytes) else {
            return Err(ParseError::TooShort { len: bytes.len() });
        };
        if header.operation.get() != Operation::COMPLETE_IO.0 {
            return Err(ParseError::NotAnAnswer(header.operation.get()));
        }
        Ok(Self {
            status: header.status.get(),
            body,
        })
    }

    const fn too_short(&self) -> ParseError {
        ParseError::TooShort {
            len: HEADER_LEN.saturating_add(self.body.len()),
        }
    }

    /// Returns the properties that were asked for.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`].
    pub fn properties(&self) -> Result<Properties, ParseError> {
        let Ok((wire, _)) = wire::Properties::ref_from_prefix(self.body) else {
            return Err(self.too_short());
        };
        let is_multi_channel = wire.flags.get() & 1 != 0;
        Ok(Properties {
            path: wire.path,
            target: wire.target,
            max_channels: if is_multi_channel { wire.max_channels.get() } else { 0 },
            max_transfer_bytes: wire.max_transfer_bytes.get(),
        })
    }

    /// Returns what became of a command.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`].
    pub fn executed(&self) -> Result<Executed<'a>, ParseError> {
        let Ok((wire, _)) = wire::Request::ref_from_prefix(self.body) else {
            return Err(self.too_short());
        };
        let sense_len = usize::from(wire.sense_length).min(PAYLOAD_LEN);
        let srb = SrbStatus::from_wire(wire.srb_status);
        let has_sense = SrbStatus::has_sense(wire.srb_status);
        Ok(Executed {
            status: self.status,
            srb,
            scsi: ScsiStatus(wire.scsi_status),
            transferred: wire.transfer_length.get(),
            sense: if has_sense {
                wire.payload.get(..sense_len).unwrap_or_default()
            } else {
                &[]
            },
        })
    }
}

/// What became of a command, as the host alleges.
#[derive(Clone, Copy, Debug)]
pub struct Executed<'a> {
    /// What the packet's header says: a Windows status.
    pub status: u32,
    /// What the adapter says.
    pub srb: SrbStatus,
    /// What the device says.
    pub scsi: ScsiStatus,
    /// How many bytes were transferred: compare with what was asked for.
    pub transferred: u32,
    /// Why, if there is more to say; see [`Sense::parse`].
    pub sense: &'a [u8],
}
