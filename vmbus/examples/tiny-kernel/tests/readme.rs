//! The crate's README says the truth: about this kernel, which it walks through, and about the tests that its tables name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const README: &str = include_str!("../../../README.md");

/// What an operating system has to write, at most.
const GLUE_LINES: usize = 150;

fn example() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push((path, text));
        }
    }
    found
}

fn glue() -> Vec<(PathBuf, String)> {
    sources(&example().join("src/hyperv"))
}

/// The part of the README under `heading`, up to the next heading of the same rank; empty if there is none.
fn section(heading: &str) -> &'static str {
    let rest = README.split_once(&format!("\n## {heading}\n"));
    rest.and_then(|(_, rest)| rest.split("\n## ").next())
        .unwrap_or_default()
}

/// The visible lines of each block of Rust in `text`.
fn blocks(text: &str) -> Vec<String> {
    let blocks = text
        .split("```rust\n")
        .skip(1)
        .filter_map(|block| block.split("\n```").next());
    blocks
        .map(|block| {
            let visible = block.lines().filter(|line| *line != "#" && !line.starts_with("# "));
            visible.collect::<Vec<_>>().join("\n")
        })
        .collect()
}

/// A source file without what stands before its first item.
fn body(source: &str) -> String {
    let is_head = |line: &&str| line.is_empty() || line.starts_with("//!") || line.starts_with("#![");
    source.lines().skip_while(is_head).collect::<Vec<_>>().join("\n")
}

/// The texts between backticks in `text`, outside of blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_glue_is_short() {
    let lines: usize = glue().iter().map(|(_, text)| text.lines().count()).sum();
    assert!(lines <= GLUE_LINES, "{lines} lines of glue");
    assert!(lines > GLUE_LINES / 2, "{lines} lines: is this still all of it?");
    // Nothing of it hides elsewhere.
    for (path, text) in sources(&example().join("src")) {
        let is_glue = path.starts_with(example().join("src/hyperv"));
        for part in ["impl Platform for", "impl MemoryPool for", ".poll()", "Bus::connect"] {
            assert!(is_glue || !text.contains(part), "{part} in {}", path.display());
        }
    }
}

#[test]
fn the_walk_through_quotes_the_glue_whole_and_nothing_else() {
    let quoted = blocks(section("Bring your own OS"));
    let files: Vec<(PathBuf, String)> = glue()
        .into_iter()
        .filter(|(path, _)| !path.ends_with("mod.rs"))
        .map(|(path, text)| (path, body(&text)))
        .collect();
    assert_eq!(files.len(), 3, "the platform, the pool and the loop");
    for (path, text) in &files {
        assert!(
            quoted.contains(text),
            "{} is not in the README as it is",
            path.display()
        );
    }
    for block in &quoted {
        assert!(
            files.iter().any(|(_, text)| text == block),
            "the example has no such file:\n{block}"
        );
    }
}

#[test]
fn the_walk_through_explains_what_is_there_and_leaves_nothing_out() {
    let section = section("Bring your own OS");
    let text: String = glue().into_iter().map(|(_, text)| text).collect();
    // The bullets begin with what they explain.
    let bullets = section.lines().filter(|line| line.starts_with("- `"));
    let heads: Vec<&str> = bullets
        .flat_map(|line| code_spans(line.split("`:").next().unwrap()))
        .collect();
    assert!(heads.len() > 15, "{heads:?}");
    for head in &heads {
        assert!(text.contains(head), "the glue has no `{head}`");
    }
    for line in text.lines().map(str::trim_start) {
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("unsafe ");
        let Some(rest) = line.strip_prefix("fn ") else { continue };
        let name = rest.split(['(', '<']).next().unwrap();
        assert!(
            heads.contains(&format!("fn {name}").as_str()),
            "nothing explains `fn {name}`"
        );
    }
}

#[test]
fn each_ticked_cell_names_tests_that_exist() {
    let crate_tests: String = ["../../src", "../../tests"]
        .into_iter()
        .flat_map(|folder| sources(&example().join(folder)))
        .map(|(_, text)| text)
        .collect();
    let scenarios = fs::read_to_string(example().join("../../../qemu-tests/src/scenarios/list.rs")).unwrap();
    // A test says so in one of the attributes in front of it; there may be others, such as why Miri leaves it out.
    let is_test = |name: &str| {
        crate_tests.match_indices(&format!("fn {name}(")).any(|(at, _)| {
            let attributes = crate_tests[..at]
                .lines()
                .rev()
                .skip_while(|line| line.trim().is_empty());
            let mut attributes = attributes.take_while(|line| line.trim_start().starts_with("#["));
            attributes.any(|line| line.trim() == "#[test]")
        })
    };
    let exists = |name: &str| is_test(name) || scenarios.contains(&format!("name: \"{name}\""));
    let mut ticked = 0;
    for cell in section("What works")
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|row| row.split('|'))
    {
        // A name in brackets is a note on the one before.
        let names: BTreeSet<&str> = code_spans(cell)
            .filter(|name| name.contains('_') || exists(name))
            .collect();
        if cell.contains('✓') {
            ticked += 1;
            assert!(!names.is_empty(), "no test in the cell {cell:?}");
        }
        for name in names {
            assert!(exists(name), "there is no test `{name}`");
        }
    }
    assert!(ticked > 8, "{ticked} cells");
}

#[test]
fn the_features_are_those_of_the_crate() {
    let manifest = fs::read_to_string(example().join("../../Cargo.toml")).unwrap();
    let (_, features) = manifest.split_once("\n[features]\n").unwrap();
    let features = features.split("\n[").next().unwrap().lines();
    let names: BTreeSet<&str> = features
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .filter(|name| *name != "default")
        .collect();
    let rows = section("Features").lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<&str> = rows.filter_map(|row| code_spans(row).next()).collect();
    assert_eq!(documented, names);
}

#[test]
fn the_least_rust_version_is_the_manifests() {
    let manifest = fs::read_to_string(example().join("../../../Cargo.toml")).unwrap();
    let version = manifest
        .split("rust-version = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(
        section("Rust versions").contains(&format!("{version} or newer")),
        "{version}"
    );
}
