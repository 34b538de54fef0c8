//! Disk images that a Gen2 machine boots: a GPT disk with one EFI system partition that holds the loader, the kernel and
//! its command line, as raw bytes, as VHDX (Hyper-V) or as fixed VHD (Azure).
//!
//! - [`Contents`]: what goes onto the disk; [`disk`] lays it out.
//! - [`Format`] and [`write()`]: the file around it.
//! - [`script`]: the PowerShell script that makes the machine.
//! - [`make`]: all of it, for `cargo run -- image`.
//!
//! The same contents give the same bytes: all identifiers are fixed.

pub mod disk;
pub mod script;
mod vhd;
mod vhdx;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process::run_quietly;
use crate::progress::{Step, say};
use crate::{build, cli, tools};

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

/// Builds loader and kernel, writes the image and the script beside it, has the image checked and says what to do with it.
///
/// # Errors
///
/// What cannot be built or written, or what `qemu-img` finds wrong with the image.
pub fn make(options: &cli::ImageOptions) -> Result<()> {
    let format = options.format;
    let path = options
        .output
        .clone()
        .unwrap_or_else(|| Path::new("vmbus").with_extension(format.extension()));
    if path.is_dir() {
        bail!("{} is a folder; give -o the name of a file", path.display());
    }
    let (loader, kernel) = (
        std::fs::read(build::loader()?)?,
        std::fs::read(build::kernel_for(&options.cmdline)?)?,
    );
    let contents = Contents {
        loader: &loader,
        kernel: Some(&kernel),
        command_line: options.cmdline.trim(),
    };
    let step = Step::start("writing the image");
    write(&contents, format, &path)?;
    let size = std::fs::metadata(&path)?.len();
    step.done(&format!(
        "{} is written: {} MiB, loader {} KiB, kernel {} KiB",
        path.display(),
        size.div_ceil(1 << 20),
        loader.len().div_ceil(1 << 10),
        kernel.len().div_ceil(1 << 10)
    ));
    match check(format, &path)? {
        Some(said) => say(&format!("qemu-img finds nothing wrong with it:\n{said}")),
        None => say("qemu-img is not installed here, so the image was not checked by it"),
    }
    let script = (format != Format::Raw)
        .then(|| script::write_beside(&path))
        .transpose()?;
    say(&advice(format, &path, script.as_deref()));
    Ok(())
}

/// What `qemu-img` says about an image; `None` where there is no such program.
///
/// # Errors
///
/// It finds the image broken.
pub fn check(format: Format, path: &Path) -> Result<Option<String>> {
    let root = tools::unpacked().then(tools::packages).transpose()?;
    let ask = |words: &[&str]| -> Result<Option<String>> {
        let Ok(mut program) = tools::helper("qemu-img", root.as_deref()) else {
            return Ok(None);
        };
        program.args(words).args(["-f", format.qemu_name()]).arg(path);
        run_quietly(&mut program, std::time::Duration::from_secs(60)).map(Some)
    };
    // The other two formats hold no structure that could be checked.
    if format == Format::Vhdx {
        ask(&["check"])?;
    }
    Ok(ask(&["info"])?.map(|text| indented(&text)))
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().take(5).map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

/// What to do with a finished image.
fn advice(format: Format, path: &Path, script: Option<&Path>) -> String {
    let image = path.display();
    let script = script.map(|script| script.display().to_string()).unwrap_or_default();
    match format {
        Format::Raw => format!(
            "Boot it:      qemu-system-x86_64 -machine q35 -m 256 -drive if=pflash,format=raw,readonly=on,file=OVMF_CODE_4M.fd \\
                \x20 -drive format=raw,file={image}
              For Hyper-V:  write it as vhdx, for Azure as vhd (--format)"
        ),
        Format::Vhdx => format!(
            "On Hyper-V:   copy {image} and {script} into one folder there; in PowerShell as administrator: .\\{}
              Its console is the machine's window; the same text comes out of COM 1 (a named pipe, see the script).",
            file_name(&script)
        ),
        Format::Vhd => format!(
            "On Azure:     upload {image} as a page blob, make an image of generation V2 from it, and a machine from that,
              without Trusted Launch (the loader is not signed); see its text in the serial console.
On Hyper-V:   {script} converts it to vhdx first; --format vhdx saves that step."
        ),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Writes the bytes; runs of zeros become holes.
fn write_sparse(out: &mut BufWriter<&File>, file: &File, bytes: &[u8]) -> Result<()> {
    use std::io::{Seek as _, SeekFrom};
    const CHUNK: usize = 1 << 20;
    file.set_len(bytes.len() as u64)?;
    let hole = vec![0; CHUNK];
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        // Compared as a whole: byte by byte it would take seconds in the nested host.
        if Some(chunk) != hole.get(..chunk.len()) {
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
