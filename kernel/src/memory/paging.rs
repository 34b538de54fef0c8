//! Four-level page tables: mapping, unmapping, translation.
//!
//! The walk is one recursion over the levels that fills each table in one go and uses the largest pages that fit. It reaches
//! the tables through [`Tables`], so it runs in tests over ordinary memory. Mapping what is mapped already to the same place is
//! no error, which lets the direct map grow over ragged edges.

use super::layout::PAGE_SIZE;
use x86_64::PhysAddr;
use x86_64::structures::paging::{PageTable, PageTableFlags as Flags};

/// Where page tables live.
pub trait Tables {
    /// A frame of zeros for a new table; none if there is no memory.
    fn allocate(&mut self) -> Option<u64>;

    /// The table at a physical address that [`Tables::allocate`] gave out (or that is the root).
    fn table(&mut self, address: u64) -> &mut PageTable;
}

/// Why a range was not mapped or unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No frame for a page table.
    #[error("no memory for a page table")]
    NoMemory,
    /// Something else is mapped at the address.
    #[error("the virtual address {0:#x} is in use")]
    InUse(u64),
    /// There is no such page, or it is part of a large one.
    #[error("the virtual address {0:#x} is not mapped")]
    NotMapped(u64),
    /// An address or a length is no multiple of a page, or the range ends beyond the address space.
    #[error("a range to be mapped is not made of whole pages")]
    NotAligned,
}

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Constants.
    Read,
    /// Variables.
    ReadWrite,
    /// Code.
    ReadExecute,
    /// Registers of devices: not cached.
    Device,
}

/// What the processor can do with pages.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Execution can be forbidden.
    pub no_execute: bool,
    /// There are pages of 1 GiB.
    pub gigabyte_pages: bool,
}

/// A hierarchy of page tables.
#[derive(Debug)]
pub struct Mapper<T> {
    root: u64,
    tables: T,
    abilities: Abilities,
}

const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1)) & 511) as usize
}

impl<T: Tables> Mapper<T> {
    /// Page tables with the given root.
    pub const fn new(root: u64, tables: T, abilities: Abilities) -> Self {
        Self {
            root,
            tables,
            abilities,
        }
    }

    /// Physical address of the root.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Maps a range of virtual addresses to a range of physical ones.
    ///
    /// # Errors
    ///
    /// [`MapError`]; then a part of the range may be mapped.
    pub fn map(&mut self, from: u64, to: u64, length: u64, access: Access) -> Result<(), MapError> {
        if !(from | to | length).is_multiple_of(PAGE_SIZE) || from.checked_add(length).is_none() {
            return Err(MapError::NotAligned);
        }
        let mut flags = Flags::PRESENT;
        flags.set(Flags::WRITABLE, matches!(access, Access::ReadWrite | Access::Device));
        flags.set(
            Flags::NO_EXECUTE,
            self.abilities.no_execute && access != Access::ReadExecute,
        );
        flags.set(Flags::NO_CACHE | Flags::WRITE_THROUGH, access == Access::Device);
        self.map_in(self.root, 4, Piece { from, to, length }, flags)
    }

    fn map_in(&mut self, table: u64, level: u32, mut piece: Piece, flags: Flags) -> Result<(), MapError> {
        let span = span(level);
        let may_be_leaf = level == 1 || level == 2 || level == 3 && self.abilities.gigabyte_pages;
        while piece.length > 0 {
            let length = piece.length.min(span - piece.from % span);
            let whole = length == span && piece.to.is_multiple_of(span);
            let here = Piece { length, ..piece };
            let entry = &mut self.tables.table(table)[index(piece.from, level)];
            let found = (entry.flags(), entry.addr().as_u64());
            if found.0.is_empty() && whole && may_be_leaf {
                let size = if level > 1 { Flags::HUGE_PAGE } else { Flags::empty() };
                entry.set_addr(PhysAddr::new_truncate(piece.to), flags | size);
            } else if found.0.is_empty() {
                let new = self.tables.allocate().ok_or(MapError::NoMemory)?;
                let entry = &mut self.tables.table(table)[index(piece.from, level)];
                entry.set_addr(PhysAddr::new_truncate(new), Flags::PRESENT | Flags::WRITABLE);
                self.map_in(new, level - 1, here, flags)?;
            } else if level == 1 || found.0.contains(Flags::HUGE_PAGE) {
                if found.1 + piece.from % span != piece.to {
                    return Err(MapError::InUse(piece.from));
                }
            } else {
                self.map_in(found.1, level - 1, here, flags)?;
            }
            piece = Piece {
                from: piece.from.wrapping_add(length),
                to: piece.to + length,
                length: piece.length - length,
            };
        }
        Ok(())
    }

