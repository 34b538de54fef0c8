//! What became of a SCSI command: [`Outcome`] and its [`Sense`] data.

use super::srb_status::{ABORTED, AUTOSENSE_VALID, BUSY, DATA_OVERRUN, ERROR, INVALID_LUN, INVALID_REQUEST, SUCCESS};
use super::wire::SENSE;

/// SCSI status "good".
const GOOD: u8 = 0x00;
/// SCSI status "check condition".
const CHECK_CONDITION: u8 = 0x02;
/// SCSI status "busy".
const SCSI_BUSY: u8 = 0x08;
/// SCSI status "reservation conflict".
const RESERVATION_CONFLICT: u8 = 0x18;
/// SCSI status "task set full".
const TASK_SET_FULL: u8 = 0x28;

/// Sense data: 18 bytes in the fixed format of SPC, or any 20 that a test likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense([u8; SENSE]);

impl Sense {
    /// Sense data of a current error with key, code and qualifier.
    #[must_use]
    pub const fn fixed(key: u8, code: u8, qualifier: u8) -> Self {
        let mut bytes = [0; SENSE];
        bytes[0] = 0x70;
        bytes[2] = key;
        bytes[7] = 10;
        bytes[12] = code;
        bytes[13] = qualifier;
        Self(bytes)
    }

    /// The same in the descriptor format, without descriptors.
    #[must_use]
    pub const fn descriptor(key: u8, code: u8, qualifier: u8) -> Self {
        let mut bytes = [0; SENSE];
        bytes[0] = 0x72;
        bytes[1] = key;
        bytes[2] = code;
        bytes[3] = qualifier;
        Self(bytes)
    }

    /// Any bytes.
    #[must_use]
    pub const fn raw(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Says which block the error is about, if the number fits into the fixed format.
    #[must_use]
    pub const fn with_block(mut self, block: u64) -> Self {
        if block <= 0xFFFF_FFFF {
            let [.., a, b, c, d] = block.to_be_bytes();
            self.0[0] |= 0x80;
            self.0[3] = a;
            self.0[4] = b;
            self.0[5] = c;
            self.0[6] = d;
        }
        self
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

/// What became of a SCSI command, field by field as the answer has it: a test may put together what no sane host would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Status of the request and its flags, see [`srb_status`](super::srb_status).
    pub srb_status: u8,
    /// The SCSI status.
    pub scsi_status: u8,
    /// Sense data. Whether the answer says that it is valid is up to `srb_status`.
    pub sense: Option<Sense>,
    /// Bytes that were moved.
    pub transferred: u32,
    /// Status in the packet's header; `None`: the one that goes with `srb_status`.
    pub status: Option<u32>,
}

impl Outcome {
    /// Done, with so many bytes moved.
    #[must_use]
    pub const fn good(transferred: u32) -> Self {
        Self {
            transferred,
            ..Self::of(SUCCESS, GOOD)
        }
    }

    /// Any two statuses, no sense data, nothing moved.
    #[must_use]
    pub const fn of(srb_status: u8, scsi_status: u8) -> Self {
        Self {
            srb_status,
            scsi_status,
            sense: None,
            transferred: 0,
            status: None,
        }
    }

    /// "Check condition" with this sense data.
    #[must_use]
    pub const fn check(sense: Sense) -> Self {
        Self {
            sense: Some(sense),
            ..Self::of(ERROR | AUTOSENSE_VALID, CHECK_CONDITION)
        }
    }

    /// "Check condition" for a request that is not understood, which has a status of its own.
    #[must_use]
    pub const fn illegal(code: u8) -> Self {
        Self {
            sense: Some(Sense::fixed(5, code, 0)),
            ..Self::of(INVALID_REQUEST | AUTOSENSE_VALID, CHECK_CONDITION)
        }
    }

    /// The buffer is too short for what has to go there.
    #[must_use]
    pub const fn overrun() -> Self {
        Self {
            sense: Some(Sense::fixed(5, 0x24, 0)),
            ..Self::of(DATA_OVERRUN | AUTOSENSE_VALID, CHECK_CONDITION)
        }
    }

    /// "Unit attention": something has happened to the disk since the last command.
    #[must_use]
    pub const fn unit_attention(code: u8, qualifier: u8) -> Self {
        Self::check(Sense::fixed(6, code, qualifier))
    }

    /// The same as Hyper-V says it when the capacity has changed: aborted and failed at once.
    #[must_use]
    pub const fn aborted_attention(code: u8, qualifier: u8) -> Self {
        Self {
            sense: Some(Sense::fixed(6, code, qualifier)),
            ..Self::of(ABORTED | ERROR | AUTOSENSE_VALID, CHECK_CONDITION)
        }
    }

    /// "Medium error": this block cannot be read.
    #[must_use]
    pub const fn medium_error(block: u64) -> Self {
        Self::check(Sense::fixed(3, 0x11, 0).with_block(block))
    }

    /// "Hardware error": the target failed inside.
    #[must_use]
    pub const fn hardware_error() -> Self {
        Self::check(Sense::fixed(4, 0x44, 0))
    }

    /// "Not ready", for this reason.
    #[must_use]
    pub const fn not_ready(code: u8, qualifier: u8) -> Self {
        Self::check(Sense::fixed(2, code, qualifier))
    }

    /// "Data protect": the disk is not to be written to.
    #[must_use]
    pub const fn write_protected() -> Self {
        Self::check(Sense::fixed(7, 0x27, 0))
    }

    /// "Data protect": a thin disk has no room left.
    #[must_use]
    pub const fn no_space() -> Self {
        Self::check(Sense::fixed(7, 0x27, 7))
    }

    /// The disk is busy.
    #[must_use]
    pub const fn busy() -> Self {
        Self::of(BUSY, SCSI_BUSY)
    }

    /// The disk has as many commands as it can take.
    #[must_use]
    pub const fn task_set_full() -> Self {
        Self::of(ERROR, TASK_SET_FULL)
    }

    /// The disk is reserved for somebody else.
    #[must_use]
    pub const fn reservation_conflict() -> Self {
        Self::of(ERROR, RESERVATION_CONFLICT)
    }

    /// There is no such logical unit.
    #[must_use]
    pub const fn no_such_unit() -> Self {
        Self::of(INVALID_LUN, CHECK_CONDITION)
    }

    /// The same outcome with so many bytes moved.
    #[must_use]
    pub const fn with_transferred(mut self, transferred: u32) -> Self {
        self.transferred = transferred;
        self
    }

    /// The same outcome with this status in the packet's header.
    #[must_use]
    pub const fn with_status(mut self, status: u32) -> Self {
        self.status = Some(status);
        self
    }
}
