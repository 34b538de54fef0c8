//! Pages from the firmware, and its memory map in the kernel's terms.
#![expect(unsafe_code, reason = "pages from the firmware become memory here")]

use alloc::string::{String, ToString as _};
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use boot::image::KernelImage;
use boot::info::Extent;
use boot::paging::{Table, Tables};
use boot::{MemoryKind, MemoryMap, MemoryRegion};
use uefi::boot as services;
use uefi::boot::AllocateType;
use uefi::mem::memory_map::{MemoryMap as _, MemoryMapOwned, MemoryType};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// The kernel's entry wants what it reads first below this.
const LOW: u64 = (4 << 30) - 1;

/// A range in MiB, as `loader.take=1-16` gives it.
#[derive(Clone, Copy)]
pub(super) struct Mebibytes {
    from: u64,
    to: u64,
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} to {} MiB", self.from, self.to)
    }
}

/// What of the command line is for the loader, and the rest.
pub(super) struct LoaderOptions {
    /// `loader.take=FROM-TO`: take all free memory between these MiB first, so that the kernel has to go elsewhere. For tests.
    pub(super) take: Option<Mebibytes>,
    pub(super) rest: String,
}

impl LoaderOptions {
    pub(super) fn split_from(line: &str) -> Result<Self, String> {
        let mut options = Self {
            take: None,
            rest: String::new(),
        };
        for word in line.split_whitespace() {
            if let Some(range) = word.strip_prefix("loader.take=") {
                let numbers = range
                    .split_once('-')
                    .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
                match numbers {
                    Some((from, to)) if from < to && to < 1 << 20 => options.take = Some(Mebibytes { from, to }),
                    _ => {
                        return Err(alloc::format!(
                            "{word}: wanted loader.take=FROM-TO in MiB, for instance loader.take=1-16."
                        ));
                    }
                }
            } else {
                options.rest.push_str(word);
                options.rest.push(' ');
            }
        }
        Ok(options)
    }
}

/// Allocates every free page in the range, for good. Returns how many.
pub(super) fn take(range: Mebibytes) -> u64 {
    let Ok(map) = services::memory_map(MemoryType::LOADER_DATA) else {
        return 0;
    };
    let mut taken = 0;
    for entry in map.entries().filter(|entry| entry.ty == MemoryType::CONVENTIONAL) {
        let start = entry.phys_start.max(range.from * MIB);
        let end = (entry.phys_start + entry.page_count * PAGE).min(range.to * MIB);
        // Page by page: the allocator may have used some of them since the map was made.
        for page in (start / PAGE..end / PAGE).map(|page| page * PAGE) {
            taken += u64::from(services::allocate_pages(AllocateType::Address(page), MemoryType::RESERVED, 1).is_ok());
        }
    }
    taken
}

fn pages(kind: AllocateType, length: u64, what: &str) -> Result<NonNull<u8>, String> {
    let count = usize::try_from(length.div_ceil(PAGE)).unwrap_or(usize::MAX);
    services::allocate_pages(kind, MemoryType::LOADER_DATA, count).map_err(|error| {
        alloc::format!(
            "not enough memory for {what}: {} KiB in one piece wanted ({}). Give the machine more memory.",
            length.div_ceil(1024),
            error.status()
        )
    })
}

/// Places the kernel in any free pages and returns where.
pub(super) fn pages_for_kernel(kernel: &KernelImage<'_>) -> Result<Extent, String> {
    let base = pages(AllocateType::AnyPages, kernel.length(), "the kernel")?;
    let length = usize::try_from(kernel.length()).unwrap_or(0);
    // SAFETY: freshly allocated pages of at least this length, mapped at their own address by the firmware, and ours; any
    // bytes are valid.
    let memory = unsafe { core::slice::from_raw_parts_mut(base.as_ptr(), length) };
    kernel
        .place(memory)
        .map_err(|error| alloc::format!("cannot place the kernel: {error}."))?;
    Ok(Extent {
        start: base.addr().get() as u64,
        length: kernel.length(),
    })
}

/// Allocates whole pages below 4 GiB for a `T`, for good.
pub(super) fn low_pages<T>() -> Result<&'static mut MaybeUninit<T>, String> {
    const { assert!(align_of::<T>() as u64 <= PAGE) };
    let base = pages(
        AllocateType::MaxAddress(LOW),
        size_of::<T>() as u64,
        "the boot information",
    )?;
    // SAFETY: freshly allocated, page-aligned, large enough, never given back; not initialised is what the type says.
    Ok(unsafe { base.cast::<MaybeUninit<T>>().as_mut() })
}

/// Builds the page tables for the kernel's entry. Returns the address of the root.
pub(super) fn page_tables(kernel: &KernelImage<'_>, image: Extent) -> Result<PageTables, String> {
    let count = Tables::needed(kernel.length());
    let base = pages(AllocateType::MaxAddress(LOW), count * PAGE, "page tables")?;
    let length = usize::try_from(count).unwrap_or(0);
    // SAFETY: freshly allocated, page-aligned pages, never given back; any bytes are valid entries.
    let memory = unsafe { core::slice::from_raw_parts_mut(base.cast::<Table>().as_ptr(), length) };
    let mut tables = Tables::new(memory, base.addr().get() as u64).map_err(|error| error.to_string())?;
    let own_code = page_tables as *const () as u64;
    tables
        .map_identity(0, 4 << 30)
        // The instruction after the switch is the loader's own, wherever the firmware put it.
        .and_then(|()| tables.map_identity(own_code.saturating_sub(MIB), 2 * MIB))
        .and_then(|()| tables.map_image(kernel.link_address(), image.start, image.length))
        .map_err(|error| alloc::format!("cannot map the kernel: {error}."))?;
    Ok(PageTables { root: tables.root() })
}

/// Page tables that are ready.
pub(super) struct PageTables {
    pub(super) root: u64,
}

/// Puts the firmware's memory map into the kernel's terms. Neighbours of one kind are merged on the way, because a machine may
/// show more entries than the kernel's map holds. Allocates nothing: boot services have ended.
pub(super) fn translate(map: &MemoryMapOwned, image: Extent, target: &mut MemoryMap) {
    let mut open = MemoryRegion::EMPTY;
    for entry in map.entries() {
        let kind = kind(entry.ty);
        let length = entry.page_count.saturating_mul(PAGE);
        if open.kind == kind && open.start + open.length == entry.phys_start {
            open.length = open.length.saturating_add(length);
        } else {
            target.push(open);
            open = MemoryRegion::new(entry.phys_start, length, kind);
        }
    }
    target.push(open);
    target.push(MemoryRegion::new(image.start, image.length, MemoryKind::KERNEL));
    target.normalise();
}

const fn kind(firmware: MemoryType) -> MemoryKind {
    match firmware {
        MemoryType::CONVENTIONAL | MemoryType::BOOT_SERVICES_CODE | MemoryType::BOOT_SERVICES_DATA => {
            MemoryKind::USABLE
        }
        MemoryType::LOADER_CODE | MemoryType::LOADER_DATA => MemoryKind::LOADER,
        MemoryType::ACPI_RECLAIM => MemoryKind::ACPI_RECLAIMABLE,
        MemoryType::ACPI_NON_VOLATILE => MemoryKind::ACPI_NVS,
        MemoryType::UNUSABLE => MemoryKind::UNUSABLE,
        _ => MemoryKind::RESERVED,
    }
}
