//! One run of the kernel for a person: `cargo run`, and `cargo run --package kernel` through `run PATH`.
//!
//! The guest's text goes to standard output, what is typed goes to the guest. [`boot()`] decides for a host: this machine's
//! KVM, or the same program with the same options inside the nested host, with everything passed through. Terminal and keys are in
//! [`terminal`](crate::terminal), the log's file in [`logs`](crate::logs).

mod nested;

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boot::image::KernelImage;

use crate::guest::Verdict;
use crate::host::{self, Choice, Host};
use crate::image::Format;
use crate::logs::LogFile;
use crate::progress::say;
use crate::qemu::{Accelerator, Machine, Start};
use crate::scenarios::judge::status;
use crate::terminal::{Filter, Terminal, read_keys};
use crate::uefi::{Disk, Parts};
use crate::vm::{Ending, Event, Outcome, Vm, Watcher, follow};
use crate::{build, cli, openvmm, tools};

/// What the keys do while a guest runs.
const KEYS: &str = "Ctrl-C or Ctrl-A x ends the run, Ctrl-A c and Ctrl-A a send Ctrl-C and Ctrl-A to the guest";

/// How long a run that ends by itself may take, if the user does not say.
const DEFAULT_TIMEOUT: u64 = 120;

/// A year: no limit.
const FOREVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Files that a job leaves for the outside.
const LOG: &str = "guest.log";
const REPORT: &str = "report.json";

/// Runs the kernel (`image`, or ours, built now) as the user asked. True if all went well.
///
/// # Errors
///
/// What went wrong before or outside the guest.
pub fn boot(options: &cli::Boot, image: Option<&Path>) -> Result<bool> {
    let (host, why) = host::decide(options.host, &host::probe_kvm())?;
    if !options.relayed {
        say(&format!("host: {why}"));
    }
    if options.deterministic && host == Host::Kvm && !options.relayed {
        bail!("--deterministic needs the nested host: add `--host nested`");
    }
    let openvmm = match options.host {
        Choice::Openvmm => Some(openvmm::find()?),
        _ => None,
    };
    let built;
    let image = match image {
        Some(image) => image,
        None => {
            built = build::kernel_for(&options.cmdline)?;
            &built
        }
    };
    let parts = match &openvmm {
        None if by_uefi(options, image)? => Some(Parts::prepare()?),
        _ => None,
    };
    match (host, openvmm) {
        (Host::Kvm, Some(program)) => openvmm_here(options, image, &[program.to_string_lossy().into_owned()]),
        (Host::Kvm, None) if !options.openvmm.is_empty() => openvmm_here(options, image, &options.openvmm),
        (Host::Kvm, None) => local(options, image, parts.or_else(|| options.uefi.parts()).as_ref()),
        (Host::Nested, openvmm) => nested::run(options, image, parts.as_ref(), openvmm.as_deref()),
    }
}

/// Whether `image` is to be booted by UEFI: unless the user or a runner outside decided otherwise, or our loader does not know it.
fn by_uefi(options: &cli::Boot, image: &Path) -> Result<bool> {
    if options.direct || options.relayed {
        return Ok(false);
    }
    let file = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    if let Err(why) = KernelImage::parse(&file) {
        say(&format!(
            "{} is booted directly: for our UEFI loader {why}",
            image.display()
        ));
        return Ok(false);
    }
    Ok(true)
}

/// Whether the run ends by itself.
fn once(options: &cli::Boot) -> bool {
    options.once || !(options.relayed || std::io::stdin().is_terminal())
}

fn command_line(options: &cli::Boot) -> String {
    let mut line = String::from("report");
    if !options.cmdline.split_whitespace().any(|word| word.starts_with("exit=")) {
        line.push_str(" exit=qemu");
    }
    if once(options) {
        line.push_str(" once");
    }
    if !options.cmdline.is_empty() {
        line.push(' ');
        line.push_str(&options.cmdline);
    }
    line
}

fn limit(options: &cli::Boot) -> Option<Duration> {
    options
        .timeout
        .or_else(|| once(options).then_some(DEFAULT_TIMEOUT))
        .map(Duration::from_secs)
}

fn local(options: &cli::Boot, image: &Path, parts: Option<&Parts>) -> Result<bool> {
    let qemu = tools::qemu()?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let cmdline = command_line(options);
    let start = match parts {
        Some(parts) => {
            let kernel = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
            // The firmware reads slowly, and the loader has no use for the rest.
            let kernel = build::strip(&kernel).unwrap_or(kernel);
            let disk = Disk {
                kernel: Some(&kernel),
                command_line: &cmdline,
                format: Format::Raw,
            };
            parts.machine(&disk, true, folder.path())?
        }
        None => Start::Direct {
            kernel: image.to_path_buf(),
            cmdline,
        },
    };
    let mut extra = vec!["-device".to_owned(), "hv-balloon,status-report=on".to_owned()];
    extra.extend(options.extra.iter().cloned());
    let machine = Machine {
        accelerator: Accelerator::Hyperv,
        start,
        reboots: false,
        memory: options.memory.clone(),
        cpus: options.cpus,
        uart: true,
        extra,
    };
    let log = log_file(options)?;
    let mut vm = Vm::start(&qemu, &machine, log.file()?)?;
    let terminal = if options.relayed {
        let queue = vm.queue();
        std::thread::spawn(move || relay_input(&queue));
        None
    } else if once(options) {
        None
    } else {
        say(KEYS);
        let terminal = Terminal::raw()?;
        let queue = vm.queue();
        std::thread::spawn(move || read_keys(&mut |key| queue.send(key).is_ok()));
        terminal
    };
    let outcome = follow(&mut vm, limit(options), &mut Console::default())?;
    drop(terminal);
    finish(options, &outcome, &log)
}

