//! Physical memory by kind.
//!
//! Hosts and firmware hand over lists that may be unsorted, overlapping or nonsense. [`MemoryMap::normalise`] makes one sorted
//! list without overlaps out of them, in which the more careful kind has won.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Regions that a map can hold. UEFI machines show well over a hundred; adjacent ones of the same kind are merged.
pub const CAPACITY: usize = 256;

/// Physical addresses end here (52 bits).
pub const PHYSICAL_LIMIT: u64 = 1 << 52;

/// What a region of physical memory is. Values up to 7 are those of e820 and of PVH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MemoryKind(pub u32);

impl MemoryKind {
    /// Memory that the kernel may use.
    pub const USABLE: Self = Self(1);
    /// Memory or devices that nobody may touch.
    pub const RESERVED: Self = Self(2);
    /// ACPI tables: memory that may be used once they have been read.
    pub const ACPI_RECLAIMABLE: Self = Self(3);
    /// Memory of the firmware's, to be kept.
    pub const ACPI_NVS: Self = Self(4);
    /// Broken memory.
    pub const UNUSABLE: Self = Self(5);
    /// The loader's page tables, stack and this very map: usable once the kernel runs on its own page tables and has copied what
    /// it needs.
    pub const LOADER: Self = Self(0x1000);
    /// The kernel image.
    pub const KERNEL: Self = Self(0x1001);
    /// The initial file, lent by the loader.
    pub const INITRD: Self = Self(0x1002);

    /// Which kind wins where two overlap: the higher, that is the one that is more careful.
    const fn priority(self) -> u8 {
        match self {
            Self::USABLE => 0,
            Self::LOADER => 1,
            Self::INITRD => 2,
            Self::KERNEL => 3,
            Self::ACPI_RECLAIMABLE => 4,
            Self::ACPI_NVS => 5,
            Self::UNUSABLE => 7,
            _ => 6,
        }
    }

    /// Whether this is memory (rather than devices, holes or unknown things) that may be mapped cacheable.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        matches!(
            self,
            Self::USABLE | Self::LOADER | Self::INITRD | Self::KERNEL | Self::ACPI_RECLAIMABLE | Self::ACPI_NVS
        )
    }

    /// The kind's name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::USABLE => "usable",
            Self::RESERVED => "reserved",
            Self::ACPI_RECLAIMABLE => "ACPI tables",
            Self::ACPI_NVS => "ACPI NVS",
            Self::UNUSABLE => "broken",
            Self::LOADER => "loader",
            Self::KERNEL => "kernel",
            Self::INITRD => "initrd",
            _ => "unknown",
        }
    }
}

/// A range of physical memory of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub kind: MemoryKind,
    /// Zero.
    pub reserved: u32,
}

impl MemoryRegion {
    /// An empty region.
    pub const EMPTY: Self = Self::new(0, 0, MemoryKind(0));

    /// Makes a region.
    #[must_use]
    pub const fn new(start: u64, length: u64, kind: MemoryKind) -> Self {
        Self {
            start,
            length,
            kind,
            reserved: 0,
        }
    }

    /// One past the last byte, at most [`PHYSICAL_LIMIT`].
    #[must_use]
    pub const fn end(&self) -> u64 {
        let end = self.start.saturating_add(self.length);
        if end > PHYSICAL_LIMIT { PHYSICAL_LIMIT } else { end }
    }
}

/// The list of regions.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    count: u32,
    dropped: u32,
    regions: [MemoryRegion; CAPACITY],
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryMap {
    /// A map without regions.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            count: 0,
            dropped: 0,
            regions: [MemoryRegion::EMPTY; CAPACITY],
        }
    }

    /// The regions.
    #[must_use]
    pub fn regions(&self) -> &[MemoryRegion] {
        let count = self.count.min(CAPACITY_U32) as usize;
        self.regions.get(..count).unwrap_or(&[])
    }

    /// How many regions did not fit, or had to go for one that matters more. They are lost as memory, which is safe.
    #[must_use]
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Whether the count of a map that somebody else wrote can be right.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.count <= CAPACITY_U32
    }

    /// Appends a region; empty ones are left out. Until [`MemoryMap::normalise`] the list may overlap.
    ///
    /// Where there is no room, usable memory is lost first: a hole in it, or the kernel's own image, must not be forgotten.
    pub fn push(&mut self, region: MemoryRegion) {
        if region.length == 0 || region.start >= PHYSICAL_LIMIT {
            return;
        }
        if let Some(slot) = self.regions.get_mut(self.count as usize) {
            *slot = region;
            self.count += 1;
            return;
        }
        self.dropped = self.dropped.saturating_add(1);
        if region.kind != MemoryKind::USABLE {
            let mut last_first = self.regions.iter_mut().rev();
            if let Some(slot) = last_first.find(|slot| slot.kind == MemoryKind::USABLE) {
                *slot = region;
            }
        }
    }

    /// Bytes of one kind.
    #[must_use]
    pub fn total(&self, kind: MemoryKind) -> u64 {
        let lengths = self
            .regions()
            .iter()
            .filter(|r| r.kind == kind)
            .map(|r| r.end() - r.start);
        lengths.fold(0, u64::saturating_add)
    }

    /// Sorts the regions, resolves overlaps in favour of the more careful kind and merges neighbours of one kind.
    pub fn normalise(&mut self) {
        let original = self.clone();
        let mut bounds = [0u64; 2 * CAPACITY];
        let mut used = 0;
        for bound in original
            .regions()
            .iter()
            .flat_map(|region| [region.start, region.end()])
        {
            if let Some(slot) = bounds.get_mut(used) {
                *slot = bound;
                used += 1;
            }
        }
        let bounds = bounds.get_mut(..used).unwrap_or_default();
        bounds.sort_unstable();

        self.count = 0;
        let mut last: Option<MemoryRegion> = None;
        for pair in bounds.windows(2) {
            let &[start, end] = pair else { continue };
            if start == end {
                continue;
            }
            let covering = original.regions().iter().filter(|r| r.start <= start && end <= r.end());
            let Some(kind) = covering.map(|r| r.kind).max_by_key(|kind| kind.priority()) else {
                continue;
            };
            last = match last {
                Some(open) if open.end() == start && open.kind == kind => {
                    Some(MemoryRegion::new(open.start, end - open.start, kind))
                }
                other => {
                    if let Some(done) = other {
                        self.push(done);
                    }
                    Some(MemoryRegion::new(start, end - start, kind))
                }
            };
        }
        if let Some(done) = last {
            self.push(done);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "256 fits")]
