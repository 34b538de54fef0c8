//! A test trampoline that starts a kernel by the Linux 64-bit boot protocol, in exactly the state in which OpenVMM does it.
//!
//! QEMU has no such loader, so [`trampoline`] makes a PVH image that holds the kernel's segments at their physical addresses and, above
//! them, prepared tables with a few instructions: they copy the tables to the low addresses at which OpenVMM has them, enter 64-bit mode
//! and jump to `e_entry`. The state: RSI = zero page at 0x2000, RSP = 0, interrupts off, CR0 = 0x80000011, CR3 = 0x4000 (identity map
//! of 4 GiB), CR4 = 0x60, EFER = 0xd01, CS = 8, DS = SS = 0x10, no IDT, command line at 0x3000.
//! Sources: Linux's Documentation/arch/x86/boot.rst and zero-page.rst; Intel SDM volume 3, 10.8.5 (entering IA-32e mode).

use anyhow::{Context, Result, ensure};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;

use crate::pvh::{self, Segment};

/// Where the tables go: 0x1000 (GDT) to 0xa000 (end of the page tables).
const LOW: u32 = 0x1000;
const LOW_END: u32 = 0xa000;
const GDT: u32 = 0x1000;
const ZERO_PAGE: u32 = 0x2000;
const CMDLINE: u32 = 0x3000;
const PML4: u32 = 0x4000;

/// The size in MiB at the start of what goes behind `-m`.
///
/// # Errors
///
/// It does not start with a number.
pub fn megabytes(memory: &str) -> Result<u64> {
    let digits = memory.split(',').next().unwrap_or_default();
    digits.parse().with_context(|| format!("no number of MiB: {memory}"))
}

/// A PVH image that enters `kernel` (an ELF file) as described above, in a machine with `megabytes` of memory.
///
/// # Errors
///
/// The kernel does not fit the protocol.
pub fn trampoline(kernel: &[u8], cmdline: &str, megabytes: u64) -> Result<Vec<u8>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(kernel).context("the kernel is no 64-bit ELF file")?;
    let mut segments = Vec::new();
    for header in file
        .segments()
        .context("the kernel has no program headers")?
        .iter()
        .filter(|header| header.p_type == PT_LOAD)
    {
        ensure!(header.p_paddr >= 1 << 20, "a segment below 1 MiB");
        segments.push(Segment {
            address: header.p_paddr,
            content: file.segment_data(&header)?.to_vec(),
            size: header.p_memsz,
        });
    }
    let end = segments
        .iter()
        .map(|segment| segment.address + segment.size)
        .max()
        .context("the kernel loads nothing")?;
    let entry = u32::try_from(file.ehdr.e_entry).context("the entry point is not below 4 GiB")?;
    let base = u32::try_from(end.next_multiple_of(2 << 20))?;
    let tables = tables(cmdline, megabytes)?;
    let code = code(base, entry, u32::try_from(tables.len())?);
    let mut content = code;
    content.resize(CODE_SIZE as usize, 0x90);
    content.extend_from_slice(&tables);
    let size = content.len() as u64;
    segments.push(Segment {
        address: u64::from(base),
        content,
        size,
    });
    Ok(pvh::write(&segments, base))
}

/// Room for the code; the tables follow.
const CODE_SIZE: u32 = 0x1000;

/// The image of memory from [`LOW`] to [`LOW_END`].
fn tables(cmdline: &str, megabytes: u64) -> Result<Vec<u8>> {
    let mut image = vec![0; (LOW_END - LOW) as usize];
    let mut put = |address: u32, bytes: &[u8]| -> Result<()> {
        let at = (address - LOW) as usize;
        let slot = image.get_mut(at..at + bytes.len()).context("too large for its place")?;
        slot.copy_from_slice(bytes);
        Ok(())
    };
    // Null, 64-bit code, data; accessed already, so that the processor need not write.
    for (index, descriptor) in (0..).zip([0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff]) {
        put(GDT + index * 8, &descriptor.to_le_bytes())?;
    }
    ensure!(
        cmdline.len() < (PML4 - CMDLINE) as usize,
        "the command line is too long"
    );
    put(CMDLINE, cmdline.as_bytes())?;
    // boot_params: the parts that a loader fills for a kernel that enters at its 64-bit entry.
    let ranges = [
        (0_u64, 0x9_fc00_u64, 1_u32),
        (0xf_0000, 0x1_0000, 2),
        (1 << 20, (megabytes << 20) - (1 << 20), 1),
    ];
    put(ZERO_PAGE + 0x1e8, &[3])?;
    for (index, (start, length, kind)) in (0..).zip(ranges) {
        let at = ZERO_PAGE + 0x2d0 + index * 20;
        put(at, &start.to_le_bytes())?;
        put(at + 8, &length.to_le_bytes())?;
        put(at + 16, &kind.to_le_bytes())?;
    }
    put(ZERO_PAGE + 0x1fe, &0xaa55_u16.to_le_bytes())?;
    put(ZERO_PAGE + 0x202, b"HdrS")?;
    put(ZERO_PAGE + 0x210, &[0xff])?; // an unnamed loader
    put(ZERO_PAGE + 0x228, &CMDLINE.to_le_bytes())?;
    put(ZERO_PAGE + 0x238, &u32::try_from(cmdline.len() + 1)?.to_le_bytes())?;
    // The identity map: one table of each upper level, four of 2 MiB pages.
    put(PML4, &0x5003_u64.to_le_bytes())?;
    for gigabyte in 0..4_u32 {
        put(
            0x5000 + gigabyte * 8,
            &u64::from(0x6003 + 0x1000 * gigabyte).to_le_bytes(),
        )?;
    }
    for page in 0..2048_u32 {
        put(0x6000 + page * 8, &((u64::from(page) << 21) | 0x83).to_le_bytes())?;
    }
    Ok(image)
}

