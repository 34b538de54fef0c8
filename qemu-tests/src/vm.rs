//! One virtual machine: QEMU's process, the guest's serial port, QMP and the clock, brought together in one queue of happenings.
//!
//! [`Vm::start`] starts a [`Machine`]; [`follow`] runs it to its end, tells a [`Watcher`] what happens and returns the [`Outcome`].
//! Everything goes into a log file: the guest's bytes as they are, and our own remarks on lines that start with `## `.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::guest::{Line, Splitter, Verdict};
use crate::process::Child;
use crate::qemu::{Machine, Qemu};
use crate::qmp::{self, Message};

/// How long QEMU may take to start and to answer a command. Generous: under emulation everything takes long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the threads put into the queue.
#[derive(Debug)]
pub enum Event {
    /// Bytes from COM1.
    Serial(Vec<u8>),
    /// A message from QMP.
    Qmp(Message),
    /// A line from QEMU's standard error.
    Complaint(String),
    /// QEMU closed its standard output: it has ended.
    Closed,
    /// Bytes that the user typed.
    Typed(Vec<u8>),
    /// The user wants to leave.
    Quit,
}

/// A running virtual machine; dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    sender: qmp::Sender,
    queue: Sender<Event>,
    events: Receiver<Event>,
    backlog: VecDeque<Event>,
    log: File,
    complaints: Vec<String>,
    at_line_start: bool,
    started: Instant,
}

