//! What a guest that boots by UEFI is made of, and how it becomes a machine: loader and kernel on a disk, firmware, variables.
//!
//! The parts are made or found outside ([`Parts::prepare`]) and put together where QEMU runs ([`Parts::machine`]): the nested host gets the
//! few hundred KiB of loader and kernel, not a disk of mostly nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{self, Contents, Format};
use crate::nested::paths;
use crate::qemu::Start;
use crate::tools::ovmf::Ovmf;
use crate::{build, tools};

/// The files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Our loader.
    pub loader: PathBuf,
    /// The firmware.
    pub firmware: Ovmf,
}

/// Where the files are, on the command line of a runner that was started by another one. All or none.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Our loader
    #[arg(long, hide = true, requires = "uefi_code")]
    uefi_loader: Option<PathBuf>,
    /// The firmware
    #[arg(long, hide = true, requires = "uefi_variables")]
    uefi_code: Option<PathBuf>,
    /// Its empty store of variables
    #[arg(long, hide = true, requires = "uefi_loader")]
    uefi_variables: Option<PathBuf>,
}

/// The disk that a machine boots from.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// The kernel on it, if there is one.
    pub kernel: Option<&'a [u8]>,
    /// The kernel's command line on it.
    pub command_line: &'a str,
    /// What kind of file it is.
    pub format: Format,
}

impl Options {
    /// The parts, if they were given.
    #[must_use]
    pub fn parts(&self) -> Option<Parts> {
        Some(Parts {
            loader: self.uefi_loader.clone()?,
            firmware: Ovmf {
                code: self.uefi_code.clone()?,
                variables: self.uefi_variables.clone()?,
            },
        })
    }
}

impl Parts {
    /// Builds the loader and finds the firmware.
    ///
    /// # Errors
    ///
    /// What cannot be built or found.
    pub fn prepare() -> Result<Self> {
        Ok(Self {
            loader: build::loader()?,
            firmware: tools::firmware()?,
        })
    }

    /// The words that tell another runner where the parts are.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        vec![
            format!("--uefi-loader={}", self.loader.display()),
            format!("--uefi-code={}", self.firmware.code.display()),
            format!("--uefi-variables={}", self.firmware.variables.display()),
        ]
    }

    /// The same parts, as they are inside the nested host when [`Parts::files`] went along.
    #[must_use]
    pub fn inside() -> Self {
        let file = |name: &str| Path::new(paths::FILES).join(name);
        Self {
            loader: file("loader.efi"),
            firmware: Ovmf {
                code: file("firmware-code.fd"),
                variables: file("firmware-variables.fd"),
            },
        }
    }

    /// Name inside the nested host and place of each part.
    #[must_use]
    pub fn files(&self) -> Vec<(String, PathBuf)> {
        vec![
            ("loader.efi".to_owned(), self.loader.clone()),
            ("firmware-code.fd".to_owned(), self.firmware.code.clone()),
            ("firmware-variables.fd".to_owned(), self.firmware.variables.clone()),
        ]
    }

    /// Puts disk and variables of one machine into `folder`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or written.
    pub fn machine(&self, disk: &Disk<'_>, graphics: bool, folder: &Path) -> Result<Start> {
        let loader = fs::read(&self.loader).with_context(|| format!("cannot read {}", self.loader.display()))?;
        let contents = Contents {
            loader: &loader,
            kernel: disk.kernel,
            command_line: disk.command_line,
        };
        let file = folder.join(format!("disk.{}", disk.format.extension()));
        image::write(&contents, disk.format, &file)?;
        let variables = folder.join("variables.fd");
        // Not `fs::copy`: the original may be read-only, and QEMU has to write.
        let empty = fs::read(&self.firmware.variables)
            .with_context(|| format!("cannot read {}", self.firmware.variables.display()))?;
        fs::write(&variables, empty)?;
        Ok(Start::Uefi {
            code: self.firmware.code.clone(),
            variables,
            disk: file,
            format: disk.format.qemu_name(),
            graphics,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn another_runner_understands_where_the_parts_are() {
        let parts = Parts::inside();
        let line = Line::try_parse_from([vec!["x".to_owned()], parts.arguments()].concat()).unwrap();
        assert_eq!(line.options.parts(), Some(parts));
        assert_eq!(Line::try_parse_from(["x"]).unwrap().options.parts(), None);
        assert!(Line::try_parse_from(["x", "--uefi-loader=/l"]).is_err());
    }

    #[test]
    fn a_machine_gets_its_own_disk_and_variables() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let variables = file("vars", "empty");
        let firmware = Ovmf {
            code: file("code", "code"),
            variables,
        };
        let parts = Parts {
            loader: file("loader", "loader"),
            firmware,
        };
        let own = tempfile::tempdir().unwrap();
        let disk = Disk {
            kernel: None,
            command_line: "once",
            format: Format::Vhd,
        };
        let Start::Uefi {
            variables,
            disk,
            format,
            ..
        } = parts.machine(&disk, true, own.path()).unwrap()
        else {
            panic!("no UEFI")
        };
        assert_eq!(fs::read_to_string(&variables).unwrap(), "empty");
        assert_ne!(variables, parts.firmware.variables);
        assert_eq!((format, disk.starts_with(own.path())), ("vpc", true));
        assert!(fs::metadata(disk).unwrap().len() > 64 << 20);
    }
}
