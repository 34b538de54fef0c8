//! REPORT LUNS: which logical units there are.

use super::{Cdb, Moved};
use crate::host::storage::backend::RequestMemory;

/// Answers REPORT LUNS: how long the list is, and as much of it as there is room for. A buffer without room for the length gets nothing.
pub(super) fn report_luns(is_there: &[bool; 256], cdb: Cdb, memory: &RequestMemory<'_>) -> Moved {
    let room = memory
        .len()
        .min(usize::try_from(cdb.number(6, 4)).unwrap_or(usize::MAX));
    if room < 8 {
        return Ok(0);
    }
    let count = is_there.iter().filter(|is_there| **is_there).count();
    let mut header = [0; 8];
    for (target, source) in header
        .iter_mut()
        .zip(u32::try_from(8 * count).unwrap_or(0).to_be_bytes())
    {
        *target = source;
    }
    memory.write_at(0, &header)?;
    let mut at = header.len();
    let luns = (0..=u8::MAX).zip(is_there).filter(|(_, is_there)| **is_there);
    for (lun, _) in luns {
        // The single-level form: the number in the second byte.
        let entry = [0, lun, 0, 0, 0, 0, 0, 0];
        let entry = entry.get(..entry.len().min(room - at)).unwrap_or_default();
        memory.write_at(at, entry)?;
        at += entry.len();
    }
    Ok(u32::try_from(at).unwrap_or(u32::MAX))
}