/// 32-bit code at `base` that ends at the kernel's `entry`.
fn code(base: u32, entry: u32, length: u32) -> Vec<u8> {
    let mut code = Vec::new();
    let mut emit = |bytes: &[u8], operand: Option<u32>| {
        code.extend_from_slice(bytes);
        if let Some(operand) = operand {
            code.extend_from_slice(&operand.to_le_bytes());
        }
        u32::try_from(code.len()).unwrap_or(0)
    };
    emit(&[0xfa, 0xfc], None); // cli; cld
    emit(&[0xbe], Some(base + CODE_SIZE)); // mov esi, tables
    emit(&[0xbf], Some(LOW)); // mov edi, LOW
    emit(&[0xb9], Some(length)); // mov ecx, length
    emit(&[0xf3, 0xa4], None); // rep movsb
    emit(&[0x0f, 0x01, 0x15], Some(base + 0xf00)); // lgdt [descriptor]
    emit(&[0x0f, 0x01, 0x1d], Some(base + 0xf10)); // lidt [nothing]
    emit(&[0xb8], Some(0x60)); // mov eax, CR4
    emit(&[0x0f, 0x22, 0xe0], None); // mov cr4, eax
    emit(&[0xb8], Some(PML4)); // mov eax, CR3
    emit(&[0x0f, 0x22, 0xd8], None); // mov cr3, eax
    emit(&[0xb9], Some(0xc000_0080)); // mov ecx, EFER
    emit(&[0xb8], Some(0x901)); // mov eax, SCE + LME + NXE; the processor adds LMA
    emit(&[0x31, 0xd2, 0x0f, 0x30], None); // xor edx, edx; wrmsr
    emit(&[0xb8], Some(0x8000_0011)); // mov eax, CR0
    emit(&[0x0f, 0x22, 0xc0], None); // mov cr0, eax
    let here = emit(&[], None);
    emit(&[0xea], Some(base + here + 7)); // jmp far 8:next
    emit(&[0x08, 0x00], None);
    // 64-bit from here.
    emit(&[0xb8], Some(0x10)); // mov eax, 0x10
    emit(&[0x8e, 0xd8, 0x8e, 0xd0, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8], None); // mov ds, ss, es, fs, gs
    emit(&[0x31, 0xe4], None); // xor esp, esp
    emit(&[0xbe], Some(ZERO_PAGE)); // mov esi, zero page
    emit(&[0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, 0x31, 0xff, 0x31, 0xed], None); // ebx, ecx, edx, edi, ebp = 0
    emit(&[0xb8], Some(entry)); // mov eax, entry
    emit(&[0xff, 0xe0], None); // jmp rax
    code.resize(0xf00, 0x90);
    code.extend_from_slice(&23_u16.to_le_bytes());
    code.extend_from_slice(&GDT.to_le_bytes());
    code.resize(0xf10, 0);
    code.extend_from_slice(&[0; 6]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_where_the_protocol_has_them() {
        let image = tables("log=info", 64).unwrap();
        let at = |address: u32| &image[(address - LOW) as usize..];
        let word = |address: u32| u64::from_le_bytes(at(address)[..8].try_into().unwrap());
        assert_eq!(word(PML4), 0x5003);
        assert_eq!(word(0x5018), 0x9003);
        assert_eq!(word(0x6000 + 2047 * 8), (4 << 30) - (2 << 20) + 0x83);
        assert_eq!(&at(CMDLINE)[..9], b"log=info\0");
        assert_eq!(at(ZERO_PAGE + 0x1e8)[0], 3);
        assert_eq!(word(ZERO_PAGE + 0x2d0 + 40), 1 << 20);
        assert_eq!(word(ZERO_PAGE + 0x2d0 + 48), 63 << 20);
        assert!(tables(&"x".repeat(4096), 64).is_err());
    }

    #[test]
    fn the_image_holds_the_kernel_and_enters_above_it() {
        let kernel = pvh::hello("x", 1);
        let image = trampoline(&kernel, "a=b", 32).unwrap();
        let file = ElfBytes::<LittleEndian>::minimal_parse(&image).unwrap();
        let loads: Vec<u64> = file
            .segments()
            .unwrap()
            .iter()
            .filter(|header| header.p_type == PT_LOAD)
            .map(|header| header.p_paddr)
            .collect();
        assert_eq!(loads, [0x10_0000, 0x20_0000]);
        assert_eq!(file.ehdr.e_entry, 0x20_0000);
        assert!(trampoline(b"no kernel", "", 32).is_err());
        assert_eq!(megabytes("64,maxmem=33G").unwrap(), 64);
        assert!(megabytes("1G").is_err());
    }
}
