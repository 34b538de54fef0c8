//! The PVH entry, and what the machine says of itself: QEMU's `-kernel`, Cloud Hypervisor and Firecracker start a kernel so.
//!
//! Source: Xen's `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`.
#![expect(unsafe_code, reason = "the first instructions, and what the machine left in memory")]

use core::arch::global_asm;
use core::ffi::CStr;
use core::ptr::with_exposed_provenance;

// The note names the entry: 32-bit mode, no paging, EBX = start information. The first 4 GiB are mapped at their own addresses,
// writable and executable, by pages of 2 MiB.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .data.page_tables, "aw"
    .balign 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0003
    .quad page_directories + 0x1003
    .quad page_directories + 0x2003
    .quad page_directories + 0x3003
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_register:
    .word 23
    .quad gdt

    .section .bss.stack, "aw", @nobits
    .balign 4096
    .skip 0x20000
stack_top:

    .section .text.entry, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    movl $__bss_start, %edi
    movl $_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl %cr4, %eax
    orl $0x20, %eax             // PAE
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      // EFER
    rdmsr
    orl $0x100, %eax            // LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       // PG, PE
    movl %eax, %cr0
    lgdt gdt_register
    ljmp $8, $long_mode
    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack_top, %esp
    xorl %ebp, %ebp
    movl %ebx, %edi
    call {main}
    ud2
    "#,
    main = sym main,
    options(att_syntax)
);

extern "C" fn main(start_info: usize) -> ! {
    // SAFETY: the entry got the address in EBX, as PVH has it.
    crate::kernel::main(unsafe { Machine::from_start_info(start_info) })
}

/// `hvm_start_info`, version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    start: u64,
    length: u64,
    kind: u32,
    reserved: u32,
}

/// What the machine says of itself.
pub(crate) struct Machine(StartInfo);

impl Machine {
    /// # Safety
    ///
    /// `address` is that of `hvm_start_info`, which stays as it is, with all that it names.
    unsafe fn from_start_info(address: usize) -> Self {
        // SAFETY: the caller's promise; the first 4 GiB are mapped.
        let info = unsafe { with_exposed_provenance::<StartInfo>(address).read_unaligned() };
        assert!(
            info.magic == 0x336e_c578 && info.version >= 1,
            "this is no PVH start information with a memory map"
        );
        Self(info)
    }

    /// Returns the command line.
    pub(crate) fn command_line(&self) -> &'static str {
        if self.0.command_line == 0 {
            return "";
        }
        // SAFETY: text that ends with a zero, in memory that stays, by the promise at the start.
        let text = unsafe { CStr::from_ptr(with_exposed_provenance(self.0.command_line as usize)) };
        text.to_str().unwrap_or("")
    }

    /// Returns the physical addresses of the memory, as start and end of each range.
    pub(crate) fn memory(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        const RAM: u32 = 1;
        let map = with_exposed_provenance::<MapEntry>(self.0.memory_map as usize);
        (0..self.0.memory_map_entries as usize).filter_map(move |index| {
            // SAFETY: so many entries are there, by the promise at the start.
            let entry = unsafe { map.wrapping_add(index).read_unaligned() };
            (entry.kind == RAM).then(|| (entry.start, entry.start + entry.length))
        })
    }
}

/// Returns the address behind the kernel's image.
pub(crate) fn image_end() -> u64 {
    unsafe extern "C" {
        static _end: u8;
    }
    // Only the address counts: the linker puts the symbol behind everything.
    (&raw const _end).addr() as u64
}
