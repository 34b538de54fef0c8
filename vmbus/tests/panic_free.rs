//! Which paths to a panic are linked from what a host's bytes reach.
//!
//! From the messages, the rings, the hypervisor's pages and the devices' packets: none. `panic_free/probe.rs` calls all of that, with
//! values that the compiler cannot know, and has a panic handler that calls a function which does not exist. Built as a kernel would
//! be, with nothing left out that is reachable, it links only if no panic is.
//!
//! From all the rest, a bus with a channel, the KMCL-style client and the drivers: those of [`KNOWN`]. `panic_free/whole.rs` uses them
//! with a panic handler that looks at the panic, so that messages and places of all that can be reached are in the program.
//!
//! So that neither can pass for another reason, the same programs with one more panic in them must fail. What is logged is left out:
//! it is `core` that formats it. The offering side (`host`) is left out as well: no host reaches it.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const MANIFEST: &str = r#"
[package]
name = "%"
version = "0.0.0"
edition = "2024"
[[bin]]
name = "%"
path = "main.rs"
[dependencies]
vmbus = { path = "@", default-features = false, features = ["alloc"] }
log = { version = "0.4", default-features = false, features = ["release_max_level_off"] }
[profile.release]
opt-level = 3
panic = "abort"
lto = "fat"
codegen-units = 1
[workspace]
"#;

/// Panics of others that may be in the program, and why none of them happens: the message or the place, as the program has it.
const KNOWN: [&str; 2] = [
    // A value that is made once: what makes it returns an error, and does not panic.
    "/src/once.rs",
    // More readers than there are numbers: each is on a processor, and there are at most 4096.
    "/src/rwlock.rs",
];

/// Links the program. Returns it, or what the linker says if it does not.
fn link(name: &str, source: &str) -> Result<Vec<u8>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("main.rs"), source).unwrap();
    std::fs::write(folder.join("stub.rs"), include_str!("panic_free/stub.rs")).unwrap();
    std::fs::write(
        folder.join("Cargo.toml"),
        MANIFEST.replace('%', name).replace('@', &root.display().to_string()),
    )
    .unwrap();
    // The versions that the rest is built with.
    std::fs::copy(root.join("../Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--target", "x86_64-unknown-none"])
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-target"),
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(&folder)
        .output()
        .unwrap();
    if output.status.success() {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-target");
        Ok(std::fs::read(target.join("x86_64-unknown-none/release").join(name)).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
#[cfg_attr(miri, ignore = "starts the compiler")]
fn what_a_host_reaches_links_without_a_panic() {
    let source = include_str!("panic_free/probe.rs");
    if let Err(said) = link("probe", source) {
        assert!(said.is_empty(), "{said}");
    }
    let call = "read_message(bytes);\n    let mut user_data";
    assert!(source.contains(call));
    let with_a_panic = source.replace(call, "read_message(&bytes[black_box(1)..]);\n    let mut user_data");
    let said = link("probe-with-a-panic", &with_a_panic).unwrap_err();
    assert!(said.contains("a_path_to_a_panic_is_left"), "{said}");
}

/// The places of panics in a program: names of sources, which stand behind each other without an end.
fn places(program: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(program);
    let ends = text.match_indices(".rs").map(|(at, _)| at + 3);
    ends.map(|end| {
        let is_of_a_path = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
        let start = text[..end].rfind(|c| !is_of_a_path(c)).map_or(0, |at| at + 1);
        text[start.min(end)..end].to_owned()
    })
    .filter(|place| place.contains('/') || place == "main.rs")
    .collect()
}

#[test]
#[cfg_attr(miri, ignore = "starts the compiler")]
fn what_stands_on_a_bus_panics_nowhere_but_where_it_is_known() {
    let source = include_str!("panic_free/whole.rs");
    let unknown = |program: &[u8]| -> Vec<String> {
        let places = places(program).into_iter();
        places
            .filter(|place| !KNOWN.iter().any(|known| place.ends_with(known)))
            .collect()
    };
    let program = link("whole", source).unwrap();
    assert_eq!(unknown(&program), [""; 0]);
    // It does look.
    let found = places(&program);
    for known in KNOWN {
        assert!(found.iter().any(|place| place.ends_with(known)), "{known}: {found:?}");
    }
    let call = "black_box(bytes);";
    assert!(source.contains(call));
    let with_a_panic = source.replace(call, "black_box(bytes[black_box(9)]);");
    let places = unknown(&link("whole-with-a-panic", &with_a_panic).unwrap());
    assert!(places.iter().any(|place| place.ends_with("main.rs")), "{places:?}");
}
