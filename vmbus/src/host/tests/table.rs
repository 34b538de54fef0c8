//! The table of the README and the list of statements, against the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the documentation of KMCL names, in numbers: functions and callbacks are found by their prefix in the table.
const FUNCTIONS_V1: (usize, usize) = (41, 14);
const FUNCTIONS_LATER: usize = 17;
const CALLBACKS: usize = 11;
/// With and without content in the documentation, and the three handles.
const STRUCTURES: [&str; 14] = [
    "VMB_CHANNEL_STATE_CHANGE_CALLBACKS",
    "KMCL_CLIENT_INTERFACE_V1",
    "KMCL_CLIENT_INTERFACE_V2",
    "KMCL_CLIENT_INTERFACE_V3",
    "KMCL_CLIENT_INTERFACE_V4",
    "KMCL_CLIENT_INTERFACE_V5",
    "KMCL_SERVER_INTERFACE_V1",
    "KMCL_SERVER_INTERFACE_V5",
    "KMCL_SERVER_ONLY_METHODS",
    "KMCL_SERVER_ONLY_METHODS_V5",
    "VMB_CHANNEL_STATE_CHANGE_CALLBACKS_INIT",
    "VMBCHANNEL",
    "VMBPACKET",
    "VMBPACKETCOMPLETION",
];
const FLAGS: usize = 7;
const STATUSES: usize = 11;
const STATEMENTS: [(&str, usize); 5] = [("ppc", 17), ("ssr", 25), ("gpm", 18), ("epp", 21), ("ged", 15)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files
}

fn rows() -> Vec<[String; 3]> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n### KMCL, function by function\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &str| -> Option<[String; 3]> {
        let cells: Vec<String> = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_string())
            .collect();
        let cells: [String; 3] = cells.try_into().ok()?;
        (cells[0] != "KMCL" && !cells[0].starts_with("---")).then_some(cells)
    };
    section
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(cells)
        .collect()
}

/// The names in back quotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The tests of this program, which are those that run.
fn tests() -> BTreeSet<String> {
    let list = |arguments: &[&str]| -> BTreeSet<String> {
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        names
            .map(|path| path.rsplit("::").next().unwrap().to_string())
            .collect()
    };
    let ignored = list(&["--list", "--ignored"]);
    &list(&["--list"]) - &ignored
}

/// A public item: its name, with its type in front if it has one, and its documentation.
struct Item {
    name: String,
    doc: String,
    is_function: bool,
}

/// The name of the type that a line opens: of its definition, or of what is implemented for it.
fn type_of(line: &str) -> Option<&str> {
    let ident = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .map(str::len)
    };
    for kind in ["pub struct ", "pub enum ", "pub trait ", "pub type "] {
        if let Some(rest) = line.trim_start().strip_prefix(kind) {
            return rest.get(..ident(rest)?);
        }
    }
    let rest = line.strip_prefix("impl")?;
    // Behind the generics, which may hold each other.
    let mut depth = 0;
    let behind = rest.find(|c| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        depth == 0 && c == ' '
    })?;
    let rest = rest.get(behind + 1..)?;
    let rest = rest.split_once(" for ").map_or(rest, |(_, rest)| rest);
    rest.get(..ident(rest)?)
}

/// The public items of a source.
fn items(text: &str) -> Vec<Item> {
    let (mut items, mut doc, mut of) = (Vec::new(), String::new(), "");
    let mut add = |name: String, doc: &mut String, is_function| {
        let doc = std::mem::take(doc);
        items.push(Item { name, doc, is_function });
    };
    for line in text.lines() {
        let code = line.trim_start();
        if code.starts_with("///") {
            doc.push_str(code);
            doc.push('\n');
            continue;
        }
        let name = |rest: &str| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap()
                .to_string()
        };
        let function = ["pub fn ", "pub const fn ", "pub unsafe fn "];
        if let Some(found) = type_of(line) {
            of = found;
            add(of.to_string(), &mut doc, false);
        } else if let Some(rest) = function.iter().find_map(|kind| code.strip_prefix(kind)) {
            add(format!("{of}::{}", name(rest)), &mut doc, true);
        } else if let Some(rest) = code.strip_prefix("pub const ").or_else(|| code.strip_prefix("const ")) {
            add(format!("{of}::{}", name(rest)), &mut doc, false);
        } else if line.starts_with("    ") && code.starts_with(|c: char| c.is_uppercase()) {
            add(format!("{of}::{}", name(code)), &mut doc, false);
        } else if !code.starts_with("#[")
            && !code.ends_with(")]")
            && code != ")]"
            && !code.starts_with("clippy::")
            && !code.starts_with("reason")
        {
            doc.clear();
        }
    }
    items
}

