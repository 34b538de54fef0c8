//! QEMU command lines: which QEMU ([`Qemu`]) runs which machine ([`Machine`]).
//!
//! The machine is the one of every `q35` user with Hyper-V enlightenments; nothing but what the guest needs is in it. QEMU's standard
//! input and output are the guest's COM1; QMP is a Unix socket on which we listen (see [`crate::vm`]).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::process;

/// Hyper-V as QEMU plays it: the options of `-cpu` (each needs KVM) and the bus.
const ENLIGHTENMENTS: &str = "host,kvm=off,hv-relaxed,hv-vpindex,hv-time,hv-synic,hv-stimer,hv-stimer-direct,hv-frequencies,hv-vapic,hv-runtime,hv-crash";

/// A QEMU that can be run: an installed one, or one from a folder, run through the folder's own dynamic loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The program and the arguments that must come first.
    pub program: Vec<String>,
    /// Environment variables that it needs.
    pub environment: Vec<(String, String)>,
    /// Folders with firmware (`-L`); empty for an installed QEMU, which knows its own.
    pub firmware: Vec<PathBuf>,
    /// Its version.
    pub version: Version,
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// The first QEMU with `hv-balloon`, the device that we drive.
    pub const OLDEST: Self = Self { major: 8, minor: 2 };

    /// The first QEMU whose emulator is known to carry the nested host: with that of 8.2 the guest inside is reset at its start.
    pub const OLDEST_EMULATOR: Self = Self { major: 10, minor: 0 };

    /// Understands the first line of `qemu-system-x86_64 --version`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.split_once("version ")?.1;
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
        })
    }
}

impl Qemu {
    /// A command that starts this QEMU, without any machine yet.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut words = self.program.iter();
        let mut command = process::command(words.next().map_or("qemu-system-x86_64", String::as_str));
        command
            .args(words)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }
}

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM with Hyper-V enlightenments and the VMBus.
    Hyperv,
    /// QEMU's own emulator: no Hyper-V at all.
    Plain,
}

/// What the machine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A kernel, without firmware that would be worth the name.
    Direct {
        /// An ELF file with a PVH note.
        kernel: PathBuf,
        /// Its command line.
        cmdline: String,
    },
    /// UEFI firmware, which finds a loader on a disk.
    Uefi {
        /// The firmware.
        code: PathBuf,
        /// This machine's own store of variables.
        variables: PathBuf,
        /// The disk.
        disk: PathBuf,
        /// Its format, as QEMU calls it.
        format: &'static str,
        /// Whether there is a graphics adapter, i.e. a framebuffer.
        graphics: bool,
    },
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Who executes it.
    pub accelerator: Accelerator,
    /// What it starts.
    pub start: Start,
    /// Whether QEMU goes on when the guest resets the machine; otherwise it ends.
    pub reboots: bool,
    /// What goes behind `-m`, e.g. `64` (MiB) or `64,maxmem=33G`.
    pub memory: String,
    /// Number of processors.
    pub cpus: u32,
    /// Whether there is a COM1.
    pub uart: bool,
    /// More arguments for QEMU.
    pub extra: Vec<String>,
}

impl Machine {
    /// The arguments for QEMU; QMP goes to `socket`, on which somebody listens.
    #[must_use]
    pub fn arguments(&self, socket: &Path) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(|&word| word.to_owned()));
        match self.accelerator {
            Accelerator::Hyperv => {
                add(&[
                    "-accel",
                    "kvm",
                    "-cpu",
                    ENLIGHTENMENTS,
                    "-machine",
                    "q35",
                    "-device",
                    "vmbus-bridge",
                ]);
            }
            Accelerator::Plain => add(&["-accel", "tcg", "-cpu", "max", "-machine", "q35"]),
        }
        add(&["-nodefaults", "-display", "none", "-action", "panic=none"]);
        if !self.reboots {
            add(&["-no-reboot"]);
        }
        add(&["-smp", &self.cpus.to_string(), "-m", &self.memory]);
        // Stopped until we say so over QMP: then no event can be missed.
        add(&[
            "-S",
            "-chardev",
            &format!("socket,id=qmp,path={},server=off", socket.display()),
        ]);
        add(&["-mon", "chardev=qmp,mode=control"]);
        if self.uart {
            add(&["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"]);
        }
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        match &self.start {
            Start::Direct { kernel, cmdline } => add(&["-kernel", &kernel.to_string_lossy(), "-append", cmdline]),
            Start::Uefi {
                code,
                variables,
                disk,
                format,
                graphics,
            } => {
                let flash = |unit: u32, file: &Path, more: &str| {
                    format!("if=pflash,format=raw,unit={unit},file={}{more}", option_text(file))
                };
                add(&[
                    "-drive",
                    &flash(0, code, ",readonly=on"),
                    "-drive",
                    &flash(1, variables, ""),
                ]);
                let disk = format!("if=none,id=disk,format={format},file={}", option_text(disk));
                // The disk with the fewest exits: under emulation each costs.
                add(&["-drive", &disk, "-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
                add(&["-vga", if *graphics { "std" } else { "none" }]);
            }
        }
        line.extend(self.extra.iter().cloned());
        line
    }
}

/// A path inside an option: QEMU wants commas doubled.
fn option_text(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let parse = Version::parse;
        assert_eq!(
            parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)"),
            Some(Version { major: 10, minor: 0 })
        );
        assert_eq!(
            parse("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)\nCopyright"),
            Some(Version { major: 8, minor: 2 })
        );
        assert_eq!(
            parse("QEMU emulator version 11.0"),
            Some(Version { major: 11, minor: 0 })
        );
        assert_eq!(parse("bash: qemu: not found"), None);
        assert!(parse("version 7.2.15") < Some(Version::OLDEST) && parse("version 9.1.0") > Some(Version::OLDEST));
    }

    #[test]
    fn arguments_follow_the_machine() {
        let mut machine = Machine {
            accelerator: Accelerator::Hyperv,
            start: Start::Direct {
                kernel: "/k".into(),
                cmdline: "once exit=qemu".to_owned(),
            },
            reboots: false,
            memory: "64,maxmem=33G".to_owned(),
            cpus: 2,
            uart: true,
            extra: vec!["-device".to_owned(), "hv-balloon".to_owned()],
        };
        let line = machine.arguments(Path::new("/s")).join(" ");
        for part in [
            "-accel kvm",
            "hv-synic",
            "vmbus-bridge",
            "-m 64,maxmem=33G",
            "-smp 2",
            "panic=none",
            "-no-reboot",
            "chardev:com1",
            "-append once exit=qemu",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        assert!(line.ends_with("-device hv-balloon"));
        machine.accelerator = Accelerator::Plain;
        machine.uart = false;
        let line = machine.arguments(Path::new("/s")).join(" ");
        assert!(
            !line.contains("hv-synic") && !line.contains("vmbus") && !line.contains("com1"),
            "{line}"
        );
        machine.reboots = true;
        machine.start = Start::Uefi {
            code: "/a,b/code".into(),
            variables: "/v".into(),
            disk: "/d".into(),
            format: "vpc",
            graphics: false,
        };
        let line = machine.arguments(Path::new("/s")).join(" ");
        assert!(
            line.contains("unit=0,file=/a,,b/code,readonly=on") && line.contains("unit=1,file=/v "),
            "{line}"
        );
        assert!(
            line.contains("format=vpc,file=/d") && line.contains("-vga none"),
            "{line}"
        );
        assert!(!line.contains("-kernel") && !line.contains("-no-reboot"), "{line}");
    }
}
