//! Small ELF files with a PVH note, written byte by byte: machines that QEMU's `-kernel` can start without a compiler for the guest.
//!
//! [`hello`] is the smallest guest there is: it proves the ground (QEMU, KVM, wire, verdict) without our kernel. The writer also serves the
//! trampoline of the Linux 64-bit boot protocol ([`crate::linux64`]).
//! Source: the ELF specification; Xen's `XEN_ELFNOTE_PHYS32_ENTRY` (PVH boot: 32-bit, no paging, EBX = start info).

/// A piece of memory of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its physical address.
    pub address: u64,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its size in memory, at least that of the bytes; the rest is zero.
    pub size: u64,
}

/// An ELF file that loads `segments` and whose PVH entry is the physical address `entry`.
#[must_use]
pub fn write(segments: &[Segment], entry: u32) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    let note = note(entry);
    let count = segments.len() + 1;
    let note_at = HEADER + PROGRAM_HEADER * count;
    let mut at = (note_at + note.len()).next_multiple_of(4096);

    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        file.extend_from_slice(&half.to_le_bytes()); // executable, x86-64
    }
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [u64::from(entry), HEADER as u64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    let program_headers = u16::try_from(count).unwrap_or(u16::MAX);
    for half in [64_u16, 56, program_headers, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: usize, address: u64, file_size: usize, size: u64, align: u64| {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&7_u32.to_le_bytes());
        for word in [offset as u64, address, address, file_size as u64, size, align] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    };
    let first = at;
    for segment in segments {
        header(
            1,
            at,
            segment.address,
            segment.content.len(),
            segment.size.max(segment.content.len() as u64),
            4096,
        );
        at = (at + segment.content.len()).next_multiple_of(4096);
    }
    header(4, note_at, 0, note.len(), note.len() as u64, 4);
    file.extend_from_slice(&note);
    let mut offset = first;
    for segment in segments {
        file.resize(offset, 0);
        file.extend_from_slice(&segment.content);
        offset = (offset + segment.content.len()).next_multiple_of(4096);
    }
    file
}

fn note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&entry.to_le_bytes());
    note
}

/// A guest that writes `text` to COM1 and then `code` to `isa-debug-exit` at port 0xf4, and halts if it still exists.
#[must_use]
pub fn hello(text: &str, code: u32) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    let mut code_bytes = Vec::new();
    code_bytes.push(0xbe); // mov esi, text
    let text_at = code_bytes.len();
    code_bytes.extend_from_slice(&[0; 4]);
    code_bytes.push(0xb9); // mov ecx, length
    code_bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    code_bytes.extend_from_slice(&[0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code_bytes.extend_from_slice(&[0xfc, 0xf3, 0x6e]); // cld; rep outsb
    code_bytes.push(0xb8); // mov eax, code
    code_bytes.extend_from_slice(&code.to_le_bytes());
    code_bytes.extend_from_slice(&[0x66, 0xba, 0xf4, 0x00, 0xef]); // mov dx, 0xf4; out dx, eax
    code_bytes.extend_from_slice(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp to the cli
    let text_address = BASE + u32::try_from(code_bytes.len()).unwrap_or(u32::MAX);
    if let Some(slot) = code_bytes.get_mut(text_at..text_at + 4) {
        slot.copy_from_slice(&text_address.to_le_bytes());
    }
    code_bytes.extend_from_slice(text.as_bytes());
    let size = code_bytes.len() as u64;
    write(
        &[Segment {
            address: u64::from(BASE),
            content: code_bytes,
            size,
        }],
        BASE,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf::ElfBytes;
    use elf::endian::LittleEndian;

    #[test]
    fn a_parser_finds_what_was_written() {
        let segments = [
            Segment {
                address: 0x10_0000,
                content: vec![1, 2, 3],
                size: 3,
            },
            Segment {
                address: 0x20_0000,
                content: vec![9; 5000],
                size: 10_000,
            },
        ];
        let file = write(&segments, 0x10_0000);
        let parsed = ElfBytes::<LittleEndian>::minimal_parse(&file).unwrap();
        let headers: Vec<_> = parsed.segments().unwrap().iter().collect();
        assert_eq!(headers.len(), 3);
        for (header, segment) in headers.iter().zip(&segments) {
            assert_eq!((header.p_paddr, header.p_memsz), (segment.address, segment.size));
            assert_eq!(parsed.segment_data(header).unwrap(), segment.content);
            assert_eq!(header.p_offset % 4096, 0);
        }
        let notes: Vec<_> = parsed.segment_data_as_notes(&headers[2]).unwrap().collect();
        let elf::note::Note::Unknown(note) = &notes[0] else {
            panic!("{notes:?}")
        };
        assert_eq!((note.n_type, note.desc), (18, [0, 0, 0x10, 0].as_slice()));
    }
}
