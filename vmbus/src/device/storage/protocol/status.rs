//! How a command ended: the adapter's word ([`SrbStatus`]), the device's ([`ScsiStatus`]), and its reason ([`Sense`]).

use core::fmt;

/// What the host's adapter says of a command, without the two flags that stand in the same byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SrbStatus(pub u8);

macro_rules! codes {
    ($type:ident: $($(#[$attribute:meta])* $name:ident = $code:literal;)*) => {
        impl $type {
            $($(#[$attribute])* pub const $name: Self = Self($code);)*
        }
    };
}

codes! { SrbStatus:
    /// Not done yet; never in a completion.
    PENDING = 0;
    /// Done.
    SUCCESS = 1;
    /// Given up on request.
    ABORTED = 2;
    /// The device failed it; the SCSI status and sense tell more.
    ERROR = 4;
    /// Not now.
    BUSY = 5;
    /// Not understood.
    INVALID_REQUEST = 6;
    /// No such path.
    INVALID_PATH = 7;
    /// No device there.
    NO_DEVICE = 8;
    /// Time was up.
    TIMEOUT = 9;
    /// The device does not answer.
    SELECTION_TIMEOUT = 0x0a;
    /// Time was up for the device.
    COMMAND_TIMEOUT = 0x0b;
    /// A reset ended it.
    BUS_RESET = 0x0e;
    /// No adapter.
    NO_HBA = 0x11;
    /// The device has another amount of data than was asked for: more, or fewer.
    DATA_OVERRUN = 0x12;
    /// Not executed, because one before it failed.
    REQUEST_FLUSHED = 0x16;
    /// No such logical unit.
    INVALID_LUN = 0x20;
    /// No such target.
    INVALID_TARGET = 0x21;
    /// The adapter failed.
    INTERNAL_ERROR = 0x30;
}

/// Sense data is in the completion.
const AUTOSENSE_VALID: u8 = 0x80;
/// The device's queue was stopped.
const QUEUE_FROZEN: u8 = 0x40;

impl SrbStatus {
    /// Takes the flags off a byte of the wire.
    #[must_use]
    pub const fn from_wire(byte: u8) -> Self {
        Self(byte & !(AUTOSENSE_VALID | QUEUE_FROZEN))
    }

    /// Returns true if a byte of the wire says that there is sense data.
    #[must_use]
    pub const fn has_sense(byte: u8) -> bool {
        byte & AUTOSENSE_VALID != 0
    }
}

impl fmt::Debug for SrbStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SrbStatus({:#x})", self.0)
    }
}

/// What the device says of a command.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiStatus(pub u8);

codes! { ScsiStatus:
    /// Done.
    GOOD = 0;
    /// Not done, or not quite: see the sense data.
    CHECK_CONDITION = 0x02;
    /// A search has found what it searched.
    CONDITION_MET = 0x04;
    /// Not now.
    BUSY = 0x08;
    /// Somebody else has reserved the device.
    RESERVATION_CONFLICT = 0x18;
    /// Too many commands at a time.
    TASK_SET_FULL = 0x28;
    /// Somebody ended it.
    TASK_ABORTED = 0x40;
}

impl fmt::Debug for ScsiStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ScsiStatus({:#x})", self.0)
    }
}

/// The class of a reason.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SenseKey(pub u8);

codes! { SenseKey:
    /// Nothing to say.
    NO_SENSE = 0;
    /// Done, with the device's help.
    RECOVERED_ERROR = 1;
    /// The device is not ready.
    NOT_READY = 2;
    /// The medium is bad there.
    MEDIUM_ERROR = 3;
    /// The device is broken.
    HARDWARE_ERROR = 4;
    /// The command makes no sense.
    ILLEGAL_REQUEST = 5;
    /// Something happened to the device since the last command.
    UNIT_ATTENTION = 6;
    /// The medium is protected.
    DATA_PROTECT = 7;
    /// The device gave the command up.
    ABORTED_COMMAND = 0x0b;
}

impl fmt::Debug for SenseKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SenseKey({:#x})", self.0)
    }
}

/// Why a command was not done, as the device alleges.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The class of the reason.
    pub key: SenseKey,
    /// The reason: additional sense code, and its qualifier.
    pub code: (u8, u8),
    /// A number that belongs to it: the block that is bad.
    pub information: Option<u64>,
}

impl Sense {
    /// Parses sense data in fixed or descriptor format; `None` if it is neither, or too short to say anything.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let at = |index: usize| bytes.get(index).copied();
        match at(0)? & 0x7f {
            0x70 | 0x71 => {
                let is_valid = at(0)? & 0x80 != 0;
                let information = bytes.get(3..7).and_then(|bytes| bytes.try_into().ok());
                Some(Self {
                    key: SenseKey(at(2)? & 0x0f),
                    // Short sense data leaves the codes out.
                    code: (at(12).unwrap_or(0), at(13).unwrap_or(0)),
                    information: information
                        .filter(|_| is_valid)
                        .map(|bytes| u64::from(u32::from_be_bytes(bytes))),
                })
            }
            0x72 | 0x73 => {
                // The first descriptor, if it is one of information.
                let is_information =
                    at(8) == Some(0) && at(9) == Some(10) && at(10).is_some_and(|flags| flags & 0x80 != 0);
                let information = bytes.get(12..20).and_then(|bytes| bytes.try_into().ok());
                Some(Self {
                    key: SenseKey(at(1)? & 0x0f),
                    code: (at(2).unwrap_or(0), at(3).unwrap_or(0)),
                    information: information.filter(|_| is_information).map(u64::from_be_bytes),
                })
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Sense {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "sense {:x}/{:02x}/{:02x}",
            self.key.0, self.code.0, self.code.1
        )?;
        match self.information {
            Some(information) => write!(formatter, " at {information:#x}"),
            None => Ok(()),
        }
    }
}
