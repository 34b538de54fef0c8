//! This program as the init of the middle Linux.
//!
//! It mounts what QEMU needs, loads the KVM modules, runs each job of the plan as a process of this same program, sends their output and
//! the files that they left over the wire, and powers the machine off.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, init_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::wire::{Frame, Kind};
use super::{Job, Plan, paths};
use crate::process::{Child, command};
use crate::tools::QEMU_VARIABLE;

/// The second serial port; the first is the middle Linux's own console.
const WIRE: &str = "/dev/ttyS1";
/// How long a job may take to end after it closed its output.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process is the init of the middle Linux.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Runs the plan and ends the machine.
pub fn run() {
    if let Err(error) = work() {
        // On the console, i.e. in the middle Linux's log; the outside sees that the machine ended early and shows that log.
        crate::progress::say(&format!("init: {error:#}"));
    }
    let _ = reboot(RebootCommand::PowerOff);
}

fn work() -> Result<()> {
    let folders = [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ];
    for (kind, folder) in folders {
        mount(kind, folder, kind, MountFlags::empty(), None).with_context(|| format!("cannot mount {folder}"))?;
    }
    // OpenVMM gets a terminal of our making.
    fs::create_dir_all("/dev/pts")?;
    mount("devpts", "/dev/pts", "devpts", MountFlags::empty(), None).context("cannot mount /dev/pts")?;
    let port = File::options()
        .read(true)
        .write(true)
        .open(WIRE)
        .with_context(|| format!("cannot open {WIRE}"))?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    let wire = Wire {
        port: Arc::new(Mutex::new(port.try_clone()?)),
    };
    let result = serve(&wire, port);
    if let Err(error) = &result {
        wire.send(Kind::Trouble, 0, format!("{error:#}"))?;
    }
    result
}

fn serve(wire: &Wire, port: File) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(paths::PLAN)?)?;
    for name in &plan.modules {
        let content = fs::read(format!("{}/{name}.ko", paths::MODULES))?;
        init_module(&content, c"").with_context(|| format!("cannot load the module {name}"))?;
    }
    wire.send(Kind::Up, 0, fs::read("/proc/uptime")?)?;
    let (sender, orders) = mpsc::channel();
    let from_pumps = sender.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(port);
        while let Ok(Some(frame)) = Frame::read(&mut reader) {
            if sender.send(Order::Frame(frame)).is_err() {
                break;
            }
        }
    });
    for (number, job) in plan.jobs.iter().enumerate() {
        run_job(wire, number, job, &from_pumps, &orders).with_context(|| format!("job {number}"))?;
    }
    Ok(())
}

/// What the main thread of a job reacts to.
enum Order {
    /// The outside wants something.
    Frame(Frame),
    /// A pipe of the job was closed.
    Closed,
}

fn run_job(wire: &Wire, number: usize, job: &Job, sender: &Sender<Order>, orders: &Receiver<Order>) -> Result<()> {
    let out = format!("{}/{number}", paths::OUT);
    fs::create_dir_all(&out)?;
    wire.send(Kind::Begin, number, "")?;
    let mut runner = command("/proc/self/exe");
    runner
        .args(&job.arguments)
        .env(QEMU_VARIABLE, paths::QEMU)
        .env("PATH", "/")
        .current_dir(&out);
    let mut child = spawn(&mut runner, job.input)?;
    let mut pumps = Vec::new();
    let pipes = child.pipes();
    let mut stdin = pipes.stdin.take();
    if let Some(pipe) = pipes.stdout.take() {
        pumps.push(pump(wire, Kind::Out, number, pipe, sender.clone()));
    }
    if let Some(pipe) = pipes.stderr.take() {
        pumps.push(pump(wire, Kind::Err, number, pipe, sender.clone()));
    }
    // No polling here: on a single processor it would take its time from the guest.
    let mut open = pumps.len();
    let mut stopped = false;
    while open > 0 {
        match orders.recv()? {
            Order::Frame(Frame {
                kind: Kind::In,
                payload,
                ..
            }) => {
                if let Some(pipe) = &mut stdin {
                    // The job may have ended just now.
                    let _ = pipe.write_all(&payload);
                    let _ = pipe.flush();
                }
            }
            Order::Frame(Frame { kind: Kind::Stop, .. }) => {
                stopped = true;
                child.kill();
            }
            Order::Frame(_) => {}
            Order::Closed => open -= 1,
        }
    }
    let status = child
        .wait_for(PATIENCE)?
        .filter(|_| !stopped)
        .and_then(|status| status.code());
    child.kill();
    for pump in pumps {
        let _ = pump.join();
    }
    for entry in fs::read_dir(&out)? {
        let entry = entry?;
        let mut payload = entry.file_name().into_encoded_bytes();
        payload.push(0);
        payload.extend(fs::read(entry.path())?);
        wire.send(Kind::File, number, payload)?;
    }
    wire.send(
        Kind::Exit,
        number,
        status.map_or_else(|| "killed".to_owned(), |status| status.to_string()),
    )
}

fn spawn(runner: &mut Command, input: bool) -> Result<Child> {
    let stdin = if input { Stdio::piped() } else { Stdio::null() };
    Child::spawn(runner.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped())).context("cannot start the runner")
}

fn pump(
    wire: &Wire,
    kind: Kind,
    job: usize,
    mut pipe: impl Read + Send + 'static,
    done: Sender<Order>,
) -> thread::JoinHandle<()> {
    let wire = wire.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if wire.send(kind, job, buffer.get(..count).unwrap_or_default()).is_err() {
                break;
            }
        }
        let _ = done.send(Order::Closed);
    })
}

#[derive(Clone)]
struct Wire {
    port: Arc<Mutex<File>>,
}

impl Wire {
    fn send(&self, kind: Kind, job: usize, payload: impl Into<Vec<u8>>) -> Result<()> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        Frame::new(kind, job, payload)
            .write(&*port)
            .context("the wire is broken")
    }
}
