//! What a disk tells of itself apart from INQUIRY: capacity, mode pages, sense.

use super::{Cdb, Moved, code, opcode, reply};
use crate::host::storage::backend::RequestMemory;
use crate::host::storage::{Disk, Outcome, Provisioning, Sense, WriteCache};

/// The mode page about the cache.
const CACHING: u8 = 0x08;
const ALL_PAGES: u8 = 0x3F;
/// The page control of saved values, of which there are none.
const SAVED: u8 = 3;
/// The page control of which values may be changed: none.
const CHANGEABLE: u8 = 1;

/// Answers REQUEST SENSE: a unit attention that nobody has been told of, or that there is nothing.
pub(super) fn request_sense(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let sense = match disk.take_attention() {
        Some((code, qualifier)) => Sense::fixed(6, code, qualifier),
        None => Sense::fixed(0, 0, 0),
    };
    reply(memory, cdb.number(4, 1), sense.as_bytes().get(..18).unwrap_or_default())
}

/// Answers READ CAPACITY (10): the last block, as far as 32 bits go.
pub(super) fn read_capacity_10(disk: &Disk, memory: &RequestMemory<'_>) -> Moved {
    if memory.len() < 8 {
        return Err(Outcome::overrun());
    }
    let last = u32::try_from(disk.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut data = [0; 8];
    for (target, source) in data.iter_mut().zip(
        last.to_be_bytes()
            .into_iter()
            .chain(disk.config().block_bytes.to_be_bytes()),
    ) {
        *target = source;
    }
    reply(memory, 8, &data)
}

/// Answers READ CAPACITY (16).
pub(super) fn read_capacity_16(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    if memory.len() < 12 {
        return Err(Outcome::overrun());
    }
    let config = disk.config();
    // Thin, and zero where blocks were given up.
    let provisioning: u8 = if config.provisioning == Provisioning::Full {
        0
    } else {
        0xC0
    };
    let mut data = [0; 32];
    let fields = (disk.blocks().saturating_sub(1).to_be_bytes().into_iter())
        .chain(config.block_bytes.to_be_bytes())
        .chain([0, config.physical_exponent & 0xF, provisioning, 0]);
    for (target, source) in data.iter_mut().zip(fields) {
        *target = source;
    }
    let allocation_len = cdb.number(10, 4).min(memory.len() as u64);
    reply(memory, allocation_len, &data)
}

/// Answers MODE SENSE (6) and (10): write protection, and the page about the cache.
pub(super) fn mode_sense(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let is_long = cdb.opcode() == opcode::MODE_SENSE_10;
    let (control, page_code) = (cdb.u8(2) >> 6, cdb.u8(2) & 0x3F);
    let allocation_len = if is_long { cdb.number(7, 2) } else { cdb.number(4, 1) };
    if allocation_len == 0 {
        return Ok(0);
    }
    let header_len = if is_long { 8 } else { 4 };
    let is_known = page_code == CACHING || page_code == ALL_PAGES;
    if allocation_len < header_len || control == SAVED || !is_known {
        return Err(Outcome::illegal(code::INVALID_CDB));
    }
    // Bit 7: write protected. Bit 4: "force unit access" is understood.
    let device = 0x10 | if disk.is_write_protected() { 0x80 } else { 0 };
    let cache = match disk.config().write_cache {
        WriteCache::Volatile if control != CHANGEABLE => 0x04,
        _ => 0,
    };
    if is_long {
        let mut data = [0; 28];
        (data[1], data[3]) = (26, device);
        (data[8], data[9], data[10]) = (CACHING, 18, cache);
        reply(memory, allocation_len, &data)
    } else {
        let mut data = [0; 24];
        (data[0], data[2]) = (23, device);
        (data[4], data[5], data[6]) = (CACHING, 18, cache);
        reply(memory, allocation_len, &data)
    }
}
