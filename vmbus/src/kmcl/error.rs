//! What can go wrong: [`Error`], and [`Refused`], which gives back what a refused call had taken.

use core::fmt;

use super::NtStatus;
use crate::fallible::OutOfMemory;
use crate::memory::DmaError;
use crate::platform::{OutOfPages, TimedOut};

/// Why there is no channel any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Gone {
    /// Our side disabled the channel.
    #[error("the channel was disabled")]
    Disabled,
    /// The peer took the offer back.
    #[error("the offer was rescinded")]
    Rescinded,
    /// The peer closed the channel.
    #[error("the peer closed the channel")]
    Closed,
    /// The peer wrote what cannot be into the ring.
    #[error("the peer broke the ring")]
    Corrupt,
}

/// What a call of the channel API can answer.
///
/// "Not now" ([`RingFull`](Self::RingFull), [`TooManyPackets`](Self::TooManyPackets), [`Pending`](Self::Pending)), "never"
/// (sizes, flags, order of calls), "gone" ([`Gone`](Self::Gone)) and "late" ([`Cancelled`](Self::Cancelled),
/// [`TimedOut`](Self::TimedOut)) are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The channel is not in a state for this call.
    #[error("the channel is not in a state for this call")]
    WrongState,
    /// The handle is of another channel.
    #[error("the handle belongs to another channel")]
    ForeignChannel,
    /// Flags that this call does not know.
    #[error("unknown flags {0:#x}")]
    InvalidFlags(u32),
    /// The maximum packet size is zero, or more than a descriptor can tell.
    #[error("a maximum packet size of {0} bytes")]
    InvalidPacketSize(usize),
    /// The limit of external data is zero.
    #[error("a limit of no external data")]
    InvalidExternalDataSize,
    /// The limit of the chain of external data is zero, or more than can be had.
    #[error("a limit of {0} parts of external data")]
    InvalidChainLength(usize),
    /// Neither amount of MMIO space is above zero.
    #[error("no MMIO space asked for")]
    InvalidMmio,
    /// No such virtual trust level.
    #[error("virtual trust level {0}")]
    InvalidVtl(u8),
    /// The caller's memory is too small for a packet object.
    #[error("{len} bytes of memory for a packet that takes {needed}")]
    PacketMemoryTooSmall {
        /// What was given, in bytes.
        len: usize,
        /// What it takes, in bytes.
        needed: usize,
    },
    /// A transaction quota of zero.
    #[error("a quota of no packets")]
    InvalidQuota,
    /// The completion buffer's size is no multiple of 8. Nothing was sent.
    #[error("a completion buffer of {0} bytes, which is no multiple of 8")]
    InvalidCapacity(usize),
    /// The packet is longer than the channel's maximum. Nothing was sent.
    #[error("a packet of {len} bytes where {limit} is the most")]
    PacketTooLarge {
        /// Length of the payload in bytes.
        len: usize,
        /// The most that was agreed on, in bytes.
        limit: usize,
    },
    /// The memory described is more, or in more parts, than the channel's maximum, or a range of it is outside. Nothing was
    /// sent.
    #[error("external data of {len} bytes in {ranges} ranges is empty or beyond the limits")]
    InvalidExternalData {
        /// Its length in bytes.
        len: usize,
        /// In how many ranges it would have to be described.
        ranges: usize,
    },
    /// Memory is described, so the packet has to wait for its completion.
    #[error("a packet with external data has to wait for its completion")]
    CompletionNeeded,
    /// A server may only send synchronously without waiting.
    #[error("a server may not wait for its client")]
    ServerMayNotWait,
    /// The completion is longer than the caller's buffer, which holds its beginning.
    #[error("a completion of {len} bytes did not fit the buffer")]
    CompletionTruncated {
        /// Length of the completion in bytes.
        len: usize,
    },
    /// The ring has no room now, and the caller does not wait. Nothing was queued.
    #[error("the ring is full")]
    RingFull,
    /// All packets of the channel are in flight or queued.
    #[error("all packets of the channel are in use")]
    TooManyPackets,
    /// External data has to be brought in first: return from the callback, it will be called again.
    #[error("the external data is not there yet")]
    Pending,
    /// The packet has no external data.
    #[error("the packet has no external data")]
    NoExternalData,
    /// The memory may only be read.
    #[error("the memory may only be read")]
    ReadOnly,
    /// The peer described memory that it does not lend.
    #[error("the peer described memory that it does not lend")]
    NotLent,
    /// The access leaves the memory, or the memory has no kernel address.
    #[error("the memory cannot be reached there")]
    OutOfRange,
    /// There is no such GPADL.
    #[error("no such GPADL")]
    UnknownGpadl,
    /// The GPADL is mapped already.
    #[error("the GPADL is mapped already")]
    AlreadyMapped,
    /// The time passed; the packet was cancelled. What it lent stays lent until the peer gives it back or the channel ends.
    #[error("the packet was cancelled, because time was up")]
    Cancelled,
    /// The time for the call passed.
    #[error("time was up")]
    TimedOut,
    /// The call waits for a callback of this channel, and came from one.
    #[error("the call would wait for the callback that made it")]
    WouldDeadlock,
    /// There is no channel any more.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// No offer of that class and instance.
    #[error("no such offer")]
    NoSuchOffer,
    /// The peer refused, with this status.
    #[error("the peer refused: {0}")]
    Refused(NtStatus),
    /// The opened callback failed with this status.
    #[error("the driver's opened callback failed: {0}")]
    OpenedFailed(NtStatus),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol")]
    Corrupt,
    /// The buffer is too small to make any progress.
    #[error("a buffer of at least {required} bytes is needed")]
    BufferTooSmall {
        /// What the next call needs, in bytes.
        required: usize,
    },
    /// The heap is full.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform has no pages left.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// Something of the platform or the bus failed in a way that no variant names; the log has it.
    #[error("the bus failed")]
    Bus,
}

