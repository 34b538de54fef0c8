//! A SCSI direct-access device: what each command does to a disk.
//!
//! One function per command, which answers how many bytes it moved or what went wrong. Where hosts are known to be strict, this
//! is: a buffer shorter than an allocation length, an UNMAP whose lengths do not agree, a transfer of no blocks. Sources: SPC-4 and
//! SBC-3 for commands and pages, OpenVMM's `scsidisk` for where a host refuses.

mod data;
mod inquiry;
mod luns;
mod mode;

use super::backend::{BackendError, MemoryError, RequestMemory};
use super::{Disk, Outcome};

/// Commands that are known by their number here.
pub mod opcode {
    #![expect(missing_docs, reason = "the names of the commands in SPC and SBC")]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0A;
    pub const INQUIRY: u8 = 0x12;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SENSE_6: u8 = 0x1A;
    pub const START_STOP_UNIT: u8 = 0x1B;
    pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1E;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2A;
    pub const VERIFY_10: u8 = 0x2F;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SENSE_10: u8 = 0x5A;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8A;
    pub const VERIFY_16: u8 = 0x8F;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9E;
    pub const REPORT_LUNS: u8 = 0xA0;
    pub const READ_12: u8 = 0xA8;
    pub const WRITE_12: u8 = 0xAA;
}

/// Sense codes of what is not understood.
mod code {
    pub(super) const PARAMETER_LIST_LENGTH: u8 = 0x1A;
    pub(super) const ILLEGAL_COMMAND: u8 = 0x20;
    pub(super) const ILLEGAL_BLOCK: u8 = 0x21;
    pub(super) const INVALID_CDB: u8 = 0x24;
    pub(super) const INVALID_PARAMETER_LIST: u8 = 0x26;
}

/// Bytes moved, or what went wrong.
type Moved = Result<u32, Outcome>;

impl From<MemoryError> for Outcome {
    fn from(_: MemoryError) -> Self {
        Self::illegal(code::INVALID_CDB)
    }
}

impl From<BackendError> for Outcome {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Medium => Self::check(super::Sense::fixed(3, 0x11, 0)),
            BackendError::NoSpace => Self::no_space(),
            BackendError::Failed => Self::hardware_error(),
            BackendError::OutOfRange => Self::illegal(code::ILLEGAL_BLOCK),
            BackendError::Memory(error) => error.into(),
        }
    }
}

/// A command, and the big-endian numbers in it.
#[derive(Clone, Copy)]
pub(super) struct Cdb(pub(super) [u8; 16]);

impl Cdb {
    pub(super) const fn opcode(self) -> u8 {
        self.0[0]
    }

    pub(super) fn u8(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// A number of `bytes` bytes, most significant first.
    pub(super) fn number(self, at: usize, bytes: usize) -> u64 {
        let field = self.0.iter().skip(at).take(bytes);
        field.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The blocks that a command of data is about: the first, and how many.
    pub(super) fn blocks(self) -> Option<(u64, u64)> {
        use opcode as op;
        match self.opcode() {
            op::READ_6 | op::WRITE_6 => {
                let count = match self.u8(4) {
                    0 => 256,
                    count => u64::from(count),
                };
                Some((self.number(1, 3) & 0x1F_FFFF, count))
            }
            op::READ_10 | op::WRITE_10 | op::VERIFY_10 | op::SYNCHRONIZE_CACHE_10 | op::WRITE_SAME_10 => {
                Some((self.number(2, 4), self.number(7, 2)))
            }
            op::READ_12 | op::WRITE_12 => Some((self.number(2, 4), self.number(6, 4))),
            op::READ_16 | op::WRITE_16 | op::VERIFY_16 | op::SYNCHRONIZE_CACHE_16 | op::WRITE_SAME_16 => {
                Some((self.number(2, 8), self.number(10, 4)))
            }
            _ => None,
        }
    }
}

/// Does what the command says. `limit`: so many bytes of a read or write and no more, as a device does that moves less than it was
/// asked for.
pub(super) fn execute(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>, limit: Option<u32>) -> Outcome {
    run(disk, cdb, memory, limit).map_or_else(|outcome| outcome, Outcome::good)
}

/// Brings these bytes, as far as there is room.
pub(super) fn false_data(bytes: &[u8], memory: &RequestMemory<'_>) -> Outcome {
    reply(memory, memory.len() as u64, bytes).map_or_else(|outcome| outcome, Outcome::good)
}

/// Answers INQUIRY where no disk is.
pub(super) fn inquiry_of_nothing(lun: u8, cdb: Cdb, memory: &RequestMemory<'_>) -> Outcome {
    inquiry::inquiry_of_nothing(lun, cdb, memory).map_or_else(|outcome| outcome, Outcome::good)
}

/// Answers REPORT LUNS.
pub(super) fn report_luns(is_there: &[bool; 256], cdb: Cdb, memory: &RequestMemory<'_>) -> Outcome {
    luns::report_luns(is_there, cdb, memory).map_or_else(|outcome| outcome, Outcome::good)
}

fn run(disk: &Disk, cdb: Cdb, memory: &RequestMemory<'_>, limit: Option<u32>) -> Moved {
    use opcode as op;
    // These are answered whatever the disk's state, and tell of no unit attention (REQUEST SENSE tells of it as its data).
    match cdb.opcode() {
        op::INQUIRY => return inquiry::inquiry(disk, cdb, memory),
        op::REQUEST_SENSE => return mode::request_sense(disk, cdb, memory),
        _ => {}
    }
    if let Some((code, qualifier)) = disk.take_attention() {
        return Err(Outcome::unit_attention(code, qualifier));
    }
    match cdb.opcode() {
        op::START_STOP_UNIT => {
            disk.set_stopped(cdb.u8(4) & 1 == 0);
            Ok(0)
        }
        op::RESERVE_6 | op::RELEASE_6 | op::PREVENT_ALLOW_MEDIUM_REMOVAL => Ok(0),
        op::MODE_SENSE_6 | op::MODE_SENSE_10 => mode::mode_sense(disk, cdb, memory),
        // "Initializing command required".
        _ if disk.is_stopped() => Err(Outcome::not_ready(0x04, 0x02)),
        op::TEST_UNIT_READY => Ok(0),
        op::READ_CAPACITY_10 => mode::read_capacity_10(disk, memory),
        op::SERVICE_ACTION_IN_16 if cdb.u8(1) & 0x1F == 0x10 => mode::read_capacity_16(disk, cdb, memory),
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => data::read(disk, cdb, memory, limit),
        op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => data::write(disk, cdb, memory, limit),
        op::VERIFY_10 | op::VERIFY_16 => data::verify(disk, cdb),
        op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => data::synchronize_cache(disk, cdb),
        op::UNMAP => data::unmap(disk, cdb, memory),
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => data::write_same(disk, cdb, memory),
        _ => Err(Outcome::illegal(code::ILLEGAL_COMMAND)),
    }
}

/// Copies as much of `answer` as the command has room for, and answers how much that is. The client's memory has to be as long as it
/// told the command.
fn reply(memory: &RequestMemory<'_>, allocation_len: u64, answer: &[u8]) -> Moved {
    let allocated = usize::try_from(allocation_len).unwrap_or(usize::MAX);
    if allocated > memory.len() {
        return Err(Outcome::illegal(code::INVALID_CDB));
    }
    let bytes = answer.get(..allocated.min(answer.len())).unwrap_or_default();
    memory.write_at(0, bytes)?;
    Ok(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}
