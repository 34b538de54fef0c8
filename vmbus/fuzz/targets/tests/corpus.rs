//! Every input that was kept runs without libFuzzer, too: the minimised corpora, and what once made a target fail.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fuzz_targets::{TARGETS, Target, recording};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The kept inputs of a target: of its corpus, and of its findings.
fn inputs(target: &Target) -> Vec<PathBuf> {
    let folders = ["corpus", "findings"].map(|name| folder(name).join(target.name));
    let entries = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Says which input it was, if it fails.
struct Now<'a>(&'a Path);

impl Drop for Now<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {}", self.0.display());
        }
    }
}

fn run(target: &Target) {
    let inputs = inputs(target);
    // Under an interpreter, a few.
    let inputs = inputs.iter().take(if cfg!(miri) { 5 } else { usize::MAX });
    for file in inputs {
        let _now = Now(file);
        (target.run)(&std::fs::read(file).unwrap());
    }
}

fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap()
}

macro_rules! corpora {
    ($($name:ident,)+) => {
        $(#[test]
        fn $name() {
            run(find(stringify!($name)));
        })+

        #[test]
        fn every_target_is_run_and_has_a_program_and_a_corpus() {
            let here = [$(stringify!($name)),+];
            assert_eq!(here[..], TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
            let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
            for target in TARGETS {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{}.rs\"", target.name)));
                let program = folder("fuzz_targets").join(target.name).with_extension("rs");
                let program = std::fs::read_to_string(program).unwrap();
                assert!(program.contains(&format!("fuzz_targets::{}(data)", target.name)));
                assert!(inputs(target).len() > 10, "{}", target.name);
            }
        }
    };
}

corpora! {
    dynamic_memory,
    host_actions,
    kmcl,
    messages,
    offers,
    ring_reader,
    ring_writer,
    storage,
}

/// The variants of an enumeration, as they stand in its source.
fn variants(file: &str, name: &str) -> Vec<String> {
    let source = std::fs::read_to_string(folder("../src").join(file)).unwrap();
    let start = source.find(&format!("pub enum {name} {{")).unwrap();
    let body = &source[start..];
    let body = &body[..body.find("\n}").unwrap()];
    let names = body
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter_map(|line| {
            let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            name.starts_with(|first: char| first.is_ascii_uppercase())
                .then_some(name)
        });
    let names: Vec<String> = names.collect();
    assert!(!names.is_empty());
    names
}

#[test]
#[cfg_attr(miri, ignore = "too many inputs for an interpreter")]
fn every_way_in_which_a_host_can_be_wrong_is_met() {
    let met: BTreeSet<String> = recording(|| TARGETS.iter().for_each(run));
    let mut missing = Vec::new();
    for (file, name, kind) in [
        ("ring/error.rs", "Corruption", "Corruption"),
        ("protocol/message.rs", "ParseError", "ParseError"),
        (
            "device/dynamic_memory/protocol/message.rs",
            "ParseError",
            "dynamic_memory::ParseError",
        ),
        ("device/dynamic_memory/engine/types.rs", "Fault", "Fault"),
    ] {
        let names = variants(file, name)
            .into_iter()
            .map(|variant| format!("{kind}::{variant}"));
        missing.extend(names.filter(|name| !met.contains(name)));
    }
    // Of these, what a host can cause.
    for name in [
        "InvalidRing::Corrupt",
        "WriteError::Full",
        "WriteError::TooLarge",
        "WriteError::PageList",
        "WriteError::Corrupt",
        "BadRange::BadRange",
        "ConnectError::NoAnswer",
        "ConnectError::NoBus",
        "ConnectError::NoCommonVersion",
        "ConnectError::Post",
        "ConnectError::Refused",
        "Error::InUse",
        "Error::NoSuchChannel",
        "Error::Rescinded",
        "Error::TimedOut",
        "Error::Refused",
        "Error::Hypercall",
        "Gone::Corrupt",
        "Gone::Rescinded",
        "broken.client",
        "broken.server",
        "bus.unknown_messages",
        "bus.short_messages",
        "bus.stray_replies",
        "bus.refused_offers",
        "bus.excess_offers",
        "bus.stray_rescinds",
        "bus.stray_signals",
        "bus.busy_posts",
        "bus.parked_blocks",
        "bus.unparked_blocks",
        "bus.lost_blocks",
        "kmcl.unknown_completions",
        "kmcl.late_completions",
        "kmcl.cancelled",
        "kmcl.ring_full",
        "dynamic_memory.malformed",
        "dynamic_memory.unknown",
        "dynamic_memory.unexpected",
        "dynamic_memory.unknown_pages",
        "dynamic_memory.refused_unballoons",
        "dynamic_memory.refused_hot_adds",
        "dynamic_memory.ballooned_pages",
    ] {
        if !met.contains(name) {
            missing.push(name.to_owned());
        }
    }
    assert!(missing.is_empty(), "never met: {missing:#?}\nmet: {met:#?}");
}
