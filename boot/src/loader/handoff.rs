//! The last steps: leave boot services, switch the page tables, jump.
#![expect(unsafe_code, reason = "nothing of this can be said in safe code")]

use alloc::string::String;
use core::arch::asm;
use core::convert::Infallible;

use boot::BootInfo;
use uefi::{Status, boot as services, runtime};

use super::memory::{self, PageTables};

/// CR4.LA57: five levels of page tables.
const LA57: u64 = 1 << 12;

/// Reads the time stamp counter.
pub(super) fn timestamp() -> u64 {
    // SAFETY: every x86-64 processor has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ends the loader from a place that cannot return.
pub(super) fn give_up() -> ! {
    // SAFETY: no protocol is held in a way that would matter to the firmware.
    let _ = unsafe { services::exit(services::image_handle(), Status::ABORTED, 0, core::ptr::null_mut()) };
    // A firmware that does not take its machine back is left in the only other way.
    runtime::reset(runtime::ResetType::COLD, Status::ABORTED, None)
}

/// Leaves the firmware and starts the kernel. After the memory map is taken nothing can be said any more.
pub(super) fn leave(info: &'static mut BootInfo, tables: &PageTables, entry: u64) -> Result<Infallible, String> {
    let cr4: u64;
    // SAFETY: reading CR4 has no effect; the loader runs at the highest privilege.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    if cr4 & LA57 != 0 {
        return Err(
            "the firmware uses five levels of page tables, which this loader does not know; switch them off.".into(),
        );
    }
    // SAFETY: from here on no boot service is used: no allocation, no message.
    let map = unsafe { services::exit_boot_services(None) };
    memory::translate(&map, info.image, &mut info.memory_map);
    // The map's buffer is a page pool of the firmware's, which is gone: it must not be freed.
    core::mem::forget(map);
    let (root, info) = (tables.root, core::ptr::from_mut(info));
    // SAFETY: the tables map this code, the boot information and the image; the kernel's entry expects exactly this state
    // (`boot::info`), takes a stack of its own, and does not return.
    unsafe {
        asm!("cli", "cld", "mov cr3, {root}", "jmp {entry}", root = in(reg) root, entry = in(reg) entry, in("rdi") info,
            options(noreturn))
    }
}