impl Error {
    /// Returns the status that KMCL documents for this, or the nearest ordinary one where it documents none.
    ///
    /// ```
    /// use vmbus::kmcl::{Error, NtStatus};
    /// assert_eq!(Error::Cancelled.ntstatus(), NtStatus::CANCELLED);
    /// ```
    #[must_use]
    pub const fn ntstatus(&self) -> NtStatus {
        match self {
            // Documented.
            Self::WrongState | Self::ForeignChannel => NtStatus::INVALID_PARAMETER_1,
            Self::InvalidFlags(_)
            | Self::InvalidPacketSize(_)
            | Self::InvalidExternalDataSize
            | Self::InvalidVtl(_) => NtStatus::INVALID_PARAMETER_2,
            Self::InvalidChainLength(_) | Self::PacketMemoryTooSmall { .. } => NtStatus::INVALID_PARAMETER_3,
            Self::InvalidMmio => NtStatus::INVALID_PARAMETER,
            Self::RingFull => NtStatus::BUFFER_OVERFLOW,
            Self::BufferTooSmall { .. } => NtStatus::BUFFER_TOO_SMALL,
            Self::Pending => NtStatus::PENDING,
            Self::Cancelled => NtStatus::CANCELLED,
            Self::Gone(_) => NtStatus::DEVICE_REMOVED,
            // The peer's or the driver's own.
            Self::Refused(status) | Self::OpenedFailed(status) => *status,
            // Ours.
            Self::CompletionTruncated { .. } => NtStatus::BUFFER_OVERFLOW,
            Self::InvalidQuota
            | Self::InvalidCapacity(_)
            | Self::PacketTooLarge { .. }
            | Self::InvalidExternalData { .. }
            | Self::CompletionNeeded
            | Self::ServerMayNotWait
            | Self::NoExternalData
            | Self::OutOfRange
            | Self::UnknownGpadl => NtStatus::INVALID_PARAMETER,
            Self::ReadOnly | Self::NotLent => NtStatus::ACCESS_DENIED,
            Self::AlreadyMapped => NtStatus::INVALID_DEVICE_STATE,
            Self::TooManyPackets | Self::OutOfMemory(_) | Self::OutOfPages(_) => NtStatus::INSUFFICIENT_RESOURCES,
            Self::TimedOut => NtStatus::IO_TIMEOUT,
            Self::WouldDeadlock => NtStatus::POSSIBLE_DEADLOCK,
            Self::NoSuchOffer => NtStatus::NOT_FOUND,
            Self::Corrupt | Self::Bus => NtStatus::DEVICE_PROTOCOL_ERROR,
        }
    }
}

