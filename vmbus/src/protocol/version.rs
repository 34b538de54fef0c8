//! Versions of the VMBus protocol, from 2.4 (Windows Server 2012) to 6.0, and the order in which a guest asks for them.
//!
//! Sources: the version list of Linux' `include/linux/hyperv.h`, of FreeBSD and of OpenVMM's `vmbus_core`, which agree.

use core::fmt;

/// A version of the VMBus protocol. Any number may come from a host; the known ones are constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

/// A text is no version that this crate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a VMBus version; known are 2.4, 3.0, 4.0, 4.1, 5.0, 5.1, 5.2, 5.3 and 6.0")]
pub struct UnknownVersion;

impl Version {
    /// Windows Server 2012: the oldest that this crate speaks, and the first with one event flag for each channel.
    pub const V2_4: Self = Self::new(2, 4);
    /// Windows Server 2012 R2: the first with [`MessageType::UNLOAD`](super::MessageType::UNLOAD).
    pub const V3_0: Self = Self::new(3, 0);
    /// Windows 10 and Windows Server 2016. The newest that QEMU has.
    pub const V4_0: Self = Self::new(4, 0);
    /// Windows 10 version 1703: the first with [`MessageType::MODIFY_CHANNEL`](super::MessageType::MODIFY_CHANNEL).
    pub const V4_1: Self = Self::new(4, 1);
    /// Windows 10 version 1709: messages go to the connection that the host names.
    pub const V5_0: Self = Self::new(5, 0);
    /// Windows 10 version 1803.
    pub const V5_1: Self = Self::new(5, 1);
    /// Windows 10 version 1809 and Windows Server 2019.
    pub const V5_2: Self = Self::new(5, 2);
    /// Windows Server 2022: the first that answers
    /// [`MessageType::MODIFY_CHANNEL`](super::MessageType::MODIFY_CHANNEL).
    pub const V5_3: Self = Self::new(5, 3);
    /// The newest: with feature flags.
    pub const V6_0: Self = Self::new(6, 0);

    /// The versions that this crate speaks, in the order in which it asks for them.
    pub const LADDER: [Self; 9] = [
        Self::V6_0,
        Self::V5_3,
        Self::V5_2,
        Self::V5_1,
        Self::V5_0,
        Self::V4_1,
        Self::V4_0,
        Self::V3_0,
        Self::V2_4,
    ];

    /// Makes a version.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// Makes a version from its number on the wire.
    #[must_use]
    pub const fn from_wire(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number on the wire: the major version in the upper half, the minor in the lower.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0
    }

    /// Returns the major version.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.0 >> 16
    }

    /// Returns the minor version.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.0 & 0xffff
    }

    /// Parses `"5.3"` and its like.
    ///
    /// # Errors
    ///
    /// [`UnknownVersion`] for a text that is not one of [`Version::LADDER`].
    pub fn parse(text: &str) -> Result<Self, UnknownVersion> {
        let (major, minor) = text.split_once('.').ok_or(UnknownVersion)?;
        let number = |text: &str| text.parse::<u16>().map_err(|_| UnknownVersion);
        let version = Self::new(number(major)?, number(minor)?);
        if Self::LADDER.contains(&version) {
            Ok(version)
        } else {
            Err(UnknownVersion)
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major(), self.minor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_ladder_goes_down_from_the_newest_with_the_numbers_of_the_wire() {
        let numbers = Version::LADDER.map(Version::to_wire);
        assert_eq!(
            numbers,
            [
                0x6_0000, 0x5_0003, 0x5_0002, 0x5_0001, 0x5_0000, 0x4_0001, 0x4_0000, 0x3_0000, 0x2_0004
            ]
        );
        assert!(Version::LADDER.is_sorted_by(|earlier, later| earlier > later));
    }

    #[test]
    fn text_and_version_agree_and_other_texts_are_refused() {
        for version in Version::LADDER {
            assert_eq!(Version::parse(&version.to_string()), Ok(version));
        }
        for text in ["", "5", "5.", ".3", "5.4", "1.1", "5.3.0", "99999.0", "-5.3"] {
            assert_eq!(Version::parse(text), Err(UnknownVersion), "{text:?}");
        }
    }
}
