//! `cargo run -- fuzz`: builds the programs of `vmbus/fuzz`, runs them side by side, and tells what they have done.
//!
//! What it needs is a nightly compiler, which only `rustup` can bring; `cargo-fuzz` is built into the folder of tools.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::process::{Child, command, run_quietly};
use crate::progress::{Step, say};
use crate::tools;

/// The version of `cargo-fuzz` that is known to do.
const CARGO_FUZZ: &str = "0.13.2";
/// The longest input: more only makes the runs slower.
const LONGEST_INPUT: usize = 512;
/// An input that takes longer hangs, for what it looks like.
const INPUT_SECONDS: u32 = 20;

/// What is fuzzed, and how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Minutes for each target; parts of one, too
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub minutes: f64,
    /// Only this target; may be given several times
    #[arg(long, value_name = "NAME")]
    pub target: Vec<String>,
    /// How many targets run at a time; as many as there are processors if not given
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Begin with this seed, so that the same inputs come again; another one each time if not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u32>,
    /// Look for memory errors, too (slower): address or thread, as in cargo fuzz
    #[arg(long, value_name = "NAME", default_value = "none")]
    pub sanitizer: String,
    /// Write the figures there, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What a target has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Its name.
    pub target: String,
    /// How often it ran.
    pub executions: u64,
    /// Edges of the program that some input took.
    pub edges: u64,
    /// Edges that the program has: of the target, of `vmbus`, and of what of the standard library is built with them.
    pub edges_in_all: u64,
    /// Inputs that are kept for what they reach.
    pub inputs: u64,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// The input that made it fail.
    pub finding: Option<PathBuf>,
    /// What it said when it failed.
    pub failure: Option<String>,
}

/// Runs the targets. Returns true if none failed.
///
/// # Errors
///
/// What is missing, or cannot be built.
pub fn run(options: &Options) -> Result<bool> {
    let folder = tools::workspace().join("vmbus/fuzz");
    let targets = chosen(&folder, &options.target)?;
    let toolchain = nightly()?;
    build(&folder, &toolchain, &options.sanitizer)?;
    let programs = programs(&folder, &toolchain)?;
    let jobs = options.jobs.unwrap_or_else(processors).clamp(1, targets.len());
    // Counts of seconds are small and positive.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "limited to a week"
    )]
    let seconds = (options.minutes * 60.0).clamp(1.0, 604_800.0) as u64;

    let step = Step::start(&format!(
        "fuzzing {} targets for {seconds} s each, {jobs} at a time",
        targets.len()
    ));
    let run = |target: String| fuzz(&folder, &programs, &target, seconds, options.seed, &step);
    let figures = at_a_time(jobs, targets, run);
    let mut figures = figures.into_iter().collect::<Result<Vec<Figures>>>()?;
    figures.sort_by(|one, other| one.target.cmp(&other.target));
    let sum: u64 = figures.iter().map(|row| row.executions).sum();
    step.done(&format!("{sum} executions"));
    print!("{}", table(&figures));
    if let Some(file) = &options.report {
        let text = serde_json::to_string_pretty(&figures)?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    for row in &figures {
        complain(row);
    }
    Ok(figures.iter().all(|row| row.failure.is_none()))
}

/// Does `work` with all of `items`, so many at a time, and returns what came of it in the order in which it came.
fn at_a_time<T: Send, R: Send>(jobs: usize, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let waiting = Mutex::new(VecDeque::from(items));
    let done = Mutex::new(Vec::new());
    // By a function, so that the lock is free again while the work is done.
    let next = || locked(&waiting).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(item) = next() {
                    let result = work(item);
                    locked(&done).push(result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The targets: those asked for, or all that have a program.
fn chosen(folder: &Path, wanted: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder.join("fuzz_targets")).context("vmbus/fuzz has no targets")? {
        if let Some(name) = entry?.path().file_stem().and_then(|name| name.to_str()) {
            all.push(name.to_owned());
        }
    }
    all.sort();
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!("no target is called {unknown}; there are {}", all.join(", "));
    }
    Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
}

/// The name of a nightly toolchain.
fn nightly() -> Result<String> {
    let list = run_quietly(command("rustup").args(["toolchain", "list"]), Duration::from_secs(30))
        .context("fuzzing needs rustup, to choose a nightly compiler")?;
    newest_nightly(&list)
        .context("fuzzing needs a nightly compiler: rustup toolchain install nightly --profile minimal")
}

/// The nightly toolchain in rustup's list: the one without a date, or else the latest.
fn newest_nightly(list: &str) -> Option<String> {
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let mut names: Vec<&str> = names.filter(|name| name.starts_with("nightly-")).collect();
    // A digit sorts before the letters of a processor's name.
    names.sort_unstable();
    names.last().map(|name| (*name).to_owned())
}

/// A command of that toolchain, whatever runs us.
fn cargo(toolchain: &str) -> Command {
    let mut cargo = command("rustup");
    cargo.args(["run", toolchain, "cargo"]);
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        cargo.env_remove(variable);
    }
    cargo
}

