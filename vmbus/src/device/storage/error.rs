//! What can go wrong with a disk: [`Error`], and [`Failed`], which gives back the memory that a request had taken.

use core::fmt;

use super::protocol::{ScsiStatus, Sense, SrbStatus};
use crate::fallible::OutOfMemory;
use crate::kmcl;

/// Why a request was not done.
///
/// "Not now" ([`Busy`](Self::Busy), [`NotReady`](Self::NotReady), [`OutOfMemory`](Self::OutOfMemory)), "never" (ranges, sizes,
/// protection), "the device failed" ([`Medium`](Self::Medium), [`Device`](Self::Device)), "gone"
/// ([`DiskGone`](Self::DiskGone), [`ControllerGone`](Self::ControllerGone)) and "late" ([`TimedOut`](Self::TimedOut)) are told
/// apart. What can be retried has been retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device stayed busy for as long as it was asked.
    #[error("the disk is busy")]
    Busy,
    /// The device stayed unready, or there is no medium in it.
    #[error("the disk is not ready")]
    NotReady,
    /// The range is not all inside the disk. Nothing was sent.
    #[error("outside the disk")]
    OutOfRange,
    /// The memory, or the position in bytes, is no multiple of the disk's blocks; or the memory is in parts that do not end at
    /// blocks. Nothing was sent.
    #[error("not in whole blocks")]
    Unaligned,
    /// The disk may not be written.
    #[error("the disk is write-protected")]
    WriteProtected,
    /// The disk does not do this. A flush that ends so has made nothing durable.
    #[error("the disk does not do this")]
    Unsupported,
    /// Somebody else has reserved the disk.
    #[error("the disk is reserved by another machine")]
    Reserved,
    /// A disk that grows as it is written cannot grow any more.
    #[error("no space is left under the disk")]
    NoSpace,
    /// The medium is bad at, or about, this block.
    #[error("the medium is bad")]
    Medium {
        /// The first bad block, if the device names one.
        lba: Option<u64>,
    },
    /// The device failed, and says why.
    #[error("the disk failed: {0}")]
    Device(Sense),
    /// The request failed, and nobody says why.
    #[error("the request failed: {srb:?}, {scsi:?}")]
    Failed {
        /// What the adapter says.
        srb: SrbStatus,
        /// What the device says.
        scsi: ScsiStatus,
    },
    /// The host calls the request done, and failed as well: it may be either.
    #[error("the host calls the request done, and failed with status {status:#x}")]
    Contradicted {
        /// The failure: a Windows status.
        status: u32,
    },
    /// Fewer bytes were transferred than a whole transfer has, and nobody says why.
    #[error("only {transferred} bytes were transferred")]
    Short {
        /// How many were.
        transferred: u32,
    },
    /// The disk was taken away.
    #[error("the disk is gone")]
    DiskGone,
    /// The controller was taken away, or its channel has ended.
    #[error("the controller is gone")]
    ControllerGone,
    /// Time was up. What was lent to the host stays lent until the host is done with it.
    #[error("time was up")]
    TimedOut,
    /// Called from a callback of the controller's channel, which would wait for itself.
    #[error("the call would wait for the callback that made it")]
    WouldDeadlock,
    /// The host breaks the protocol, or speaks none of its versions that we do.
    #[error("the host breaks the storage protocol")]
    Protocol,
    /// The heap is full.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The channel cannot do it.
    #[error(transparent)]
    Channel(kmcl::Error),
}

impl From<kmcl::Error> for Error {
    fn from(error: kmcl::Error) -> Self {
        match error {
            kmcl::Error::Gone(_) => Self::ControllerGone,
            kmcl::Error::TimedOut | kmcl::Error::Cancelled => Self::TimedOut,
            kmcl::Error::WouldDeadlock => Self::WouldDeadlock,
            kmcl::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            kmcl::Error::CompletionTruncated { .. } | kmcl::Error::Corrupt => Self::Protocol,
            other => Self::Channel(other),
        }
    }
}

/// A request that lends memory failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Failed<B> {
    /// Why.
    pub error: Error,
    /// The memory. `None` if the host may still use it: it is released when the host is done with it, or the channel has ended.
    pub buffer: Option<B>,
}

impl<B> From<Failed<B>> for Error {
    fn from(failed: Failed<B>) -> Self {
        failed.error
    }
}

impl<B> fmt::Debug for Failed<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Failed")
            .field("error", &self.error)
            .field("has_buffer", &self.buffer.is_some())
            .finish()
    }
}

impl<B> fmt::Display for Failed<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl<B> core::error::Error for Failed<B> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}
