//! The step from the entry's page tables to the kernel's own, and from the boot's memory map to the frame allocator.
#![expect(unsafe_code, reason = "builds page tables in free memory and switches to them")]

use super::frames::{Frame, FrameRange};
use super::layout::{self, PAGE_SIZE};
use super::paging::{Abilities, Access, MapError, Mapper, Tables};
use super::{DirectTables, FRAMES, MemoryError, PAGE_TABLES, ROOT, place_region};
use crate::arch::cpu;
use boot::{BootInfo, MemoryKind, MemoryMap, MemoryRegion};
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags};
use x86_64::structures::paging::{PageTable, PhysFrame};

/// Page tables before there is a direct map: frames from a stretch of free memory that is mapped at its own address.
struct EarlyTables<'a> {
    next: &'a mut u64,
    end: u64,
}

impl Tables for EarlyTables<'_> {
    fn allocate(&mut self) -> Option<u64> {
        let frame = *self.next;
        if frame + PAGE_SIZE > self.end {
            return None;
        }
        *self.next += PAGE_SIZE;
        // SAFETY: The frame is free memory below 4 GiB, mapped at its own address by the entry's contract, given out once.
        unsafe { identity_pointer::<PageTable>(frame).write_bytes(0, 1) };
        Some(frame)
    }

    fn table(&mut self, address: u64) -> &mut PageTable {
        // SAFETY: As in `allocate`; only the mapper makes references, one at a time.
        unsafe { &mut *identity_pointer::<PageTable>(address) }
    }
}

const fn identity_pointer<T>(physical: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(layout::to_usize(physical))
}

/// Leaves the entry's page tables for the kernel's own and takes all usable memory.
///
/// # Errors
///
/// [`MemoryError`] if the machine has too little memory.
///
/// # Safety
///
/// Called once, at the start, with interrupts off, on the boot stack, with the first 4 GiB mapped at their own addresses and the
/// image at its link address; `info` tells the truth.
pub(crate) unsafe fn start(info: &BootInfo) -> Result<(), MemoryError> {
    let features = cpu::features();
    if features.no_execute {
        const EFER: u32 = 0xc000_0080;
        // SAFETY: Every 64-bit processor has EFER.
        let efer = unsafe { cpu::read_msr(EFER) };
        // SAFETY: Bit 11 allows the no-execute bit in page tables, which this processor has.
        unsafe { cpu::write_msr(EFER, efer | 1 << 11) };
    }
    let abilities = Abilities {
        no_execute: features.no_execute,
        gigabyte_pages: features.gigabyte_pages,
    };

    let usable = || {
        info.memory_map
            .regions()
            .iter()
            .filter(|region| region.kind == MemoryKind::USABLE)
    };
    let clip = |start: u64, end: u64| {
        let range = FrameRange::inside(start, end.saturating_sub(start))?;
        let first = Frame(range.first.0.max(layout::LOW_MEMORY / PAGE_SIZE));
        let end = range.end().min(layout::DIRECT_MAP_SIZE / PAGE_SIZE);
        if first.0 < end {
            Some(FrameRange {
                first,
                count: end - first.0,
            })
        } else {
            None
        }
    };
    // The longest stretch below 4 GiB pays for the first page tables.
    let below = usable().filter_map(|region| clip(region.start, region.end().min(1 << 32)));
    let source = below.max_by_key(|range| range.count).ok_or(MemoryError::NoMemory)?;
    let mut next = source.first.address();
    let mut tables = EarlyTables {
        next: &mut next,
        end: source.first.address() + source.count * PAGE_SIZE,
    };
    let root = tables.allocate().ok_or(MemoryError::NoMemory)?;
    let mut mapper = Mapper::new(root, tables, abilities);
    map_image(&mut mapper, info)?;
    map_memory(&mut mapper, &info.memory_map)?;
    switch_to(root);

    *PAGE_TABLES.lock() = Some(Mapper::new(root, DirectTables, abilities));
    ROOT.store(root, core::sync::atomic::Ordering::Release);
    let pieces = info.memory_map.regions().iter().filter(|region| {
        // The loader's pages are free now that its page tables are no longer in use and its information has been copied.
        matches!(region.kind, MemoryKind::USABLE | MemoryKind::LOADER)
    });
    for piece in pieces {
        let Some(range) = clip(
            piece.start.max(if contains(piece, source) { next } else { 0 }),
            piece.end(),
        ) else {
            continue;
        };
        if let Some(region) = place_region(range) {
            FRAMES.lock().add(region);
        }
    }
    Ok(())
}

const fn contains(region: &MemoryRegion, range: FrameRange) -> bool {
    region.start <= range.first.address() && range.first.address() < region.end()
}

/// The image, with what each part of it allows; the page below the boot stack stays out.
fn map_image(mapper: &mut Mapper<EarlyTables<'_>>, info: &BootInfo) -> Result<(), MapError> {
    let image = layout::image();
    let physical = |address: u64| info.image.start + (address - image.start);
    let (text, rodata, guard) = (layout::text(), layout::rodata(), layout::boot_stack_guard());
    mapper.map(text.start, physical(text.start), text.length, Access::ReadExecute)?;
    mapper.map(rodata.start, physical(rodata.start), rodata.length, Access::Read)?;
    mapper.map(
        rodata.end(),
        physical(rodata.end()),
        guard - rodata.end(),
        Access::ReadWrite,
    )?;
    let stack = guard + PAGE_SIZE;
    mapper.map(stack, physical(stack), image.end() - stack, Access::ReadWrite)
}

/// All memory (not devices, not holes) into the direct map, and the first MiB, where firmware keeps tables.
fn map_memory(mapper: &mut Mapper<EarlyTables<'_>>, map: &MemoryMap) -> Result<(), MapError> {
    let mut first_mib = false;
    let mut open: Option<(u64, u64)> = None;
    let low = (0, layout::LOW_MEMORY);
    let memory = map
        .regions()
        .iter()
        .filter(|region| region.kind.is_memory())
        .map(|region| (region.start, region.end()));
    // Neighbours are mapped together, so that their common edge does not break up a large page.
    for (start, end) in core::iter::once(low).chain(memory.map(|(start, end)| (start.max(layout::LOW_MEMORY), end))) {
        let (start, end) = (
            layout::page_up(start),
            layout::page_down(end.min(layout::DIRECT_MAP_SIZE)),
        );
        if start >= end {
            continue;
        }
        first_mib = true;
        open = match open {
            Some((from, to)) if to == start => Some((from, end)),
            other => {
                if let Some((from, to)) = other {
                    mapper.map(layout::DIRECT_MAP + from, from, to - from, Access::ReadWrite)?;
                }
                Some((start, end))
            }
        };
    }
    debug_assert!(first_mib);
    if let Some((from, to)) = open {
        mapper.map(layout::DIRECT_MAP + from, from, to - from, Access::ReadWrite)?;
    }
    Ok(())
}

fn switch_to(root: u64) {
    // The direct-boot entries have set it; a loader's firmware may not have. Without it the kernel could write to its constants.
    let cr0 = Cr0::read();
    if !cr0.contains(Cr0Flags::WRITE_PROTECT) {
        // SAFETY: Until now everything was mapped writable, so nothing relied on writing to read-only pages.
        unsafe { Cr0::write(cr0 | Cr0Flags::WRITE_PROTECT) };
    }
    let frame = PhysFrame::containing_address(PhysAddr::new_truncate(root));
    // SAFETY: The new tables map the image, with the running code and the boot stack, where the old ones map it.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}
