//! Valgrind, which counts instructions, where none is installed: from the distribution's package, like the other host tools.
//!
//! Its launcher needs the package's own libraries; the tool that it starts needs none and is run directly, with the two variables
//! that the launcher would set.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::apt;
use crate::process::command;

const PACKAGES: apt::Packages = apt::Packages {
    debian: &["valgrind"],
    ubuntu: &["valgrind"],
};

/// A usable valgrind: the program, and the variables that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valgrind {
    /// What is run, as if it were `valgrind --tool=callgrind`.
    pub program: PathBuf,
    /// Name and value of each variable.
    pub environment: Vec<(&'static str, PathBuf)>,
}

impl Valgrind {
    fn unpacked(root: &Path) -> Result<Self> {
        // Debian 11 and older have it in lib.
        for folder in ["usr/libexec/valgrind", "usr/lib/x86_64-linux-gnu/valgrind"] {
            let folder = root.join(folder);
            let program = folder.join("callgrind-amd64-linux");
            if program.is_file() {
                return Ok(Self {
                    environment: vec![("VALGRIND_LIB", folder), ("VALGRIND_LAUNCHER", program.clone())],
                    program,
                });
            }
        }
        bail!("the package valgrind has no callgrind-amd64-linux")
    }

    fn check(&self) -> Result<()> {
        let mut version = command(&self.program);
        version.args(["--tool=callgrind", "--version"]);
        version.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = version.output()?;
        if !output.status.success() {
            bail!("valgrind does not run: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// The unpacked valgrind, downloaded if it is not there.
///
/// # Errors
///
/// Why that is not possible here.
pub fn provide() -> Result<Valgrind> {
    let root = apt::provide(&super::folder(), &PACKAGES, &|root| Valgrind::unpacked(root)?.check())?;
    Valgrind::unpacked(&root)
}
