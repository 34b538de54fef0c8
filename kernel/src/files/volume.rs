//! A FAT volume: [`Volume`].

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use fat::{
    Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions, IoBase, LossyOemCpConverter, NullTimeProvider, Read as _,
    Seek as _, Write as _,
};
use spin::Mutex;

use super::{BlockError, Blocks, Stream};

type Time = NullTimeProvider;
type Names = LossyOemCpConverter;

/// Entries of a folder that are listed at most: a damaged folder may seem endless.
const MAX_ENTRIES: usize = 10_000;

/// How often one call may read from the range, besides twice for each 512 bytes of it: what is damaged may go round in circles, and the
/// file system follows it. A folder of 65,536 entries, as long as there can be, takes a million.
const PATIENCE: u64 = if cfg!(test) { 1 << 17 } else { 1 << 23 };

/// A file system on a range of a disk. What a call that changes something has done is on the disk, and flushed, when it returns.
pub struct Volume<B: Blocks> {
    files: FileSystem<Range<B>, Time, Names>,
    /// The file system keeps its range to itself, and does not flush it when it should.
    range: Range<B>,
}

/// The range, in two hands. Nobody waits for the lock: a volume is used by one task at a time.
struct Range<B: Blocks>(Arc<Mutex<Bounded<B>>>);

/// A stream that is not read without end.
struct Bounded<B: Blocks> {
    stream: Stream<B>,
    reads_left: u64,
}

impl<B: Blocks> Range<B> {
    fn new(stream: Stream<B>) -> Self {
        let range = Self(Arc::new(Mutex::new(Bounded { stream, reads_left: 0 })));
        range.begin();
        range
    }

    /// A call begins.
    fn begin(&self) {
        let mut range = self.0.lock();
        range.reads_left = PATIENCE + range.stream.len() / 256;
    }
}

impl<B: Blocks> IoBase for Range<B> {
    type Error = BlockError;
}

impl<B: Blocks> fat::Read for Range<B> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, BlockError> {
        let mut range = self.0.lock();
        range.reads_left = range.reads_left.checked_sub(1).ok_or(BlockError::EndOfVolume)?;
        range.stream.read(into)
    }
}

impl<B: Blocks> fat::Write for Range<B> {
    fn write(&mut self, from: &[u8]) -> Result<usize, BlockError> {
        self.0.lock().stream.write(from)
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        self.0.lock().stream.flush()
    }
}

impl<B: Blocks> fat::Seek for Range<B> {
    fn seek(&mut self, to: fat::SeekFrom) -> Result<u64, BlockError> {
        self.0.lock().stream.seek(to)
    }
}

impl<B: Blocks> core::fmt::Debug for Volume<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Volume").finish_non_exhaustive()
    }
}

/// A file or folder in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its long name.
    pub name: String,
    /// Bytes; 0 for a folder.
    pub bytes: u64,
    /// Whether it is a folder.
    pub is_folder: bool,
}

/// Why a file could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// There is no such file or folder.
    #[error("there is no such file")]
    NotFound,
    /// It is there already, as something else.
    #[error("there is something else of that name")]
    Exists,
    /// It is larger than the caller takes.
    #[error("the file has {bytes} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The caller's limit.
        limit: usize,
    },
    /// The volume has no room left.
    #[error("the volume is full")]
    Full,
    /// The name cannot be that of a file.
    #[error("no file can be called that")]
    BadName,
    /// This is no FAT volume, or a damaged one.
    #[error("there is no FAT file system, or it is damaged")]
    Damaged,
    /// The disk.
    #[error(transparent)]
    Disk(#[from] BlockError),
}

impl From<fat::Error<BlockError>> for FileError {
    fn from(error: fat::Error<BlockError>) -> Self {
        use fat::Error as Fat;
        match error {
            Fat::Io(BlockError::EndOfVolume) | Fat::UnexpectedEof | Fat::CorruptedFileSystem => Self::Damaged,
            Fat::Io(error) => Self::Disk(error),
            Fat::NotFound => Self::NotFound,
            Fat::AlreadyExists | Fat::DirectoryIsNotEmpty => Self::Exists,
            Fat::NotEnoughSpace | Fat::WriteZero => Self::Full,
            Fat::InvalidFileNameLength | Fat::UnsupportedFileNameCharacter => Self::BadName,
            _ => Self::Damaged,
        }
    }
}

/// The path as the file system wants it: without the slash in front.
fn inner(path: &str) -> &str {
    path.trim_matches('/')
}

