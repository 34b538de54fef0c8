//! Commands about blocks: reading, writing, flushing, giving up.

use super::inquiry::max_write_same;
use super::{Cdb, Moved, code, opcode};
use crate::host::storage::backend::{Durability, RequestMemory};
use crate::host::storage::{Disk, Outcome, Provisioning, ZeroLength};

/// Bytes on the disk.
struct Range {
    offset: u64,
    len: u64,
}

/// Checks that blocks are on the disk.
fn range(disk: &Disk, first: u64, count: u64) -> Result<Range, Outcome> {
    match first.checked_add(count) {
        Some(end) if end <= disk.blocks() => Ok(Range {
            offset: first * disk.block_bytes(),
            len: count * disk.block_bytes(),
        }),
        _ => Err(Outcome::illegal(code::ILLEGAL_BLOCK)),
    }
}

/// Checks a transfer, and cuts the client's memory to it.
fn transfer<'p>(
    disk: &Disk,
    cdb: Cdb,
    memory: &RequestMemory<'p>,
    limit: Option<u32>,
) -> Result<(u64, RequestMemory<'p>), Outcome> {
    let illegal = Outcome::illegal(code::ILLEGAL_BLOCK);
    let (first, count) = cdb.blocks().ok_or(illegal)?;
    let range = range(disk, first, count)?;
    if count == 0 && disk.config().zero_length == ZeroLength::Refused {
        return Err(illegal);
    }
    let len = usize::try_from(range.len).map_err(|_| illegal)?;
    let memory = memory.range(0, len).ok_or(illegal)?;
    let moved = limit.map_or(len, |limit| len.min(limit as usize));
    Ok((range.offset, memory.range(0, moved).ok_or(illegal)?))
}

fn moved(memory: &RequestMemory<'_>) -> u32 {
    u32::try_from(memory.len()).unwrap_or(u32::MAX)
}

pub(super) fn read(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>, limit: Option<u32>) -> Moved {
    let (offset, memory) = transfer(disk, cdb, memory, limit)?;
    disk.backend().read(offset, &memory)?;
    Ok(moved(&memory))
}

/// Bit 3 of the second byte of all but the short commands: "force unit access".
fn durability(cdb: Cdb) -> Durability {
    if cdb.opcode() != opcode::WRITE_6 && cdb.u8(1) & 0x08 != 0 {
        Durability::Through
    } else {
        Durability::Cached
    }
}

pub(super) fn write(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>, limit: Option<u32>) -> Moved {
    let (offset, memory) = transfer(disk, cdb, memory, limit)?;
    if disk.is_write_protected() {
        return Err(Outcome::write_protected());
    }
    disk.backend().write(offset, &memory, durability(cdb))?;
    Ok(moved(&memory))
}

/// Verifies that the blocks are there, and nothing more.
pub(super) fn verify(disk: &Disk, cdb: Cdb) -> Moved {
    let (first, count) = cdb.blocks().ok_or(Outcome::illegal(code::INVALID_CDB))?;
    range(disk, first, count).map(|_| 0)
}

/// Flushes all of the disk, whatever range is named: more than asked for is allowed.
pub(super) fn synchronize_cache(disk: &Disk, cdb: Cdb) -> Moved {
    verify(disk, cdb)?;
    disk.backend().flush()?;
    Ok(0)
}

/// Bytes in front of the ranges of UNMAP.
const UNMAP_HEADER: usize = 8;
/// Bytes of one range.
const UNMAP_RANGE: usize = 16;

