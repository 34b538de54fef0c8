//! Runs scenarios for `cargo test`: one at a time, those that need KVM in one shared middle Linux where this machine has no usable KVM.
//!
//! Each scenario is a process of the runner (`scenario NAME`), here or inside; its output is its log, written while it runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::host::{self, Kvm};
use crate::nested::middle::{EmulatorBroke, Ground, Middle};
use crate::nested::wire::{Frame, Kind};
use crate::nested::{Clock, Job, paths};
use crate::process::{Child, command};
use crate::progress::{Step, say};
use crate::qemu::Accelerator;
use crate::scenarios::gen2::PICTURE;
use crate::scenarios::{Kernel, Scenario, Verdict};
use crate::{build, session, tools, uefi};

/// The file in which the process of a scenario leaves its [`Verdict`].
pub const RESULT: &str = "result.json";

/// The middle Linux has this long to start.
const START: Duration = Duration::from_secs(300);
/// In real time; a scenario's own deadline is on the clock of its host and comes first unless that host hangs.
const HANG: Duration = Duration::from_secs(300);

/// What every scenario of a test run shares.
#[derive(Debug)]
pub struct Harness {
    runner: PathBuf,
    logs: PathBuf,
    kernels: Mutex<BTreeMap<Kernel, Result<PathBuf, String>>>,
    uefi: Mutex<Option<Result<uefi::Parts, String>>>,
    ground: Mutex<Option<Result<Ground, String>>>,
    groups: Mutex<BTreeMap<&'static str, Receiver<(String, Verdict)>>>,
    selected: Vec<Scenario>,
}

impl Harness {
    /// A harness for the scenarios that are going to run; `runner` is this package's program.
    ///
    /// # Errors
    ///
    /// The folder for logs cannot be made.
    pub fn new(runner: PathBuf, selected: Vec<Scenario>) -> Result<Self> {
        let logs = session::log_folder()?;
        for scenario in &selected {
            // A failure must not show the log of an earlier run.
            let _ = fs::remove_file(logs.join(format!("{}.log", scenario.name)));
        }
        Ok(Self {
            runner,
            logs,
            kernels: Mutex::default(),
            uefi: Mutex::default(),
            ground: Mutex::default(),
            groups: Mutex::default(),
            selected,
        })
    }

    /// Runs a scenario (or waits for its turn) and returns its verdict; a failure names the log.
    #[must_use]
    pub fn run(&self, scenario: &Scenario) -> Verdict {
        let mut verdict = self.attempt(scenario).unwrap_or_else(|error| Verdict {
            failure: Some(format!("{error:#}")),
            ..Verdict::default()
        });
        if let Some(failure) = &mut verdict.failure {
            let log = self.log(scenario.name);
            if log.exists() {
                failure.push_str(&format!("\nfull log: {}", log.display()));
            }
        }
        verdict
    }