impl<B: Blocks> Volume<B> {
    /// Opens the file system on `range`.
    ///
    /// # Errors
    ///
    /// [`FileError::Damaged`] if there is none; [`FileError::Disk`].
    pub fn open(range: Stream<B>) -> Result<Self, FileError> {
        let options = FsOptions::new().time_provider(NullTimeProvider::new());
        let range = Range::new(range);
        Ok(Self {
            files: FileSystem::new(Range(range.0.clone()), options)?,
            range,
        })
    }

    /// Makes an empty file system on `range` and opens it. What was there is lost.
    ///
    /// # Errors
    ///
    /// [`FileError::Disk`]; [`FileError::Damaged`] if the range is too small or too large for one.
    pub fn format(mut range: Stream<B>, label: &str) -> Result<Self, FileError> {
        let mut name = *b"           ";
        for (target, source) in name.iter_mut().zip(label.bytes()) {
            *target = source.to_ascii_uppercase();
        }
        let options = FormatVolumeOptions::new().volume_label(name);
        fat::format_volume(&mut range, options)?;
        range.flush()?;
        range.seek(fat::SeekFrom::Start(0))?;
        Self::open(range)
    }

    /// The kind of file system.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.files.fat_type() {
            FatType::Fat12 => "FAT12",
            FatType::Fat16 => "FAT16",
            FatType::Fat32 => "FAT32",
        }
    }

    /// Its name.
    #[must_use]
    pub fn label(&self) -> String {
        self.files.volume_label().trim().to_string()
    }

    /// The first folder, with which every call begins.
    fn root(&self) -> Dir<'_, Range<B>, Time, Names> {
        self.range.begin();
        self.files.root_dir()
    }

    /// Returns what is in the folder `path`, without `.` and `..`.
    ///
    /// # Errors
    ///
    /// [`FileError::NotFound`] if there is no such folder, and what the disk says.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, FileError> {
        let root = self.root();
        let folder = match inner(path) {
            "" => root,
            path => root.open_dir(path).map_err(|error| match error {
                // It is a file.
                fat::Error::InvalidInput => FileError::NotFound,
                error => error.into(),
            })?,
        };
        let mut entries = Vec::new();
        for entry in folder.iter().take(MAX_ENTRIES) {
            let entry = entry?;
            let name = entry.file_name();
            if name != "." && name != ".." {
                entries.push(Entry {
                    name,
                    bytes: if entry.is_dir() { 0 } else { entry.len() },
                    is_folder: entry.is_dir(),
                });
            }
        }
        Ok(entries)
    }

    /// Returns the file `path`, if it has no more than `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`FileError::NotFound`], [`FileError::TooLarge`], and what the disk says.
    pub fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, FileError> {
        let mut file = self.root().open_file(inner(path)).map_err(|error| match error {
            // It is a folder.
            fat::Error::InvalidInput => FileError::NotFound,
            error => error.into(),
        })?;
        let bytes = u64::from(file.size().unwrap_or(0));
        let len = usize::try_from(bytes).ok().filter(|len| *len <= limit);
        let mut content = vec![0; len.ok_or(FileError::TooLarge { bytes, limit })?];
        file.read_exact(&mut content)?;
        Ok(content)
    }

    /// Makes the file `path` hold `content`, with the folders above it.
    ///
    /// # Errors
    ///
    /// [`FileError::Full`], [`FileError::Exists`], [`FileError::BadName`], and what the disk says.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), FileError> {
        let (root, path) = (self.root(), inner(path));
        for (end, _) in path.match_indices('/') {
            root.create_dir(path.get(..end).unwrap_or_default())?;
        }
        let mut file = root.create_file(path).map_err(|error| match error {
            fat::Error::InvalidInput => FileError::Exists,
            error => error.into(),
        })?;
        file.truncate()?;
        file.write_all(content)?;
        // Its entry in the folder, and then the disk.
        file.flush()?;
        Ok(())
    }

    /// Removes a file or an empty folder.
    ///
    /// # Errors
    ///
    /// [`FileError::NotFound`], [`FileError::Exists`] for a folder that is not empty, and what the disk says.
    pub fn remove(&self, path: &str) -> Result<(), FileError> {
        self.root().remove(inner(path))?;
        self.flush()
    }

    fn flush(&self) -> Result<(), FileError> {
        Ok(self.range.0.lock().stream.flush()?)
    }

    /// Writes everything to the disk and lets go of it.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn close(self) -> Result<(), FileError> {
        self.range.begin();
        self.files.unmount()?;
        Ok(self.range.0.lock().stream.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Partition;
    use super::super::memory_disk::MemoryDisk;
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::io::{Cursor, Read as _, Write as _};
    use std::rc::Rc;

    const MIB: usize = 1 << 20;

    fn stream(bytes: Vec<u8>) -> Stream<MemoryDisk> {
        let disk = MemoryDisk::new(bytes, 512);
        let whole = Partition::whole(&disk);
        Stream::new(disk, &whole).unwrap()
    }

    /// A disk that others hold as well.
    #[derive(Clone)]
    struct Kept(Rc<RefCell<MemoryDisk>>);

    impl Blocks for Kept {
        fn block_size(&self) -> usize {
            512
        }
        fn block_count(&self) -> u64 {
            self.0.borrow().block_count()
        }
        fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError> {
            self.0.borrow_mut().read(first, into)
        }
        fn write(&mut self, first: u64, from: &[u8]) -> Result<(), BlockError> {
            self.0.borrow_mut().write(first, from)
        }
        fn flush(&mut self) -> Result<(), BlockError> {
            self.0.borrow_mut().flush()
        }
    }

    fn kept(bytes: usize) -> (Kept, Stream<Kept>) {
        let disk = Kept(Rc::new(RefCell::new(MemoryDisk::new(vec![0; bytes], 512))));
        let whole = Partition::whole(&disk);
        let range = Stream::new(disk.clone(), &whole).unwrap();
        (disk, range)
    }

    /// A volume with files in it, by another program.
    fn of_another_program(mib: usize, kind: fatfs::FatType) -> Vec<u8> {
        let mut bytes = Cursor::new(vec![0; mib * MIB]);
        let options = fatfs::FormatVolumeOptions::new()
            .volume_label(*b"OTHERS     ")
            .fat_type(kind)
            .bytes_per_cluster(512);
        fatfs::format_volume(&mut bytes, options).unwrap();
        {
            let files = fatfs::FileSystem::new(&mut bytes, fatfs::FsOptions::new()).unwrap();
            let root = files.root_dir();
            root.create_dir("etc").unwrap();
            let mut file = root.create_file("etc/a long name.config").unwrap();
            file.write_all(&[b'x'; 70_000]).unwrap();
            root.create_file("Empty.txt").unwrap();
        }
        bytes.into_inner()
    }

    #[test]
    fn what_another_program_wrote_is_listed_and_read() {
        for (mib, kind, name) in [
            (2, fatfs::FatType::Fat12, "FAT12"),
            (8, fatfs::FatType::Fat16, "FAT16"),
            (64, fatfs::FatType::Fat32, "FAT32"),
        ] {
            let volume = Volume::open(stream(of_another_program(mib, kind))).unwrap();
            assert_eq!((volume.kind(), volume.label().as_str()), (name, "OTHERS"));
            let entry = |name: &str, bytes, is_folder| Entry {
                name: name.to_string(),
                bytes,
                is_folder,
            };
            assert_eq!(
                volume.list("/").unwrap(),
                [entry("etc", 0, true), entry("Empty.txt", 0, false)]
            );
            assert_eq!(
                volume.list("/etc/").unwrap(),
                [entry("a long name.config", 70_000, false)]
            );
            let path = "/ETC/A Long Name.CONFIG";
            assert_eq!(volume.read(path, 70_000).unwrap(), [b'x'; 70_000]);
            assert_eq!(volume.read("/Empty.txt", 0).unwrap(), []);
            assert_eq!(
                volume.read(path, 69_999),
                Err(FileError::TooLarge {
                    bytes: 70_000,
                    limit: 69_999
                })
            );
            for missing in ["/none", "/none/x", "/etc", "/Empty.txt/x"] {
                assert_eq!(volume.read(missing, MIB), Err(FileError::NotFound), "{missing}");
            }
            assert_eq!(volume.list("/Empty.txt"), Err(FileError::NotFound));
        }
    }

    #[test]
    fn what_is_written_here_is_read_by_another_program() {
        let (disk, range) = kept(40 * MIB);
        let volume = Volume::format(range, "ours").unwrap();
        let content: Vec<u8> = (0..100_003_u32).map(|index| index.to_le_bytes()[0]).collect();
        volume.write("/a/b/some file.bin", &content).unwrap();
        volume.write("/a/b/some file.bin", b"replaced").unwrap();
        volume.write("/c.bin", &content).unwrap();
        volume.write("/gone", b"x").unwrap();
        volume.remove("/gone").unwrap();
        assert_eq!(volume.remove("/a"), Err(FileError::Exists));
        assert_eq!(volume.write("/a", b"x"), Err(FileError::Exists));
        assert_eq!(volume.write("/a/b\u{0}c", b"x"), Err(FileError::BadName));
        volume.close().unwrap();

        let disk = disk.0.borrow().bytes.clone();
        let files = fatfs::FileSystem::new(Cursor::new(disk), fatfs::FsOptions::new()).unwrap();
        assert_eq!(files.volume_label(), "OURS");
        for (path, wanted) in [("a/b/some file.bin", b"replaced".as_slice()), ("c.bin", &content)] {
            let mut read = Vec::new();
            files
                .root_dir()
                .open_file(path)
                .unwrap()
                .read_to_end(&mut read)
                .unwrap();
            assert_eq!(read, wanted, "{path}");
        }
    }

    #[test]
    fn what_was_written_or_removed_is_on_the_disk_and_flushed() {
        let (disk, range) = kept(8 * MIB);
        let volume = Volume::format(range, "x").unwrap();
        volume.write("/now", b"safe").unwrap();
        volume.write("/gone", b"x").unwrap();
        let flushes = disk.0.borrow().flushes;
        volume.remove("/gone").unwrap();
        assert!(disk.0.borrow().flushes > flushes);
        // The power is cut here: nothing is closed.
        let copy = disk.0.borrow().bytes.clone();
        core::mem::forget(volume);
        let volume = Volume::open(stream(copy)).unwrap();
        assert_eq!(volume.read("/now", 10).unwrap(), b"safe");
        assert_eq!(volume.read("/gone", 10), Err(FileError::NotFound));
    }

    #[test]
    fn a_full_volume_and_a_broken_disk_are_errors() {
        let volume = Volume::format(stream(vec![0; MIB]), "small").unwrap();
        assert_eq!(volume.write("/large", &vec![0; 2 * MIB]), Err(FileError::Full));
        assert_eq!(Volume::open(stream(vec![0; MIB])).err(), Some(FileError::Damaged));
        let (disk, range) = kept(MIB);
        disk.0.borrow_mut().broken = true;
        assert!(matches!(Volume::open(range).err(), Some(FileError::Disk(_))));
    }

    /// A FAT16 volume with a folder whose first cluster, which is full, is followed by itself.
    fn with_an_endless_folder() -> Vec<u8> {
        let mut bytes = Cursor::new(of_another_program(8, fatfs::FatType::Fat16));
        {
            let files = fatfs::FileSystem::new(&mut bytes, fatfs::FsOptions::new()).unwrap();
            let folder = files.root_dir().create_dir("LOOP").unwrap();
            // A cluster has 16 entries.
            for number in 0..16 {
                folder.create_file(&format!("F{number}")).unwrap();
            }
        }
        let mut bytes = bytes.into_inner();
        let word = |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (reserved, tables, table) = (word(&bytes, 14) * 512, usize::from(bytes[16]), word(&bytes, 22) * 512);
        let root = reserved + tables * table;
        let entry = (root..)
            .step_by(32)
            .find(|at| bytes[*at..].starts_with(b"LOOP    "))
            .unwrap();
        let cluster = word(&bytes, entry + 26);
        for table_number in 0..tables {
            let at = reserved + table_number * table + cluster * 2;
            assert_ne!(word(&bytes, at), cluster);
            bytes[at..at + 2].copy_from_slice(&u16::try_from(cluster).unwrap().to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_folder_without_end_is_damage() {
        let volume = Volume::open(stream(with_an_endless_folder())).unwrap();
        assert_eq!(volume.read("/LOOP/none", MIB), Err(FileError::Damaged));
        assert_eq!(volume.write("/LOOP/none", b"x"), Err(FileError::Damaged));
        assert_eq!(volume.remove("/LOOP/none"), Err(FileError::Damaged));
        assert_eq!(volume.list("/LOOP/none"), Err(FileError::Damaged));
        // What is found before is found.
        assert_eq!(volume.read("/LOOP/F0", MIB).unwrap(), []);
        assert_eq!(volume.read("/etc/a long name.config", MIB).unwrap(), [b'x'; 70_000]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]
        /// Damaged volumes are errors or nonsense, never a panic, nor without end.
        #[test]
        fn damage_does_no_harm(damage in prop::collection::vec((0..70_000_usize, any::<u8>()), 1..40)) {
            let mut bytes = of_another_program(2, fatfs::FatType::Fat12);
            for (at, value) in damage {
                bytes[at] = value;
            }
            if let Ok(volume) = Volume::open(stream(bytes)) {
                let _ = volume.list("/");
                let _ = volume.list("/etc");
                let _ = volume.read("/etc/a long name.config", MIB);
                let _ = volume.write("/etc/new", &[1; 5000]);
            }
        }
    }
}