impl Vm {
    /// Starts QEMU and makes it ready; the guest's first instruction is executed by [`follow`].
    ///
    /// # Errors
    ///
    /// What QEMU said if it did not start.
    pub fn start(qemu: &Qemu, machine: &Machine, log: File) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).context("cannot listen for QMP")?;
        let mut command = qemu.command();
        command.args(machine.arguments(&socket));
        let mut log = log;
        writeln!(log, "## {command:?}")?;
        let mut child = Child::spawn(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
        .with_context(|| format!("cannot start {}", qemu.program.join(" ")))?;
        let (queue, events) = mpsc::channel();
        let pipes = child.pipes();
        let stdin = pipes.stdin.take();
        if let Some(pipe) = pipes.stdout.take() {
            let queue = queue.clone();
            std::thread::spawn(move || pump(pipe, &queue));
        }
        if let Some(pipe) = pipes.stderr.take() {
            let queue = queue.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
                    let _ = queue.send(Event::Complaint(line));
                }
            });
        }
        let backlog = VecDeque::new();
        let started = Instant::now();
        let stream = accept(&listener, &mut child, &events)?;
        let reader = BufReader::new(stream.try_clone()?);
        let to_queue = queue.clone();
        std::thread::spawn(move || {
            for message in reader
                .lines()
                .map_while(std::result::Result::ok)
                .filter_map(|line| qmp::parse(&line))
            {
                let _ = to_queue.send(Event::Qmp(message));
            }
        });
        let sender = qmp::Sender::new(stream);
        let mut vm = Self {
            child,
            stdin,
            sender,
            queue,
            events,
            backlog,
            log,
            complaints: Vec::new(),
            at_line_start: true,
            started,
        };
        vm.execute("qmp_capabilities", &Value::Null)?;
        vm.note(&format!("QEMU is ready after {} ms", vm.started.elapsed().as_millis()));
        Ok(vm)
    }

    /// Where another thread may put events, e.g. what the user types.
    #[must_use]
    pub fn queue(&self) -> Sender<Event> {
        self.queue.clone()
    }

    /// Asks QEMU to end, which it may do before it answers.
    ///
    /// # Errors
    ///
    /// As for [`Vm::execute`].
    pub fn quit(&mut self) -> Result<()> {
        match self.execute("quit", &Value::Null) {
            // Its last words on other channels may be behind it in the queue.
            Err(_) if self.backlog.iter().any(|event| matches!(event, Event::Closed)) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Runs a QMP command and waits for its answer; whatever else happens meanwhile is kept for later.
    ///
    /// # Errors
    ///
    /// QEMU's explanation, or that it has ended or does not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.note(&format!("> {command} {arguments}"));
        let id = self
            .sender
            .send(command, arguments)
            .with_context(|| format!("QEMU is gone: cannot send {command}"))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Qmp(Message::Return { id: of, value })) if of == id => {
                    self.note(&format!("< {value}"));
                    return Ok(value);
                }
                Ok(Event::Qmp(Message::Error { id: of, description })) if of.is_none_or(|of| of == id) => {
                    self.note(&format!("< error: {description}"));
                    bail!("QEMU refused {command}: {description}");
                }
                Ok(Event::Closed) => {
                    self.backlog.push_back(Event::Closed);
                    bail!("QEMU ended before it answered {command}{}", self.complained());
                }
                Ok(other) => self.backlog.push_back(other),
                Err(_) => bail!("QEMU did not answer {command} within {} s", PATIENCE.as_secs()),
            }
        }
    }

    /// Gives the guest bytes on COM1.
    ///
    /// # Errors
    ///
    /// QEMU has ended.
    pub fn type_in(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("there is no serial port")?;
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .context("QEMU takes no more input")
    }

    /// Writes a remark into the log.
    pub fn note(&mut self, text: &str) {
        let start = if self.at_line_start { "" } else { "\n" };
        self.at_line_start = true;
        // A full disk must not change a test's result.
        let _ = writeln!(
            self.log,
            "{start}## [{:>9.3} s] {text}",
            self.started.elapsed().as_secs_f64()
        );
    }

    /// The next event before `until`, logged.
    fn next(&mut self, until: Option<Instant>) -> Option<Event> {
        let event = match (self.backlog.pop_front(), until) {
            (Some(event), _) => event,
            (None, None) => self.events.recv().ok()?,
            (None, Some(until)) => match self
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            },
        };
        match &event {
            Event::Serial(bytes) => {
                let _ = self.log.write_all(bytes);
                self.at_line_start = bytes.ends_with(b"\n");
            }
            Event::Complaint(line) => {
                self.note(&format!("QEMU: {line}"));
                self.complaints.push(line.clone());
            }
            Event::Qmp(Message::Event { name, data }) => self.note(&format!("event {name} {data}")),
            _ => {}
        }
        Some(event)
    }

    /// QEMU's complaints so far, for an error's text.
    fn complained(&mut self) -> String {
        let pending: Vec<Event> = self.backlog.drain(..).chain(self.events.try_iter()).collect();
        let mut lines = self.complaints.clone();
        for event in pending {
            if let Event::Complaint(line) = &event {
                lines.push(line.clone());
            }
            self.backlog.push_back(event);
        }
        if lines.is_empty() {
            String::new()
        } else {
            format!(": {}", lines.join("; "))
        }
    }
}

