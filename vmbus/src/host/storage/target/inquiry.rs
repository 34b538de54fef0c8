//! INQUIRY: what the device is, and its pages of vital product data.

use super::{Cdb, Moved, code, reply};
use crate::host::storage::backend::RequestMemory;
use crate::host::storage::{Disk, DiskConfig, Outcome, Provisioning};

/// Bytes of the standard data.
const STANDARD: usize = 96;
/// Bytes of the longest page.
const LONGEST_PAGE: usize = 64;
/// The least room that a host accepts: the beginning that has the length of the rest.
const LEAST: u64 = 5;
/// "No device here, and none can be": qualifier 3, type 0x1F.
const NO_DEVICE: u8 = 0x7F;

/// Answers INQUIRY of a disk.
pub(super) fn inquiry(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let allocation_len = cdb.number(3, 2);
    let page_code = cdb.u8(2);
    if cdb.u8(1) & 1 == 0 {
        if page_code != 0 || allocation_len < LEAST {
            return Err(Outcome::illegal(code::INVALID_CDB));
        }
        return reply(memory, allocation_len, &standard(disk.config()));
    }
    let page = page(disk.config(), page_code).ok_or(Outcome::illegal(code::INVALID_CDB))?;
    reply(memory, allocation_len, page.bytes())
}

/// Answers INQUIRY where no disk is. LUN 0 names who made the target, others nothing.
pub(super) fn inquiry_of_nothing(lun: u8, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let allocation_len = cdb.number(3, 2);
    if cdb.u8(1) & 1 != 0 || cdb.u8(2) != 0 || allocation_len < LEAST {
        return Err(Outcome::illegal(code::INVALID_CDB));
    }
    let mut data = standard(&DiskConfig::default());
    data[0] = NO_DEVICE;
    if lun != 0 {
        data.iter_mut().skip(8).for_each(|byte| *byte = 0);
    }
    reply(memory, allocation_len, &data)
}

fn standard(config: &DiskConfig) -> [u8; STANDARD] {
    let mut data = [0; STANDARD];
    // Version SPC-3, response format 2, and how many bytes follow.
    put(&mut data, 2, &[5, 2, 91]);
    put(&mut data, 8, &config.vendor);
    put(&mut data, 16, &config.product);
    put(&mut data, 32, &config.revision);
    data
}

fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    for (target, source) in target.iter_mut().skip(at).zip(bytes) {
        *target = *source;
    }
}

/// A page being written.
struct Page {
    bytes: [u8; LONGEST_PAGE],
    len: usize,
}

impl Page {
    fn new(page_code: u8) -> Self {
        let mut bytes = [0; LONGEST_PAGE];
        put(&mut bytes, 1, &[page_code]);
        Self { bytes, len: 4 }
    }

    /// Appends bytes; a page that is full takes no more.
    fn with(mut self, bytes: &[u8]) -> Self {
        put(&mut self.bytes, self.len, bytes);
        self.len = (self.len + bytes.len()).min(LONGEST_PAGE);
        if let Ok(len) = u16::try_from(self.len - 4) {
            put(&mut self.bytes, 2, &len.to_be_bytes());
        }
        self
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn serial(config: &DiskConfig) -> &[u8] {
    let len = config
        .serial
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    config.serial.get(..len).unwrap_or_default()
}

fn page(config: &DiskConfig, page_code: u8) -> Option<Page> {
    let page = Page::new(page_code);
    let is_thin = config.provisioning != Provisioning::Full;
    match page_code {
        0x00 => {
            let mut page = page.with(&[0x00]);
            if !serial(config).is_empty() {
                page = page.with(&[0x80]);
            }
            page = page.with(&[0x83]);
            if is_thin {
                page = page.with(&[0xB0, 0xB1, 0xB2]);
            }
            Some(page)
        }
        0x80 if !serial(config).is_empty() => Some(page.with(serial(config))),
        0x83 => Some(identifiers(config, page)),
        0xB0 if is_thin => Some(block_limits(config, page)),
        // One bit of rotation: no rotating medium.
        0xB1 if is_thin => Some(page.with(&[0, 1]).with(&[0; 58])),
        // UNMAP and WRITE SAME give blocks up; they are zero afterwards; thin.
        0xB2 if is_thin => Some(page.with(&[0, 0b1110_0100, 2, 0])),
        _ => None,
    }
}

/// Two names: the vendor's with all of the id, and a registered one of 16 bytes.
fn identifiers(config: &DiskConfig, page: Page) -> Page {
    let id = config.id.to_wire();
    let mut naa = [0; 16];
    put(&mut naa, 0, &[0x60, 0x02, 0x24, 0x80]);
    put(&mut naa, 4, id.get(..6).unwrap_or_default());
    put(&mut naa, 10, id.get(10..).unwrap_or_default());
    page.with(&[1, 1, 0, 24])
        .with(&config.vendor)
        .with(&id)
        .with(&[1, 3, 0, 16])
        .with(&naa)
}

fn block_limits(config: &DiskConfig, page: Page) -> Page {
    let Provisioning::Thin {
        max_blocks,
        max_ranges,
        granularity,
    } = config.provisioning
    else {
        return page;
    };
    // Bytes 4 to 19 tell of transfers, which the channel's properties limit.
    page.with(&[0; 16])
        .with(&max_blocks.to_be_bytes())
        .with(&max_ranges.to_be_bytes())
        .with(&granularity.max(1).to_be_bytes())
        // The alignment counts, and is 0.
        .with(&[0x80, 0, 0, 0])
        // WRITE SAME.
        .with(&u64::from(max_write_same(config)).to_be_bytes())
        .with(&[0; 20])
}

/// Blocks that one WRITE SAME may write at the most.
pub(super) const fn max_write_same(config: &DiskConfig) -> u32 {
    // 8 MiB.
    match (8_u32 << 20).checked_div(config.block_bytes) {
        Some(blocks) => blocks,
        None => 1,
    }
}
