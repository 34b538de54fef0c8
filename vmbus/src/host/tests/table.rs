//! The tables in `docs` against the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the documentation of KMCL names: the members of the interfaces are found by their prefix in the table, so only their
/// numbers are needed.
const FUNCTIONS_V1: (usize, usize) = (41, 14);
const FUNCTIONS_LATER: usize = 17;
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
    let table = std::fs::read_to_string(root().join("docs/kmcl-table.md")).unwrap();
    let cells = |line: &str| -> Option<[String; 3]> {
        let cells: Vec<String> = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_string())
            .collect();
        let cells: [String; 3] = cells.try_into().ok()?;
        (cells[0] != "KMCL" && !cells[0].starts_with("---")).then_some(cells)
    };
    table
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(cells)
        .collect()
}

/// The names in back quotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn is_test(sources: &[(PathBuf, String)], name: &str) -> bool {
    sources.iter().any(|(_, text)| {
        text.contains(&format!("#[test]\nfn {name}()")) || text.contains(&format!("#[test]\n    fn {name}()"))
    })
}

#[test]
fn every_name_of_the_documentation_has_one_row() {
    let rows = rows();
    let names: BTreeSet<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names.len(), rows.len(), "a name has two rows");
    let functions = names.iter().filter(|name| name.starts_with("Vmb")).count();
    assert_eq!(functions, FUNCTIONS_V1.0 + FUNCTIONS_V1.1 + FUNCTIONS_LATER);
    assert_eq!(names.iter().filter(|name| name.starts_with("Evt")).count(), 11);
}

#[test]
fn every_item_of_the_table_exists() {
    let sources = sources();
    for [kmcl, rust, _] in rows() {
        if rust.starts_with("not applicable: ") {
            assert!(rust.len() > 25, "{kmcl}: no reason");
            continue;
        }
        let items = quoted(&rust);
        assert!(!items.is_empty(), "{kmcl}: no item");
        for item in items.into_iter().filter(|item| *item != "Ex") {
            let name = item.rsplit("::").next().unwrap();
            let kinds = ["fn ", "struct ", "enum ", "trait ", "type ", "const ", "    "];
            let declares = |text: &str| {
                kinds.iter().any(|kind| {
                    let wanted = format!("{kind}{name}");
                    text.match_indices(&wanted).any(|(at, _)| {
                        let next = text[at + wanted.len()..].chars().next().unwrap_or(' ');
                        !(next.is_alphanumeric() || next == '_')
                    })
                })
            };
            assert!(
                sources.iter().any(|(_, text)| declares(text)),
                "{kmcl}: there is no {item}"
            );
        }
    }
}

#[test]
fn every_test_of_the_table_exists() {
    let sources = sources();
    for [kmcl, rust, test] in rows() {
        if rust.starts_with("not applicable: ") {
            assert_eq!(test, "-", "{kmcl}");
            continue;
        }
        let tests = quoted(&test);
        assert!(!tests.is_empty(), "{kmcl}: no test");
        for test in tests {
            assert!(is_test(&sources, test), "{kmcl}: there is no test {test}");
        }
    }
}

#[test]
fn each_of_the_96_statements_has_a_test() {
    let sources = sources();
    let mut found = 0;
    for (prefix, count) in STATEMENTS {
        for number in 1..=count {
            let start = format!("#[test]\nfn {prefix}_{number}_");
            let tests = sources.iter().filter(|(_, text)| text.contains(&start)).count();
            assert_eq!(tests, 1, "{prefix}_{number}");
            found += 1;
        }
    }
    assert_eq!(found, 96);
}
