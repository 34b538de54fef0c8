//! Child processes that never outlive us: QEMU, `apt-get`, nested `cargo`.
//!
//! [`command`] prepares a child that gets a process group of its own (a Ctrl-C at the terminal goes to us, and we decide) and a
//! parent-death signal (if we are killed, so is it). [`Child`] kills the whole group when it is dropped.
#![expect(
    unsafe_code,
    reason = "the parent-death signal has to be asked for between fork and exec"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal};

/// A command for `program` whose process dies with us.
///
/// The kernel sends the parent-death signal when the *thread* that started the child ends, so start the child from a thread that
/// lives at least as long as the child should.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let parent = getpid();
    command.process_group(0);
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the request was made: then nobody would tell us.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(rustix::io::Errno::SRCH.into())
        }
    };
    // SAFETY: between fork and exec only async-signal-safe things are allowed: the closure makes two system calls and compares numbers;
    // it takes no lock and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    command
}

/// A running child; dropping it kills its process group and waits for it.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts `command`, which must come from [`command`].
    ///
    /// # Errors
    ///
    /// The system's, if the program cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Ok(Self {
            inner: command.spawn()?,
            ended: None,
        })
    }

    /// The child's end of a pipe that was asked for, if it was and has not been taken yet.
    pub const fn pipes(&mut self) -> &mut std::process::Child {
        &mut self.inner
    }

    /// The exit status if the child has ended.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.inner.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits until the child ends or `patience` is over.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn wait_for(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the child's whole process group and waits for the child.
    pub fn kill(&mut self) {
        if matches!(self.try_wait(), Ok(None)) {
            if let Some(group) = i32::try_from(self.inner.id()).ok().and_then(Pid::from_raw) {
                // Fails only if the group is gone already, which is what we want.
                let _ = kill_process_group(group, Signal::KILL);
            }
            self.ended = self.inner.wait().ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `command` to its end, at most for `patience`, and returns what it printed on standard output and error together.
///
/// # Errors
///
/// A text that says what failed, with the end of the output.
pub fn run_quietly(command: &mut Command, patience: Duration) -> anyhow::Result<String> {
    use anyhow::{Context, bail};
    use std::io::{Read, Seek};

    let name = command.get_program().to_string_lossy().into_owned();
    let mut output = tempfile::tempfile().context("cannot make a temporary file")?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let mut child = Child::spawn(command).with_context(|| format!("cannot start {name}"))?;
    let status = child.wait_for(patience)?;
    child.kill();
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => bail!("{name} failed ({status}):\n{}", tail(&text, 15)),
        None => bail!(
            "{name} did not end within {} s:\n{}",
            patience.as_secs(),
            tail(&text, 15)
        ),
    }
}

/// The last `lines` lines of `text`.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_dead_with_its_children() {
        let marker = tempfile::NamedTempFile::new().unwrap();
        let script = format!("(sleep 1; echo alive > {}) & wait", marker.path().display());
        let child = Child::spawn(command("sh").args(["-c", &script])).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(child);
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(std::fs::read_to_string(marker.path()).unwrap(), "");
    }

    #[test]
    fn failure_shows_the_end_of_the_output() {
        let error = run_quietly(
            command("sh").args(["-c", "echo first; echo why >&2; exit 3"]),
            Duration::from_secs(10),
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("why") && text.contains("status: 3"), "{text}");
        let error = run_quietly(command("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }
}
