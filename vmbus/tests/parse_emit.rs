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
    // The storage driver's packets, there and back with the controller of this crate, which was written independently.
    (
        "host/storage/config.rs",
        "from_wire",
        &["any_number_is_a_version_of_both_ends_or_of_neither"],
    ),
    (
        "host/storage/wire.rs",
        "copy",
        &[
            "any_bytes_are_a_packet_of_a_client",
            "requests_of_the_driver_are_what_the_controller_reads",
        ],
    ),
    ("host/storage/wire.rs", "put", &["answers_take_any_bytes_anywhere"]),
    ("host/storage/state.rs", "pack", &["any_number_is_a_session"]),
    ("host/storage/state.rs", "unpack", &["any_number_is_a_session"]),
    (
        "host/storage/outcome.rs",
        "raw",
        &["outcomes_of_the_controller_are_what_the_driver_reads"],
    ),
    // Messages of the hypervisor.
    (
        "hyperv/slot.rs",
        "copy",
        &["m1_any_bytes_of_a_slot_are_a_message_that_says_the_same"],
    ),
    (
        "hyperv/message.rs",
        "new",
        &["m1_any_bytes_of_a_slot_are_a_message_that_says_the_same"],
    ),
    (
        "hyperv/hypercall.rs",
        "fill",
        &["m13_what_is_posted_is_what_the_hypervisor_finds_and_nothing_else"],
    ),
    (
        "hyperv/cpuid.rs",
        "new",
        &["b2_any_bytes_are_a_signature_that_can_be_printed"],
    ),
    (
        "bus/dispatch.rs",
        "dispatch",
        &[
            "m2_any_bytes_parse_or_are_refused",
            "m2_unknown_and_short_messages_are_counted_and_their_slot_is_freed",
        ],
    ),
    ("protocol/message.rs", "of", &["m2_any_bytes_parse_or_are_refused"]),
    (
        "protocol/message.rs",
        "append",
        &["memory_of_any_size_and_offset_is_described_and_read_again"],
    ),
    (
        "protocol/gpadl.rs",
        "pages",
        &["memory_of_any_size_and_offset_is_described_and_read_again"],
    ),
    (
        "protocol/gpadl.rs",
        "trailing_pages",
        &["memory_of_any_size_and_offset_is_described_and_read_again"],
    ),
    (
        "ring/external.rs",
        "length_of",
        &["r3_any_bytes_are_read_without_harm", "page_lists_go_there_and_back"],
    ),
    (
        "device/dynamic_memory/protocol/wire.rs",
        "ranges",
        &["parsing_any_bytes_never_panics_and_emitting_gives_them_back"],
    ),
    // Commands, read again by the controller.
    (
        "device/storage/scsi/cdb.rs",
        "six",
        &["requests_of_the_driver_are_what_the_controller_reads"],
    ),
    (
        "device/storage/scsi/cdb.rs",
        "ten",
        &["blocks_of_a_transfer_are_what_the_controller_reads"],
    ),
    (
        "hyperv/slot.rs",
        "take",
        &["m1_any_bytes_of_a_slot_are_a_message_that_says_the_same"],
    ),
    // Bytes into a ring, of any length at any place.
    ("ring/memory.rs", "store_bytes", REST_OF_RINGS),
    ("ring/memory.rs", "store_padded", REST_OF_RINGS),
    ("ring/reservation.rs", "store", REST_OF_RINGS),
    ("ring/reservation.rs", "write", REST_OF_RINGS),
    ("ring/reservation.rs", "write_at", REST_OF_RINGS),
    ("ring/reservation.rs", "write_external", REST_OF_RINGS),
    ("ring/shared.rs", "last_word", REST_OF_RINGS),
    ("ring/shared.rs", "store_bytes", REST_OF_RINGS),
    ("ring/shared.rs", "store_padded", REST_OF_RINGS),
    // What a server has saved.
    (
        "kmcl/saving/chunk.rs",
        "chunk",
        &[
            "chunks_of_any_content_go_there_and_back",
            "any_bytes_are_chunks_or_corrupt",
        ],
    ),
    (
        "kmcl/saving/chunk.rs",
        "put",
        &["chunks_of_any_content_go_there_and_back"],
    ),
    (
        "kmcl/saving/save.rs",
        "chunk",
        &["a_server_is_saved_and_restored_and_its_client_goes_on"],
    ),
    (
        "kmcl/saving/restore.rs",
        "restore_from_buffer",
        &[SCRAMBLED, "a_server_is_saved_and_restored_and_its_client_goes_on"],
    ),
    ("kmcl/saving/restore.rs", "restore_incoming", &[SCRAMBLED]),
    ("kmcl/saving/restore.rs", "restore", &[SCRAMBLED]),
    // What devices tell of themselves.
    (
        "device/storage/scsi/data.rs",
        "new",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "luns",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "is_write_protected",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "knows_write_through",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "page_content",
        &["any_bytes_are_some_data_or_none"],
    ),
    (
        "device/storage/scsi/data.rs",
        "vpd_pages",
        &["any_bytes_are_some_data_or_none"],
    ),
];

