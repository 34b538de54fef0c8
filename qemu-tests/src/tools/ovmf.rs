//! OVMF: the UEFI firmware for QEMU, as distributions package it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The two files of a firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovmf {
    /// The firmware itself; never written to.
    pub code: PathBuf,
    /// The empty store of variables; a machine gets a copy of it.
    pub variables: PathBuf,
}

/// Where it is on Debian and Ubuntu, Fedora, Arch. Without Secure Boot: our loader is not signed.
const PLACES: [(&str, &str); 6] = [
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    (
        "usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "usr/share/qemu/ovmf-x86_64-code.bin",
        "usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

/// Looks for it below `root`.
///
/// # Errors
///
/// It is in none of the known places.
pub fn find(root: &Path) -> Result<Ovmf> {
    for (code, variables) in PLACES {
        let (code, variables) = (root.join(code), root.join(variables));
        if code.is_file() && variables.is_file() {
            return Ok(Ovmf { code, variables });
        }
    }
    bail!("OVMF (UEFI firmware for QEMU) is not installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_needed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/share/OVMF");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("OVMF_CODE_4M.fd"), "").unwrap();
        assert!(find(root.path()).is_err());
        std::fs::write(folder.join("OVMF_VARS_4M.fd"), "").unwrap();
        assert_eq!(find(root.path()).unwrap().code, folder.join("OVMF_CODE_4M.fd"));
    }
}