    /// The size of the stripped kernel, in bytes.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn kernel_size(&self) -> Result<u64> {
        Ok(fs::metadata(self.kernel(Kernel::Plain)?)?.len())
    }

    /// The size of the UEFI loader, in bytes.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn loader_size(&self) -> Result<u64> {
        Ok(fs::metadata(build::loader()?)?.len())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The image of a kernel, built now unless it was before.
    fn kernel(&self, kernel: Kernel) -> Result<PathBuf> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let built = kernels.entry(kernel).or_insert_with(|| {
            let built = match kernel {
                Kernel::Plain => build::kernel(),
                Kernel::SelfTest => build::kernel_with_selftests(),
                Kernel::Tiny => build::tiny_kernel(),
            };
            built.map_err(|error| format!("{error:#}"))
        });
        built.clone().map_err(|text| anyhow!(text))
    }

    fn attempt(&self, scenario: &Scenario) -> Result<Verdict> {
        let kernel = scenario.kernel().map(|kernel| self.kernel(kernel)).transpose()?;
        let uefi = if scenario.image.needs_uefi() {
            Some(once(&self.uefi, uefi::Parts::prepare)?)
        } else {
            None
        };
        if scenario.accelerator == Accelerator::Plain || host::probe_kvm() == Kvm::Usable {
            return self.here(scenario, kernel.as_deref(), uefi.as_ref());
        }
        let group = match scenario.clock {
            Clock::Real => "real",
            Clock::Steady => "steady",
            Clock::Deterministic => "deterministic",
        };
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if !groups.contains_key(group) {
            let ground = once(&self.ground, Ground::prepare)?;
            groups.insert(group, self.start_group(group, scenario.clock, ground));
        }
        let results = groups.get(group).context("no such group")?;
        let (name, verdict) = results
            .recv()
            .map_err(|_| anyhow!("the thread that runs the middle Linux is gone"))?;
        anyhow::ensure!(
            name == scenario.name,
            "results came out of order: {name} instead of {}",
            scenario.name
        );
        Ok(verdict)
    }

    /// Runs a scenario on this very machine.
    fn here(&self, scenario: &Scenario, kernel: Option<&Path>, uefi: Option<&uefi::Parts>) -> Result<Verdict> {
        // Outside the process with the deadline, so that it can show progress.
        tools::qemu()?;
        let folder = tempfile::tempdir()?;
        let log = File::create(self.log(scenario.name))?;
        let mut runner = command(&self.runner);
        runner
            .args(["scenario", scenario.name, "--kernel"])
            .arg(kernel.unwrap_or(Path::new("none")))
            .args(uefi.map(uefi::Parts::arguments).unwrap_or_default());
        runner
            .current_dir(folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = Child::spawn(&mut runner)?;
        let status = child
            .wait_for(HANG)?
            .with_context(|| format!("the runner hung for {} s", HANG.as_secs()))?;
        let result = fs::read(folder.path().join(RESULT))
            .with_context(|| format!("the runner ended without a result ({status})"))?;
        if let Ok(picture) = fs::read(folder.path().join(PICTURE)) {
            fs::write(self.log(scenario.name).with_extension("png"), picture)?;
        }
        Ok(serde_json::from_slice(&result)?)
    }

    fn start_group(&self, group: &'static str, clock: Clock, ground: Ground) -> Receiver<(String, Verdict)> {
        let ours = |scenario: &&Scenario| scenario.clock == clock && scenario.accelerator == Accelerator::Hyperv;
        let mut scenarios: Vec<Scenario> = self.selected.iter().filter(ours).copied().collect();
        let mut kernels = BTreeMap::new();
        // Those whose kernel cannot be built have failed, or will, with the reason.
        scenarios.retain(|scenario| {
            let Some(kernel) = scenario.kernel() else { return true };
            let built = self.kernel(kernel);
            let is_there = built.is_ok();
            kernels.extend(built.map(|path| (kernel.name(), path)));
            is_there
        });
        let mut uefi = None;
        if scenarios.iter().any(|scenario| scenario.image.needs_uefi()) {
            uefi = once(&self.uefi, uefi::Parts::prepare).ok();
        }
        if uefi.is_none() {
            scenarios.retain(|scenario| !scenario.image.needs_uefi());
        }
        let (sender, results) = mpsc::channel();
        let group = Group {
            name: group,
            clock,
            ground,
            runner: self.runner.clone(),
            logs: self.logs.clone(),
            kernels,
            uefi,
        };
        // This thread starts QEMU, which dies with it, and lives until the last result.
        std::thread::spawn(move || group.run(&scenarios, &sender));
        results
    }
}

/// Makes something the first time, and remembers its failure as well.
fn once<T: Clone>(slot: &Mutex<Option<Result<T, String>>>, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let made = slot.get_or_insert_with(|| make().map_err(|error| format!("{error:#}")));
    made.clone().map_err(|text| anyhow!(text))
}

/// Scenarios that share a middle Linux.
struct Group {
    name: &'static str,
    clock: Clock,
    ground: Ground,
    runner: PathBuf,
    logs: PathBuf,
    /// By their names inside.
    kernels: BTreeMap<&'static str, PathBuf>,
    uefi: Option<uefi::Parts>,
}

