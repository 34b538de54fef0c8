//! The initramfs of the middle Linux: two cpio archives in a row, which the kernel unpacks one after the other.
//!
//! The first holds QEMU with its libraries, firmware and the kernel modules; it changes only with the host tools and is kept in the tools
//! folder. The second holds this runner with its libraries, the guest and the plan; it is made for each run. QEMU and the runner may come
//! from systems with different C libraries, so QEMU lives in a folder of its own and is run through its own loader.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{Plan, paths};
use crate::process::run_quietly;
use crate::qemu::Qemu;
use crate::tools::{self, closure, kernel::Kernel};

/// Firmware that a directly booted or a UEFI guest needs, as far as it is there.
const FIRMWARE: [&str; 6] = [
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "multiboot_dma.bin",
    "pvh.bin",
    "vgabios-stdvga.bin",
];

/// A cpio archive in the "new ASCII" format that is being written.
struct Archive<W: Write> {
    to: Option<W>,
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

impl<W: Write> Archive<W> {
    const fn new(to: W) -> Self {
        Self {
            to: Some(to),
            folders: BTreeSet::new(),
            inode: 0,
        }
    }

    fn add(&mut self, path: &Path, kind: ModeFileType, permissions: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        let builder = Builder::new(&name)
            .ino(self.inode)
            .nlink(1)
            .mode(permissions)
            .set_mode_file_type(kind);
        let length = u32::try_from(content.len()).context("a file of 4 GiB does not fit into an initramfs")?;
        let mut writer = builder.write(self.to.take().context("the archive is finished")?, length);
        writer.write_all(content)?;
        self.to = Some(writer.finish()?);
        Ok(())
    }

    /// The folder `path`, with those above it.
    fn folder(&mut self, path: &Path) -> Result<()> {
        for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if folder != Path::new("/") && folder != Path::new("") && self.folders.insert(folder.to_path_buf()) {
                self.add(folder, ModeFileType::Directory, 0o755, &[])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        self.add(path, ModeFileType::Regular, 0o755, content)
    }

    fn copy(&mut self, path: impl AsRef<Path>, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, &content)
    }

