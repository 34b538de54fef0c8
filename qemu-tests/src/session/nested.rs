//! A run in the nested host, seen from outside: what the guest says is shown, what is typed is passed on, its files are kept.
//!
//! UEFI firmware in a nested guest ends QEMU's emulator now and then ([`EmulatorBroke`]). While nobody but the firmware has said anything,
//! nothing is lost by starting anew, and that is what is done.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Console, FOREVER, KEYS, LOG, REPORT, conclude, limit, log_file, once, write_report};
use crate::cli;
use crate::logs::LogFile;
use crate::nested::middle::{EmulatorBroke, Ground, Input, Middle};
use crate::nested::wire::{Frame, Kind};
use crate::nested::{Clock, Job, paths};
use crate::openvmm;
use crate::progress::{Step, say};
use crate::terminal::{Terminal, read_keys};
use crate::uefi::Parts;
use crate::vm::Event;

/// What a person should know who types into a guest that booted by UEFI in the nested host.
const STEADY: &str =
    "(one processor at a time, for the firmware's sake: answers take a second or two; --direct is faster)";

/// How often a run is started in all, if the emulator breaks each time.
const STARTS: u32 = 4;

/// What the lines of UEFI firmware on the serial port begin with.
const FIRMWARE: &str = "BdsDxe:";

/// Runs `image` in the nested host. True if all went well.
///
/// # Errors
///
/// What went wrong outside the guest.
pub(super) fn run(options: &cli::Boot, image: &Path, parts: Option<&Parts>, openvmm: Option<&Path>) -> Result<bool> {
    let ground = Ground::prepare()?;
    let log = log_file(options)?;
    let mut files = vec![("kernel".to_owned(), image.to_path_buf())];
    let mut arguments = arguments(options);
    if let Some(parts) = parts {
        files.extend(parts.files());
        arguments.extend(Parts::inside().arguments());
    }
    if let Some(program) = openvmm {
        let along = openvmm::inside(program)?;
        files.extend(along.files);
        arguments.extend(along.program.iter().map(|word| format!("--openvmm={word}")));
    }
    arguments.extend(options.extra.iter().map(|word| format!("--argument={word}")));
    arguments.push(format!("{}/kernel", paths::FILES));
    let clock = match (options.deterministic, parts.is_some(), once(options)) {
        (true, _, _) | (_, true, true) => Clock::Deterministic,
        (_, true, false) => Clock::Steady,
        _ => Clock::Real,
    };
    let runner = std::env::current_exe()?;
    let console = log.path().with_extension("middle.log");
    let keys = Keys::default();
    until_the_guest_speaks(|said| {
        let job = Job {
            arguments: arguments.clone(),
            input: true,
        };
        let step = Step::start("starting the middle Linux, in which KVM has Hyper-V");
        let middle = Middle::start(&ground, clock, &runner, vec![job], &files, &console)?;
        let mut life = Life {
            options,
            log: &log,
            keys: &keys,
            is_steady: clock == Clock::Steady,
            by_firmware: parts.is_some(),
            said,
        };
        life.follow(middle, step)
    })
}

/// Begins `life` anew where the emulator broke before the guest itself had said anything.
fn until_the_guest_speaks(mut life: impl FnMut(&mut Said) -> Result<bool>) -> Result<bool> {
    let mut starts = 1;
    loop {
        let mut said = Said::default();
        match life(&mut said) {
            Err(error) if starts < STARTS && error.is::<EmulatorBroke>() && said.is_firmware() => {
                starts += 1;
                say("QEMU's emulator broke before the guest had said anything (a mistake of its own): starting again");
            }
            result => return result,
        }
    }
}

/// What the runner inside is told.
fn arguments(options: &cli::Boot) -> Vec<String> {
    let mut arguments: Vec<String> = ["run", "--host", "kvm", "--relayed"].map(str::to_owned).to_vec();
    arguments.extend([
        format!("--cpus={}", options.cpus),
        format!("--memory={}", options.memory),
        format!("--cmdline={}", options.cmdline),
    ]);
    if once(options) {
        arguments.push("--once".to_owned());
    }
    if let Some(limit) = limit(options) {
        arguments.push(format!("--timeout={}", limit.as_secs()));
    }
    arguments
}

/// From the start of a middle Linux to its end.
struct Life<'a> {
    options: &'a cli::Boot,
    log: &'a LogFile,
    keys: &'a Keys,
    is_steady: bool,
    by_firmware: bool,
    said: &'a mut Said,
}

