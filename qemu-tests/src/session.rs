//! One run of the kernel for a person: `cargo run`, and `cargo run --package kernel` through `run PATH`.
//!
//! The guest's text goes to standard output, what is typed goes to the guest. [`boot`] decides for a host: this machine's
//! KVM, or the same program with the same options inside the nested host, with everything passed through.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

use crate::guest::Verdict;
use crate::host::{self, Host};
use crate::nested::middle::{Ground, Middle};
use crate::nested::wire::{Frame, Kind};
use crate::nested::{Clock, Job, paths};
use crate::progress::{Step, say};
use crate::qemu::{Accelerator, Machine, Start};
use crate::scenarios::judge::status;
use crate::vm::{Ending, Event, Outcome, Vm, Watcher, follow};
use crate::{build, cli, tools};

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
    let built;
    let image = match image {
        Some(image) => image,
        None => {
            built = build::kernel()?;
            &built
        }
    };
    match host {
        Host::Kvm => local(options, image),
        Host::Nested => nested(options, image),
    }
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

fn local(options: &cli::Boot, image: &Path) -> Result<bool> {
    let qemu = tools::qemu()?;
    let machine = Machine {
        accelerator: Accelerator::Hyperv,
        start: Start::Direct {
            kernel: image.to_path_buf(),
            cmdline: command_line(options),
        },
        reboots: false,
        memory: options.memory.clone(),
        cpus: options.cpus,
        uart: true,
        extra: vec!["-device".to_owned(), "hv-balloon,status-report=on".to_owned()],
    };
    let log = if options.relayed {
        PathBuf::from(LOG)
    } else {
        log_file(options)?
    };
    let mut vm = Vm::start(
        &qemu,
        &machine,
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
    )?;
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
    let outcome = follow(&mut vm, limit(options), &mut Console)?;
    drop(terminal);
    if let (Some(report), Some(file)) = (&outcome.report, report_file(options)) {
        write_report(&file, serde_json::to_string_pretty(report)?.as_bytes())?;
    }
    let result = verdict(&outcome, options);
    if !options.relayed {
        conclude(result.as_ref().err().map(String::as_str), options, &log);
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

/// The log of this run: of its own with `--keep-logs`, otherwise the one of the last run is overwritten.
fn log_file(options: &cli::Boot) -> Result<PathBuf> {
    let folder = log_folder()?;
    let name = if options.keep_logs {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        format!("boot-{}.log", now.as_secs())
    } else {
        "boot.log".to_owned()
    };
    Ok(folder.join(name))
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

struct Console;

impl Watcher for Console {
    fn text(&mut self, _vm: &mut Vm, bytes: &[u8]) -> Result<()> {
        print(bytes)
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("standard output is closed")
}

fn nested(options: &cli::Boot, image: &Path) -> Result<bool> {
    let ground = Ground::prepare()?;
    let log = log_file(options)?;
    let mut arguments: Vec<String> = ["run", "--host", "kvm", "--relayed"].map(str::to_owned).to_vec();
    arguments.extend([
        format!("--cpus={}", options.cpus),
        format!("--memory={}", options.memory),
    ]);
    arguments.push(format!("--cmdline={}", options.cmdline));
    if once(options) {
        arguments.push("--once".to_owned());
    }
    if let Some(limit) = limit(options) {
        arguments.push(format!("--timeout={}", limit.as_secs()));
    }
    arguments.push(format!("{}/kernel", paths::FILES));
    let job = Job { arguments, input: true };
    let clock = if options.deterministic {
        Clock::Deterministic
    } else {
        Clock::Real
    };
    let console = log.with_extension("middle.log");
    let runner = std::env::current_exe()?;
    let step = Step::start("starting the middle Linux, in which KVM has Hyper-V");
    let mut middle = Middle::start(
        &ground,
        clock,
        &runner,
        vec![job],
        &[("kernel".to_owned(), image.to_path_buf())],
        &console,
    )?;
    let mut patience = Duration::from_secs(300);
    let mut step = Some(step);
    let mut terminal = None;
    let mut text = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let (mut whole_log, mut failure) = (false, None);
    loop {
        let frame = middle.next(patience)?;
        match frame.kind {
            Kind::Up => {}
            Kind::Begin => {
                if let Some(step) = step.take() {
                    step.done("the middle Linux is up");
                }
                patience = if once(options) {
                    Duration::from_secs(900)
                } else {
                    FOREVER
                };
                if !once(options) {
                    say(KEYS);
                    terminal = Terminal::raw()?;
                    let input = middle.input();
                    std::thread::spawn(move || read_keys(&mut |key| input.send(&key_frame(key))));
                }
            }
            Kind::Out => {
                text.write_all(&frame.payload)?;
                print(&frame.payload)?;
            }
            Kind::Err => {
                let said = String::from_utf8_lossy(&frame.payload).trim_end().to_owned();
                if !said.is_empty() {
                    say(&said);
                    failure = Some(said);
                }
            }
            Kind::File => {
                let end = frame
                    .payload
                    .iter()
                    .position(|&byte| byte == 0)
                    .context("a file without a name")?;
                let (name, content) = frame.payload.split_at(end);
                let content = content.get(1..).unwrap_or_default();
                match (name, &options.report) {
                    (name, Some(report)) if name == REPORT.as_bytes() => write_report(report, content)?,
                    (name, _) if name == LOG.as_bytes() => {
                        fs::write(&log, content)?;
                        whole_log = true;
                    }
                    _ => {}
                }
            }
            Kind::Exit => {
                drop(terminal);
                let ended = String::from_utf8_lossy(&frame.payload).into_owned();
                middle.finish();
                // "killed": the user left.
                let good = ended == "0" || ended == "killed";
                let why = (!good).then(|| failure.unwrap_or_else(|| format!("the runner inside ended with {ended}")));
                debug_assert!(whole_log || ended == "killed");
                conclude(why.as_deref(), options, &log);
                return Ok(good);
            }
            Kind::In | Kind::Stop | Kind::Trouble => {}
        }
    }
}

fn key_frame(key: Event) -> Frame {
    match key {
        Event::Typed(bytes) => Frame::new(Kind::In, 0, bytes),
        _ => Frame::new(Kind::Stop, 0, ""),
    }
}

/// The terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
struct Terminal {
    before: Termios,
}

impl Terminal {
    fn raw() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Our own lines end with a bare newline.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
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

/// Reads what the user types until `send` refuses.
fn read_keys(send: &mut dyn FnMut(Event) -> bool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 1024];
    let mut stdin = std::io::stdin();
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        for event in keys.feed(buffer.get(..count).unwrap_or_default()) {
            if !send(event) {
                return;
            }
        }
    }
}

/// Tells keys for us from keys for the guest.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        const CTRL_A: u8 = 1;
        const CTRL_C: u8 = 3;
        let mut events = Vec::new();
        let mut typed = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x') | (false, CTRL_C) => {
                    events.push(Event::Quit);
                    return events;
                }
                (true, b'c') => typed.push(CTRL_C),
                (true, b'a') => typed.push(CTRL_A),
                (_, byte) => typed.push(byte),
            }
        }
        if !typed.is_empty() {
            events.push(Event::Typed(typed));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let mut keys = Keys::default();
        let mut shown = |bytes: &[u8]| format!("{:?}", keys.feed(bytes));
        assert_eq!(shown(b"ab"), "[Typed([97, 98])]");
        assert_eq!(shown(b"\x01"), "[]");
        assert_eq!(shown(b"a\x01c"), "[Typed([1, 3])]");
        assert_eq!(shown(b"\x01x"), "[Quit]");
        assert_eq!(shown(b"\x03"), "[Quit]");
        assert_eq!(shown(b"x"), "[Typed([120])]");
    }
}
