//! What a device tells of itself, parsed from as many bytes as came.

use core::fmt;

/// A short text of a device: what can be printed of it, without the blanks at its ends.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    len: u8,
}

impl Text {
    /// Bytes that are kept.
    pub const CAPACITY: usize = 32;

    /// Takes the printable ASCII of `bytes`, as far as there is room.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut text = Self::default();
        for byte in bytes.trim_ascii().iter().filter(|byte| (0x20..0x7f).contains(*byte)) {
            let Some(place) = text.bytes.get_mut(usize::from(text.len)) else {
                break;
            };
            *place = *byte;
            text.len = text.len.saturating_add(1);
        }
        text
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // Only ASCII was let in.
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

/// What a logical unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A disk.
    Disk,
    /// A CD or DVD drive.
    Optical,
    /// Something else, by its number in SCSI.
    Other(u8),
}

/// The standard answer to INQUIRY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// What it is.
    pub kind: DeviceKind,
    /// Whether its medium can be taken out.
    pub is_removable: bool,
    /// The standard that it claims to follow; hosts claim an older one than they do.
    pub version: u8,
    /// Who made it.
    pub vendor: Text,
    /// What they call it.
    pub product: Text,
    /// In which version.
    pub revision: Text,
}

impl Inquiry {
    /// Bytes of the answer that matter.
    pub const LEN: u16 = 36;

    /// Parses the answer; `None` if there is no logical unit there.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        // The upper bits tell whether there is anything; 0x1f is "no type".
        if first >> 5 != 0 || first & 0x1f == 0x1f {
            return None;
        }
        let text = |from: usize, to: usize| Text::new(bytes.get(from..to.min(bytes.len())).unwrap_or_default());
        Some(Self {
            kind: match first & 0x1f {
                0 => DeviceKind::Disk,
                5 => DeviceKind::Optical,
                other => DeviceKind::Other(other),
            },
            is_removable: bytes.get(1).is_some_and(|byte| byte & 0x80 != 0),
            version: bytes.get(2).copied().unwrap_or(0),
            vendor: text(8, 16),
            product: text(16, 32),
            revision: text(32, 36),
        })
    }
}

/// Blocks and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// How many blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_len: u32,
    /// How many logical blocks make up a physical one, as a power of two.
    pub physical_exponent: u8,
}

impl Capacity {
    /// Bytes of the answer to READ CAPACITY (10).
    pub const LEN_10: u8 = 8;
    /// Bytes of the answer to READ CAPACITY (16) that matter.
    pub const LEN_16: u8 = 32;

    /// Parses the answer to READ CAPACITY (10). A `blocks` of 2^32 means "at least": ask with READ CAPACITY (16).
    #[must_use]
    pub fn parse_10(bytes: &[u8]) -> Option<Self> {
        let (last, rest) = bytes.split_first_chunk::<4>()?;
        Some(Self {
            blocks: u64::from(u32::from_be_bytes(*last)) + 1,
            block_len: u32::from_be_bytes(*rest.first_chunk()?),
            physical_exponent: 0,
        })
    }

    /// Parses the answer to READ CAPACITY (16).
    #[must_use]
    pub fn parse_16(bytes: &[u8]) -> Option<Self> {
        let (last, rest) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            blocks: u64::from_be_bytes(*last).checked_add(1)?,
            block_len: u32::from_be_bytes(*rest.first_chunk()?),
            physical_exponent: bytes.get(13).map_or(0, |byte| byte & 0x0f),
        })
    }
}

/// Walks the logical unit numbers in the answer to REPORT LUNS: those that fit a packet of the controller, that is, below 256.
pub fn luns(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let len = bytes
        .first_chunk::<4>()
        .map_or(0, |len| u32::from_be_bytes(*len) as usize);
    let list = bytes.get(8..).unwrap_or_default();
    let (entries, _) = list.get(..len.min(list.len())).unwrap_or_default().as_chunks::<8>();
    entries.iter().filter_map(|entry| match entry {
        // Of one level: by number on the bus, or in a flat space.
        [0x00 | 0x40, lun, 0, 0, 0, 0, 0, 0] => Some(*lun),
        _ => None,
    })
}