    /// Unmaps pages of 4 KiB and tells each one's virtual and physical address. Tables stay, for the next mapping there.
    ///
    /// # Errors
    ///
    /// [`MapError::NotMapped`] at the first page that is not mapped, or is part of a large one.
    pub fn unmap(&mut self, from: u64, length: u64, mut unmapped: impl FnMut(u64, u64)) -> Result<(), MapError> {
        for page in 0..length / PAGE_SIZE {
            let address = from + page * PAGE_SIZE;
            let mut table = self.root;
            for level in [4, 3, 2] {
                let entry = &self.tables.table(table)[index(address, level)];
                if entry.is_unused() || entry.flags().contains(Flags::HUGE_PAGE) {
                    return Err(MapError::NotMapped(address));
                }
                table = entry.addr().as_u64();
            }
            let entry = &mut self.tables.table(table)[index(address, 1)];
            if entry.is_unused() {
                return Err(MapError::NotMapped(address));
            }
            let physical = entry.addr().as_u64();
            entry.set_unused();
            unmapped(address, physical);
        }
        Ok(())
    }

    /// The physical address behind a virtual one.
    pub fn translate(&mut self, address: u64) -> Option<u64> {
        let mut table = self.root;
        for level in [4, 3, 2, 1] {
            let entry = &self.tables.table(table)[index(address, level)];
            if entry.is_unused() {
                return None;
            }
            if level == 1 || entry.flags().contains(Flags::HUGE_PAGE) {
                return Some(entry.addr().as_u64() + address % span(level));
            }
            table = entry.addr().as_u64();
        }
        None
    }

    /// What the page at a virtual address allows.
    pub fn flags(&mut self, address: u64) -> Option<Flags> {
        let mut table = self.root;
        for level in [4, 3, 2, 1] {
            let entry = &self.tables.table(table)[index(address, level)];
            if entry.is_unused() {
                return None;
            }
            if level == 1 || entry.flags().contains(Flags::HUGE_PAGE) {
                return Some(entry.flags());
            }
            table = entry.addr().as_u64();
        }
        None
    }
}

/// The physical address behind a virtual one, in tables of which `read` reads an entry at its physical address.
///
/// For whoever can take no lock: it changes nothing, and ends at the first entry that cannot be read.
pub fn translate_by(root: u64, address: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
    /// The bits of an entry that are an address, in the widest of all processors.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let mut table = root & ADDRESS;
    for level in [4, 3, 2, 1] {
        let raw = read(table + 8 * index(address, level) as u64)?;
        let flags = Flags::from_bits_truncate(raw);
        if !flags.contains(Flags::PRESENT) {
            return None;
        }
        if level == 1 || flags.contains(Flags::HUGE_PAGE) {
            return Some((raw & ADDRESS & !(span(level) - 1)) + address % span(level));
        }
        table = raw & ADDRESS;
    }
    None
}

#[derive(Clone, Copy)]
struct Piece {
    from: u64,
    to: u64,
    length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables in a list; table number n has the address n * 4096.
    struct Arena {
        tables: Vec<PageTable>,
        limit: usize,
    }

    impl Tables for Arena {
        fn allocate(&mut self) -> Option<u64> {
            if self.tables.len() == self.limit {
                return None;
            }
            self.tables.push(PageTable::new());
            Some((self.tables.len() as u64 - 1) * 4096)
        }

        fn table(&mut self, address: u64) -> &mut PageTable {
            &mut self.tables[usize::try_from(address / 4096).unwrap()]
        }
    }

    fn mapper(gigabyte_pages: bool) -> Mapper<Arena> {
        let arena = Arena {
            tables: vec![PageTable::new()],
            limit: 100,
        };
        Mapper::new(
            0,
            arena,
            Abilities {
                no_execute: true,
                gigabyte_pages,
            },
        )
    }

    const BASE: u64 = 0xffff_8000_0000_0000;
    const MIB: u64 = 1 << 20;

    #[test]
    fn large_pages_are_used_where_they_fit() {
        let mut mapper = mapper(true);
        mapper.map(BASE, 0, 3 << 30, Access::ReadWrite).unwrap();
        assert_eq!(
            mapper.tables.tables.len(),
            2,
            "three pages of 1 GiB in one table below the root"
        );
        assert_eq!(mapper.translate(BASE + 0x7654_3210), Some(0x7654_3210));
        assert_eq!(mapper.translate(BASE + (3 << 30)), None);
    }

    #[test]
    fn ragged_edges_take_small_pages() {
        let mut mapper = mapper(false);
        mapper
            .map(BASE + MIB, MIB, 31 * MIB - 0x1000, Access::ReadWrite)
            .unwrap();
        assert_eq!(mapper.translate(BASE + MIB - 1), None);
        assert_eq!(mapper.translate(BASE + MIB), Some(MIB));
        assert_eq!(mapper.translate(BASE + 0x1ff_e123), Some(0x1ff_e123));
        assert_eq!(mapper.translate(BASE + 0x1ff_f000), None);
        assert_eq!(
            mapper.tables.tables.len(),
            5,
            "root, two levels, and a table of 4 KiB pages at either end"
        );
    }