/// Runs the kernel in OpenVMM on this machine.
fn openvmm_here(options: &cli::Boot, image: &Path, program: &[String]) -> Result<bool> {
    let log = log_file(options)?;
    let machine = openvmm::Machine {
        program,
        kernel: image,
        // There is no isa-debug-exit.
        cmdline: format!("exit=poweroff {}", command_line(options)).replace(" exit=qemu", ""),
        memory: &options.memory,
        cpus: options.cpus,
        extra: &options.extra,
    };
    let interactive = !once(options);
    let (queue, events) = std::sync::mpsc::channel();
    let terminal = if interactive && !options.relayed {
        say(KEYS);
        Terminal::raw()?
    } else {
        None
    };
    if interactive {
        let queue = queue.clone();
        if options.relayed {
            std::thread::spawn(move || relay_input(&queue));
        } else {
            std::thread::spawn(move || read_keys(&mut |key| queue.send(key).is_ok()));
        }
    }
    let mut console = Console::default();
    let outcome = openvmm::run(
        &machine,
        queue,
        &events,
        limit(options),
        &mut log.file()?,
        &mut |text| console.show(text),
    )?;
    drop(terminal);
    finish(options, &outcome, &log)
}

/// What is done after a run on this machine.
fn finish(options: &cli::Boot, outcome: &Outcome, log: &LogFile) -> Result<bool> {
    if let (Some(report), Some(file)) = (&outcome.report, report_file(options)) {
        write_report(&file, serde_json::to_string_pretty(report)?.as_bytes())?;
    }
    let result = verdict(outcome, options);
    if !options.relayed {
        conclude(result.as_ref().err().map(String::as_str), options, log.path());
    } else if let Err(why) = &result {
        say(why);
    }
    Ok(result.is_ok())
}

fn report_file(options: &cli::Boot) -> Option<PathBuf> {
    if options.relayed {
        Some(PathBuf::from(REPORT))
    } else {
        options.report.clone()
    }
}

fn write_report(file: &Path, content: &[u8]) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write the report to {}", file.display()))
}

/// Whether a person would say that it worked; otherwise what did not.
fn verdict(outcome: &Outcome, options: &cli::Boot) -> Result<(), String> {
    if let Some(Verdict::Fail(reason)) = &outcome.verdict {
        return Err(format!("the guest says: {reason}"));
    }
    match (outcome.killed, outcome.status) {
        (Some(Ending::Quit), _) | (None, Some(status::PASS)) => Ok(()),
        (Some(Ending::Deadline), _) => Err(format!(
            "the guest did not end within {} s (--timeout)",
            limit(options).unwrap_or_default().as_secs()
        )),
        // Powered off or restarted, as a guest may that was told nothing else.
        (None, Some(0)) if outcome.verdict.is_some() || options.cmdline.contains("exit=") => Ok(()),
        (None, Some(0)) => {
            Err("the machine was reset or powered off before the guest was done: a triple fault?".to_owned())
        }
        (None, Some(status::PANIC)) => Err("the guest panicked".to_owned()),
        (None, Some(status::NO_HYPERV)) => Err("the guest found no Hyper-V".to_owned()),
        (None, status) => Err(format!("QEMU ended with status {status:?}")),
    }
}

fn conclude(failure: Option<&str>, options: &cli::Boot, log: &Path) {
    match failure {
        Some(why) => say(&format!("failed: {why}\nfull log: {}", log.display())),
        None if options.keep_logs => say(&format!("full log: {}", log.display())),
        None => {}
    }
}

/// The log of this run.
fn log_file(options: &cli::Boot) -> Result<LogFile> {
    if options.relayed {
        LogFile::relayed(Path::new(LOG))
    } else {
        LogFile::take(&log_folder()?, options.keep_logs)
    }
}

/// The folder for logs: `vm-logs` in the target folder in which this program lies.
///
/// # Errors
///
/// It cannot be made.
pub fn log_folder() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    // target/debug/qemu-tests, or target/debug/deps/vm-0123456789abcdef.
    let mut folder = me.parent().unwrap_or(Path::new("."));
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let folder = folder.parent().unwrap_or(folder).join("vm-logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Shows the guest's text.
#[derive(Debug, Default)]
struct Console {
    filter: Filter,
}

impl Console {
    fn show(&mut self, bytes: &[u8]) -> Result<()> {
        let text = self.filter.feed(bytes);
        let mut out = std::io::stdout().lock();
        out.write_all(&text)
            .and_then(|()| out.flush())
            .context("standard output is closed")
    }
}

impl Watcher for Console {
    fn text(&mut self, _vm: &mut Vm, bytes: &[u8]) -> Result<()> {
        self.show(bytes)
    }
}

fn relay_input(queue: &Sender<Event>) {
    let mut buffer = [0; 1024];
    let mut stdin = std::io::stdin();
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        if queue
            .send(Event::Typed(buffer.get(..count).unwrap_or_default().to_vec()))
            .is_err()
        {
            return;
        }
    }
}
