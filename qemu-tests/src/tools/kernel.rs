//! The Linux of the nested host: a distribution's kernel with KVM for AMD and Hyper-V in it, and the modules for that.
//!
//! The kernel is only ever started in an emulated machine whose processor is an AMD one, whatever this machine has. Whether KVM has
//! Hyper-V is read in the module's symbol table: configuration files are not everywhere and need not match.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::helper;
use crate::process::run_quietly;

/// The module that is wanted; others come by its dependencies.
const MODULE: &str = "kvm_amd";
/// A function that is in `kvm` only if it was built with Hyper-V.
const HYPERV_SYMBOL: &[u8] = b"kvm_hv_activate_synic";

/// A kernel and the modules to load, in order.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its version, e.g. `6.12.107+deb13-cloud-amd64`.
    pub version: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Name and content (decompressed) of each module.
    pub modules: Vec<(String, Vec<u8>)>,
}

/// A usable kernel below `root`, the newest if there are several.
///
/// # Errors
///
/// What each kernel there lacks.
pub fn find(root: &Path) -> Result<Kernel> {
    let folder = ["usr/lib/modules", "lib/modules"]
        .map(|name| root.join(name))
        .into_iter()
        .find(|folder| folder.is_dir());
    let folder = folder.with_context(|| format!("no kernel modules in {}", root.display()))?;
    let mut versions: Vec<String> = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    versions.sort_by_key(|version| {
        version
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().unwrap_or(0))
            .collect::<Vec<u64>>()
    });
    let mut failures = Vec::new();
    for version in versions.into_iter().rev() {
        match examine(root, &folder.join(&version), &version) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => failures.push(format!("{version}: {error:#}")),
        }
    }
    bail!("no usable Linux kernel in {}: {}", root.display(), failures.join("; "))
}

fn examine(root: &Path, folder: &Path, version: &str) -> Result<Kernel> {
    let images = [
        root.join("boot").join(format!("vmlinuz-{version}")),
        folder.join("vmlinuz"),
    ];
    let image = images
        .into_iter()
        .find(|file| file.is_file())
        .context("no kernel image")?;
    fs::File::open(&image).with_context(|| format!("this user cannot read {}", image.display()))?;
    let mut files = Vec::new();
    collect(&folder.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin.lines().map(|line| module_name(Path::new(line))).collect();
    let mut modules = Vec::new();
    load(MODULE, &files, &builtin, root, &mut modules)?;
    let kvm = modules.iter().find(|(name, _)| name == "kvm");
    if kvm.is_some_and(|(_, content)| !contains(content, HYPERV_SYMBOL)) {
        bail!("its KVM was built without Hyper-V (CONFIG_KVM_HYPERV)");
    }
    Ok(Kernel {
        version: version.to_owned(),
        image,
        modules,
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Appends the module `name` behind everything that it depends on.
fn load(
    name: &str,
    files: &[PathBuf],
    builtin: &[String],
    root: &Path,
    modules: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if modules.iter().any(|(loaded, _)| loaded == name) || builtin.iter().any(|module| module == name) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file) == name)
        .with_context(|| format!("no module {name}"))?;
    let content = decompressed(file, root)?;
    for dependency in dependencies(&content) {
        load(&dependency, files, builtin, root, modules)?;
    }
    modules.push((name.to_owned(), content));
    Ok(())
}

/// `kvm_amd` for `.../kvm-amd.ko.xz`; empty for a file that is no module.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split_once(".ko")
        .map_or(String::new(), |(stem, _)| stem.replace('-', "_"))
}

/// The modules that a module says it needs.
fn dependencies(content: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = content.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value: Vec<u8> = content
        .iter()
        .skip(start + key.len())
        .copied()
        .take_while(|&byte| byte != 0)
        .collect();
    let value = String::from_utf8_lossy(&value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn contains(content: &[u8], needle: &[u8]) -> bool {
    content.windows(needle.len()).any(|window| window == needle)
}

fn decompressed(file: &Path, root: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(fs::read(file)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{} is compressed in an unknown way", file.display()),
    };
    let target = tempfile::NamedTempFile::new()?;
    let script = helper(program, Some(root))?;
    // `run_quietly` keeps text; a module is none, so a shell sends it into a file.
    let mut shell = crate::process::command("sh");
    shell
        .args(["-c", "out=$1; shift; exec \"$@\" > \"$out\"", "sh"])
        .arg(target.path());
    shell
        .arg(script.get_program())
        .args(script.get_args())
        .arg("-dc")
        .arg(file)
        .stdin(Stdio::null());
    run_quietly(&mut shell, Duration::from_secs(60))
        .with_context(|| format!("cannot decompress {}", file.display()))?;
    Ok(fs::read(target.path())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_root(kvm: &[u8]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        };
        let folder = "lib/modules/6.10.2-x/kernel";
        write(
            &format!("{folder}/arch/kvm-amd.ko"),
            b"\x7fELF\0license=GPL\0depends=kvm,ccp\0",
        );
        write(&format!("{folder}/arch/kvm.ko"), kvm);
        write(&format!("{folder}/virt/irqbypass.ko"), b"\0depends=\0");
        write(
            "lib/modules/6.10.2-x/modules.builtin",
            b"kernel/drivers/crypto/ccp.ko\n",
        );
        write("lib/modules/6.9.10-x/vmlinuz", b"");
        write("boot/vmlinuz-6.10.2-x", b"image");
        root
    }

    #[test]
    fn modules_come_behind_what_they_need() {
        let root = fake_root(b"\0depends=irqbypass\0...\0kvm_hv_activate_synic\0");
        let kernel = find(root.path()).unwrap();
        assert_eq!(kernel.version, "6.10.2-x");
        let names: Vec<&str> = kernel.modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn a_kernel_without_hyperv_is_refused_with_the_reason() {
        let root = fake_root(b"\0depends=irqbypass\0");
        let text = find(root.path()).unwrap_err().to_string();
        assert!(
            text.contains("CONFIG_KVM_HYPERV") && text.contains("6.9.10-x"),
            "{text}"
        );
        assert!(find(tempfile::tempdir().unwrap().path()).is_err());
    }

    #[test]
    fn names() {
        assert_eq!(module_name(Path::new("a/kvm-amd.ko.xz")), "kvm_amd");
        assert_eq!(module_name(Path::new("a/modules.dep")), "");
    }
}
