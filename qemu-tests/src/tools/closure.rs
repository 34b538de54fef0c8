//! Which shared libraries a program needs, and how to run a program with libraries that are not the system's.
//!
//! The dynamic loader itself is asked (`--list`), so its answer is what would happen at run time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{command, run_quietly};

/// Where a root keeps its libraries, on Debian, Ubuntu, Fedora and Arch.
#[must_use]
pub fn library_folders(root: &Path) -> Vec<PathBuf> {
    let all = [
        "usr/lib/x86_64-linux-gnu",
        "lib/x86_64-linux-gnu",
        "usr/lib64",
        "lib64",
        "usr/lib",
        "lib",
    ];
    all.iter()
        .map(|folder| root.join(folder))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// The words that run a program of `root` with the loader and the libraries of `root`.
///
/// # Errors
///
/// There is no loader in `root`.
pub fn through_own_loader(root: &Path) -> Result<Vec<String>> {
    let folders = library_folders(root);
    let loader = folders
        .iter()
        .map(|folder| folder.join("ld-linux-x86-64.so.2"))
        .find(|file| file.exists());
    let loader = loader.with_context(|| format!("no dynamic loader in {}", root.display()))?;
    let path: Vec<String> = folders
        .iter()
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect();
    Ok(vec![
        loader.to_string_lossy().into_owned(),
        "--library-path".to_owned(),
        path.join(":"),
    ])
}

/// The files that `program` (the program file last, maybe behind a loader with its options) loads at its start, the loader included.
///
/// # Errors
///
/// The loader's complaint, e.g. a library that is not there.
pub fn libraries(program: &[String]) -> Result<Vec<PathBuf>> {
    let (file, prefix) = program.split_last().context("no program")?;
    let output = match prefix.split_first() {
        Some((loader, options)) => run_quietly(
            command(loader).args(options).arg("--list").arg(file),
            Duration::from_secs(30),
        )?,
        // This is all that the script `ldd` does.
        None => run_quietly(
            command(file).env("LD_TRACE_LOADED_OBJECTS", "1"),
            Duration::from_secs(30),
        )?,
    };
    let mut files = parse(&output)?;
    if let Some((loader, _)) = prefix.split_first() {
        files.push(PathBuf::from(loader));
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// Whether this is a program that is started by a dynamic loader; others must not be asked for their libraries, they would just run.
#[must_use]
pub fn has_loader(program: &[u8]) -> bool {
    let Ok(file) = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(program) else {
        return false;
    };
    file.segments()
        .is_some_and(|segments| segments.iter().any(|segment| segment.p_type == elf::abi::PT_INTERP))
}

fn parse(output: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in output.lines() {
        let line = line.trim();
        if line.ends_with("not found") {
            anyhow::bail!("a library is missing: {line}");
        }
        let target = line.split_once("=>").map_or(line, |(_, target)| target.trim());
        let path = target.split_once(" (").map_or(target, |(path, _)| path);
        if path.starts_with('/') {
            files.push(PathBuf::from(path));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n\t/lib64/ld-linux-x86-64.so.2 => /opt/x/ld.so (0x1)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
            "/opt/x/ld.so",
        ]
        .map(PathBuf::from);
        assert_eq!(parse(text).unwrap(), expected);
        assert!(
            parse("\tlibslirp.so.0 => not found\n")
                .unwrap_err()
                .to_string()
                .contains("libslirp")
        );
        assert_eq!(parse("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn this_very_program() {
        let me = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        let files = libraries(&[me]).unwrap();
        assert!(files.iter().any(|file| file.ends_with("libc.so.6")), "{files:?}");
        assert!(
            files.iter().any(|file| file.to_string_lossy().contains("ld-linux")),
            "{files:?}"
        );
    }
}