const CAPACITY_U32: u32 = CAPACITY as u32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(regions: &[(u64, u64, MemoryKind)]) -> MemoryMap {
        let mut map = MemoryMap::new();
        for &(start, length, kind) in regions {
            map.push(MemoryRegion::new(start, length, kind));
        }
        map.normalise();
        map
    }

    fn triples(map: &MemoryMap) -> Vec<(u64, u64, MemoryKind)> {
        map.regions().iter().map(|r| (r.start, r.length, r.kind)).collect()
    }

    const U: MemoryKind = MemoryKind::USABLE;
    const R: MemoryKind = MemoryKind::RESERVED;

    #[test]
    fn neighbours_of_one_kind_merge_and_order_is_made() {
        let map = map(&[
            (0x3000, 0x1000, U),
            (0x1000, 0x1000, U),
            (0x2000, 0x1000, U),
            (0x9000, 0x1000, R),
        ]);
        assert_eq!(triples(&map), [(0x1000, 0x3000, U), (0x9000, 0x1000, R)]);
    }

    #[test]
    fn a_reserved_hole_splits_usable_memory() {
        let map = map(&[(0, 0x10000, U), (0x4000, 0x1000, R)]);
        assert_eq!(
            triples(&map),
            [(0, 0x4000, U), (0x4000, 0x1000, R), (0x5000, 0xb000, U)]
        );
        assert_eq!(map.total(U), 0xf000);
    }

    #[test]
    fn the_kernel_image_is_not_usable() {
        let map = map(&[(0x20_0000, 0x8000, MemoryKind::KERNEL), (0x10_0000, 0x100_0000, U)]);
        assert_eq!(
            triples(&map),
            [
                (0x10_0000, 0x10_0000, U),
                (0x20_0000, 0x8000, MemoryKind::KERNEL),
                (0x20_8000, 0xef_8000, U)
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut map = MemoryMap::new();
        for i in 0..300 {
            map.push(MemoryRegion::new(i * 0x2000, 0x1000, U));
        }
        map.normalise();
        assert_eq!((map.regions().len(), map.dropped()), (CAPACITY, 44));
    }

    #[test]
    fn the_kernel_image_and_holes_are_never_forgotten_for_want_of_room() {
        let mut map = MemoryMap::new();
        // A host's list that fills all places, the last one with all memory.
        for i in 0..CAPACITY as u64 {
            map.push(MemoryRegion::new((1 << 40) + i * 0x2000, 0x1000, R));
        }
        let mut full = MemoryMap::new();
        full.push(MemoryRegion::new(0, 0x100_0000, U));
        for i in 1..CAPACITY as u64 {
            full.push(MemoryRegion::new((1 << 40) + i * 0x2000, 0x1000, U));
        }
        full.push(MemoryRegion::new(0x20_0000, 0x8000, MemoryKind::KERNEL));
        full.push(MemoryRegion::new(0x80_0000, 0x1000, R));
        assert_eq!(full.dropped(), 2);
        full.normalise();
        for wanted in [
            MemoryRegion::new(0x20_0000, 0x8000, MemoryKind::KERNEL),
            MemoryRegion::new(0x80_0000, 0x1000, R),
        ] {
            assert!(full.regions().contains(&wanted), "{wanted:?}");
        }
        // With no usable memory at all, nothing of it can be given out by mistake.
        map.push(MemoryRegion::new(0x20_0000, 0x8000, MemoryKind::KERNEL));
        assert_eq!((map.dropped(), map.total(U)), (1, 0));
    }

    #[test]
    fn a_region_that_wraps_around_ends_at_the_limit() {
        let map = map(&[(0x1000, u64::MAX, U), (u64::MAX - 5, 100, U)]);
        assert_eq!(triples(&map), [(0x1000, PHYSICAL_LIMIT - 0x1000, U)]);
    }

    proptest! {
        #[test]
        fn every_byte_keeps_its_most_careful_kind(
            input in prop::collection::vec((0u64..40, 0u64..20, prop::sample::select(vec![1u32, 2, 3, 4, 5, 7, 0x1000, 99])), 0..30)
        ) {
            let mut raw = MemoryMap::new();
            for &(start, length, kind) in &input {
                raw.push(MemoryRegion::new(start, length, MemoryKind(kind)));
            }
            let mut done = raw.clone();
            done.normalise();
            for byte in 0..64u64 {
                let priority = |map: &MemoryMap| {
                    map.regions().iter().filter(|r| r.start <= byte && byte < r.end()).map(|r| r.kind.priority()).max()
                };
                prop_assert_eq!(priority(&raw), priority(&done));
            }
            for pair in done.regions().windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
                prop_assert!(pair[0].end() < pair[1].start || pair[0].kind != pair[1].kind);
            }
        }
    }
}
