//! The table of processors and interrupt controllers (MADT, signature `APIC`): which processors there are.

use super::{HEADER, Table};
use crate::arch::cpu::MAX_PROCESSORS;
use crate::memory::FirmwareMemory;
use crate::start;
use boot::PhysicalMemory;

/// Signature of the table.
pub const SIGNATURE: [u8; 4] = *b"APIC";

/// The processors that firmware names. Only the first one runs so far; the others stay parked where firmware left them.
#[must_use]
pub fn present() -> Option<Processors> {
    let rsdp = start::info()?.rsdp;
    let table = super::find(&FirmwareMemory, rsdp, SIGNATURE)?;
    Some(processors(&FirmwareMemory, table))
}

/// The numbers of the APICs of the processors that can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processors {
    ids: [u32; MAX_PROCESSORS],
    count: usize,
    /// Processors for which there was no room.
    pub more: usize,
}

impl Processors {
    /// The APIC ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        self.ids.get(..self.count).unwrap_or(&[])
    }

    fn push(&mut self, id: u32) {
        match self.ids.get_mut(self.count) {
            Some(slot) => {
                *slot = id;
                self.count += 1;
            }
            None => self.more += 1,
        }
    }
}

/// Reads the table.
pub fn processors(memory: &impl PhysicalMemory, table: Table) -> Processors {
    const ENABLED: u32 = 1;
    let mut found = Processors {
        ids: [0; MAX_PROCESSORS],
        count: 0,
        more: 0,
    };
    // Local APIC address and flags follow the header, then entries of a type, a length and their content.
    let end = table.address + table.length;
    let mut at = table.address + HEADER + 8;
    while at + 2 <= end {
        let mut head = [0; 2];
        if memory.read(at, &mut head).is_err() {
            break;
        }
        let [kind, length] = head;
        let next = at + u64::from(length);
        if length < 2 || next > end {
            break;
        }
        let flags_and_id = match (kind, length) {
            (0, 8..) => memory
                .read_u32(at + 4)
                .ok()
                .zip(memory.read_u16(at + 2).ok().map(|ids| u32::from(ids >> 8))),
            (9, 16..) => memory.read_u32(at + 8).ok().zip(memory.read_u32(at + 4).ok()),
            _ => None,
        };
        if let Some((flags, id)) = flags_and_id
            && flags & ENABLED != 0
            && !found.ids().contains(&id)
        {
            found.push(id);
        }
        at = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Firmware, table};
    use super::*;

    fn parse(entries: &[u8]) -> Processors {
        let mut content = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
        content.extend_from_slice(entries);
        let bytes = table(b"APIC", &content);
        let length = bytes.len() as u64;
        processors(
            &Firmware(vec![(0x1000, bytes)]),
            Table {
                address: 0x1000,
                length,
            },
        )
    }

    #[test]
    fn enabled_processors_of_both_kinds_are_counted_once() {
        let entries = [
            &[0, 8, 0, 0, 1, 0, 0, 0][..],                            // processor 0, APIC 0
            &[0, 8, 1, 2, 1, 0, 0, 0],                                // processor 1, APIC 2
            &[0, 8, 2, 3, 0, 0, 0, 0],                                // not there
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],             // an I/O APIC
            &[9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0], // an x2APIC
            &[9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0],       // the second one again
        ]
        .concat();
        assert_eq!(parse(&entries).ids(), [0, 2, 0x1234]);
    }

    #[test]
    fn nonsense_lengths_end_the_list() {
        assert_eq!(parse(&[0, 0, 0, 0]).ids(), [0u32; 0]);
        assert_eq!(parse(&[0, 200, 0, 0, 1, 0, 0, 0]).ids(), [0u32; 0]);
        assert_eq!(
            parse(&[0, 4, 0, 0, 0, 8, 0, 7, 1, 0, 0, 0]).ids(),
            [7],
            "a short entry is passed over"
        );
        assert_eq!(parse(&[0]).ids(), [0u32; 0]);
    }

    #[test]
    fn more_processors_than_there_is_room_for_are_counted() {
        let entries: Vec<u8> = (0..100u8).flat_map(|id| [0, 8, id, id, 1, 0, 0, 0]).collect();
        let found = parse(&entries);
        assert_eq!((found.ids().len(), found.more), (MAX_PROCESSORS, 100 - MAX_PROCESSORS));
    }
}
