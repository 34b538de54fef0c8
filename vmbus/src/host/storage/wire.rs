//! The protocol's bytes: where each field lies in a packet, as literal offsets, and the numbers that go there.
//!
//! All of it is little-endian. A packet is a header of 12 bytes (operation, flags, status), and then what the operation
//! defines; for a SCSI request that is 0x24 bytes before version 5.1, and 0x34 from then on. Sources: OpenVMM's
//! `storvsp_protocol`, Linux' `storvsc_drv.c`.

use super::Outcome;

/// Operations of the protocol.
pub mod operation {
    /// The answer to any request.
    pub const COMPLETE_IO: u32 = 1;
    /// A device was removed: sent by hosts, unasked.
    pub const REMOVE_DEVICE: u32 = 2;
    /// Execute a SCSI command.
    pub const EXECUTE_SRB: u32 = 3;
    /// Reset a logical unit.
    pub const RESET_LUN: u32 = 4;
    /// Reset the controller.
    pub const RESET_ADAPTER: u32 = 5;
    /// Reset all logical units.
    pub const RESET_BUS: u32 = 6;
    /// Begin to initialise.
    pub const BEGIN_INITIALIZATION: u32 = 7;
    /// Initialisation is over.
    pub const END_INITIALIZATION: u32 = 8;
    /// Ask for a version of the protocol.
    pub const QUERY_PROTOCOL_VERSION: u32 = 9;
    /// Ask for the channel's properties.
    pub const QUERY_PROPERTIES: u32 = 10;
    /// Look again what disks there are: sent by hosts, unasked.
    pub const ENUMERATE_BUS: u32 = 11;
    /// Ask for more channels.
    pub const CREATE_SUB_CHANNELS: u32 = 13;
}

/// Status of the Windows kernel, as the header of an answer has it.
pub(super) mod status {
    pub(in crate::host::storage) const SUCCESS: u32 = 0;
    pub(in crate::host::storage) const BUFFER_OVERFLOW: u32 = 0x8000_0005;
    pub(in crate::host::storage) const DEVICE_BUSY: u32 = 0x8000_0011;
    pub(in crate::host::storage) const UNSUCCESSFUL: u32 = 0xC000_0001;
    pub(in crate::host::storage) const INVALID_PARAMETER: u32 = 0xC000_000D;
    pub(in crate::host::storage) const INVALID_DEVICE_REQUEST: u32 = 0xC000_0010;
    pub(in crate::host::storage) const REVISION_MISMATCH: u32 = 0xC000_0059;
    pub(in crate::host::storage) const DEVICE_NOT_CONNECTED: u32 = 0xC000_009D;
    pub(in crate::host::storage) const IO_TIMEOUT: u32 = 0xC000_00B5;
    pub(in crate::host::storage) const DEVICE_DOES_NOT_EXIST: u32 = 0xC000_00C0;
    pub(in crate::host::storage) const CANCELLED: u32 = 0xC000_0120;
    pub(in crate::host::storage) const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    pub(in crate::host::storage) const IO_DEVICE_ERROR: u32 = 0xC000_0185;
}

/// Status of a request, in the lower six bits of its byte.
pub mod srb_status {
    /// Done.
    pub const SUCCESS: u8 = 0x01;
    /// Given up.
    pub const ABORTED: u8 = 0x02;
    /// Failed: the SCSI status says how.
    pub const ERROR: u8 = 0x04;
    /// Not now.
    pub const BUSY: u8 = 0x05;
    /// Not understood.
    pub const INVALID_REQUEST: u8 = 0x06;
    /// There is no such device.
    pub const NO_DEVICE: u8 = 0x08;
    /// Time is up.
    pub const TIMEOUT: u8 = 0x09;
    /// Nobody answered.
    pub const SELECTION_TIMEOUT: u8 = 0x0A;
    /// The command took too long.
    pub const COMMAND_TIMEOUT: u8 = 0x0B;
    /// The bus was reset meanwhile.
    pub const BUS_RESET: u8 = 0x0E;
    /// There is no controller.
    pub const NO_HBA: u8 = 0x11;
    /// There is more or less data than was asked for.
    pub const DATA_OVERRUN: u8 = 0x12;
    /// The request block has a wrong length.
    pub const BAD_SRB_BLOCK_LENGTH: u8 = 0x15;
    /// Given up with all others.
    pub const REQUEST_FLUSHED: u8 = 0x16;
    /// There is no such logical unit.
    pub const INVALID_LUN: u8 = 0x20;
    /// There is no such target.
    pub const INVALID_TARGET_ID: u8 = 0x21;
    /// There is no such function.
    pub const BAD_FUNCTION: u8 = 0x22;
    /// Beside the status: the queue is frozen.
    pub const QUEUE_FROZEN: u8 = 0x40;
    /// Beside the status: there is sense data.
    pub const AUTOSENSE_VALID: u8 = 0x80;
}

/// Bytes of a packet's header.
pub(super) const HEADER: usize = 12;
/// Bytes of a SCSI request before version 5.1.
pub(super) const SRB_SHORT: usize = 0x24;
/// Bytes of a SCSI request from version 5.1 on.
pub(super) const SRB_LONG: usize = 0x34;
/// Bytes of the longest packet of the protocol.
pub(super) const PACKET: usize = HEADER + SRB_LONG;
/// Bytes of sense data in an answer.
pub(super) const SENSE: usize = 0x14;
/// The most bytes that an answer of ours may have, wrong ones included; a multiple of 8.
pub(super) const LONGEST_ANSWER: usize = 128;

/// The flag of the channel's properties that says that there may be more channels.
const SUPPORTS_MULTI_CHANNEL: u32 = 1;

