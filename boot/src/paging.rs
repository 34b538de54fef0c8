//! The page tables with which a loader enters the kernel. The kernel leaves them at once for its own.
//!
//! Everything is mapped readable, writable and executable, so that nothing depends on the processor's NX setting.

/// A page table, page directory and so on: 512 entries.
pub type Table = [u64; 512];

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// The tables ran out, or an address is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PagingError {
    /// More tables are needed than were given.
    #[error("the page tables are full")]
    Full,
    /// A range that is not aligned, or mapped already in another way.
    #[error("a range cannot be mapped")]
    Range,
}

/// Page tables under construction, in memory that lies at a known physical address.
#[derive(Debug)]
pub struct Tables<'a> {
    tables: &'a mut [Table],
    physical: u64,
    used: usize,
}

impl<'a> Tables<'a> {
    /// Returns how many tables [`Tables::map_identity`] of 4 GiB, a loader anywhere else, and an image of `image_length` bytes take
    /// at the most.
    #[must_use]
    pub const fn needed(image_length: u64) -> u64 {
        // The root; 4 GiB; somewhere else two directories with a level above; the image with one more table for each 2 MiB.
        1 + 5 + 3 + 4 + image_length / LARGE_PAGE + 2
    }

    /// Begins with an empty root. `physical` is the address of `tables`.
    ///
    /// # Errors
    ///
    /// [`PagingError`] if there is not even a root, or the address is not aligned.
    pub fn new(tables: &'a mut [Table], physical: u64) -> Result<Self, PagingError> {
        if !physical.is_multiple_of(PAGE) || physical & !ADDRESS_MASK != 0 {
            return Err(PagingError::Range);
        }
        let mut this = Self {
            tables,
            physical,
            used: 0,
        };
        this.allocate()?;
        Ok(this)
    }

