//! The middle Linux, seen from outside: starts it, passes frames, ends it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wire::{Frame, Kind};
use super::{Clock, Job, Plan, initramfs};
use crate::process::{Child, tail};
use crate::qemu::Qemu;
use crate::tools::{self, kernel::Kernel};

/// What the nested host is made of.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The QEMU that emulates the machine, and a copy of which runs inside.
    pub qemu: Qemu,
    /// The middle Linux.
    pub kernel: Kernel,
    /// The first archive of its initramfs.
    pub base: PathBuf,
}

impl Ground {
    /// Finds or gets everything.
    ///
    /// # Errors
    ///
    /// What is missing, and what to install.
    pub fn prepare() -> Result<Self> {
        let qemu = tools::emulator()?;
        let kernel = tools::middle_kernel()?;
        let base = initramfs::base(&qemu, &kernel)?;
        Ok(Self { qemu, kernel, base })
    }
}

/// What QEMU's emulator says when it breaks as in [`EmulatorBroke`].
const ASSERTION: &str = "tcg_handle_interrupt: assertion failed";

/// The error of [`Middle::next`] for an end that is QEMU's own fault and nobody else's: another start may well go to its end.
///
/// QEMU 10 writes the task priority (`mov cr8`) of a nested guest without its big lock; where an interrupt window is open just then, an
/// assertion of the emulator ends it. UEFI firmware gets there now and then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulatorBroke(String);

impl EmulatorBroke {
    /// With what is known of the end.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl std::fmt::Display for EmulatorBroke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nThis is a mistake of QEMU's emulator: start it again.", self.0)
    }
}

impl std::error::Error for EmulatorBroke {}

/// A running middle Linux; dropping it ends it with everything inside.
#[derive(Debug)]
pub struct Middle {
    child: Child,
    stdin: Arc<Mutex<ChildStdin>>,
    frames: Receiver<Result<Frame, String>>,
    console: PathBuf,
    _initramfs: File,
}

/// The sending half of the wire.
#[derive(Clone, Debug)]
pub struct Input(Arc<Mutex<ChildStdin>>);

impl Input {
    /// Sends a frame; false if the machine is gone.
    #[must_use]
    pub fn send(&self, frame: &Frame) -> bool {
        let stdin = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&*stdin).is_ok()
    }
}

