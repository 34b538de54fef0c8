//! Programs that come from the machine: QEMU and a Linux kernel for the nested host.
//!
//! What is installed and new enough is used. Otherwise, on Debian and Ubuntu, packages are unpacked into [`folder`] ([`apt`]), and
//! elsewhere the error says what to install. The folder is `.tools` in the workspace: it lives and dies with the clone, `cargo clean` does
//! not cost a download, and the variable `VMBUS_TOOLS` lets several clones share one.

pub mod apt;
pub mod closure;
pub mod kernel;
pub mod ovmf;
pub mod sources;
pub mod valgrind;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};

use crate::process::{command, run_quietly};
use crate::qemu::{Qemu, Version};

/// What the hosts need from a distribution's packages.
pub const PACKAGES: apt::Packages = apt::Packages {
    debian: &[
        "qemu-system-x86",
        "qemu-utils",
        "ovmf",
        "linux-image-cloud-amd64",
        "xz-utils",
        "zstd",
    ],
    ubuntu: &[
        "qemu-system-x86",
        "qemu-utils",
        "ovmf",
        "linux-image-virtual",
        "xz-utils",
        "zstd",
    ],
};

/// What to tell people whose machine has neither the programs nor a way for us to get them.
const INSTALL: &str = "Install QEMU 8.2 or newer with the device hv-balloon; for machines without KVM, QEMU 10.0 or newer and a Linux kernel with
Hyper-V in KVM:
  Debian 13 or newer:    apt install qemu-system-x86 ovmf linux-image-cloud-amd64 xz-utils
  Ubuntu 26.04 or newer: apt install qemu-system-x86 ovmf linux-image-virtual zstd
  Fedora:                dnf install qemu-system-x86-core edk2-ovmf kernel-core xz
  Arch:                  pacman -S qemu-system-x86 edk2-ovmf linux zstd
Without them no guest can be run; everything else (build, unit tests) works.";

/// The variable that tells a runner inside the middle Linux which QEMU to use: the path of a file with a [`Qemu`] as JSON.
pub const QEMU_VARIABLE: &str = "VMBUS_QEMU";

/// The workspace's root.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// The folder for unpacked host tools.
#[must_use]
pub fn folder() -> PathBuf {
    std::env::var_os("VMBUS_TOOLS").map_or_else(|| workspace().join(".tools"), PathBuf::from)
}

/// The root of the unpacked packages; downloads them if they are not there.
///
/// # Errors
///
/// Why that is not possible here, and what to install instead.
pub fn packages() -> Result<PathBuf> {
    let check = |root: &Path| -> Result<()> {
        new_enough_to_nest(unpacked_qemu(root)?)?;
        kernel::find(root)?;
        Ok(())
    };
    apt::provide(&folder(), &PACKAGES, &check).map_err(|error| anyhow!("{error:#}\n\n{INSTALL}"))
}

/// Whether [`packages`] would find everything unpacked.
#[must_use]
pub fn unpacked() -> bool {
    apt::root(&folder(), &PACKAGES).is_dir()
}

/// A QEMU that has what we need, and where it comes from.
///
/// # Errors
///
/// None is there and none can be got; the text says what to install.
pub fn qemu() -> Result<Qemu> {
    if let Some(file) = std::env::var_os(QEMU_VARIABLE) {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(serde_json::from_str(&text)?);
    }
    let unpacked = |why: anyhow::Error| match packages() {
        Ok(root) => unpacked_qemu(&root),
        Err(error) => bail!("{why:#}; and {error:#}"),
    };
    installed_qemu().or_else(unpacked)
}

/// A QEMU for the nested host, which asks more of it.
///
/// # Errors
///
/// As [`qemu`].
pub fn emulator() -> Result<Qemu> {
    let unpacked = |why: anyhow::Error| match packages() {
        Ok(root) => unpacked_qemu(&root),
        Err(error) => bail!("{why:#}; and {error:#}"),
    };
    installed_qemu().and_then(new_enough_to_nest).or_else(unpacked)
}

fn new_enough_to_nest(qemu: Qemu) -> Result<Qemu> {
    if qemu.version < Version::OLDEST_EMULATOR {
        bail!(
            "QEMU {} is there, but a host without KVM needs {}",
            qemu.version,
            Version::OLDEST_EMULATOR
        );
    }
    Ok(qemu)
}

/// A Linux for the nested host.
///
/// # Errors
///
/// As [`qemu`].
pub fn middle_kernel() -> Result<kernel::Kernel> {
    let unpacked = |why: anyhow::Error| match packages() {
        Ok(root) => kernel::find(&root),
        Err(error) => bail!("{why:#}; and {error:#}"),
    };
    kernel::find(Path::new("/")).or_else(unpacked)
}

