//! The kernel image as a loader sees it: checked as a whole before a byte of it is placed.

use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_X, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use zerocopy::FromBytes;

use crate::info::{BootInfo, VERSION};
use crate::note::{OWNER, TYPE_UEFI_ENTRY, UefiEntryNote};

/// Segments that an image may have.
const SEGMENTS: usize = 16;
/// The largest image that is loaded, in bytes of memory.
const LARGEST: u64 = 256 << 20;
/// Size of a page, in bytes.
const PAGE: u64 = 4096;
/// The kernel's code model wants the image in the top 2 GiB.
const LOWEST_LINK_ADDRESS: u64 = 0xffff_ffff_8000_0000;

/// Why a file is not our kernel. The text tells the person at the console what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No ELF file.
    #[error("it is not an ELF file (its first bytes are wrong); copy it again")]
    NotElf,
    /// For another machine.
    #[error("it is a program for another machine (ELF machine {machine}, wanted {EM_X86_64}, 64-bit)")]
    OtherMachine {
        /// The number in the ELF header.
        machine: u16,
    },
    /// Some part of it is missing.
    #[error("it is cut off: its table speaks of {end} bytes, the file has {length}; copy it again")]
    Truncated {
        /// Where the missing part would end.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// A well-formed ELF file that is not laid out as our kernel.
    #[error("it is damaged or not a kernel of this project: {0}")]
    Layout(&'static str),
    /// Loader and kernel come from different versions of the project.
    #[error("loader and kernel do not belong together: the kernel wants boot information of version {version} with {size} bytes, \
        the loader has version {VERSION} with {expected}; take both from one build", expected = size_of::<BootInfo>())]
    OtherVersion {
        /// What the kernel wants.
        version: u32,
        /// What the kernel wants.
        size: u32,
    },
}

/// A segment to load.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    /// Bytes from the image's start.
    offset: u64,
    /// Where its bytes are in the file.
    file_offset: usize,
    /// How many bytes it has in the file; the rest is zero.
    file_size: usize,
    /// How many bytes it has in memory.
    memory_size: u64,
    executable: bool,
}

/// A kernel image that has been checked.
#[derive(Clone, Copy)]
pub struct KernelImage<'a> {
    file: &'a [u8],
    link_address: u64,
    length: u64,
    entry: u64,
    segments: [Segment; SEGMENTS],
    segment_count: usize,
}

