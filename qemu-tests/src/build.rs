//! Builds the guest's kernel, and strips it; builds the UEFI loader.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;

use crate::progress::{Step, say};
use crate::tools;

/// The target of the kernel.
pub const TARGET: &str = "x86_64-unknown-none";
/// The target of the UEFI loader.
pub const UEFI_TARGET: &str = "x86_64-unknown-uefi";

/// Builds the package `kernel` for the guest and returns the stripped image.
///
/// # Errors
///
/// The compiler's messages have been shown; the error says which step failed.
pub fn kernel() -> Result<PathBuf> {
    stripped("kernel", "kernel", None)
}

/// The same with the tests that run inside the guest, which users have no need of.
///
/// # Errors
///
/// As [`kernel()`].
pub fn kernel_with_selftests() -> Result<PathBuf> {
    stripped("kernel", "kernel-selftest", Some("selftest"))
}

/// The one of the two that the words of a command line ask for.
///
/// # Errors
///
/// As [`kernel()`].
pub fn kernel_for(command_line: &str) -> Result<PathBuf> {
    if wants_selftests(command_line) {
        kernel_with_selftests()
    } else {
        kernel()
    }
}

/// Whether a command line names tests that run inside the guest.
#[must_use]
pub fn wants_selftests(command_line: &str) -> bool {
    command_line
        .split_whitespace()
        .any(|word| word.starts_with("selftest="))
}

/// Builds the package `tiny-kernel`, the example of `vmbus`, for the guest and returns the stripped image.
///
/// # Errors
///
/// As [`kernel()`].
pub fn tiny_kernel() -> Result<PathBuf> {
    stripped("tiny-kernel", "tiny-kernel", None)
}

/// Builds `package` and leaves the stripped image beside it, called `name`.
fn stripped(package: &str, name: &str, feature: Option<&str>) -> Result<PathBuf> {
    let image = build(package, package, TARGET, feature)?;
    let stripped = image.with_file_name(name).with_extension("stripped");
    let bytes = strip(&std::fs::read(&image)?).with_context(|| format!("cannot strip {}", image.display()))?;
    std::fs::write(&stripped, bytes)?;
    Ok(stripped)
}

/// Builds the UEFI loader.
///
/// # Errors
///
/// As [`kernel()`].
pub fn loader() -> Result<PathBuf> {
    build("boot", "loader", UEFI_TARGET, None)
}

/// Builds the program `binary` of `package`, with `feature`, for `target`.
///
/// # Errors
///
/// As [`kernel()`].
pub fn build(package: &str, binary: &str, target: &str, feature: Option<&str>) -> Result<PathBuf> {
    add_target(target)?;
    let with = feature.map_or(String::new(), |feature| format!(" with {feature}"));
    let step = Step::start(&format!("building {binary}{with} for {target}"));
    let mut cargo = cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        package,
        "--bin",
        binary,
        "--target",
        target,
    ]);
    cargo.args(feature.map(|feature| format!("--features={feature}")));
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo could not build {package}");
    }
    let executable = executable(&String::from_utf8_lossy(&output.stdout), binary);
    let executable = executable.with_context(|| format!("cargo built {package} but names no program"))?;
    step.done(&format!("{binary}{with} is built"));
    Ok(executable)
}

/// The path of the program in cargo's messages.
fn executable(messages: &str, binary: &str) -> Option<PathBuf> {
    let artifacts = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ours = artifacts.filter(|message| message.pointer("/target/name").is_some_and(|name| name == binary));
    ours.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
}

fn cargo() -> Command {
    // `cargo run` and `cargo test` tell us which cargo they are; the workspace is ours in any case. A wrapper's flags for the host
    // (e.g. coverage) are not for the guest.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(tools::workspace())
        .stdin(Stdio::null())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}

/// Adds a Rust target if it is missing, where `rustup` manages the compiler.
fn add_target(target: &str) -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut ask = Command::new(rustc);
    ask.current_dir(tools::workspace())
        .args(["--print", "target-libdir", "--target", target]);
    let answer = ask.output().context("cannot start rustc")?;
    if Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir() {
        return Ok(());
    }
    say(&format!("adding the Rust target {target}"));
    let mut rustup = Command::new("rustup");
    let status = rustup
        .current_dir(tools::workspace())
        .args(["target", "add", target])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!("`rustup target add {target}` failed: it needs the network once"),
        Err(_) => bail!(
            "the Rust target {target} is missing and there is no rustup to add it: install the target with your distribution's tools"
        ),
    }
}

/// An ELF file without sections, symbols and debug information: what is loaded, byte for byte at the same offsets.
///
/// # Errors
///
/// This is no 64-bit ELF file, or it has sections between its segments.
pub fn strip(image: &[u8]) -> Result<Vec<u8>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image)?;
    let segments = file.segments().context("no program headers")?;
    let kept = segments
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD || segment.p_type == PT_NOTE);
    let headers = file.ehdr.e_phoff + u64::from(file.ehdr.e_phnum) * u64::from(file.ehdr.e_phentsize);
    let end = kept
        .map(|segment| segment.p_offset + segment.p_filesz)
        .chain([headers])
        .max()
        .unwrap_or(headers);
    let end = usize::try_from(end)?;
    let mut stripped = image
        .get(..end)
        .context("the file is shorter than its segments")?
        .to_vec();
    // e_shoff, then e_shentsize, e_shnum and e_shstrndx.
    stripped.get_mut(0x28..0x30).context("no ELF header")?.fill(0);
    stripped.get_mut(0x3a..0x40).context("no ELF header")?.fill(0);
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_the_program() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"boot"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "kernel"), Some(PathBuf::from("/t/kernel")));
        assert_eq!(executable(messages, "other"), None);
    }

    #[test]
    fn the_command_line_decides_which_kernel_is_built() {
        assert!(wants_selftests("log=warn selftest=memory"));
        assert!(!wants_selftests("log=warn no-selftest=memory selftest"));
    }

    #[test]
    fn stripping_keeps_what_is_loaded() {
        let image = crate::pvh::hello("hi\n", 0x10);
        let mut with_sections = image.clone();
        // One section header, behind everything: e_shoff, e_shentsize, e_shnum.
        with_sections[0x28..0x30].copy_from_slice(&(image.len() as u64).to_le_bytes());
        with_sections[0x3a] = 64;
        with_sections[0x3c] = 1;
        with_sections.extend_from_slice(&[0; 64]);
        with_sections.extend_from_slice(b"debug information");
        assert_eq!(strip(&with_sections).unwrap(), image);
        assert!(strip(b"MZ").is_err());
    }
}
