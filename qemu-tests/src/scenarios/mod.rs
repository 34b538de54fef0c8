//! The VM tests: what machine, what command line, what the runner does meanwhile, and what counts as success.
//!
//! A [`Scenario`] is data plus a [`Script`]. It runs wherever a host is ([`run`]): on a machine with KVM, or inside the nested host. The list
//! is [`all`]; the scripts are in [`scripts`], [`gen2`] and [`hostile`]; what makes a run a success is in [`judge`].

pub mod gen2;
pub mod hostile;
pub mod judge;
pub mod list;
pub mod scripts;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::guest::Line;
use crate::image::Format;
use crate::nested::Clock;
use crate::qemu::{Accelerator, Machine, Qemu, Start};
use crate::vm::{Outcome, Vm, Watcher, follow};
use crate::{build, linux64, pvh, uefi};

pub use list::{all, find};

/// What is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Our kernel, by its PVH entry.
    Kernel,
    /// Our kernel, by its Linux 64-bit entry.
    LinuxEntry,
    /// The example of `vmbus`, by its PVH entry.
    TinyKernel,
    /// A guest of a few bytes that needs nothing but the ground under it, by its PVH entry.
    Hello,
    /// The same, by the entry of the Linux 64-bit boot protocol.
    HelloLinuxEntry,
    /// Our kernel, by UEFI from a disk, as on a Gen2 machine.
    Uefi {
        /// The kind of disk image.
        format: Format,
        /// What is on it in the kernel's place.
        kernel: KernelFile,
        /// Whether there is a graphics adapter.
        graphics: bool,
    },
}

/// What a loader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFile {
    /// Our kernel.
    Whole,
    /// No file.
    Missing,
    /// Our kernel without its second half.
    Truncated,
    /// A program for another processor.
    OtherMachine,
    /// Our kernel, but it wants more memory than the machine has.
    TooLarge,
}

/// A kernel that scenarios boot, as it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// Ours, as users have it.
    Plain,
    /// Ours, with its self-tests.
    SelfTest,
    /// The example of `vmbus`.
    Tiny,
}

impl Kernel {
    /// What its file is called inside the nested host.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "kernel",
            Self::SelfTest => "kernel-selftest",
            Self::Tiny => "tiny-kernel",
        }
    }
}

impl Image {
    /// Whether our loader and the firmware are in it.
    #[must_use]
    pub const fn needs_uefi(self) -> bool {
        matches!(self, Self::Uefi { .. })
    }
}

/// What counts as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The verdict is "pass" and the status is that of success.
    Pass,
    /// The status is that of success; there is no UART to hear a verdict from.
    SilentPass,
    /// The guest panics as it was told to: its own status, and QEMU's event with the guest's own report in it.
    Panic,
    /// The same, but it switches the machine off then.
    PanicOff,
    /// There is no Hyper-V: the guest says what it found, and ends with the status for that.
    NoHyperv,
    /// The guest gives a verdict (any) and switches the machine off.
    PowerOff,
    /// The guest gives a verdict (any), resets the machine, and that in this way, to be found in its last words.
    Reset(&'static str),
    /// The kernel never starts; the script ends QEMU.
    NoKernel,
    /// Whatever the script wants; it ends QEMU.
    Script,
}

/// One VM test.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What is booted.
    pub image: Image,
    /// Who executes it.
    pub accelerator: Accelerator,
    /// The clock of the nested host, where that is used.
    pub clock: Clock,
    /// The kernel's command line, without what every run has.
    pub cmdline: &'static str,
    /// Whether the kernel ends after its status table, or waits for somebody to type.
    pub once: bool,
    /// Whether a reset of the machine ends QEMU, as it should, or is only counted.
    pub reboots: bool,
    /// What goes behind `-m`.
    pub memory: &'static str,
    /// Number of processors.
    pub cpus: u32,
    /// More arguments for QEMU.
    pub extra: &'static [&'static str],
    /// What counts as success.
    pub expect: Expect,
    /// How long it may take, on the clock of the machine that runs QEMU.
    pub seconds: u64,
    /// What the runner does meanwhile and checks beyond `expect`.
    pub script: fn() -> Box<dyn Script>,
}