/// The UEFI firmware for the guest.
///
/// # Errors
///
/// As [`qemu`].
pub fn firmware() -> Result<ovmf::Ovmf> {
    ovmf::find(Path::new("/")).or_else(|why| match packages() {
        Ok(root) => ovmf::find(&root),
        Err(error) => bail!("{why:#}; and {error:#}"),
    })
}

/// The installed QEMU.
///
/// # Errors
///
/// There is none, or it is too old, or it was built without what we need.
pub fn installed_qemu() -> Result<Qemu> {
    let path = on_path("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?;
    let program = vec![path.to_string_lossy().into_owned()];
    let qemu = Qemu {
        program,
        environment: Vec::new(),
        firmware: Vec::new(),
        version: Version { major: 0, minor: 0 },
    };
    usable(&qemu)
}

/// The QEMU of an unpacked root, run through that root's own loader and libraries.
fn unpacked_qemu(root: &Path) -> Result<Qemu> {
    let program = root.join("usr/bin/qemu-system-x86_64");
    let mut words = closure::through_own_loader(root)?;
    words.push(program.to_string_lossy().into_owned());
    let firmware = ["usr/share/qemu", "usr/share/seabios", "usr/share/ovmf"].map(|folder| root.join(folder));
    let firmware = firmware.into_iter().filter(|folder| folder.is_dir()).collect();
    // Otherwise it would look for its modules where an installed QEMU of another version keeps its own.
    let modules = closure::library_folders(root)
        .into_iter()
        .map(|folder| folder.join("qemu"))
        .find(|folder| folder.is_dir());
    let environment = modules
        .map(|folder| ("QEMU_MODULE_DIR".to_owned(), folder.to_string_lossy().into_owned()))
        .into_iter()
        .collect();
    usable(&Qemu {
        program: words,
        environment,
        firmware,
        version: Version { major: 0, minor: 0 },
    })
}

/// Asks a QEMU what it is and can do.
fn usable(qemu: &Qemu) -> Result<Qemu> {
    let patience = Duration::from_secs(30);
    let text = run_quietly(qemu.command().arg("--version"), patience)?;
    let version = Version::parse(&text).with_context(|| format!("cannot understand QEMU's version: {text}"))?;
    if version < Version::OLDEST {
        bail!("QEMU {version} is installed, but {} is needed", Version::OLDEST);
    }
    for device in ["hv-balloon", "vmbus-bridge"] {
        // Each by its name: a list of all devices would load every module, maybe one of another QEMU that is installed.
        let help = format!("{device},help");
        let known = run_quietly(qemu.command().args(["-machine", "none", "-device", &help]), patience);
        known.with_context(|| format!("QEMU {version} is installed, but was built without {device}"))?;
    }
    Ok(Qemu {
        version,
        ..qemu.clone()
    })
}

/// The file that a program's name means.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command for `program`: the installed one, or else the one in the unpacked `root`.
///
/// # Errors
///
/// It is in neither place.
pub fn helper(program: &str, root: Option<&Path>) -> Result<std::process::Command> {
    if let Some(path) = on_path(program) {
        return Ok(command(path));
    }
    let root = root.with_context(|| format!("{program} is not installed"))?;
    let file = root.join("usr/bin").join(program);
    if !file.is_file() {
        bail!("{program} is not installed");
    }
    let words = closure::through_own_loader(root)?;
    let mut words = words.iter();
    let mut helper = command(words.next().context("no loader")?);
    helper.args(words).arg(file);
    Ok(helper)
}

/// A name for some content: for caches, not for security.
#[must_use]
pub fn short_hash(bytes: &[u8]) -> String {
    // FNV-1a, 64 bits: the same on every machine and with every compiler, which std's hashers do not promise.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The right to change the tools folder: released when dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of `folder`; says `waiting` if somebody else has it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn take(folder: &Path, waiting: &str) -> Result<Self> {
        let path = folder.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            crate::progress::say(waiting);
            flock(&file, FlockOperation::LockExclusive).context("cannot lock the tools folder")?;
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable() {
        assert_eq!(short_hash(b""), "cbf29ce484222325");
        assert_eq!(short_hash(b"a"), "af63dc4c8601ec8c");
    }

    #[test]
    fn the_advice_names_every_distribution() {
        for name in ["Debian", "Ubuntu", "Fedora", "Arch"] {
            assert!(INSTALL.contains(name));
        }
    }

    #[test]
    fn a_lock_excludes_and_ends_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::take(folder.path(), "never said").unwrap();
        let again = File::options().write(true).open(folder.path().join("lock")).unwrap();
        assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(held);
        assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