impl Life<'_> {
    /// Passes everything on until the guest has ended. True if all went well.
    fn follow(&mut self, mut middle: Middle, step: Step) -> Result<bool> {
        let mut patience = Duration::from_secs(300);
        let mut step = Some(step);
        let mut terminal = None;
        let mut text = self.log.file()?;
        let mut shown = Console::default();
        let mut firmware = None;
        let (mut whole_log, mut failure) = (false, None);
        loop {
            let frame = middle.next(patience)?;
            match frame.kind {
                Kind::Begin => {
                    if let Some(step) = step.take() {
                        step.done("the middle Linux is up");
                        firmware = self
                            .by_firmware
                            .then(|| Step::start("UEFI firmware looks for the loader"));
                    }
                    if once(self.options) {
                        patience = Duration::from_secs(900);
                    } else {
                        patience = FOREVER;
                        terminal = self.take_keys(&middle)?;
                    }
                }
                Kind::Out => {
                    if let Some(step) = firmware.take() {
                        step.done("the firmware is up");
                    }
                    self.said.add(&frame.payload);
                    text.write_all(&frame.payload)?;
                    shown.show(&frame.payload)?;
                }
                Kind::Err => {
                    let said = String::from_utf8_lossy(&frame.payload).trim_end().to_owned();
                    if !said.is_empty() {
                        say(&said);
                        failure = Some(said);
                    }
                }
                Kind::File => whole_log |= self.keep(&frame.payload)?,
                Kind::Exit => {
                    drop(terminal);
                    let ended = String::from_utf8_lossy(&frame.payload).into_owned();
                    middle.finish();
                    // "killed": the user left.
                    let good = ended == "0" || ended == "killed";
                    let why =
                        (!good).then(|| failure.unwrap_or_else(|| format!("the runner inside ended with {ended}")));
                    debug_assert!(whole_log || ended == "killed");
                    conclude(why.as_deref(), self.options, self.log.path());
                    return Ok(good);
                }
                Kind::Up | Kind::In | Kind::Stop | Kind::Trouble => {}
            }
        }
    }

    /// What is typed goes to the guest from now on.
    fn take_keys(&self, middle: &Middle) -> Result<Option<Terminal>> {
        say(KEYS);
        if self.is_steady {
            say(STEADY);
        }
        let terminal = Terminal::raw()?;
        self.keys.go_to(middle.input());
        Ok(terminal)
    }

    /// Keeps a file from inside: its name, a zero, its content. Whether it was the log.
    fn keep(&self, payload: &[u8]) -> Result<bool> {
        let end = payload
            .iter()
            .position(|&byte| byte == 0)
            .context("a file without a name")?;
        let (name, content) = payload.split_at(end);
        let content = content.get(1..).unwrap_or_default();
        match (name, &self.options.report) {
            (name, Some(report)) if name == REPORT.as_bytes() => write_report(report, content)?,
            (name, _) if name == LOG.as_bytes() => {
                fs::write(self.log.path(), content)?;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}

/// What the user types goes to the machine that runs now. One thread reads it, whichever machine that is.
#[derive(Default)]
struct Keys {
    machine: Arc<Mutex<Option<Input>>>,
}

impl Keys {
    fn go_to(&self, input: Input) {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.replace(input).is_none() {
            let machine = Arc::clone(&self.machine);
            std::thread::spawn(move || {
                read_keys(&mut |key| {
                    let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
                    // In vain where the machine has just gone: then another comes, or the program ends.
                    let _ = machine.as_ref().is_some_and(|input| input.send(&key_frame(key)));
                    true
                });
            });
        }
    }
}

fn key_frame(key: Event) -> Frame {
    match key {
        Event::Typed(bytes) => Frame::new(Kind::In, 0, bytes),
        _ => Frame::new(Kind::Stop, 0, ""),
    }
}

/// Who has spoken so far.
#[derive(Debug, Default)]
struct Said {
    filter: crate::terminal::Filter,
    /// What was said while that was the firmware's.
    text: Vec<u8>,
    by_others: bool,
}

impl Said {
    fn add(&mut self, bytes: &[u8]) {
        if self.by_others {
            return;
        }
        self.text.extend(self.filter.feed(bytes));
        let text = String::from_utf8_lossy(&self.text);
        self.by_others = text
            .lines()
            .any(|line| !line.starts_with(FIRMWARE) && !FIRMWARE.starts_with(line));
    }

    /// Nobody but the firmware.
    const fn is_firmware(&self) -> bool {
        !self.by_others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_told_from_a_guest_by_its_lines_however_they_come() {
        let mut said = Said::default();
        assert!(said.is_firmware(), "nobody has spoken");
        for part in [
            "\x1b[2J\x1b[01;01H\x1b[=3h",
            "\x1b[2J\x1b[01;01HBds",
            "Dxe: loading Boot0001 \"UEFI Misc Device\"\r",
            "\nBdsDxe: starting Boot0001\r\n",
        ] {
            said.add(part.as_bytes());
            assert!(said.is_firmware(), "{part:?}");
        }
        said.add(b"[   0.01");
        assert!(!said.is_firmware());
        said.add(b"\r\nBdsDxe: once more\r\n");
        assert!(!said.is_firmware(), "what was said stays said");
    }

    /// How often a life was begun whose `n`-th start ends so, and how it ended.
    fn starts(mut end: impl FnMut(u32, &mut Said) -> Result<bool>) -> (u32, Result<bool, String>) {
        let mut count = 0;
        let result = until_the_guest_speaks(|said| {
            count += 1;
            end(count, said)
        });
        (count, result.map_err(|error| error.to_string()))
    }

    #[test]
    fn a_run_begins_anew_where_the_emulator_broke_before_the_guest_spoke() {
        let broke = || Err(EmulatorBroke::new("it broke").into());
        assert_eq!(starts(|n, _| if n < 3 { broke() } else { Ok(true) }), (3, Ok(true)));
        let (count, result) = starts(|_, _| broke());
        assert_eq!(count, STARTS);
        assert!(result.unwrap_err().contains("start it again"));
        let (count, result) = starts(|_, said| {
            said.add(b"BdsDxe: starting\r\nhello\r\n");
            broke()
        });
        assert_eq!(count, 1, "what a guest has said is not said twice");
        result.unwrap_err();
        let (count, result) = starts(|_, _| anyhow::bail!("the wire is damaged"));
        assert_eq!((count, result), (1, Err("the wire is damaged".to_owned())));
    }
}
