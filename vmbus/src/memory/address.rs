//! Guest-physical addresses and page numbers.

use core::fmt;

/// The size in bytes of a page as the hypervisor counts: 4 KiB, whatever the guest's own page size is.
pub const PAGE_SIZE: usize = 4096;

/// Returns how many pages `len_bytes` bytes take.
#[must_use]
pub const fn pages_for(len_bytes: usize) -> usize {
    len_bytes.div_ceil(PAGE_SIZE)
}

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(u64);

impl Gpa {
    /// Makes an address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// Returns the address in bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the page that the address lies in.
    #[must_use]
    pub const fn page(self) -> Pfn {
        Pfn(self.0 >> PAGE_SIZE.trailing_zeros())
    }

    /// Returns the offset in bytes of the address within its page.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the bits below 4096 are kept")]
    pub const fn offset_in_page(self) -> usize {
        self.0 as usize & PAGE_SIZE.wrapping_sub(1)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Gpa({:#x})", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// The number of a guest-physical page of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pfn(u64);

impl Pfn {
    /// Makes a page number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the page number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the address of the page's first byte, or `None` if the number is beyond any address.
    #[must_use]
    pub const fn base(self) -> Option<Gpa> {
        match self.0.checked_mul(PAGE_SIZE as u64) {
            Some(address) => Some(Gpa(address)),
            None => None,
        }
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pfn({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_knows_its_page_and_its_offset() {
        let address = Gpa::new(0x1_2345_6789);
        assert_eq!(address.page(), Pfn::new(0x12_3456));
        assert_eq!(address.offset_in_page(), 0x789);
        assert_eq!(address.page().base(), Some(Gpa::new(0x1_2345_6000)));
        assert_eq!(Pfn::new(u64::MAX).base(), None);
    }

    #[test]
    fn bytes_round_up_to_pages() {
        assert_eq!([0, 1, 4096, 4097].map(pages_for), [0, 1, 1, 2]);
    }
}