impl<'a> KernelImage<'a> {
    /// Checks the bytes of a file.
    ///
    /// # Errors
    ///
    /// [`ImageError`] says what is wrong with it.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        if file.get(..4) != Some(b"\x7fELF") {
            return Err(ImageError::NotElf);
        }
        let length = file.len() as u64;
        if file.len() < 64 {
            return Err(ImageError::Truncated { end: 64, length });
        }
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| Self::truncated_tables(file))?;
        if elf.ehdr.e_machine != EM_X86_64 || elf.ehdr.class != Class::ELF64 {
            return Err(ImageError::OtherMachine {
                machine: elf.ehdr.e_machine,
            });
        }
        if elf.ehdr.e_type != ET_EXEC {
            return Err(ImageError::Layout("it is not linked to a fixed address"));
        }
        let headers = elf.segments().ok_or(ImageError::Layout("it has no segments"))?;
        let mut image = Self {
            file,
            link_address: u64::MAX,
            length: 0,
            entry: 0,
            segments: [Segment::default(); SEGMENTS],
            segment_count: 0,
        };
        let mut end = 0;
        let mut entry = None;
        for header in headers.iter() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => {
                    let file_end = header.p_offset.saturating_add(header.p_filesz);
                    if file_end > length {
                        return Err(ImageError::Truncated { end: file_end, length });
                    }
                    let segment_end = header.p_vaddr.checked_add(header.p_memsz);
                    let segment_end = segment_end.ok_or(ImageError::Layout("a segment wraps around"))?;
                    if header.p_vaddr < LOWEST_LINK_ADDRESS || header.p_filesz > header.p_memsz {
                        return Err(ImageError::Layout("a segment has an address or a size that cannot be"));
                    }
                    let slot = image.segments.get_mut(image.segment_count);
                    let slot = slot.ok_or(ImageError::Layout("it has too many segments"))?;
                    let narrow = |value| usize::try_from(value).unwrap_or(usize::MAX);
                    *slot = Segment {
                        offset: header.p_vaddr,
                        file_offset: narrow(header.p_offset),
                        file_size: narrow(header.p_filesz),
                        memory_size: header.p_memsz,
                        executable: header.p_flags & PF_X != 0,
                    };
                    image.segment_count += 1;
                    image.link_address = image.link_address.min(header.p_vaddr & !(PAGE - 1));
                    end = end.max(segment_end);
                }
                PT_NOTE if entry.is_none() => {
                    let notes = elf.segment_data_as_notes(&header);
                    let notes = notes.map_err(|_| ImageError::Truncated {
                        end: header.p_offset.saturating_add(header.p_filesz),
                        length,
                    })?;
                    entry = find_entry(notes)?;
                }
                _ => {}
            }
        }
        if image.segment_count == 0 {
            return Err(ImageError::Layout("it has nothing to load"));
        }
        image.entry = entry.ok_or(ImageError::Layout(
            "it has no note that names the entry for this loader",
        ))?;
        // Ends in the top 2 GiB cannot round up past the end of the address space, unless the last page is used.
        let end = end
            .checked_next_multiple_of(PAGE)
            .ok_or(ImageError::Layout("a segment ends in the last page"))?;
        image.length = end.saturating_sub(image.link_address);
        if image.length > LARGEST {
            return Err(ImageError::Layout("it takes more than 256 MiB of memory"));
        }
        let mut entry_is_code = false;
        for segment in &mut image.segments[..image.segment_count] {
            let start = segment.offset;
            entry_is_code |= segment.executable && image.entry >= start && image.entry - start < segment.memory_size;
            segment.offset = start - image.link_address;
        }
        if !entry_is_code {
            return Err(ImageError::Layout("its entry is not in its code"));
        }
        Ok(image)
    }

    /// The parser's own errors at this point mean tables outside the file, or a class or byte order that is not ours.
    fn truncated_tables(file: &[u8]) -> ImageError {
        let byte = |index: usize| file.get(index).copied().unwrap_or(0);
        if byte(4) != 2 || byte(5) != 1 {
            return ImageError::OtherMachine {
                machine: u16::from_le_bytes([byte(18), byte(19)]),
            };
        }
        let wide = |at: usize| {
            file.get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        let sections = u64::from(u16::from_le_bytes([byte(60), byte(61)])) * 64;
        let segments = u64::from(u16::from_le_bytes([byte(56), byte(57)])) * 56;
        let end = wide(32).saturating_add(segments).max(wide(40).saturating_add(sections));
        ImageError::Truncated {
            end,
            length: file.len() as u64,
        }
    }

    /// Returns the address that the image's first page is linked to.
    #[must_use]
    pub const fn link_address(&self) -> u64 {
        self.link_address
    }

    /// Returns the size of the image in memory: whole pages, in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Returns the link address of the entry.
    #[must_use]
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    /// Fills `memory` with the image; what the file does not say is zero.
    ///
    /// # Errors
    ///
    /// [`ImageError::Layout`] if `memory` is shorter than [`KernelImage::length`].
    pub fn place(&self, memory: &mut [u8]) -> Result<(), ImageError> {
        if (memory.len() as u64) < self.length {
            return Err(ImageError::Layout("there is less memory than the image takes"));
        }
        memory.fill(0);
        for segment in self.segments.iter().take(self.segment_count) {
            let bytes = self
                .file
                .get(segment.file_offset..)
                .and_then(|rest| rest.get(..segment.file_size));
            let target = usize::try_from(segment.offset)
                .ok()
                .and_then(|offset| memory.get_mut(offset..));
            let target = target.and_then(|rest| rest.get_mut(..segment.file_size));
            match (bytes, target) {
                (Some(bytes), Some(target)) => target.copy_from_slice(bytes),
                _ => return Err(ImageError::Layout("a segment leaves the image")),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KernelImage<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "KernelImage({:#x}, {} bytes, entry {:#x})",
            self.link_address, self.length, self.entry
        )
    }
}

/// Finds the entry for this loader among the notes.
fn find_entry(notes: elf::note::NoteIterator<'_, LittleEndian>) -> Result<Option<u64>, ImageError> {
    for note in notes {
        let elf::note::Note::Unknown(note) = note else { continue };
        // The parser gives the name with or without its terminating zero.
        let name = note.name.strip_suffix(b"\0").unwrap_or(note.name);
        if note.n_type != u64::from(TYPE_UEFI_ENTRY) || Some(name) != OWNER.strip_suffix(b"\0") {
            continue;
        }
        let (entry, _) =
            UefiEntryNote::read_from_prefix(note.desc).map_err(|_| ImageError::Layout("its note is too short"))?;
        let (version, size) = (entry.info_version.get(), entry.info_size.get());
        if version != VERSION || size as usize != size_of::<BootInfo>() {
            return Err(ImageError::OtherVersion { version, size });
        }
        return Ok(Some(entry.entry.get()));
    }
    Ok(None)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINK: u64 = 0xffff_ffff_8000_0000;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An ELF file by hand: code at 0x1000 (16 bytes, 32 in memory), note at 0x400.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 0x1010];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &2_u16.to_le_bytes()); // EXEC
        put(&mut file, 18, &62_u16.to_le_bytes()); // x86-64
        put(&mut file, 20, &1_u32.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes()); // program headers
        put(&mut file, 52, &64_u16.to_le_bytes());
        put(&mut file, 54, &56_u16.to_le_bytes());
        put(&mut file, 56, &2_u16.to_le_bytes());
        let header = |file: &mut Vec<u8>, at: usize, fields: [u64; 8]| {
            put(file, at, &(fields[0] as u32).to_le_bytes());
            put(file, at + 4, &(fields[1] as u32).to_le_bytes());
            for (index, field) in fields[2..].iter().enumerate() {
                put(file, at + 8 + 8 * index, &field.to_le_bytes());
            }
        };
        header(&mut file, 64, [1, 5, 0x1000, LINK + 0x2000, 0x20_2000, 16, 32, 4096]);
        header(&mut file, 120, [4, 4, 0x400, LINK, 0, 0x24, 0x24, 4]);
        put(&mut file, 0x400, &6_u32.to_le_bytes());
        put(&mut file, 0x404, &16_u32.to_le_bytes());
        put(&mut file, 0x408, &1_u32.to_le_bytes());
        put(&mut file, 0x40c, b"vmbus\0\0\0");
        put(&mut file, 0x414, &(LINK + 0x2004).to_le_bytes());
        put(&mut file, 0x41c, &VERSION.to_le_bytes());
        put(&mut file, 0x420, &(size_of::<BootInfo>() as u32).to_le_bytes());
        put(&mut file, 0x1000, &[0x90; 16]);
        file
    }

    fn broken(at: usize, bytes: &[u8]) -> ImageError {
        let mut file = kernel();
        put(&mut file, at, bytes);
        KernelImage::parse(&file).unwrap_err()
    }

    #[test]
    fn a_kernel_is_placed_as_it_is_linked() {
        let file = kernel();
        let image = KernelImage::parse(&file).unwrap();
        assert_eq!(
            (image.link_address(), image.length(), image.entry()),
            (LINK + 0x2000, 0x1000, LINK + 0x2004)
        );
        let mut memory = vec![0xee; 0x1000];
        image.place(&mut memory).unwrap();
        assert_eq!(&memory[..18], [[0x90; 16].as_slice(), &[0, 0]].concat());
        assert!(memory[16..].iter().all(|byte| *byte == 0));
        assert!(image.place(&mut memory[..0xfff]).is_err());
    }

    #[test]
    fn each_kind_of_wrong_file_is_told_apart() {
        assert_eq!(KernelImage::parse(b"").unwrap_err(), ImageError::NotElf);
        assert_eq!(broken(0, b"MZ"), ImageError::NotElf);
        assert_eq!(
            broken(18, &183_u16.to_le_bytes()),
            ImageError::OtherMachine { machine: 183 }
        );
        assert_eq!(broken(4, &[1]), ImageError::OtherMachine { machine: 62 });
        assert_eq!(broken(5, &[2]), ImageError::OtherMachine { machine: 62 });
        assert!(matches!(broken(16, &[3]), ImageError::Layout(_)));
        assert_eq!(
            broken(0x41c, &9_u32.to_le_bytes()),
            ImageError::OtherVersion {
                version: 9,
                size: size_of::<BootInfo>() as u32
            }
        );
        assert!(matches!(broken(0x40c, b"other"), ImageError::Layout(_)));
        assert!(
            matches!(broken(0x414, &LINK.to_le_bytes()), ImageError::Layout(_)),
            "the entry is not in the code"
        );
        assert!(
            matches!(broken(64 + 16, &0x20_0000_u64.to_le_bytes()), ImageError::Layout(_)),
            "linked too low"
        );
        assert!(
            matches!(broken(64 + 16, &(u64::MAX - 7).to_le_bytes()), ImageError::Layout(_)),
            "wraps around"
        );
        assert!(
            matches!(broken(64 + 40, &(1_u64 << 30).to_le_bytes()), ImageError::Layout(_)),
            "too large"
        );
        assert!(
            matches!(broken(64 + 40, &8_u64.to_le_bytes()), ImageError::Layout(_)),
            "less memory than file"
        );
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused_and_says_so() {
        let file = kernel();
        for length in 4..file.len() {
            let error = KernelImage::parse(&file[..length]).unwrap_err();
            assert!(matches!(error, ImageError::Truncated { .. }), "{length}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_parser_panic_or_write_outside(damage in prop::collection::vec((0_usize..0x430, any::<u8>()), 0..12)) {
            let mut file = kernel();
            for (at, byte) in damage {
                file[at] = byte;
            }
            if let Ok(image) = KernelImage::parse(&file)
                && image.length() <= 1 << 20
            {
                let mut memory = vec![0; image.length() as usize];
                let _ = image.place(&mut memory);
            }
        }
    }
}
