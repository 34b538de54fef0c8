//! No path to a panic is linked from what a host's bytes reach in `protocol` and `ring`.
//!
//! `panic_free/probe.rs` calls all of it, with values that the compiler cannot know, and has a panic handler that calls a function
//! which does not exist. Built as a kernel would be, with nothing left out that is reachable, it links only if no panic is. So
//! that this cannot pass for another reason, the same program with one panic in it must not link.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::path::Path;
use std::process::Command;

const MANIFEST: &str = r#"
[package]
name = "probe"
version = "0.0.0"
edition = "2024"
[[bin]]
name = "probe"
path = "main.rs"
[dependencies]
vmbus = { path = "@", default-features = false }
[profile.release]
opt-level = 3
panic = "abort"
lto = "fat"
codegen-units = 1
[workspace]
"#;

/// Links the program. Returns what the linker says if it does not.
fn link(name: &str, source: &str) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("main.rs"), source).unwrap();
    std::fs::write(
        folder.join("Cargo.toml"),
        MANIFEST.replace('@', &root.display().to_string()),
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
        Ok(())
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