impl Group {
    /// Runs all; where the middle Linux breaks, the scenario that ran has failed, and the others get one more middle Linux. Where that
    /// was the emulator's own mistake, which says nothing of the guest, the scenario runs again, twice in a group at most.
    fn run(&self, scenarios: &[Scenario], results: &Sender<(String, Verdict)>) {
        let mut done = 0;
        let mut lives = 2;
        let mut spare = 2;
        while lives > 0 && done < scenarios.len() {
            let rest = scenarios.get(done..).unwrap_or_default();
            let Err(error) = self.some(rest, &mut done, results) else {
                return;
            };
            let name = scenarios.get(done).map_or("", |scenario| scenario.name);
            if spare > 0 && error.is::<EmulatorBroke>() {
                spare -= 1;
                say(&format!(
                    "QEMU's emulator broke (a mistake of its own): {name} runs again"
                ));
                continue;
            }
            lives -= 1;
            let failure = Some(format!("the nested host broke while it ran this test: {error:#}"));
            let _ = results.send((
                name.to_owned(),
                Verdict {
                    failure,
                    ..Verdict::default()
                },
            ));
            done += 1;
        }
        for scenario in scenarios.get(done..).unwrap_or_default() {
            let failure = Some("not run: the nested host broke twice before".to_owned());
            let _ = results.send((
                scenario.name.to_owned(),
                Verdict {
                    failure,
                    ..Verdict::default()
                },
            ));
        }
    }

    /// Runs scenarios in one middle Linux and counts those that are done.
    fn some(&self, scenarios: &[Scenario], done: &mut usize, results: &Sender<(String, Verdict)>) -> Result<()> {
        let job = |scenario: &Scenario| {
            let name = scenario.kernel().unwrap_or(Kernel::Plain).name();
            let kernel = format!("{}/{name}", paths::FILES);
            let mut arguments = ["scenario", scenario.name, "--kernel", &kernel]
                .map(str::to_owned)
                .to_vec();
            if scenario.image.needs_uefi() {
                arguments.extend(uefi::Parts::inside().arguments());
            }
            Job {
                arguments,
                input: false,
            }
        };
        let jobs = scenarios.iter().map(job).collect();
        let mut files: Vec<(String, PathBuf)> = self.uefi.as_ref().map(uefi::Parts::files).unwrap_or_default();
        let kernels = self.kernels.iter();
        files.extend(kernels.map(|(&name, path)| (name.to_owned(), path.clone())));
        let console = self.logs.join(format!("middle-{}.log", self.name));
        let step = Step::start("starting the middle Linux, in which KVM has Hyper-V");
        let mut middle = Middle::start(&self.ground, self.clock, &self.runner, jobs, &files, &console)?;
        let up = middle.next(START)?;
        anyhow::ensure!(up.kind == Kind::Up, "the middle Linux began with {:?}", up.kind);
        let uptime = String::from_utf8_lossy(&up.payload)
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned();
        step.done(&format!("the middle Linux is up, on its own clock after {uptime} s"));
        for scenario in scenarios {
            let verdict = one(&mut middle, &self.logs.join(format!("{}.log", scenario.name)))?;
            *done += 1;
            if results.send((scenario.name.to_owned(), verdict)).is_err() {
                bail!("nobody waits for results");
            }
        }
        middle.finish();
        Ok(())
    }
}

/// Receives one job's frames.
fn one(middle: &mut Middle, path: &Path) -> Result<Verdict> {
    let mut log = File::create(path)?;
    let mut verdict = None;
    loop {
        let Frame { kind, payload, .. } = middle.next(HANG)?;
        match kind {
            Kind::Out | Kind::Err => log.write_all(&payload)?,
            Kind::File => {
                if let Some(content) = payload
                    .strip_prefix(RESULT.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"\0"))
                {
                    verdict = Some(serde_json::from_slice(content)?);
                }
                let picture = payload
                    .strip_prefix(PICTURE.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"\0"));
                if let Some(picture) = picture {
                    fs::write(path.with_extension("png"), picture)?;
                }
            }
            Kind::Exit => {
                let status = String::from_utf8_lossy(&payload).into_owned();
                let failure = || Some(format!("the runner inside ended without a result (status {status})"));
                return Ok(verdict.unwrap_or_else(|| Verdict {
                    failure: failure(),
                    ..Verdict::default()
                }));
            }
            Kind::Up | Kind::Begin | Kind::Trouble | Kind::In | Kind::Stop => {}
        }
    }
}