/// Waits until QEMU connects, or has ended.
fn accept(listener: &UnixListener, child: &mut Child, events: &Receiver<Event>) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot accept QEMU's QMP connection"),
        }
        if let Some(status) = child.try_wait()? {
            std::thread::sleep(Duration::from_millis(50));
            let said: Vec<String> = events
                .try_iter()
                .filter_map(|event| {
                    if let Event::Complaint(line) = event {
                        Some(line)
                    } else {
                        None
                    }
                })
                .collect();
            bail!("QEMU did not start ({status}): {}", said.join("; "));
        }
        if Instant::now() > end {
            return Err(anyhow!(
                "QEMU did not open its QMP connection within {} s",
                PATIENCE.as_secs()
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pump(mut pipe: impl Read, queue: &Sender<Event>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if queue.send(Event::Serial(bytes)).is_err() {
            return;
        }
    }
    let _ = queue.send(Event::Closed);
}

/// Who wants to know what happens in a machine, and may act on it. Every method may do nothing.
pub trait Watcher {
    /// Text for people came from the serial port.
    ///
    /// # Errors
    ///
    /// Any error ends the machine and is the result of [`follow`].
    fn text(&mut self, _vm: &mut Vm, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    /// A machine line came from the serial port.
    ///
    /// # Errors
    ///
    /// As [`Watcher::text`].
    fn line(&mut self, _vm: &mut Vm, _line: &Line) -> Result<()> {
        Ok(())
    }
    /// QEMU reported an event.
    ///
    /// # Errors
    ///
    /// As [`Watcher::text`].
    fn event(&mut self, _vm: &mut Vm, _name: &str, _data: &Value) -> Result<()> {
        Ok(())
    }
}

/// How a machine's run ended and what was seen on the way.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The guest's verdict, the last one if there were several.
    pub verdict: Option<Verdict>,
    /// QEMU's exit status; `None` if it had to be killed or died by a signal.
    pub status: Option<i32>,
    /// Why it was killed.
    pub killed: Option<Ending>,
    /// The guest's status report.
    pub report: Option<Value>,
    /// The marks that the guest passed, with their values.
    pub marks: Vec<(String, String)>,
    /// QEMU's events with their data.
    pub events: Vec<(String, Value)>,
    /// Machine lines that nobody understands.
    pub unknown: Vec<String>,
    /// Time from the first instruction to the end, on this machine's clock.
    pub duration: Duration,
}

/// Why a machine was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its deadline passed.
    Deadline,
    /// The user left.
    Quit,
}

/// Lets the guest run until QEMU ends, the deadline passes or the user leaves.
///
/// # Errors
///
/// The first error of the watcher, or QEMU's.
pub fn follow(vm: &mut Vm, limit: Option<Duration>, watcher: &mut dyn Watcher) -> Result<Outcome> {
    let begin = Instant::now();
    let deadline = limit.map(|limit| begin + limit);
    let mut outcome = Outcome::default();
    let mut splitter = Splitter::default();
    vm.execute("cont", &Value::Null)?;
    loop {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            outcome.killed = Some(Ending::Deadline);
            break;
        }
        let Some(event) = vm.next(deadline) else { continue };
        match event {
            Event::Serial(bytes) => {
                let mut text = Vec::new();
                let lines = splitter.feed(&bytes, &mut text);
                if !text.is_empty() {
                    watcher.text(vm, &text)?;
                }
                for line in lines {
                    match &line {
                        Line::Report(value) => outcome.report = Some(value.clone()),
                        Line::Mark { name, value } => outcome.marks.push((name.clone(), value.clone())),
                        Line::Verdict(verdict) => outcome.verdict = Some(verdict.clone()),
                        Line::Unknown(text) => outcome.unknown.push(text.clone()),
                    }
                    watcher.line(vm, &line)?;
                }
            }
            Event::Qmp(Message::Event { name, data }) => {
                outcome.events.push((name.clone(), data.clone()));
                watcher.event(vm, &name, &data)?;
            }
            Event::Typed(bytes) => vm.type_in(&bytes)?,
            Event::Quit => {
                outcome.killed = Some(Ending::Quit);
                break;
            }
            Event::Closed => {
                outcome.status = vm.child.wait_for(PATIENCE)?.and_then(|status| status.code());
                break;
            }
            Event::Qmp(_) | Event::Complaint(_) => {}
        }
    }
    vm.child.kill();
    outcome.duration = begin.elapsed();
    // The last words of QEMU's other channels may come after the end of its output.
    while let Some(event) = vm.next(Some(Instant::now() + Duration::from_millis(20))) {
        if let Event::Qmp(Message::Event { name, data }) = event {
            outcome.events.push((name.clone(), data.clone()));
            watcher.event(vm, &name, &data)?;
        }
    }
    let mut text = Vec::new();
    splitter.finish(&mut text);
    if !text.is_empty() {
        watcher.text(vm, &text)?;
    }
    vm.note(&format!(
        "ended: status {:?}, {:?}, verdict {:?}",
        outcome.status, outcome.killed, outcome.verdict
    ));
    Ok(outcome)
}
