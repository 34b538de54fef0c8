//! OpenVMM instead of QEMU: another virtual machine monitor with a VMBus, more devices and newer protocol versions.
//!
//! The kernel is started by the Linux 64-bit boot protocol. OpenVMM's console wants a terminal on its standard input, so it gets one of our
//! own making ([`run`]), with the guest's COM1 on it. There is no QMP and no `isa-debug-exit`: the guest powers off, and OpenVMM is told
//! to end then. Source: OpenVMM's own `--help` and its guide; its command line is not stable.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::guest::{Line, Splitter};
use crate::nested::paths;
use crate::process::{Child, command};
use crate::tools::{self, closure};
use crate::vm::{Ending, Event, Outcome};

const NAME: &str = "openvmm";

/// OpenVMM's exit statuses, as we ask for them.
const RESET: u8 = 3;
const CRASH: u8 = 4;

/// How long OpenVMM may take to end once its terminal is closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// OpenVMM, maybe behind a loader.
    pub program: &'a [String],
    /// The kernel.
    pub kernel: &'a Path,
    /// Its command line.
    pub cmdline: String,
    /// MiB.
    pub memory: &'a str,
    /// Number of processors.
    pub cpus: u32,
    /// More arguments.
    pub extra: &'a [String],
}

/// The program on the path.
///
/// # Errors
///
/// There is none; the text says what it is and where it comes from.
pub fn find() -> Result<PathBuf> {
    tools::on_path(NAME).context(
        "there is no `openvmm` on the PATH.\n\
         OpenVMM is Microsoft's open-source virtual machine monitor; with KVM it offers VMBus storage, network and more, which QEMU does not.\n\
         It is not packaged: build it from its source repository (microsoft/openvmm; `cargo build --release` after `cargo xflowey \
         restore-packages`, see its guide) and put target/release/openvmm on the PATH.\n\
         Without it, `--host auto` runs the kernel in QEMU.",
    )
}

/// OpenVMM as it is taken into the nested host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// How it is run there.
    pub program: Vec<String>,
    /// The files that go along: name there and place here.
    pub files: Vec<(String, PathBuf)>,
}

/// Collects what the program needs inside the nested host.
///
/// # Errors
///
/// A library is missing.
pub fn inside(program: &Path) -> Result<Inside> {
    let place = |name: &str| format!("{}/{name}", paths::FILES);
    let mut files = vec![(NAME.to_owned(), program.to_path_buf())];
    let content = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    if !closure::has_loader(&content) {
        return Ok(Inside {
            program: vec![place(NAME)],
            files,
        });
    }
    let mut loader = None;
    for library in closure::libraries(&[program.to_string_lossy().into_owned()])? {
        let name = library.file_name().context("a library without a name")?;
        let name = format!("{NAME}-lib/{}", name.to_string_lossy());
        if name.contains("/ld-linux") {
            loader = Some(place(&name));
        }
        files.push((name, library));
    }
    let loader = loader.with_context(|| format!("{} names no dynamic loader", program.display()))?;
    let libraries = place(&format!("{NAME}-lib"));
    Ok(Inside {
        program: vec![loader, "--library-path".to_owned(), libraries, place(NAME)],
        files,
    })
}

impl Machine<'_> {
    /// OpenVMM's arguments.
    ///
    /// # Errors
    ///
    /// The memory is no plain number of MiB.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let Ok(megabytes) = self.memory.parse::<u64>() else {
            bail!("OpenVMM wants --memory as a plain number of MiB, not {}", self.memory)
        };
        let mut line: Vec<String> = ["--hv", "--com1", "console"].map(str::to_owned).to_vec();
        line.extend(["--memory".to_owned(), format!("{megabytes}MB")]);
        line.extend(["--processors".to_owned(), self.cpus.to_string()]);
        line.extend(["--kernel".to_owned(), self.kernel.to_string_lossy().into_owned()]);
        line.extend(["--cmdline".to_owned(), self.cmdline.clone()]);
        line.extend(["--guest-shutdown-action".to_owned(), "exit:0".to_owned()]);
        line.extend(["--guest-reset-action".to_owned(), format!("exit:{RESET}")]);
        line.extend(["--guest-crash-action".to_owned(), format!("exit:{CRASH}")]);
        line.extend(self.extra.iter().cloned());
        Ok(line)
    }
}