    fn finish(mut self) -> Result<W> {
        trailer(self.to.take().context("the archive is finished")?).context("cannot finish the archive")
    }
}

/// The first archive, from the cache if it is there.
///
/// # Errors
///
/// A file that cannot be read or written, or a library of QEMU's that is missing.
pub fn base(qemu: &Qemu, kernel: &Kernel) -> Result<PathBuf> {
    let program = qemu.program.last().context("QEMU has no program")?;
    let about = fs::metadata(program)?;
    let key = format!("{:?} {:?} {} {}", qemu, about.modified()?, about.len(), kernel.version);
    let folder = tools::folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("base-{}.cpio", tools::short_hash(key.as_bytes())));
    if file.exists() {
        return Ok(file);
    }
    let _lock = tools::Lock::take(&folder, "another run prepares the nested host; waiting for it")?;
    if file.exists() {
        return Ok(file);
    }
    for old in fs::read_dir(&folder)?.filter_map(std::result::Result::ok) {
        let name = old.file_name().to_string_lossy().into_owned();
        if name.starts_with("base-") && name.ends_with(".cpio") {
            // Made of other host tools. Whoever still reads it keeps it open.
            fs::remove_file(old.path())?;
        }
    }
    let temporary = tempfile::NamedTempFile::new_in(&folder)?;
    let mut archive = Archive::new(BufWriter::new(temporary.as_file()));
    archive.copy("/qemu/bin/qemu-system-x86_64", Path::new(program))?;
    let mut loader = None;
    for library in closure::libraries(&qemu.program)? {
        let name = library
            .file_name()
            .context("a library without a name")?
            .to_string_lossy()
            .into_owned();
        archive.copy(Path::new("/qemu/lib").join(&name), &library)?;
        if name.starts_with("ld-linux") {
            loader = Some(format!("/qemu/lib/{name}"));
        }
    }
    for (name, from) in firmware(qemu)? {
        archive.copy(Path::new("/qemu/firmware").join(name), &from)?;
    }
    for (name, content) in &kernel.modules {
        archive.file(format!("{}/{name}.ko", paths::MODULES), content)?;
    }
    let loader = loader.context("QEMU names no dynamic loader")?;
    let inside = Qemu {
        program: vec![
            loader,
            "--library-path".to_owned(),
            "/qemu/lib".to_owned(),
            "/qemu/bin/qemu-system-x86_64".to_owned(),
        ],
        environment: vec![("QEMU_MODULE_DIR".to_owned(), "/qemu/modules".to_owned())],
        firmware: vec!["/qemu/firmware".into()],
        version: qemu.version,
    };
    archive.file(paths::QEMU, serde_json::to_string(&inside)?.as_bytes())?;
    for folder in ["/dev", "/proc", "/sys", "/tmp", paths::OUT, paths::FILES] {
        archive.folder(Path::new(folder))?;
    }
    archive.finish()?.flush()?;
    temporary
        .persist(&file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Name and place of each firmware file.
fn firmware(qemu: &Qemu) -> Result<Vec<(String, PathBuf)>> {
    let text = run_quietly(qemu.command().args(["-L", "help"]), Duration::from_secs(30))?;
    let told = text
        .lines()
        .map(|line| PathBuf::from(line.trim()))
        .filter(|folder| folder.is_absolute());
    let folders: Vec<PathBuf> = qemu.firmware.iter().cloned().chain(told).collect();
    let find = |name: &str| {
        folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    };
    let found: Vec<(String, PathBuf)> = FIRMWARE
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), find(name)?)))
        .collect();
    let bios = found.iter().any(|(name, _)| name == "bios-256k.bin");
    bios.then_some(found)
        .context("QEMU's BIOS (bios-256k.bin) is in none of its folders: install SeaBIOS")
}

/// Makes the whole initramfs: `base`, then `runner`, the plan and `files` (name below [`paths::FILES`], and from where). The file has no
/// name, so it cannot be left behind.
///
/// # Errors
///
/// A file that cannot be read or written.
pub fn assemble(base: &Path, runner: &Path, plan: &Plan, files: &[(String, PathBuf)]) -> Result<File> {
    let folder = tools::folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut to = tempfile::tempfile_in(folder).context("cannot make a temporary file in the tools folder")?;
    std::io::copy(&mut File::open(base)?, &mut to).with_context(|| format!("cannot copy {}", base.display()))?;
    let mut archive = Archive::new(BufWriter::new(&to));
    // Debug information would be most of it.
    archive.file(
        paths::RUNNER,
        &crate::build::strip(&fs::read(runner)?).context("cannot strip this program")?,
    )?;
    for library in closure::libraries(&[runner.to_string_lossy().into_owned()])? {
        archive.copy(&library, &library)?;
    }
    for (name, from) in files {
        archive.copy(Path::new(paths::FILES).join(name), from)?;
    }
    archive.file(paths::PLAN, serde_json::to_string(plan)?.as_bytes())?;
    archive.finish()?.flush()?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_archive_reads_back_with_its_folders_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", b"content").unwrap();
        archive.file("/a/d", b"").unwrap();
        let bytes = archive.finish().unwrap();
        let mut reader = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut entry = cpio::newc::Reader::new(reader).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            seen.push((entry.entry().name().to_owned(), entry.entry().mode(), content));
            reader = entry.finish().unwrap();
        }
        let entry = |name: &str, mode: u32, content: &str| (name.to_owned(), mode, content.to_owned());
        let expected = [
            entry("a", 0o040_755, ""),
            entry("a/b", 0o040_755, ""),
            entry("a/b/c", 0o100_755, "content"),
            entry("a/d", 0o100_755, ""),
        ];
        assert_eq!(seen, expected);
        assert_eq!(bytes.len() % 4, 0, "a second archive must start at a multiple of four");
    }
}
