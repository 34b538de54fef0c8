//! Status numbers of Windows' kernel: [`NtStatus`].
//!
//! They cross no wire here: they are for authors who port a driver and want to see the status that they know. Each
//! [`Error`](super::Error) names its own.

use core::fmt;

/// A status number of Windows' kernel (`NTSTATUS`): the named ones are those that KMCL's documentation mentions, and a few
/// ordinary ones for what it leaves open.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct NtStatus(pub u32);

impl NtStatus {
    /// `STATUS_SUCCESS`.
    pub const SUCCESS: Self = Self(0);
    /// `STATUS_PENDING`: a success value, so it must be compared for.
    pub const PENDING: Self = Self(0x0000_0103);
    /// `STATUS_BUFFER_OVERFLOW`.
    pub const BUFFER_OVERFLOW: Self = Self(0x8000_0005);
    /// `STATUS_INVALID_PARAMETER`.
    pub const INVALID_PARAMETER: Self = Self(0xc000_000d);
    /// `STATUS_MORE_PROCESSING_REQUIRED`: not a success value, and yet a partial success.
    pub const MORE_PROCESSING_REQUIRED: Self = Self(0xc000_0016);
    /// `STATUS_BUFFER_TOO_SMALL`.
    pub const BUFFER_TOO_SMALL: Self = Self(0xc000_0023);
    /// `STATUS_INSUFFICIENT_RESOURCES` (not in KMCL's documentation).
    pub const INSUFFICIENT_RESOURCES: Self = Self(0xc000_009a);
    /// `STATUS_IO_TIMEOUT` (not in KMCL's documentation).
    pub const IO_TIMEOUT: Self = Self(0xc000_00b5);
    /// `STATUS_NOT_FOUND` (not in KMCL's documentation).
    pub const NOT_FOUND: Self = Self(0xc000_0225);
    /// `STATUS_INVALID_PARAMETER_1`.
    pub const INVALID_PARAMETER_1: Self = Self(0xc000_00ef);
    /// `STATUS_INVALID_PARAMETER_2`.
    pub const INVALID_PARAMETER_2: Self = Self(0xc000_00f0);
    /// `STATUS_INVALID_PARAMETER_3`.
    pub const INVALID_PARAMETER_3: Self = Self(0xc000_00f1);
    /// `STATUS_CANCELLED`.
    pub const CANCELLED: Self = Self(0xc000_0120);
    /// `STATUS_INVALID_DEVICE_STATE` (not in KMCL's documentation).
    pub const INVALID_DEVICE_STATE: Self = Self(0xc000_0184);
    /// `STATUS_POSSIBLE_DEADLOCK` (not in KMCL's documentation).
    pub const POSSIBLE_DEADLOCK: Self = Self(0xc000_0194);
    /// `STATUS_DEVICE_REMOVED`.
    pub const DEVICE_REMOVED: Self = Self(0xc000_02b6);
    /// `STATUS_DEVICE_PROTOCOL_ERROR` (not in KMCL's documentation).
    pub const DEVICE_PROTOCOL_ERROR: Self = Self(0xc000_0186);
    /// `STATUS_ACCESS_DENIED` (not in KMCL's documentation).
    pub const ACCESS_DENIED: Self = Self(0xc000_0022);

    /// Returns true for success and information values (`NT_SUCCESS`): those without the top bit.
    ///
    /// ```
    /// use vmbus::kmcl::NtStatus;
    /// assert!(NtStatus::PENDING.is_success() && !NtStatus::BUFFER_OVERFLOW.is_success());
    /// ```
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 >> 31 == 0
    }
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "NtStatus({:#010x})", self.0)
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "status {:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::NtStatus;

    #[test]
    fn success_is_the_top_bit_so_pending_is_one_and_overflow_is_none() {
        assert!(NtStatus::SUCCESS.is_success());
        assert!(NtStatus::PENDING.is_success());
        assert!(!NtStatus::BUFFER_OVERFLOW.is_success());
        assert!(!NtStatus::MORE_PROCESSING_REQUIRED.is_success());
    }

    #[test]
    fn a_status_is_shown_as_it_is_written_elsewhere() {
        assert_eq!(std::format!("{}", NtStatus::CANCELLED), "status 0xc0000120");
        assert_eq!(std::format!("{:?}", NtStatus::PENDING), "NtStatus(0x00000103)");
    }
}