impl Middle {
    /// Starts the machine with `jobs`; its own console goes to the file `console`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or written, or QEMU that does not start.
    pub fn start(
        ground: &Ground,
        clock: Clock,
        runner: &Path,
        jobs: Vec<Job>,
        files: &[(String, PathBuf)],
        console: &Path,
    ) -> Result<Self> {
        let modules = ground.kernel.modules.iter().map(|(name, _)| name.clone()).collect();
        let initramfs = initramfs::assemble(&ground.base, runner, &Plan { jobs, modules }, files)?;
        let initramfs_path = format!("/proc/{}/fd/{}", std::process::id(), initramfs.as_raw_fd());
        let mut command = ground.qemu.command();
        match clock {
            Clock::Real => command.args(["-accel", "tcg,thread=multi", "-smp", "2"]),
            Clock::Steady => command.args(["-accel", "tcg", "-icount", "shift=0,sleep=on", "-smp", "1"]),
            Clock::Deterministic => command.args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1"]),
        };
        command.args(["-cpu", "EPYC,+svm,+npt", "-machine", "q35", "-m", "3G"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-chardev", "stdio,id=wire,signal=off", "-serial", "chardev:wire"]);
        command
            .arg("-kernel")
            .arg(&ground.kernel.image)
            .arg("-initrd")
            .arg(initramfs_path);
        command.args([
            "-append",
            "console=ttyS0 panic=-1 quiet random.trust_cpu=on tsc=reliable mitigations=off",
        ]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Child::spawn(&mut command).context("cannot start QEMU")?;
        let pipes = child.pipes();
        let stdin = pipes.stdin.take().context("no pipe to QEMU")?;
        let stdout = pipes.stdout.take().context("no pipe from QEMU")?;
        let stderr = pipes.stderr.take().context("no pipe from QEMU")?;
        let (sender, frames) = mpsc::channel();
        let complaints = std::thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(std::result::Result::ok)
                .collect::<Vec<String>>()
                .join("\n")
        });
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let end = loop {
                match Frame::read(&mut reader) {
                    Ok(Some(frame)) => {
                        if sender.send(Ok(frame)).is_err() {
                            return;
                        }
                    }
                    Ok(None) => break String::new(),
                    Err(error) => break format!("the wire is damaged: {error}"),
                }
            };
            let complaints = complaints.join().unwrap_or_default();
            let _ = sender.send(Err(format!("{end} {complaints}").trim().to_owned()));
        });
        Ok(Self {
            child,
            stdin: Arc::new(Mutex::new(stdin)),
            frames,
            console: console.to_path_buf(),
            _initramfs: initramfs,
        })
    }

    /// The sending half of the wire.
    #[must_use]
    pub fn input(&self) -> Input {
        Input(Arc::clone(&self.stdin))
    }

    /// The next frame within `patience` of real time.
    ///
    /// # Errors
    ///
    /// The middle Linux ended, hangs or is in trouble; the text has the end of its console. [`EmulatorBroke`] if it was QEMU's fault.
    pub fn next(&mut self, patience: Duration) -> Result<Frame> {
        match self.frames.recv_timeout(patience) {
            Ok(Ok(frame)) if frame.kind == Kind::Trouble => {
                bail!(
                    "trouble in the middle Linux: {}",
                    String::from_utf8_lossy(&frame.payload)
                )
            }
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(complaints)) => {
                let status = self.child.wait_for(Duration::from_secs(5))?;
                let status = status.map_or_else(|| "still running".to_owned(), |status| status.to_string());
                let is_assertion = complaints.contains(ASSERTION);
                let trouble = format!(
                    "the middle Linux ended early ({status}) {complaints}\n{}",
                    self.last_words()
                );
                if is_assertion {
                    bail!(EmulatorBroke::new(trouble));
                }
                bail!(trouble)
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "nothing came from the middle Linux for {} s\n{}",
                    patience.as_secs(),
                    self.last_words()
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the middle Linux has ended\n{}", self.last_words()),
        }
    }

    /// Waits for the machine to power itself off after its last job.
    pub fn finish(mut self) {
        if !matches!(self.child.wait_for(Duration::from_secs(10)), Ok(Some(_))) {
            self.child.kill();
        }
    }

    /// The end of the middle Linux's own console, and where the rest is.
    fn last_words(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        format!(
            "{}\n(its console: {})",
            tail(&String::from_utf8_lossy(&text), 12),
            self.console.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Version;

    /// What comes of a machine whose emulator says `complaint` and ends.
    fn end_with(complaint: &str) -> anyhow::Error {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::write(&base, "").unwrap();
        let script = format!("echo 'ERROR:accel/tcg/tcg-accel-ops.c:{complaint}' >&2; kill -ABRT $$");
        let ground = Ground {
            qemu: Qemu {
                program: ["sh", "-c", &script].map(str::to_owned).to_vec(),
                environment: Vec::new(),
                firmware: Vec::new(),
                version: Version::OLDEST_EMULATOR,
            },
            kernel: Kernel {
                version: String::new(),
                image: base.clone(),
                modules: Vec::new(),
            },
            base,
        };
        let runner = std::env::current_exe().unwrap();
        let console = folder.path().join("console");
        let mut middle = Middle::start(&ground, Clock::Real, &runner, Vec::new(), &[], &console).unwrap();
        middle.next(Duration::from_secs(60)).unwrap_err()
    }

    #[test]
    fn the_emulators_own_mistake_is_told_from_other_ends() {
        let error = end_with("79:tcg_handle_interrupt: assertion failed: (bql_locked())");
        assert!(error.is::<EmulatorBroke>(), "{error:#}");
        assert!(error.to_string().contains("bql_locked"), "{error:#}");
        let error = end_with("80:something_else: assertion failed");
        assert!(!error.is::<EmulatorBroke>(), "{error:#}");
        assert!(error.to_string().contains("something_else"), "{error:#}");
    }
}