#[test]
fn every_name_of_the_documentation_has_one_row() {
    let rows = rows();
    let names: BTreeSet<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names.len(), rows.len(), "a name has two rows");
    let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(count("Vmb"), FUNCTIONS_V1.0 + FUNCTIONS_V1.1 + FUNCTIONS_LATER);
    assert_eq!(count("Evt"), CALLBACKS);
    // Two of the VMBUS_ names are one flag.
    assert_eq!(count("VMBUS_"), FLAGS);
    assert_eq!(count("STATUS_"), STATUSES);
    for structure in STRUCTURES {
        assert!(names.contains(structure), "{structure}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn every_item_of_the_table_exists() {
    let known: BTreeSet<String> = sources()
        .iter()
        .flat_map(|(_, text)| items(text))
        .map(|item| item.name)
        .collect();
    for [kmcl, rust, _] in rows() {
        if rust.starts_with("not applicable: ") {
            assert!(rust.len() > 25, "{kmcl}: no reason");
            continue;
        }
        let items: Vec<&str> = quoted(&rust)
            .into_iter()
            .filter(|item| *item != "Ex" && *item != "Ok")
            .collect();
        assert!(!items.is_empty(), "{kmcl}: no item");
        for item in items {
            // Without its module, if it names one.
            let name = match item.split_once("::") {
                Some((module, rest)) if module.starts_with(|c: char| c.is_lowercase()) => rest,
                _ => item,
            };
            assert!(known.contains(name), "{kmcl}: there is no {item}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn every_function_has_an_example() {
    let (mut functions, mut without) = (0, Vec::new());
    for (path, text) in sources() {
        let path = path.strip_prefix(root().join("src")).unwrap();
        // Devices that are offered have an interface of their own.
        let is_ours = path.starts_with("kmcl") || path.parent() == Some(Path::new("host"));
        if !is_ours
            || path
                .components()
                .any(|part| part.as_os_str().to_string_lossy().starts_with("tests"))
        {
            continue;
        }
        for item in items(&text).into_iter().filter(|item| item.is_function) {
            functions += 1;
            // Not only one that does not compile.
            let mut fences = item.doc.lines().filter(|line| line.starts_with("/// ```"));
            if !fences.any(|fence| fence == "/// ```") {
                without.push(item.name);
            }
        }
    }
    assert!(functions > 120, "only {functions} functions");
    assert!(without.is_empty(), "without an example: {without:?}");
}

#[test]
#[cfg_attr(miri, ignore = "asks its own program")]
fn every_test_of_the_table_runs() {
    let known = tests();
    for [kmcl, rust, test] in rows() {
        if rust.starts_with("not applicable: ") {
            assert_eq!(test, "-", "{kmcl}");
            continue;
        }
        let tests = quoted(&test);
        assert!(!tests.is_empty(), "{kmcl}: no test");
        for test in tests {
            assert!(known.contains(test), "{kmcl}: there is no test {test}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "asks its own program")]
fn each_of_the_96_statements_has_a_test_that_runs() {
    let known = tests();
    let mut found = 0;
    for (prefix, count) in STATEMENTS {
        for number in 1..=count {
            let start = format!("{prefix}_{number}_");
            assert!(known.iter().any(|name| name.starts_with(&start)), "{start}");
            found += 1;
        }
    }
    assert_eq!(found, 96);
}

/// Statements about blocking and about order.
const BLOCKING_AND_ORDER: [&str; 31] = [
    "ppc_8", "ppc_9", "ppc_10", "ppc_11", "ssr_4", "ssr_10", "ssr_12", "ssr_13", "ssr_14", "ssr_15", "ssr_16",
    "ssr_18", "ssr_19", "ssr_20", "ssr_21", "ssr_24", "ssr_25", "gpm_3", "gpm_13", "gpm_14", "gpm_18", "epp_8",
    "epp_9", "epp_12", "epp_13", "epp_14", "epp_15", "epp_16", "epp_20", "epp_21", "ged_5",
];

/// What a test with threads calls.
const WITH_THREADS: [&str; 4] = ["std::thread::", "with_threads(&", " stream()", "asked_in("];

#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn statements_about_blocking_and_order_run_with_threads() {
    let all = sources();
    let bodies: Vec<&str> = all
        .iter()
        .flat_map(|(_, text)| text.split("#[test]\nfn ").skip(1))
        .filter_map(|rest| rest.split("\n}\n").next())
        .filter(|body| WITH_THREADS.iter().any(|call| body.contains(call)))
        .collect();
    for id in BLOCKING_AND_ORDER.into_iter().chain(["epp_17", "epp_18"]) {
        let (kind, number) = id.split_once('_').unwrap();
        let other = format!("{kind}_and_{number}_");
        let is_it = |body: &&str| {
            let name = body.split('(').next().unwrap();
            name.starts_with(&format!("{id}_"))
                || name.contains(&other)
                || name.contains(&format!("_and_{number}_")) && name.starts_with(kind)
        };
        assert!(bodies.iter().any(&is_it), "{id}");
    }
}

/// No statement is shown by a test that asserts nothing of the code.
#[test]
#[cfg_attr(miri, ignore = "reads the sources")]
fn each_test_of_a_statement_asserts_something() {
    let rows = std::fs::read_to_string(root().join("src/kmcl/statements.rs")).unwrap();
    let mut without = Vec::new();
    for (_, text) in sources() {
        for (prefix, _) in STATEMENTS {
            for (at, _) in text.match_indices(&format!("#[test]\nfn {prefix}_")) {
                let body = text[at..].split("\n}\n").next().unwrap();
                let name = body.lines().nth(1).unwrap();
                let number = name.split('_').nth(1).unwrap();
                let id = format!("{}-{number}", prefix.to_uppercase());
                let claims = body.matches("assert").count() - body.matches("assert_row").count();
                let is_refused = body.contains("assert_refused");
                let is_elsewhere = rows.contains(&format!("| {id} | not applicable |"));
                if claims == 0 && !is_elsewhere {
                    without.push(name.to_string());
                }
                assert!(!body.contains("assert!(true"), "{name}");
                // What the types decide is refused by the compiler.
                assert_eq!(is_refused, rows.contains(&format!("| {id} | types |")), "{name}");
            }
        }
    }
    assert!(without.is_empty(), "{without:?}");
}
