//! Disk images that a Gen2 machine boots: a GPT disk with one EFI system partition that holds the loader, the kernel and
//! its command line, as raw bytes, as VHDX (Hyper-V) or as fixed VHD (Azure).
//!
//! - [`Contents`]: what goes onto the disk; [`disk`] lays it out.
//! - [`Format`] and [`write()`]: the file around it.
//! - [`script`]: the PowerShell script that makes the machine.
//!
//! The same contents give the same bytes: all identifiers are fixed.

pub mod disk;
pub mod script;
mod vhd;
mod vhdx;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// What goes onto the EFI system partition.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The UEFI loader; becomes `\EFI\BOOT\BOOTX64.EFI`.
    pub loader: &'a [u8],
    /// The kernel image; becomes `\EFI\vmbus\kernel.elf`. `None` leaves it out, which a test of the loader wants.
    pub kernel: Option<&'a [u8]>,
    /// The kernel's command line; becomes `\EFI\vmbus\cmdline.txt`.
    pub command_line: &'a str,
}

/// The kind of image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, for QEMU and for writing to a medium.
    Raw,
    /// VHDX with unused blocks left out, for Hyper-V.
    Vhdx,
    /// Fixed VHD of whole MiB, for Azure and Hyper-V.
    Vhd,
}

impl Format {
    /// Returns the file name extension, also the name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
        }
    }

    /// Returns what `qemu-img` and QEMU's `-drive format=` call it.
    #[must_use]
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vpc",
        }
    }
}

/// Writes a bootable image to `path`. An existing file is replaced only once the new one is whole.
///
/// # Errors
///
/// If the contents do not fit or the file cannot be written.
pub fn write(contents: &Contents<'_>, format: Format, path: &Path) -> Result<()> {
    let bytes = disk::lay_out(contents)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let file = tempfile::Builder::new()
        .prefix(".image-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    {
        let mut out = BufWriter::new(file.as_file());
        match format {
            Format::Raw => write_sparse(&mut out, file.as_file(), &bytes)?,
            Format::Vhdx => vhdx::write(&bytes, &mut out)?,
            Format::Vhd => vhd::write(&bytes, &mut out)?,
        }
        out.flush()?;
    }
    set_usual_permissions(file.as_file())?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Writes the bytes; runs of zeros become holes.
fn write_sparse(out: &mut BufWriter<&File>, file: &File, bytes: &[u8]) -> Result<()> {
    use std::io::{Seek as _, SeekFrom};
    const CHUNK: usize = 1 << 20;
    file.set_len(bytes.len() as u64)?;
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            out.seek(SeekFrom::Start((index * CHUNK) as u64))?;
            out.write_all(chunk)?;
        }
    }
    Ok(())
}

/// A temporary file is readable by its owner only; an image is an ordinary file.
fn set_usual_permissions(file: &File) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CONTENTS: Contents<'_> = Contents {
        loader: &[0x4d, 0x5a, 1, 2, 3],
        kernel: Some(b"\x7fELF and so on"),
        command_line: "log=info once",
    };

    /// Asks an independent program, where there is one.
    fn qemu_img(arguments: &[&str]) -> Option<String> {
        let output = Command::new("qemu-img").args(arguments).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn each_format_holds_the_same_disk() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk.raw");
        write(&CONTENTS, Format::Raw, &raw).unwrap();
        let expected = std::fs::read(&raw).unwrap();
        assert_eq!(expected, disk::lay_out(&CONTENTS).unwrap());
        for format in [Format::Vhdx, Format::Vhd] {
            let image = folder.path().join(format!("disk.{}", format.extension()));
            write(&CONTENTS, format, &image).unwrap();
            let back = folder.path().join("back.raw");
            let (image, back_name) = (image.to_str().unwrap(), back.to_str().unwrap());
            if qemu_img(&["convert", "-f", format.qemu_name(), "-O", "raw", image, back_name]).is_none() {
                eprintln!("no qemu-img here: the formats are checked by their own tests only");
                return;
            }
            assert!(
                std::fs::read(&back).unwrap() == expected,
                "{format:?} gives other bytes back"
            );
            if format == Format::Vhdx {
                qemu_img(&["check", "-f", "vhdx", image]).unwrap();
            }
        }
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for format in [Format::Raw, Format::Vhdx, Format::Vhd] {
            let (first, second) = (folder.path().join("first"), folder.path().join("second"));
            write(&CONTENTS, format, &first).unwrap();
            write(&CONTENTS, format, &second).unwrap();
            assert!(
                std::fs::read(first).unwrap() == std::fs::read(second).unwrap(),
                "{format:?}"
            );
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = write(&CONTENTS, Format::Raw, Path::new("/dev/null/folder/disk.raw")).unwrap_err();
        assert!(error.to_string().contains("/dev/null/folder"), "{error:#}");
    }
}