/// Runs the machine to its end. `queue` and `events` are the two ends of a channel, into which others may put what the user types; the guest's
/// text goes to `show` and to the log.
///
/// # Errors
///
/// OpenVMM cannot be started, or `show` failed.
pub fn run(
    machine: &Machine<'_>,
    queue: Sender<Event>,
    events: &Receiver<Event>,
    limit: Option<Duration>,
    log: &mut File,
    show: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Outcome> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("cannot make a terminal for OpenVMM")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    let mut settings = tcgetattr(&theirs)?;
    settings.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &settings)?;

    let (first, rest) = machine.program.split_first().context("no program")?;
    let mut program = command(first);
    program.args(rest).args(machine.arguments()?);
    writeln!(log, "## {program:?}")?;
    let child = program
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    let mut child = Child::spawn(child).with_context(|| format!("cannot start {first}"))?;
    // Otherwise the terminal would never be closed: the command holds their end.
    drop(program);
    let mut terminal = File::from(ours);
    let reader = terminal.try_clone()?;
    std::thread::spawn(move || pump(reader, &queue));

    let begin = Instant::now();
    let deadline = limit.map(|limit| begin + limit);
    let (mut outcome, mut splitter) = (Outcome::default(), Splitter::default());
    loop {
        let event = match deadline {
            None => events.recv().context("nobody can say anything any more")?,
            Some(deadline) => match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    outcome.killed = Some(Ending::Deadline);
                    break;
                }
            },
        };
        match event {
            Event::Serial(bytes) => {
                log.write_all(&bytes)?;
                let mut text = Vec::new();
                for line in splitter.feed(&bytes, &mut text) {
                    match line {
                        Line::Report(value) => outcome.report = Some(value),
                        Line::Mark { name, value } => outcome.marks.push((name, value)),
                        Line::Verdict(verdict) => outcome.verdict = Some(verdict),
                        Line::Unknown(text) => outcome.unknown.push(text),
                    }
                }
                show(&text)?;
            }
            Event::Typed(bytes) => terminal.write_all(&bytes).context("OpenVMM takes no more input")?,
            Event::Quit => {
                outcome.killed = Some(Ending::Quit);
                break;
            }
            Event::Closed => {
                outcome.status = child.wait_for(PATIENCE)?.and_then(|status| status.code());
                break;
            }
            Event::Qmp(_) | Event::Complaint(_) => {}
        }
    }
    child.kill();
    outcome.duration = begin.elapsed();
    let mut text = Vec::new();
    splitter.finish(&mut text);
    show(&text)?;
    writeln!(
        log,
        "\n## ended: status {:?}, {:?}, verdict {:?}",
        outcome.status, outcome.killed, outcome.verdict
    )?;
    Ok(outcome)
}

/// A terminal whose other end is closed gives an error, not an end.
fn pump(mut terminal: File, queue: &Sender<Event>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if queue.send(Event::Serial(bytes)).is_err() {
            return;
        }
    }
    let _ = queue.send(Event::Closed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Verdict;
    use std::os::unix::fs::PermissionsExt;

    /// Runs `script` in OpenVMM's place; returns what came of it and what was shown.
    fn run_stub(script: &str, typed: &[Event], limit: u64) -> (Outcome, String) {
        let folder = tempfile::tempdir().unwrap();
        let stub = folder.path().join("openvmm");
        std::fs::write(&stub, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = [stub.to_string_lossy().into_owned()];
        let machine = Machine {
            program: &program,
            kernel: Path::new("/k"),
            cmdline: "log=warn once".to_owned(),
            memory: "64",
            cpus: 2,
            extra: &["--net".to_owned(), "none".to_owned()],
        };
        let (queue, events) = std::sync::mpsc::channel();
        for event in typed {
            let Event::Typed(bytes) = event else {
                panic!("only keys")
            };
            queue.send(Event::Typed(bytes.clone())).unwrap();
        }
        let mut shown = Vec::new();
        let outcome = run(
            &machine,
            queue,
            &events,
            Some(Duration::from_secs(limit)),
            &mut tempfile::tempfile().unwrap(),
            &mut |text| {
                shown.extend_from_slice(text);
                Ok(())
            },
        );
        (outcome.unwrap(), String::from_utf8(shown).unwrap())
    }

    #[test]
    fn it_has_a_terminal_its_arguments_and_our_extra_ones() {
        let script = "test -t 0 && echo terminal\necho \"$*\"\necho '@@ verdict pass'";
        let (outcome, shown) = run_stub(script, &[], 20);
        assert_eq!((outcome.verdict, outcome.status), (Some(Verdict::Pass), Some(0)));
        assert_eq!(
            shown,
            "terminal\n--hv --com1 console --memory 64MB --processors 2 --kernel /k --cmdline log=warn once \
             --guest-shutdown-action exit:0 --guest-reset-action exit:3 --guest-crash-action exit:4 --net none\n"
        );
    }

    #[test]
    fn keys_reach_it_and_its_status_is_known() {
        let keys = [Event::Typed(b"q\n".to_vec())];
        let (outcome, shown) = run_stub("read key; echo \"got $key\"; exit 4", &keys, 20);
        assert_eq!((outcome.status, shown.as_str()), (Some(4), "got q\n"));
    }

    #[test]
    fn a_hanging_one_is_ended() {
        let (outcome, _) = run_stub("sleep 60", &[], 1);
        assert_eq!((outcome.killed, outcome.status), (Some(Ending::Deadline), None));
    }

    #[test]
    fn its_libraries_go_along() {
        let me = std::env::current_exe().unwrap();
        let Inside { program, files } = inside(&me).unwrap();
        assert!(program[0].starts_with("/files/openvmm-lib/ld-linux"), "{program:?}");
        assert_eq!(program[1..], ["--library-path", "/files/openvmm-lib", "/files/openvmm"]);
        assert_eq!(files[0], ("openvmm".to_owned(), me));
        assert!(
            files.iter().any(|(name, _)| name == "openvmm-lib/libc.so.6"),
            "{files:?}"
        );
    }

    #[test]
    fn a_script_or_a_static_program_goes_alone() {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
        let Inside { program, files } = inside(script.path()).unwrap();
        assert_eq!((program, files.len()), (vec!["/files/openvmm".to_owned()], 1));
    }
}