/// Gives up blocks. All lengths have to agree, and every range has to lie on the disk, before anything is given up.
pub(super) fn unmap(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let Provisioning::Thin {
        max_blocks, max_ranges, ..
    } = disk.config().provisioning
    else {
        return Err(Outcome::illegal(code::ILLEGAL_COMMAND));
    };
    let list_len = usize::try_from(cdb.number(7, 2)).unwrap_or(usize::MAX);
    if list_len == 0 {
        return Ok(0);
    }
    if list_len < UNMAP_HEADER || list_len != memory.len() {
        return Err(Outcome::illegal(code::PARAMETER_LIST_LENGTH));
    }
    let mut header = [0; UNMAP_HEADER];
    memory.read_at(0, &mut header)?;
    let [a, b, c, d, ..] = header;
    let (data_len, ranges_len) = (u16::from_be_bytes([a, b]) as usize, u16::from_be_bytes([c, d]) as usize);
    if data_len != list_len - 2 || ranges_len != list_len - UNMAP_HEADER || !ranges_len.is_multiple_of(UNMAP_RANGE) {
        return Err(Outcome::illegal(code::INVALID_PARAMETER_LIST));
    }
    if disk.is_write_protected() {
        return Err(Outcome::write_protected());
    }
    let ranges = (0..ranges_len / UNMAP_RANGE).map(|index| unmap_range(memory, index));
    let (mut count, mut blocks) = (0_u32, 0_u64);
    for named in ranges.clone() {
        let (first, len) = named?;
        range(disk, first, u64::from(len))?;
        count += 1;
        blocks += u64::from(len);
    }
    if count > max_ranges || blocks > u64::from(max_blocks) {
        return Err(Outcome::illegal(code::INVALID_PARAMETER_LIST));
    }
    for named in ranges {
        let (first, len) = named?;
        // Checked again: it is the client's memory, and may have changed.
        let range = range(disk, first, u64::from(len))?;
        disk.backend().discard(range.offset, range.len)?;
    }
    Ok(0)
}

fn unmap_range(memory: &RequestMemory<'_>, index: usize) -> Result<(u64, u32), Outcome> {
    let (mut first, mut count) = ([0; 8], [0; 4]);
    let at = UNMAP_HEADER + index * UNMAP_RANGE;
    memory.read_at(at, &mut first)?;
    memory.read_at(at + 8, &mut count)?;
    Ok((u64::from_be_bytes(first), u32::from_be_bytes(count)))
}

/// Writes the one block that the client sent to all of a range, or gives the range up where it says so.
pub(super) fn write_same(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let illegal = Outcome::illegal(code::INVALID_CDB);
    let (first, count) = cdb.blocks().ok_or(illegal)?;
    let range = range(disk, first, count)?;
    if count == 0 || count > u64::from(max_write_same(disk.config())) {
        return Err(illegal);
    }
    if disk.is_write_protected() {
        return Err(Outcome::write_protected());
    }
    // Bit 3: give the blocks up. Bit 0, in the long command: no block was sent, it is zero.
    let may_discard = cdb.u8(1) & 0x08 != 0;
    let has_no_data = cdb.opcode() == opcode::WRITE_SAME_16 && cdb.u8(1) & 1 != 0;
    let is_thin = disk.config().provisioning != Provisioning::Full;
    if (may_discard && !is_thin) || (has_no_data && !may_discard) {
        return Err(illegal);
    }
    let block_len = usize::try_from(disk.block_bytes()).map_err(|_| illegal)?;
    let block = memory
        .range(0, if has_no_data { 0 } else { block_len })
        .ok_or(illegal)?;
    // What is given up is zero afterwards, so only zeros may be written like that.
    if may_discard && is_zero(&block)? {
        disk.backend().discard(range.offset, range.len)?;
        return Ok(moved(&block));
    }
    for index in 0..count {
        let offset = range.offset + index * disk.block_bytes();
        disk.backend().write(offset, &block, Durability::Cached)?;
    }
    Ok(moved(&block))
}

fn is_zero(memory: &RequestMemory<'_>) -> Result<bool, Outcome> {
    let mut piece = [0; 256];
    for from in (0..memory.len()).step_by(piece.len()) {
        let len = piece.len().min(memory.len() - from);
        let piece = piece.get_mut(..len).unwrap_or_default();
        memory.read_at(from, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
