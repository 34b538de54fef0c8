//! The list of everything that reads bytes or text of the other end, or writes them: with each the property test that it takes any bytes,
//! or gives back what was written. What is new has to be put here.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// File, function, and the tests that show it.
const LIST: &[(&str, &str, &[&str])] = &[
    (
        "protocol/message.rs",
        "decode",
        &[
            "m2_any_bytes_parse_or_are_refused",
            "messages_of_any_fields_go_there_and_back",
        ],
    ),
    (
        "protocol/message.rs",
        "encode",
        &["messages_of_any_fields_go_there_and_back"],
    ),
    (
        "protocol/guid.rs",
        "from_wire",
        &["guids_go_there_and_back_as_bytes_and_as_text"],
    ),
    (
        "protocol/guid.rs",
        "to_wire",
        &["guids_go_there_and_back_as_bytes_and_as_text"],
    ),
    ("protocol/guid.rs", "parse", &["any_text_is_a_guid_or_none"]),
    ("protocol/version.rs", "from_wire", &["any_text_is_a_version_or_none"]),
    ("protocol/version.rs", "to_wire", &["any_text_is_a_version_or_none"]),
    ("protocol/version.rs", "parse", &["any_text_is_a_version_or_none"]),
    (
        "ring/packet.rs",
        "encode",
        &["packets_without_memory_go_there_and_back"],
    ),
    (
        "ring/external.rs",
        "parse",
        &[
            "r3_any_bytes_are_read_without_harm",
            "page_lists_go_there_and_back",
            "transfer_ranges_go_there_and_back",
        ],
    ),
    (
        "device/dynamic_memory/protocol/message.rs",
        "parse",
        &[
            "parsing_any_bytes_never_panics_and_emitting_gives_them_back",
            "every_message_of_any_values_goes_there_and_back",
        ],
    ),
    (
        "device/dynamic_memory/protocol/message.rs",
        "parse_body",
        &["parsing_any_bytes_never_panics_and_emitting_gives_them_back"],
    ),
    (
        "device/dynamic_memory/protocol/message.rs",
        "emit",
        &["every_message_of_any_values_goes_there_and_back"],
    ),
    (
        "device/dynamic_memory/protocol/wire.rs",
        "emit",
        &["every_message_of_any_values_goes_there_and_back"],
    ),
    // Answers are only read here, and written by hosts.
    (
        "device/storage/protocol/mod.rs",
        "parse",
        &["q9_any_bytes_are_an_answer_or_an_error"],
    ),
    (
        "device/storage/protocol/mod.rs",
        "parse_notice",
        &["q9_any_bytes_are_an_answer_or_an_error"],
    ),
    (
        "device/storage/protocol/status.rs",
        "from_wire",
        &["q9_any_bytes_are_an_answer_or_an_error"],
    ),
    (
        "device/storage/protocol/status.rs",
        "parse",
        &["q9_any_bytes_are_an_answer_or_an_error"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_10",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_16",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_serial",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_identity",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_block_limits",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "parse_provisioning",
        &["any_bytes_are_some_data_or_none"],
    ),
    // A match of a few numbers.
    ("host/storage/config.rs", "from_wire", &[]),
];

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn is_listed(name: &str) -> bool {
    matches!(name, "decode" | "encode" | "emit" | "from_wire" | "to_wire" | "parse") || name.starts_with("parse_")
}

/// The name of the function that a line begins to define.
fn defined(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let is_head = before
        .split_whitespace()
        .all(|word| word.starts_with("pub") || word == "const" || word.starts_with("in"));
    let name = after
        .split(|character: char| !(character.is_alphanumeric() || character == '_'))
        .next()?;
    is_head.then_some(name)
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn whatever_reads_or_writes_bytes_of_the_other_end_has_its_property_test() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&source);
    let mut found = BTreeSet::new();
    let mut properties = BTreeSet::new();
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap();
        let is_test = ["test", "survivors", "round_trips"]
            .iter()
            .any(|part| name.contains(part));
        // A function with arguments `in` ranges is one of proptest's.
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if line.trim() == "#[test]" {
                while lines.peek().is_some_and(|next| next.trim_start().starts_with("#[")) {
                    lines.next();
                }
                properties.extend(lines.peek().and_then(|next| defined(next)).map(str::to_owned));
            }
            if let Some(function) = defined(line).filter(|function| !is_test && is_listed(function)) {
                found.insert((name.to_owned(), function.to_owned()));
            }
        }
    }
    let listed: BTreeSet<_> = LIST
        .iter()
        .map(|(file, function, _)| ((*file).to_owned(), (*function).to_owned()))
        .collect();
    assert_eq!(listed.len(), LIST.len(), "one is listed twice");
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "without a property test: {missing:#?}");
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "listed, but not there: {gone:#?}");
    for (file, function, tests) in LIST {
        for test in *tests {
            assert!(
                properties.contains(*test),
                "{file}, {function}: there is no test {test}"
            );
        }
    }
}