fn build(folder: &Path, toolchain: &str, sanitizer: &str) -> Result<()> {
    let root = tools::folder().join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let bin = root.join("bin");
    if !bin.join("cargo-fuzz").exists() {
        let step = Step::start(&format!("building cargo-fuzz {CARGO_FUZZ}, once"));
        let mut install = cargo(toolchain);
        install.args(["install", "--locked", "cargo-fuzz", "--version", CARGO_FUZZ, "--root"]);
        run_quietly(install.arg(&root), Duration::from_secs(900)).context("cannot build cargo-fuzz")?;
        step.done("cargo-fuzz is built");
    }
    let step = Step::start("building the fuzz targets");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))?;
    let mut build = cargo(toolchain);
    build
        .args(["fuzz", "build", "--sanitizer", sanitizer])
        .env("PATH", path)
        // The folder above: cargo-fuzz looks for one called `fuzz`.
        .current_dir(folder.parent().unwrap_or(folder));
    run_quietly(&mut build, Duration::from_secs(1800)).context("cannot build the fuzz targets")?;
    step.done("the fuzz targets are built");
    Ok(())
}

/// The folder of the programs.
fn programs(folder: &Path, toolchain: &str) -> Result<PathBuf> {
    let triple = toolchain.trim_start_matches("nightly-");
    // A toolchain with a date has that in front.
    let triple = triple.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '-');
    let programs = folder.join("target").join(triple).join("release");
    if !programs.is_dir() {
        bail!("the fuzz targets are not in {}", programs.display());
    }
    Ok(programs)
}

/// Runs one target.
fn fuzz(folder: &Path, programs: &Path, target: &str, seconds: u64, seed: Option<u32>, step: &Step) -> Result<Figures> {
    // New inputs stay out of the kept ones until somebody minimises them.
    let found = folder.join("target/found").join(target);
    let artifacts = folder.join("artifacts").join(target);
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;
    let mut program = command(programs.join(target));
    program.arg(&found);
    for kept in ["corpus", "findings"] {
        let kept = folder.join(kept).join(target);
        if kept.is_dir() {
            program.arg(kept);
        }
    }
    program
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-reload=0"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(seed) = seed {
        program.arg(format!("-seed={seed}"));
    }
    let begin = std::time::Instant::now();
    let mut child = Child::spawn(&mut program).with_context(|| format!("cannot start {target}"))?;
    let mut figures = Figures {
        target: target.to_owned(),
        ..Figures::default()
    };
    let output = child.pipes().stderr.take().context("no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        figures.read(&line);
        if line.starts_with('#') {
            step.say(&format!("{target}: {} executions", figures.executions));
        }
    }
    let status = child.wait_for(Duration::from_secs(60))?;
    figures.seconds = begin.elapsed().as_secs();
    if !status.is_some_and(|status| status.success()) && figures.failure.is_none() {
        figures.failure = Some(status.map_or_else(|| "it does not end".to_owned(), |status| status.to_string()));
    }
    Ok(figures)
}