impl From<DmaError> for Error {
    fn from(error: DmaError) -> Self {
        match error {
            DmaError::OutOfPages(error) => Self::OutOfPages(error),
            DmaError::OutOfMemory(error) => Self::OutOfMemory(error),
            DmaError::NotMapped(_) => Self::Bus,
        }
    }
}

impl From<TimedOut> for Error {
    fn from(_: TimedOut) -> Self {
        Self::TimedOut
    }
}

/// A call was refused: why, and what the call had taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused<T> {
    /// Why.
    pub error: Error,
    /// What the caller had given, unchanged.
    pub given: T,
}

impl<T> Refused<T> {
    /// Returns what was given along with the error.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let refused = channel.init_set_flags(4).unwrap_err();
    /// let (error, channel) = refused.into_parts();
    /// log::warn!("{error}");
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn into_parts(self) -> (Error, T) {
        (self.error, self.given)
    }
}

impl<T> From<Refused<T>> for Error {
    fn from(refused: Refused<T>) -> Self {
        refused.error
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Refused")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

// It says what the error says, and so the error is not its source: a chain of causes would say it twice.
impl<T> core::error::Error for Refused<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_statuses_are_exactly_as_documented() {
        for (error, status) in [
            (Error::WrongState, 0xc000_00ef),
            (Error::InvalidFlags(1), 0xc000_00f0),
            (Error::InvalidPacketSize(0), 0xc000_00f0),
            (Error::InvalidExternalDataSize, 0xc000_00f0),
            (Error::InvalidVtl(200), 0xc000_00f0),
            (Error::InvalidChainLength(0), 0xc000_00f1),
            (Error::PacketMemoryTooSmall { len: 1, needed: 2 }, 0xc000_00f1),
            (Error::InvalidMmio, 0xc000_000d),
            (Error::RingFull, 0x8000_0005),
            (Error::BufferTooSmall { required: 1 }, 0xc000_0023),
            (Error::Pending, 0x103),
            (Error::Cancelled, 0xc000_0120),
            (Error::Gone(Gone::Rescinded), 0xc000_02b6),
            (Error::Gone(Gone::Disabled), 0xc000_02b6),
        ] {
            assert_eq!(error.ntstatus(), NtStatus(status), "{error}");
        }
    }

    #[test]
    fn a_refusal_says_what_its_error_says_and_says_it_once() {
        let refused = Refused {
            error: Error::Gone(Gone::Rescinded),
            given: 7,
        };
        assert_eq!(std::format!("{refused}"), "the offer was rescinded");
        assert!(core::error::Error::source(&refused).is_none());
        assert_eq!(Error::from(refused), Error::Gone(Gone::Rescinded));
        assert_eq!(refused.into_parts(), (Error::Gone(Gone::Rescinded), 7));
    }

    #[test]
    fn only_pending_looks_like_a_success() {
        assert!(Error::Pending.ntstatus().is_success());
        for error in [
            Error::TimedOut,
            Error::WouldDeadlock,
            Error::Corrupt,
            Error::CompletionTruncated { len: 9 },
        ] {
            assert!(!error.ntstatus().is_success(), "{error}");
        }
    }
}