impl Scenario {
    /// The kernel in its image, if there is one.
    #[must_use]
    pub fn kernel(&self) -> Option<Kernel> {
        match self.image {
            Image::Kernel | Image::LinuxEntry | Image::Uefi { .. } => {
                let tests = build::wants_selftests(self.cmdline);
                Some(if tests { Kernel::SelfTest } else { Kernel::Plain })
            }
            Image::TinyKernel => Some(Kernel::Tiny),
            Image::Hello | Image::HelloLinuxEntry => None,
        }
    }
}

/// What the runner does while a guest runs, and checks at its end. Every method may do nothing.
pub trait Script {
    /// Text for people came; `so_far` is all of it.
    ///
    /// # Errors
    ///
    /// As [`Script::mark`].
    fn text(&mut self, _vm: &mut Vm, _so_far: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The guest passed a point.
    ///
    /// # Errors
    ///
    /// An error ends the test: it has failed for this reason.
    fn mark(&mut self, _vm: &mut Vm, _name: &str, _value: &str) -> Result<()> {
        Ok(())
    }

    /// QEMU reported an event.
    ///
    /// # Errors
    ///
    /// As [`Script::mark`].
    fn event(&mut self, _vm: &mut Vm, _name: &str, _data: &Value) -> Result<()> {
        Ok(())
    }

    /// The guest has ended as expected; figures that people want to see go into `figures`.
    ///
    /// # Errors
    ///
    /// As [`Script::mark`].
    fn end(&mut self, _seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        Ok(())
    }
}

/// Everything that was seen of a run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How it ended.
    pub outcome: Outcome,
    /// The text for people.
    pub text: String,
}

/// The result of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Why it failed; nothing if it passed.
    pub failure: Option<String>,
    /// Seconds from the guest's first instruction to its end, on the clock of the machine that ran QEMU.
    pub seconds: f64,
    /// Figures for people.
    pub figures: BTreeMap<String, f64>,
}

struct Guide {
    script: Box<dyn Script>,
    text: Vec<u8>,
}

/// More text than this from one guest is not looked at (the log has it).
const LONGEST_TEXT: usize = 4 << 20;

impl Watcher for Guide {
    fn text(&mut self, vm: &mut Vm, bytes: &[u8]) -> Result<()> {
        if self.text.len() < LONGEST_TEXT {
            self.text.extend_from_slice(bytes);
        }
        self.script.text(vm, &self.text)
    }

    fn line(&mut self, vm: &mut Vm, line: &Line) -> Result<()> {
        match line {
            Line::Mark { name, value } => self.script.mark(vm, name, value),
            _ => Ok(()),
        }
    }

    fn event(&mut self, vm: &mut Vm, name: &str, data: &Value) -> Result<()> {
        self.script.event(vm, name, data)
    }
}

/// What scenarios are run with.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The QEMU that runs the guest.
    pub qemu: Qemu,
    /// The image of our kernel, or of the one that is in its place.
    pub kernel: PathBuf,
    /// For scenarios that boot by UEFI.
    pub uefi: Option<uefi::Parts>,
}

/// Runs a scenario on this machine. Everything that happens goes to `log`; what a script keeps goes into the current folder.
#[must_use]
pub fn run(scenario: &Scenario, tools: &Tools, log: File) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = attempt(scenario, tools, log, &mut verdict) {
        verdict.failure = Some(format!("{error:#}"));
    }
    verdict
}