impl Figures {
    /// Takes what a line of libFuzzer's tells.
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let behind = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.split('/').next()?.parse::<u64>().ok()
        };
        if let Some(count) = line.strip_prefix('#').and_then(|rest| rest.split_whitespace().next()) {
            self.executions = count.parse().unwrap_or(self.executions);
            self.edges = behind("cov:").unwrap_or(self.edges);
            self.inputs = behind("corp:").unwrap_or(self.inputs);
        } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = count.trim().parse().unwrap_or(self.executions);
        } else if line.starts_with("INFO: Loaded") && line.contains("inline 8-bit counters") {
            let count = line.split('(').nth(1).and_then(|rest| rest.split_whitespace().next());
            self.edges_in_all = count.and_then(|count| count.parse().ok()).unwrap_or(0);
        } else if let Some(path) = line.split("Test unit written to ").nth(1) {
            self.finding = Some(PathBuf::from(path.trim()));
            self.failure
                .get_or_insert_with(|| "it did not end in time, or broke down".to_owned());
        } else if let Some(place) = line.split(" panicked at ").nth(1) {
            self.failure = Some(format!("it panicked at {}", place.trim_end_matches(':')));
        }
    }
}

fn table(figures: &[Figures]) -> String {
    let mut text = format!(
        "{:<16} {:>12} {:>9} {:>7} {:>8} {:>7}\n",
        "target", "executions", "a second", "edges", "of", "inputs"
    );
    for row in figures {
        text += &format!(
            "{:<16} {:>12} {:>9} {:>7} {:>8} {:>7}{}\n",
            row.target,
            row.executions,
            row.executions / row.seconds.max(1),
            row.edges,
            row.edges_in_all,
            row.inputs,
            if row.failure.is_some() { "  FAILED" } else { "" }
        );
    }
    text
}

fn complain(row: &Figures) {
    let Some(failure) = &row.failure else { return };
    say(&format!("{} failed: {failure}", row.target));
    if let Some(finding) = &row.finding {
        say(&format!(
            "  its input: cargo run --package fuzz-targets --example replay -- {} {}",
            row.target,
            finding.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_at_a_time_are_two() {
        // Each waits for another one: alone, none would end.
        let meeting = std::sync::Barrier::new(2);
        let mut numbers = at_a_time(2, vec![1, 2, 3, 4], |number| {
            meeting.wait();
            number * 10
        });
        numbers.sort_unstable();
        assert_eq!(numbers, [10, 20, 30, 40]);
    }

    #[test]
    fn the_figures_are_read_from_what_libfuzzer_prints() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Loaded 1 modules   (14199 inline 8-bit counters): 14199 [0x56, 0x57), ",
            "#832\tINITED cov: 2958 ft: 9179 corp: 660/16187b exec/s: 0 rss: 31Mb",
            "#119191\tDONE   cov: 3498 ft: 13877 corp: 1495/60Kb lim: 98 exec/s: 3844 rss: 38Mb",
            "stat::number_of_executed_units: 119192",
        ] {
            figures.read(line);
        }
        let expected = Figures {
            executions: 119_192,
            edges: 3498,
            edges_in_all: 14199,
            inputs: 1495,
            ..Figures::default()
        };
        assert_eq!(figures, expected);
        figures.read("thread '<unnamed>' (1) panicked at targets/src/world.rs:199:28:");
        figures.read("artifact_prefix='a/'; Test unit written to a/crash-76fc");
        assert_eq!(figures.finding, Some(PathBuf::from("a/crash-76fc")));
        assert_eq!(
            figures.failure.as_deref(),
            Some("it panicked at targets/src/world.rs:199:28")
        );
        assert!(table(&[figures]).lines().nth(1).unwrap().ends_with("FAILED"));
    }

    #[test]
    fn a_nightly_without_a_date_comes_before_one_with_a_date() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-2026-01-02-x86_64-unknown-linux-gnu\n\
            nightly-x86_64-unknown-linux-gnu\n1.95.0-x86_64-unknown-linux-gnu\n";
        assert_eq!(
            newest_nightly(list).as_deref(),
            Some("nightly-x86_64-unknown-linux-gnu")
        );
        assert_eq!(newest_nightly("stable-x86_64-unknown-linux-gnu\n"), None);
    }

    #[test]
    fn the_targets_are_those_with_a_program() {
        let folder = tools::workspace().join("vmbus/fuzz");
        let all = chosen(&folder, &[]).unwrap();
        assert!(all.iter().any(|name| name == "host_actions"));
        assert!(chosen(&folder, &["nonsense".to_owned()]).is_err());
        assert_eq!(chosen(&folder, &["kmcl".to_owned()]).unwrap(), ["kmcl"]);
    }
}