    /// Returns the physical address of the root, for CR3.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.physical
    }

    fn allocate(&mut self) -> Result<usize, PagingError> {
        let index = self.used;
        self.tables.get_mut(index).ok_or(PagingError::Full)?.fill(0);
        self.used += 1;
        Ok(index)
    }

    /// Returns the index of the table that entry `slot` of table `table` leads to, making it if need be.
    fn descend(&mut self, table: usize, slot: usize) -> Result<usize, PagingError> {
        let entry = *self.entry(table, slot)?;
        if entry == 0 {
            let below = self.allocate()?;
            let address = self.physical + below as u64 * PAGE;
            *self.entry(table, slot)? = address | PRESENT_WRITABLE;
            return Ok(below);
        }
        if entry & LARGE != 0 {
            return Err(PagingError::Range);
        }
        let offset = (entry & ADDRESS_MASK)
            .checked_sub(self.physical)
            .ok_or(PagingError::Range)?;
        usize::try_from(offset / PAGE).map_err(|_| PagingError::Range)
    }

    fn entry(&mut self, table: usize, slot: usize) -> Result<&mut u64, PagingError> {
        self.tables
            .get_mut(table)
            .and_then(|table| table.get_mut(slot))
            .ok_or(PagingError::Full)
    }

    #[expect(clippy::cast_possible_truncation, reason = "nine bits of each level are wanted")]
    fn map(&mut self, linear: u64, physical: u64, large: bool) -> Result<(), PagingError> {
        let slot = |level: u32| usize::from((linear >> (12 + 9 * level)) as u16 & 511);
        let directory = self.descend(0, slot(3))?;
        let directory = self.descend(directory, slot(2))?;
        let (table, slot, flags) = if large {
            (directory, slot(1), PRESENT_WRITABLE | LARGE)
        } else {
            (self.descend(directory, slot(1))?, slot(0), PRESENT_WRITABLE)
        };
        let wanted = physical | flags;
        let entry = self.entry(table, slot)?;
        if *entry != 0 && *entry != wanted {
            return Err(PagingError::Range);
        }
        *entry = wanted;
        Ok(())
    }

    /// Maps physical memory at its own address, in pages of 2 MiB around the range.
    ///
    /// # Errors
    ///
    /// [`PagingError`].
    pub fn map_identity(&mut self, start: u64, length: u64) -> Result<(), PagingError> {
        let end = start.checked_add(length).ok_or(PagingError::Range)?;
        let mut page = start & !(LARGE_PAGE - 1);
        while page < end {
            self.map(page, page, true)?;
            page += LARGE_PAGE;
        }
        Ok(())
    }

    /// Maps the image's pages at their link address.
    ///
    /// # Errors
    ///
    /// [`PagingError`].
    pub fn map_image(&mut self, link_address: u64, physical: u64, length: u64) -> Result<(), PagingError> {
        if !(link_address | physical | length).is_multiple_of(PAGE) || link_address.checked_add(length).is_none() {
            return Err(PagingError::Range);
        }
        for page in 0..length / PAGE {
            self.map(link_address + page * PAGE, physical + page * PAGE, false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests {
    use super::*;

    const AT: u64 = 0x70_0000;
    const LINK: u64 = 0xffff_ffff_8020_0000;

    /// Walks the tables as the processor does.
    fn translate(tables: &[Table], linear: u64) -> Option<u64> {
        let mut table = 0;
        for level in (0..4).rev() {
            let entry = tables[table][(linear >> (12 + 9 * level)) as usize & 511];
            if entry & 1 == 0 {
                return None;
            }
            assert_eq!(entry & 0b11, 0b11);
            if level == 0 || entry & 0x80 != 0 {
                let span = (1_u64 << (12 + 9 * level)) - 1;
                return Some((entry & ADDRESS_MASK & !span) | (linear & span));
            }
            table = ((entry & ADDRESS_MASK) - AT) as usize / 4096;
        }
        unreachable!()
    }

    fn made(image: (u64, u64, u64), loader: (u64, u64)) -> Vec<Table> {
        let mut memory = vec![[0xdead_u64; 512]; Tables::needed(image.2) as usize];
        let mut tables = Tables::new(&mut memory, AT).unwrap();
        assert_eq!(tables.root(), AT);
        tables.map_identity(0, 4 << 30).unwrap();
        tables.map_identity(loader.0, loader.1).unwrap();
        tables.map_image(image.0, image.1, image.2).unwrap();
        memory
    }

    #[test]
    fn the_first_4_gib_and_the_image_are_mapped_and_nothing_else() {
        let tables = made((LINK, 0x1234_5000, 0x40_1000), (0x10_0000, 0x2_0000));
        for address in [0, 0x1234, 0xffff_ffff] {
            assert_eq!(translate(&tables, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(&tables, 4 << 30), None);
        assert_eq!(translate(&tables, LINK + 0x123), Some(0x1234_5123));
        assert_eq!(translate(&tables, LINK + 0x40_0fff), Some(0x1234_5000 + 0x40_0fff));
        assert_eq!(translate(&tables, LINK + 0x40_1000), None);
        assert_eq!(translate(&tables, LINK - 1), None);
    }

    #[test]
    fn a_loader_above_4_gib_stays_mapped() {
        let tables = made((LINK, 0x9_0000_0000, 0x20_0000), (0x8_bfff_f000, 0x3000));
        assert_eq!(translate(&tables, 0x8_bfff_f000), Some(0x8_bfff_f000));
        assert_eq!(translate(&tables, 0x8_c000_1fff), Some(0x8_c000_1fff));
        assert_eq!(translate(&tables, LINK), Some(0x9_0000_0000));
    }

    #[test]
    fn running_out_of_tables_is_an_error() {
        let mut memory = vec![[0; 512]; 3];
        let mut tables = Tables::new(&mut memory, AT).unwrap();
        assert_eq!(tables.map_identity(0, 4 << 30), Err(PagingError::Full));
        assert_eq!(Tables::new(&mut [], AT).unwrap_err(), PagingError::Full);
        assert_eq!(Tables::new(&mut [[0; 512]], AT + 8).unwrap_err(), PagingError::Range);
    }

    #[test]
    fn a_second_meaning_for_an_address_is_refused() {
        let mut memory = vec![[0; 512]; 20];
        let mut tables = Tables::new(&mut memory, AT).unwrap();
        tables.map_image(LINK, 0x20_0000, 0x2000).unwrap();
        assert_eq!(tables.map_image(LINK, 0x30_0000, 0x2000), Err(PagingError::Range));
        tables.map_identity(0, 0x20_0000).unwrap();
        assert_eq!(tables.map_image(0, 0, 0x1000), Err(PagingError::Range));
        assert_eq!(tables.map_image(LINK + 1, 0, 0x1000), Err(PagingError::Range));
        assert_eq!(tables.map_identity(u64::MAX, 2), Err(PagingError::Range));
    }
}