const SCRAMBLED: &str = "a_saved_state_that_was_tampered_with_is_refused_or_harmless";

/// Rings of packets in pieces, against a queue; stores of every length at every place.
const REST_OF_RINGS: &[&str] = &["a_ring_is_a_queue", "what_is_stored_is_loaded_at_every_place"];

/// Functions that take bytes which are this kernel's own, on their way out or in a test.
const OURS: &[(&str, &str)] = &[
    ("host/storage/controller.rs", "send_stray_answer"),
    ("host/storage/controller.rs", "send_unasked_bytes"),
    ("host/storage/fault.rs", "data"),
    ("host/storage/memory_disk.rs", "copy_of"),
    ("host/storage/target/inquiry.rs", "put"),
    ("host/storage/target/inquiry.rs", "with"),
    ("host/storage/target/mod.rs", "false_data"),
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

/// Whether a function is one of those, by its name or because it takes what it calls bytes.
fn is_listed(name: &str, head: &str) -> bool {
    let is_named = matches!(
        name,
        "decode" | "encode" | "emit" | "from_wire" | "to_wire" | "parse" | "pack" | "unpack" | "chunk"
    );
    let is_slot = head.contains("&impl Words") && head.contains("-> Option<Message>");
    let takes_bytes = head.split_once("bytes: ").is_some_and(|(_, kind)| {
        let kind = kind.trim_start_matches("&'a ").trim_start_matches('&');
        kind.starts_with("[u8")
    });
    let is_input = head.contains("ConnectionId, message_type: u32, payload: &[u8]") && head.contains("fn fill");
    is_named || name.starts_with("parse_") || name.starts_with("restore") || is_slot || takes_bytes || is_input
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
        let is_test = ["test", "survivors", "round_trips", "models"]
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
            let Some(function) = defined(line).filter(|_| !is_test) else {
                continue;
            };
            let mut head = line.to_owned();
            while !head.contains(['{', ';'])
                && let Some(next) = lines.next()
            {
                head.push_str(next);
            }
            if is_listed(function, &head) {
                found.insert((name.to_owned(), function.to_owned()));
            }
        }
    }
    let listed: BTreeSet<_> = LIST
        .iter()
        .map(|(file, function, _)| ((*file).to_owned(), (*function).to_owned()))
        .collect();
    assert_eq!(listed.len(), LIST.len(), "one is listed twice");
    let ours: BTreeSet<_> = OURS
        .iter()
        .map(|(file, function)| ((*file).to_owned(), (*function).to_owned()))
        .collect();
    assert!(ours.is_disjoint(&listed), "listed as both");
    let listed: BTreeSet<_> = listed.union(&ours).cloned().collect();
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "without a property test: {missing:#?}");
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "listed, but not there: {gone:#?}");
    for (file, function, tests) in LIST {
        assert!(!tests.is_empty(), "{file}, {function}: no test");
        for test in *tests {
            assert!(
                properties.contains(*test),
                "{file}, {function}: there is no test {test}"
            );
        }
    }
}