/// Returns whether the header that MODE SENSE (6) brings says that the medium is protected.
#[must_use]
pub fn is_write_protected(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|parameter| parameter & 0x80 != 0)
}

/// Returns whether that header says that "force unit access" is understood.
#[must_use]
pub fn knows_write_through(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|parameter| parameter & 0x10 != 0)
}

/// The content of a page of vital product data, if it is that page.
fn page_content(bytes: &[u8], page: u8) -> Option<&[u8]> {
    let header: &[u8; 4] = bytes.first_chunk()?;
    if header[1] != page {
        return None;
    }
    let rest = bytes.get(4..)?;
    rest.get(..usize::from(u16::from_be_bytes([header[2], header[3]])).min(rest.len()))
}

/// Returns the numbers of the pages of vital product data that there are (page 0x00).
#[must_use]
pub fn vpd_pages(bytes: &[u8]) -> &[u8] {
    page_content(bytes, 0).unwrap_or_default()
}

/// Returns the serial number (page 0x80).
#[must_use]
pub fn parse_serial(bytes: &[u8]) -> Option<Text> {
    let text = Text::new(page_content(bytes, 0x80)?);
    (!text.as_str().is_empty()).then_some(text)
}

/// The longest identity that is kept.
pub const MAX_IDENTITY: usize = 16;

/// A number that no other disk in the world has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    bytes: [u8; MAX_IDENTITY],
    len: u8,
}

impl Identity {
    /// Returns its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Returns the best identity of the logical unit (page 0x83): NAA before EUI-64, and no other.
#[must_use]
pub fn parse_identity(bytes: &[u8]) -> Option<Identity> {
    let mut rest = page_content(bytes, 0x83)?;
    let mut best: Option<(u8, Identity)> = None;
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let len = usize::from(header[3]);
        let value = after.get(..len)?;
        rest = after.get(len..)?;
        let (of_unit, kind) = (header[1] & 0x30 == 0, header[1] & 0x0f);
        let rank = match kind {
            3 => 2,
            2 => 1,
            _ => continue,
        };
        if !of_unit || value.is_empty() || len > MAX_IDENTITY || best.is_some_and(|(other, _)| other >= rank) {
            continue;
        }
        let mut identity = Identity {
            bytes: [0; MAX_IDENTITY],
            len: header[3],
        };
        for (target, source) in identity.bytes.iter_mut().zip(value) {
            *target = *source;
        }
        best = Some((rank, identity));
    }
    best.map(|(_, identity)| identity)
}

/// What UNMAP may be told at a time (page 0xb0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnmapLimits {
    /// The most blocks of one command; 0: it is not offered.
    pub max_blocks: u32,
    /// Ranges should be multiples of so many blocks, or the device leaves their ends as they are.
    pub granularity: u32,
}

/// Returns the longest transfer in blocks (0: no limit), and what UNMAP may be told (page 0xb0).
#[must_use]
pub fn parse_block_limits(bytes: &[u8]) -> Option<(u32, UnmapLimits)> {
    let content = page_content(bytes, 0xb0)?;
    let word = |at: usize| {
        content
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |word| u32::from_be_bytes(*word))
    };
    let descriptors = word(20);
    Some((
        word(4),
        UnmapLimits {
            max_blocks: if descriptors == 0 { 0 } else { word(16) },
            granularity: word(24),
        },
    ))
}

/// Returns whether UNMAP is offered (page 0xb2).
#[must_use]
pub fn parse_provisioning(bytes: &[u8]) -> bool {
    page_content(bytes, 0xb2).is_some_and(|content| content.get(1).is_some_and(|flags| flags & 0x80 != 0))
}