fn attempt(scenario: &Scenario, tools: &Tools, log: File, verdict: &mut Verdict) -> Result<()> {
    let once = if scenario.once { "once " } else { "" };
    let cmdline = format!("exit=qemu report {once}{}", scenario.cmdline);
    let folder = tempfile::tempdir()?;
    let machine = Machine {
        accelerator: scenario.accelerator,
        start: start(scenario, tools, &cmdline, folder.path())?,
        reboots: scenario.reboots,
        memory: scenario.memory.to_owned(),
        cpus: scenario.cpus,
        uart: scenario.expect != Expect::SilentPass,
        extra: scenario.extra.iter().map(|&word| word.to_owned()).collect(),
    };
    let mut vm = Vm::start(&tools.qemu, &machine, log)?;
    let mut guide = Guide {
        script: (scenario.script)(),
        text: Vec::new(),
    };
    let followed = follow(&mut vm, Some(Duration::from_secs(scenario.seconds)), &mut guide);
    let seen = Seen {
        text: String::from_utf8_lossy(&guide.text).into_owned(),
        outcome: followed?,
    };
    verdict.seconds = seen.outcome.duration.as_secs_f64();
    let result = judge::judge(scenario.expect, scenario.seconds, &seen);
    let result = result.and_then(|()| guide.script.end(&seen, &mut verdict.figures));
    match &result {
        Ok(()) => vm.note("passed"),
        Err(error) => vm.note(&format!("FAILED: {error:#}")),
    }
    result
}

/// A guest whose few instructions mean the same in 32-bit and in 64-bit mode.
fn hello() -> Vec<u8> {
    pvh::hello("hello from the smallest guest\n@@ verdict pass\n", 0x10)
}

/// What the machine starts.
fn start(scenario: &Scenario, tools: &Tools, cmdline: &str, folder: &Path) -> Result<Start> {
    let kernel = || std::fs::read(&tools.kernel).with_context(|| format!("cannot read {}", tools.kernel.display()));
    let content = match scenario.image {
        Image::Kernel | Image::TinyKernel => {
            return Ok(Start::Direct {
                kernel: tools.kernel.clone(),
                cmdline: cmdline.to_owned(),
            });
        }
        Image::Uefi {
            format,
            kernel: file,
            graphics,
        } => {
            let parts = tools.uefi.as_ref().context("the runner was given no loader")?;
            let kernel = on_disk(file, kernel()?);
            let disk = uefi::Disk {
                kernel: kernel.as_deref(),
                command_line: cmdline,
                format,
            };
            return parts.machine(&disk, graphics, folder);
        }
        Image::LinuxEntry => linux64::trampoline(&kernel()?, cmdline, linux64::megabytes(scenario.memory)?)?,
        Image::Hello => hello(),
        Image::HelloLinuxEntry => linux64::trampoline(&hello(), cmdline, linux64::megabytes(scenario.memory)?)?,
    };
    let file = folder.join("image");
    std::fs::write(&file, content)?;
    Ok(Start::Direct {
        kernel: file,
        cmdline: cmdline.to_owned(),
    })
}

/// Makes the last segment of an ELF file want so many bytes of memory.
fn want_memory(kernel: &mut [u8], bytes: u64) {
    const LOAD: u64 = 1;
    let number = |kernel: &[u8], at: usize, size: usize| {
        let bytes = kernel.get(at..at + size).unwrap_or(&[]);
        bytes
            .iter()
            .rev()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let table = usize::try_from(number(kernel, 32, 8)).unwrap_or(0);
    let count = usize::try_from(number(kernel, 56, 2)).unwrap_or(0);
    let headers = (0..count).map(|index| table + 56 * index);
    let segments = headers.filter(|header| number(kernel, *header, 4) == LOAD);
    let last = segments.max_by_key(|header| number(kernel, header + 16, 8));
    if let Some(size) = last.and_then(|header| kernel.get_mut(header + 40..header + 48)) {
        size.copy_from_slice(&bytes.to_le_bytes());
    }
}

/// The file in the kernel's place.
fn on_disk(file: KernelFile, mut kernel: Vec<u8>) -> Option<Vec<u8>> {
    /// Of the machine in an ELF header.
    const MACHINE: std::ops::Range<usize> = 18..20;
    const AARCH64: u16 = 183;
    match file {
        KernelFile::Whole => {}
        KernelFile::Missing => return None,
        KernelFile::Truncated => kernel.truncate(kernel.len() / 2),
        KernelFile::OtherMachine => {
            if let Some(machine) = kernel.get_mut(MACHINE) {
                machine.copy_from_slice(&AARCH64.to_le_bytes());
            }
        }
        KernelFile::TooLarge => want_memory(&mut kernel, 240 << 20),
    }
    Some(kernel)
}
