//! How files are named on the command line: [`FilePath`].

use core::fmt;

/// A file or folder on a disk: `/etc/config` on the first volume that there is, or `1.2:/etc/config` on the second partition of disk 1
/// (counted from 0; partition 0 is the whole disk).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePath<'a> {
    /// Disk and partition; none means the first volume that there is.
    pub volume: Option<(usize, u32)>,
    /// The path on it.
    pub path: &'a str,
}

/// A path that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file is named as /PATH, or as DISK.PARTITION:/PATH with two numbers")]
pub struct BadPath;

impl<'a> FilePath<'a> {
    /// Understands `text`.
    ///
    /// # Errors
    ///
    /// [`BadPath`].
    pub fn parse(text: &'a str) -> Result<Self, BadPath> {
        let (volume, path) = match text.split_once(':') {
            None => (None, text),
            Some((volume, path)) => {
                let (disk, partition) = volume.split_once('.').ok_or(BadPath)?;
                let disk = disk.parse().map_err(|_| BadPath)?;
                (Some((disk, partition.parse().map_err(|_| BadPath)?)), path)
            }
        };
        if !path.starts_with('/') {
            return Err(BadPath);
        }
        Ok(Self { volume, path })
    }
}

impl fmt::Display for FilePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((disk, partition)) = self.volume {
            write!(f, "{disk}.{partition}:")?;
        }
        f.write_str(self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood_and_come_out_as_they_went_in() {
        for (text, volume, path) in [
            ("/", None, "/"),
            ("/etc/config.txt", None, "/etc/config.txt"),
            ("0.1:/EFI", Some((0, 1)), "/EFI"),
            ("12.0:/a:b", Some((12, 0)), "/a:b"),
        ] {
            let parsed = FilePath::parse(text).unwrap();
            assert_eq!((parsed.volume, parsed.path), (volume, path));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn all_else_is_refused() {
        for text in [
            "",
            "etc",
            "1:/x",
            "1.:/x",
            ".1:/x",
            "a.1:/x",
            "1.2:x",
            "-1.2:/x",
            "1.99999999999:/x",
        ] {
            assert_eq!(FilePath::parse(text), Err(BadPath), "{text}");
        }
    }
}
