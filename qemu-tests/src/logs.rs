//! The file that a run's log goes to.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// A log, ours as long as this lives.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// The log of this run in `folder`: `boot.log`, over the one of the last run, unless a run that goes on just now has it, or it is to
    /// be kept: then one of its own.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn take(folder: &Path, keep: bool) -> Result<Self> {
        if !keep {
            let usual = Self::open(folder.join("boot.log"))?;
            if flock(&usual.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                usual.file.set_len(0)?;
                return Ok(usual);
            }
        }
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let own = Self::open(folder.join(format!("boot-{}-{}.log", now.as_secs(), std::process::id())))?;
        own.file.set_len(0)?;
        Ok(own)
    }

    /// A log that goes to a runner outside.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn relayed(path: &Path) -> Result<Self> {
        Self::open(path.to_path_buf())
    }

    fn open(path: PathBuf) -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It, for writing.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().context("cannot use the log twice")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn two_runs_at_once_have_two_logs() {
        let folder = tempfile::tempdir().unwrap();
        let first = LogFile::take(folder.path(), false).unwrap();
        first.file().unwrap().write_all(b"first").unwrap();
        let second = LogFile::take(folder.path(), false).unwrap();
        second.file().unwrap().write_all(b"second").unwrap();
        assert_eq!(std::fs::read(first.path()).unwrap(), b"first");
        assert_eq!(std::fs::read(second.path()).unwrap(), b"second");
        let usual = first.path().to_path_buf();
        drop(first);
        let third = LogFile::take(folder.path(), false).unwrap();
        assert_eq!(third.path(), usual);
        assert_eq!(
            std::fs::read(usual).unwrap(),
            b"",
            "the log of the last run is overwritten"
        );
        assert_ne!(LogFile::take(folder.path(), true).unwrap().path(), third.path());
    }
}
