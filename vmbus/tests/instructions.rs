//! Instructions per packet, counted by valgrind, against the committed table `benches/instructions.toml`: none may grow by more
//! than 3 %.
//!
//! The numbers hold for one compiler and one kind of processor. Elsewhere, and where there is no valgrind (on the path, or named
//! by the variable `VALGRIND`), the test says that it did not check. With `VMBUS_INSTRUCTIONS=write` it writes the table.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot run should say why and stop"
)]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much an operation may grow, in percent.
const TOLERANCE: f64 = 3.0;
/// What is counted: the ring's rows, as `ring-MAPPING-PAYLOAD-PACKETS`, KMCL, and storage. Per batch, where there is one.
const OPERATIONS: [&str; 20] = [
    "ring-double-8-1",
    "ring-double-64-1",
    "ring-double-64-16",
    "ring-double-256-16",
    "ring-double-1500-16",
    "ring-double-4096-8",
    "ring-double-16384-4",
    "ring-split-8-1",
    "ring-split-64-1",
    "ring-split-64-16",
    "ring-split-256-16",
    "ring-split-1500-16",
    "ring-split-4096-8",
    "ring-split-16384-4",
    "kmcl-round-trip-64",
    "kmcl-round-trip-64-one-processor",
    "kmcl-round-trip-64-anywhere",
    "kmcl-stream-64x16",
    "storage-request-512",
    "storage-read-4096",
];
/// The difference of the two is what counts: what comes before and after falls out.
const COUNTS: [u64; 2] = [200, 1200];

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn table() -> PathBuf {
    manifest().join("benches/instructions.toml")
}

/// The value of a key, in a table of `key = value` lines.
fn value<'t>(table: &'t str, key: &str) -> Option<&'t str> {
    table.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&text).into_owned())
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    version.split_whitespace().nth(1).unwrap_or_default().into()
}

/// The instructions that copies use depend on this.
fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") && cfg!(target_os = "linux") {
        return "x86_64 avx2 linux";
    }
    "another"
}

fn valgrind() -> Option<OsString> {
    let valgrind = std::env::var_os("VALGRIND").unwrap_or_else(|| "valgrind".into());
    output(Command::new(&valgrind).arg("--version")).map(|_| valgrind)
}

/// The benchmark that does an operation.
fn benchmark_of(operation: &str) -> &'static str {
    if operation.starts_with("storage-") {
        "storage"
    } else {
        "ring"
    }
}

/// Builds the benchmarks as `cargo bench` does, and returns where each is.
fn benchmarks() -> impl Fn(&str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(manifest())
        .args(["bench", "--bench", "ring", "--bench", "storage"])
        .args(["--no-run", "--message-format=json"]);
    let output = cargo.output().unwrap();
    let messages = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "the benchmarks do not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    move |name| {
        let (name, key) = (format!("\"name\":\"{name}\""), "\"executable\":\"");
        let path = messages
            .lines()
            .filter(|line| line.contains(&name) && line.contains("compiler-artifact"))
            .find_map(|line| line.split_once(key)?.1.split_once('"').map(|(path, _)| path));
        PathBuf::from(path.expect("cargo tells where the benchmark is"))
    }
}

fn count(valgrind: &OsString, benchmark: &Path, operation: &str) -> u64 {
    let [few, many] = COUNTS.map(|count| {
        let mut command = Command::new(valgrind);
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(benchmark)
            .args(["instructions", operation, &count.to_string()]);
        let text = output(&mut command).unwrap_or_else(|| panic!("{operation}: valgrind failed"));
        let collected = text.lines().find_map(|line| line.split_once("Collected :"));
        let collected: u64 = collected.unwrap().1.trim().parse().unwrap();
        collected
    });
    (many - few) / (COUNTS[1] - COUNTS[0])
}

fn say(text: &str) {
    // Past the test harness, which shows nothing of a test that passes.
    let _ = writeln!(std::io::stderr(), "instructions: {text}");
}

#[test]
fn no_operation_takes_more_than_3_percent_more_instructions_than_the_table_says() {
    let is_writing = std::env::var_os("VMBUS_INSTRUCTIONS").is_some_and(|value| value == "write");
    let table_text = std::fs::read_to_string(table()).unwrap_or_default();
    let here = (compiler(), processor());
    if !is_writing {
        let there = (value(&table_text, "rustc"), value(&table_text, "processor"));
        if there != (Some(&here.0), Some(here.1)) {
            return say(&format!("NOT CHECKED: the table is for {there:?}, this is {here:?}"));
        }
    }
    let Some(valgrind) = valgrind() else {
        return say("NOT CHECKED: there is no valgrind");
    };
    let benchmarks = benchmarks();
    let mut written = format!(
        "# Instructions of one operation, counted by valgrind; see tests/instructions.rs.\nrustc = \"{}\"\nprocessor = \"{}\"\n\n",
        here.0, here.1
    );
    let mut grown = Vec::new();
    for operation in OPERATIONS {
        let counted = count(&valgrind, &benchmarks(benchmark_of(operation)), operation);
        writeln!(written, "{operation} = {counted}").unwrap();
        if is_writing {
            continue;
        }
        let before: u64 = value(&table_text, operation)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{operation} is not in the table"));
        let percent = (counted as f64 / before as f64 - 1.0) * 100.0;
        if percent > TOLERANCE {
            grown.push(format!(
                "{operation}: {before} before, {counted} now, {percent:.1} % more"
            ));
        }
    }
    if is_writing {
        std::fs::write(table(), written).unwrap();
        return say("the table is written");
    }
    assert!(grown.is_empty(), "{grown:#?}");
    say(&format!("{} operations checked", OPERATIONS.len()));
}

#[test]
fn the_table_has_each_operation_and_no_other() {
    let text = std::fs::read_to_string(table()).unwrap();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| !["rustc", "processor"].contains(name))
        .collect();
    assert_eq!(names, OPERATIONS);
}