    #[test]
    fn the_direct_map_grows_over_what_is_there() {
        let mut mapper = mapper(false);
        mapper.map(BASE, 0, 5 * MIB, Access::ReadWrite).unwrap();
        mapper.map(BASE + 3 * MIB, 3 * MIB, 5 * MIB, Access::ReadWrite).unwrap();
        for address in [0, 3 * MIB, 5 * MIB + 5, 8 * MIB - 1] {
            assert_eq!(mapper.translate(BASE + address), Some(address));
        }
        assert_eq!(mapper.translate(BASE + 8 * MIB), None);
    }

    #[test]
    fn another_target_is_refused() {
        let mut mapper = mapper(false);
        mapper.map(BASE, 0, 4 * MIB, Access::ReadWrite).unwrap();
        assert_eq!(
            mapper.map(BASE + 0x1000, 0x5000, 0x1000, Access::ReadWrite),
            Err(MapError::InUse(BASE + 0x1000))
        );
        assert_eq!(mapper.map(BASE + 1, 0, 0x1000, Access::Read), Err(MapError::NotAligned));
    }

    #[test]
    fn what_a_mapping_allows_is_in_its_flags() {
        let mut mapper = mapper(false);
        for (page, access) in [Access::Read, Access::ReadWrite, Access::ReadExecute, Access::Device]
            .into_iter()
            .enumerate()
        {
            mapper.map(BASE + page as u64 * 0x1000, 0x1000, 0x1000, access).unwrap();
        }
        let flags: Vec<_> = (0..4).map(|page| mapper.flags(BASE + page * 0x1000).unwrap()).collect();
        let nx = Flags::PRESENT | Flags::NO_EXECUTE;
        assert_eq!(
            flags,
            [
                nx,
                nx | Flags::WRITABLE,
                Flags::PRESENT,
                nx | Flags::WRITABLE | Flags::NO_CACHE | Flags::WRITE_THROUGH
            ]
        );
    }

    #[test]
    fn unmapping_tells_the_frames() {
        let mut mapper = mapper(false);
        mapper.map(BASE, 0x9000, 0x3000, Access::ReadWrite).unwrap();
        let mut seen = Vec::new();
        mapper
            .unmap(BASE + 0x1000, 0x1000, |virtual_, physical| {
                seen.push((virtual_, physical))
            })
            .unwrap();
        assert_eq!(seen, [(BASE + 0x1000, 0xa000)]);
        assert_eq!(
            mapper.unmap(BASE, 0x3000, |_, _| ()),
            Err(MapError::NotMapped(BASE + 0x1000))
        );
        mapper
            .map(BASE + 0x20_0000, 0x20_0000, 0x20_0000, Access::ReadWrite)
            .unwrap();
        assert!(mapper.unmap(BASE + 0x20_0000, 0x1000, |_, _| ()).is_err());
    }

    #[test]
    fn without_a_lock_the_same_is_found() {
        for gigabyte_pages in [false, true] {
            let mut mapper = mapper(gigabyte_pages);
            mapper.map(BASE, 0, 3 << 30, Access::ReadWrite).unwrap();
            mapper
                .map(BASE + (5 << 30), MIB, 5 * MIB + 0x3000, Access::Read)
                .unwrap();
            mapper.unmap(BASE + (5 << 30) + 0x1000, 0x1000, |_, _| ()).unwrap();
            let addresses = [
                0,
                0x1234,
                0x7654_3210,
                3 << 30,
                5 << 30,
                (5 << 30) + 0x1000,
                (5 << 30) + 5 * MIB,
            ];
            for address in addresses.map(|offset| BASE + offset) {
                let root = mapper.root();
                let expected = mapper.translate(address);
                let tables = &mapper.tables.tables;
                let read = |at: u64| {
                    let table = &tables[usize::try_from(at / 4096).unwrap()];
                    let entry = &table[usize::try_from(at % 4096 / 8).unwrap()];
                    Some(entry.addr().as_u64() | entry.flags().bits())
                };
                assert_eq!(translate_by(root, address, read), expected, "{address:#x}");
            }
        }
        assert_eq!(translate_by(0x1000, BASE, |_| None), None, "out of reach");
        assert!(translate_by(0x1000, BASE, |_| Some(0x1003)).is_some(), "a loop ends");
    }

    #[test]
    fn without_memory_for_tables_there_is_an_error() {
        let mut mapper = mapper(false);
        mapper.tables.limit = 3;
        assert_eq!(mapper.map(BASE, 0, 0x1000, Access::Read), Err(MapError::NoMemory));
    }
}
