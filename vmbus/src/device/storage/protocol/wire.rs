//! The bytes of the packets: structures and sizes.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a command or of sense data in a packet.
pub(super) const PAYLOAD_LEN: usize = 20;

/// What every packet begins with (`vstor_packet`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) operation: U32,
    /// Bit 0: a completion is wanted.
    pub(super) flags: U32,
    /// A Windows status, in the host's answers.
    pub(super) status: U32,
}
const _: () = assert!(size_of::<Header>() == 12);

/// A SCSI command, and what became of it (`vmscsi_request`), as far as all versions have it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Request {
    /// Bytes of this structure with the extension, if there is one.
    pub(super) length: U16,
    pub(super) srb_status: u8,
    pub(super) scsi_status: u8,
    pub(super) port: u8,
    pub(super) path: u8,
    pub(super) target: u8,
    pub(super) lun: u8,
    pub(super) cdb_length: u8,
    pub(super) sense_length: u8,
    pub(super) data_in: u8,
    pub(super) reserved: u8,
    pub(super) transfer_length: U32,
    /// The command; in the answer, sense data.
    pub(super) payload: [u8; PAYLOAD_LEN],
}
const _: () = assert!(size_of::<Request>() == 36);

/// What version 5.1 added to [`Request`] (`vmscsi_win8_extension`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Extension {
    pub(super) reserved: U16,
    pub(super) queue_tag: u8,
    pub(super) queue_action: u8,
    pub(super) srb_flags: U32,
    pub(super) time_out_seconds: U32,
    pub(super) queue_sort_key: U32,
}
const _: () = assert!(size_of::<Extension>() == 16);

/// A packet of the length that versions before 5.1 have: header and request.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ShortPacket {
    pub(super) header: Header,
    pub(super) request: Request,
}
const _: () = assert!(size_of::<ShortPacket>() == super::SHORT_PACKET_LEN);

/// A packet as of version 5.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LongPacket {
    pub(super) short: ShortPacket,
    pub(super) extension: Extension,
}
const _: () = assert!(size_of::<LongPacket>() == super::MAX_PACKET_LEN);

/// What the host tells of a channel (`vmstorage_channel_properties`). The first four bytes have been a version, a path and a
/// target on hosts that nobody runs any more.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Properties {
    pub(super) protocol_version: U16,
    pub(super) path: u8,
    pub(super) target: u8,
    pub(super) max_channels: U16,
    pub(super) port: U16,
    /// Bit 0: several channels.
    pub(super) flags: U32,
    pub(super) max_transfer_bytes: U32,
    pub(super) reserved: [U32; 2],
}
const _: () = assert!(size_of::<Properties>() == 24);

/// The version that is asked for (`vmstorage_protocol_version`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ProtocolVersion {
    pub(super) major_minor: U16,
    pub(super) revision: U16,
}
const _: () = assert!(size_of::<ProtocolVersion>() == 4);
