//! `SECURITY.md` against the code: every row is there, every test that it names is one and bears the row's number, no test bears a
//! number that is no row's, and every item in which a check is said to live exists.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How many rows of each letter there are.
const ROWS: [(char, usize); 6] = [('M', 13), ('C', 11), ('G', 7), ('R', 14), ('Q', 16), ('B', 8)];
/// Design notes, without a row of the table.
const NOTES: [&str; 2] = ["G5", "C10"];
/// Rows of devices that do not have to be built yet.
const MAY_BE_OPEN: [&str; 9] = ["Q5", "Q6", "Q7", "Q8", "Q11", "Q13", "Q14", "Q15", "Q16"];

struct Row {
    id: String,
    tests: Vec<String>,
    /// Files with their items.
    places: Vec<(String, Vec<String>)>,
    is_open: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text() -> String {
    std::fs::read_to_string(root().join("SECURITY.md")).unwrap()
}

/// What stands in back quotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows() -> Vec<Row> {
    let is_row = |line: &&str| {
        let mut characters = line.chars().skip(2);
        line.starts_with("| ")
            && characters.next().is_some_and(|first| first.is_ascii_uppercase())
            && characters.next().is_some_and(|second| second.is_ascii_digit())
    };
    let text = text();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, what, tests, places] = cells[..] else {
            panic!("a row of {} cells: {line}", cells.len());
        };
        assert!(what.len() > 10, "{id} says nothing");
        let places = places.split("; ").map(quoted).filter(|quoted| !quoted.is_empty());
        Row {
            id: id.to_owned(),
            tests: quoted(tests),
            places: places.map(|mut place| (place.remove(0), place)).collect(),
            is_open: tests == "open",
        }
    };
    text.lines().filter(is_row).map(row).collect()
}

/// All Rust files below some folders.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders: Vec<PathBuf> = ["src", "tests", "../kernel/src", "../boot/src"]
        .map(|folder| root().join(folder))
        .into();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        // The crate by itself has no neighbours.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
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

/// The names of the tests in a file: functions below `#[test]`, with other attributes or comments in between.
fn tests_of(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
            names.push(name.split('(').next().unwrap().to_owned());
            is_test = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_test = false;
        }
    }
    names
}

/// The rows that a test's name begins with: `r8_r9_no_wake_up` is of two.
fn ids_of(name: &str) -> BTreeSet<String> {
    let is_id = |part: &&str| {
        let mut characters = part.chars();
        characters.next().is_some_and(|first| "mcgrqb".contains(first))
            && part.len() > 1
            && characters.all(|digit| digit.is_ascii_digit())
    };
    name.split('_').take_while(is_id).map(str::to_uppercase).collect()
}

#[test]
fn every_row_of_the_requirements_is_there_once() {
    let wanted = ROWS
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")));
    let wanted: BTreeSet<String> = wanted.filter(|id| !NOTES.contains(&id.as_str())).collect();
    let rows = rows();
    let found: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    assert_eq!(found.len(), rows.len(), "a row is there twice");
    assert_eq!(found, wanted);
    for note in NOTES {
        assert!(text().contains(&format!("**{note}: ")), "no design note for {note}");
    }
    for row in rows {
        let may_be_open = MAY_BE_OPEN.contains(&row.id.as_str());
        assert!(!row.is_open || may_be_open, "{} is open", row.id);
    }
}

#[test]
fn the_tests_of_each_row_are_tests_and_bear_its_number() {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, text) in sources() {
        for test in tests_of(&text) {
            for id in ids_of(&test) {
                known.entry(id).or_default().insert(test.clone());
            }
        }
    }
    let has_neighbours = root().join("../kernel/src").is_dir();
    for row in rows() {
        let named: BTreeSet<String> = row.tests.into_iter().collect();
        let found = known.remove(&row.id).unwrap_or_default();
        assert!(row.is_open || !named.is_empty(), "{}: no test", row.id);
        if has_neighbours {
            let missing: Vec<&String> = named.difference(&found).collect();
            assert!(missing.is_empty(), "{}: no tests of that name: {missing:?}", row.id);
            // A new one need not be entered, but an open row with tests is open no more.
            assert!(
                !row.is_open || found.is_empty(),
                "{} is open, but has {found:?}",
                row.id
            );
        }
    }
    if has_neighbours {
        assert!(known.is_empty(), "tests of rows that do not exist: {known:?}");
    }
}

#[test]
fn the_items_of_each_row_exist() {
    let has_neighbours = root().join("../kernel/src").is_dir();
    for row in rows().iter().filter(|row| !row.is_open) {
        assert!(!row.places.is_empty(), "{}: no place", row.id);
        for (file, items) in &row.places {
            assert!(!items.is_empty(), "{}: {file} without an item", row.id);
            let path = root().join("src").join(file);
            if file.starts_with("..") && !has_neighbours {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {file}: {error}", row.id));
            for item in items {
                let name = item.rsplit("::").next().unwrap();
                let declared = ["fn ", "struct ", "enum ", "const ", "use "].iter().any(|kind| {
                    let wanted = format!("{kind}{name}");
                    let is_whole = |(at, _): (usize, &str)| {
                        let next = text[at + wanted.len()..].chars().next().unwrap_or(' ');
                        !(next.is_alphanumeric() || next == '_')
                    };
                    text.match_indices(&wanted).any(is_whole)
                });
                let is_macro = text.contains(&format!("{name}!("));
                assert!(declared || is_macro, "{}: there is no {item} in {file}", row.id);
            }
        }
    }
}