/// A packet of the client, as it came.
#[derive(Clone, Copy)]
pub(super) struct Incoming {
    bytes: [u8; PACKET],
    len: usize,
}

impl Incoming {
    pub(super) fn copy(bytes: &[u8]) -> Self {
        let mut copy = [0; PACKET];
        let len = bytes.len().min(PACKET);
        if let (Some(target), Some(source)) = (copy.get_mut(..len), bytes.get(..len)) {
            target.copy_from_slice(source);
        }
        Self { bytes: copy, len }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }

    fn u8(&self, at: usize) -> u8 {
        let [byte] = self.array(at);
        byte
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn operation(&self) -> u32 {
        self.u32(0)
    }

    /// The version that is asked for.
    pub(super) fn version(&self) -> u16 {
        self.u16(HEADER)
    }

    /// The number of channels that is asked for.
    pub(super) fn sub_channels(&self) -> u16 {
        self.u16(HEADER)
    }

    pub(super) fn srb(&self) -> Srb {
        Srb {
            length: self.u16(12),
            path: self.u8(17),
            target: self.u8(18),
            lun: self.u8(19),
            cdb_length: self.u8(20),
            direction: self.u8(22),
            transfer: self.u32(24),
            cdb: self.array(28),
        }
    }
}

/// A SCSI request.
#[derive(Clone, Copy)]
pub(super) struct Srb {
    pub(super) length: u16,
    pub(super) path: u8,
    pub(super) target: u8,
    pub(super) lun: u8,
    pub(super) cdb_length: u8,
    /// 0: from the client's memory; 1: to it; 2: not said.
    pub(super) direction: u8,
    /// Bytes to move, as the client says.
    pub(super) transfer: u32,
    pub(super) cdb: [u8; 16],
}

/// The bytes of an answer, before they are sent. A test may change them as it likes.
#[derive(Clone)]
pub struct Answer {
    bytes: [u8; LONGEST_ANSWER],
    len: usize,
}

impl Answer {
    /// An answer as long as the request: clients on Windows insist on that.
    pub(super) fn new(request: &Incoming, status: u32) -> Self {
        let mut answer = Self {
            bytes: [0; LONGEST_ANSWER],
            len: request.len().max(HEADER),
        };
        answer.put(0, &operation::COMPLETE_IO.to_le_bytes());
        answer.put(8, &status.to_le_bytes());
        answer
    }

    pub(super) fn with_version(mut self, version: u16) -> Self {
        self.put(12, &version.to_le_bytes());
        self
    }

    pub(super) fn with_properties(mut self, supports_more_channels: Option<u16>, max_transfer_bytes: u32) -> Self {
        if let Some(channels) = supports_more_channels {
            self.put(16, &channels.to_le_bytes());
            self.put(20, &SUPPORTS_MULTI_CHANNEL.to_le_bytes());
        }
        self.put(24, &max_transfer_bytes.to_le_bytes());
        self
    }

    /// The answer to a SCSI request. Path, target and LUN stay zero: the request is known by its id.
    pub(super) fn with_outcome(mut self, outcome: &Outcome) -> Self {
        self.put(12, &0x34_u16.to_le_bytes());
        self.put(14, &[outcome.srb_status, outcome.scsi_status]);
        self.put(20, &[16, 0x14]);
        self.put(24, &outcome.transferred.to_le_bytes());
        if let Some(sense) = &outcome.sense {
            self.put(28, sense.as_bytes());
        }
        self
    }

    /// Overwrites bytes from `at` on. What lies beyond the longest answer is left out; the length does not change.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let rest = self.bytes.get_mut(at..).unwrap_or_default();
        let len = bytes.len().min(rest.len());
        if let (Some(target), Some(source)) = (rest.get_mut(..len), bytes.get(..len)) {
            target.copy_from_slice(source);
        }
    }

    /// Makes the answer so long: at most 128 bytes; new ones are zero. On the wire it is padded to a multiple of 8.
    pub fn set_len(&mut self, len: usize) {
        let len = len.min(LONGEST_ANSWER);
        self.bytes.iter_mut().skip(self.len).for_each(|byte| *byte = 0);
        self.len = len;
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl core::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("Answer")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A packet that nobody asked for, of the length that the version has.
pub(super) fn unasked(operation: u32, is_long: bool) -> ([u8; PACKET], usize) {
    let mut bytes = [0; PACKET];
    for (target, source) in bytes.iter_mut().zip(operation.to_le_bytes()) {
        *target = source;
    }
    (bytes, HEADER + if is_long { SRB_LONG } else { SRB_SHORT })
}

/// The status that goes with the status of a request.
pub(super) const fn status_of(srb_status: u8) -> u32 {
    match srb_status & 0x3F {
        srb_status::SUCCESS => status::SUCCESS,
        srb_status::BUSY => status::DEVICE_BUSY,
        srb_status::INVALID_LUN | srb_status::INVALID_TARGET_ID | srb_status::NO_DEVICE | srb_status::NO_HBA => {
            status::DEVICE_DOES_NOT_EXIST
        }
        srb_status::COMMAND_TIMEOUT | srb_status::TIMEOUT => status::IO_TIMEOUT,
        srb_status::SELECTION_TIMEOUT => status::DEVICE_NOT_CONNECTED,
        srb_status::BAD_FUNCTION | srb_status::BAD_SRB_BLOCK_LENGTH => status::INVALID_DEVICE_REQUEST,
        srb_status::DATA_OVERRUN => status::BUFFER_OVERFLOW,
        srb_status::REQUEST_FLUSHED => status::UNSUCCESSFUL,
        srb_status::ABORTED => status::CANCELLED,
        _ => status::IO_DEVICE_ERROR,
    }
}
