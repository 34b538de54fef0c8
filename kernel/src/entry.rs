//! The three entries of the kernel image: machine code that brings every way of booting to one Rust function.
//!
//! | entry | named by | what it does |
//! |---|---|---|
//! | `pvh_entry` | note owner `Xen`, type 18 | from 32-bit mode without paging to 64-bit mode on the boot page tables |
//! | `linux_entry` | `e_entry` (physical) | from the host's page tables to the boot page tables; relies on no stack and no GDT |
//! | `uefi_entry` | our own note, see [`boot::note`] | stays on the loader's page tables |
//!
//! Each reads the time stamp counter first. The direct-boot entries also clear `.bss`, because not every host does. All end in
//! [`kernel_entry`] with interrupts off, on the boot stack, with the first 4 GiB of physical memory mapped at their own addresses
//! and the image at its link address. The boot page tables map everything writable and executable; the kernel leaves them as soon
//! as it has built its own.
//!
//! Sources: Xen's `docs/misc/pvh.pandoc`; Linux's `arch/x86/boot.rst`, "64-bit boot protocol", and what hosts make of it
//! (RSP = 0, CR4 without OSFXSR); [`boot::info`] for the loader.
#![expect(
    unsafe_code,
    reason = "the first instructions of the kernel, and reading physical memory that a host filled"
)]

use crate::memory::layout;
use boot::info::Extent;
use boot::{BootInfo, BootMethod, PhysicalMemory};
use core::arch::global_asm;

global_asm!(
    r#"
    .set OFFSET, 0xffffffff80000000

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry - OFFSET

    .section .note.vmbus, "a", @note
    .balign 4
    .long 6, 16, {note_type}
    .asciz "vmbus"
    .balign 4
    .quad uefi_entry
    .long {info_version}, {info_size}

    .section .data.boot_tables, "aw"
    .balign 4096
boot_pml4:
    .quad boot_pdpt_low - OFFSET + 3
    .fill 510, 8, 0
    .quad boot_pdpt_high - OFFSET + 3
boot_pdpt_low:
    .quad boot_pd - OFFSET + 0x0003
    .quad boot_pd - OFFSET + 0x1003
    .quad boot_pd - OFFSET + 0x2003
    .quad boot_pd - OFFSET + 0x3003
    .fill 508, 8, 0
boot_pdpt_high:
    .fill 510, 8, 0
    .quad boot_pd - OFFSET + 3
    .quad 0
boot_pd:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr

boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_physical:
    .word 23
    .quad boot_gdt - OFFSET
    .balign 8
boot_gdt_virtual:
    .word 23
    .quad boot_gdt

    .section .text.entry, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    rdtsc
    cli
    cld
    movl %eax, %esi
    movl %edx, %edi
    movl %cr4, %eax
    orl $0x20, %eax                     // PAE
    movl %eax, %cr4
    movl $(boot_pml4 - OFFSET), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              // EFER
    rdmsr
    orl $0x100, %eax                    // LME
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax               // PG, WP, PE
    movl %eax, %cr0
    lgdt boot_gdt_physical - OFFSET
    ljmp $8, $(pvh_long_mode - OFFSET)
    .code64
pvh_long_mode:
    movl %esi, %eax
    shlq $32, %rdi
    orq %rdi, %rax
    movq %rax, %r14
    movl %ebx, %r13d
    movl ${pvh}, %r12d
    movabsq $direct_common, %rax
    jmp *%rax

    .global linux_entry
linux_entry:
    rdtsc
    cli
    cld
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, %r14
    movq %rsi, %r13
    movl ${linux}, %r12d
    movl $(boot_pml4 - OFFSET), %eax
    movq %rax, %cr3
    movq %cr0, %rax
    orl $0x10000, %eax                  // WP
    movq %rax, %cr0
    movabsq $direct_common, %rax
    jmp *%rax

direct_common:
    movq $__bss_start, %rdi
    movq $__bss_end, %rcx
    subq %rdi, %rcx
    shrq $3, %rcx
    xorl %eax, %eax
    rep stosq
    jmp common

    .global uefi_entry
uefi_entry:
    cli
    cld
    xorl %r14d, %r14d
    movq %rdi, %r13
    movl ${uefi}, %r12d
common:
    lgdt boot_gdt_virtual
    movq $__boot_stack_top, %rsp
    pushq $8
    pushq $1f
    lretq
1:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    movl %r12d, %edi
    movq %r13, %rsi
    movq %r14, %rdx
    call {kernel_entry}
    ud2
    "#,
    note_type = const boot::note::TYPE_UEFI_ENTRY,
    info_version = const boot::info::VERSION,
    info_size = const size_of::<BootInfo>(),
    pvh = const BootMethod::PVH.0,
    linux = const BootMethod::LINUX.0,
    uefi = const BootMethod::UEFI.0,
    kernel_entry = sym kernel_entry,
    options(att_syntax)
);

static INFO: spin::Mutex<BootInfo> = spin::Mutex::new(BootInfo::zeroed());

/// The one function behind all entries.
extern "C" fn kernel_entry(method: u32, address: u64, start_tsc: u64) -> ! {
    // In its final place from the start: it is too large to be passed around on the stack.
    let info = spin::MutexGuard::leak(INFO.lock());
    let image = Extent {
        start: layout::LOAD_ADDRESS,
        length: layout::image().length,
    };
    let parsed = match BootMethod(method) {
        BootMethod::PVH => {
            (info.image, info.start_tsc) = (image, start_tsc);
            boot::pvh::parse(&Identity::DIRECT, address, info).map_err(StartError::Pvh)
        }
        BootMethod::LINUX => {
            (info.image, info.start_tsc) = (image, start_tsc);
            boot::linux::parse(&Identity::DIRECT, address, info).map_err(StartError::Linux)
        }
        _ => Identity::LOADER
            .read(address, info.as_bytes_mut())
            .map_err(StartError::Unreadable)
            .and_then(|()| info.check().map_err(StartError::Info)),
    };
    info.memory_map.push(boot::MemoryRegion::new(
        info.image.start,
        info.image.length,
        boot::MemoryKind::KERNEL,
    ));
    info.memory_map.push(boot::MemoryRegion::new(
        info.initrd.start,
        info.initrd.length,
        boot::MemoryKind::INITRD,
    ));
    info.memory_map.normalise();
    crate::start::start(info, parsed)
}

/// Why there is no boot information.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Pvh(boot::pvh::PvhError),
    #[error(transparent)]
    Linux(boot::linux::LinuxError),
    #[error(transparent)]
    Info(boot::info::InfoError),
    #[error(transparent)]
    Unreadable(boot::physical::Unreadable),
}

/// Physical memory at its own addresses, as it is mapped until the kernel has its own page tables.
struct Identity {
    limit: u64,
}

impl Identity {
    const DIRECT: Self = Self { limit: 1 << 32 };
    const LOADER: Self = Self { limit: 1 << 47 };
}

impl PhysicalMemory for Identity {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), boot::physical::Unreadable> {
        let end = address.checked_add(into.len() as u64);
        if address == 0 || end.is_none_or(|end| end > self.limit) {
            return Err(boot::physical::Unreadable(address));
        }
        let from = core::ptr::with_exposed_provenance::<u8>(layout::to_usize(address));
        // SAFETY:
        // 1. The entry's contract: the first 4 GiB (for a loader: everything that it names) are mapped at their own addresses.
        // 2. What is read are bytes that the host or loader left in memory before it started us; nothing else runs.
        // 3. `into` is the kernel's own memory, which lies at addresses above `limit`, so the two do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}
