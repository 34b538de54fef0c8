//! Unpacks Debian or Ubuntu packages into a folder of ours: without root, without changing the system.
//!
//! `apt-get` runs with its own state, cache and sources, an empty status file, and of the machine's configuration only what says how to
//! reach an archive (proxies, credentials) and which one it is. Signatures are checked with the installed keyring. Everything is made in a
//! temporary folder that is renamed when it is complete, so an interruption leaves nothing half-made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::sources::{self, Family, Source};
use crate::process::{command, run_quietly};
use crate::progress::Step;

/// How long a download may take.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What to unpack, by family.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    /// On Debian.
    pub debian: &'static [&'static str],
    /// On Ubuntu.
    pub ubuntu: &'static [&'static str],
}

impl Packages {
    const fn of(&self, family: Family) -> &'static [&'static str] {
        match family {
            Family::Debian => self.debian,
            Family::Ubuntu => self.ubuntu,
        }
    }

    /// A short name that changes when the list does.
    fn key(&self) -> String {
        super::short_hash(format!("{:?}", (self.debian, self.ubuntu)).as_bytes())
    }
}

/// Where the unpacked `packages` are below `tools`, once they are.
#[must_use]
pub fn root(tools: &Path, packages: &Packages) -> PathBuf {
    tools.join(format!("packages-{}", packages.key())).join("root")
}

/// Whether packages can be had here: the archive's address.
///
/// # Errors
///
/// Why not.
pub fn possible() -> Result<String> {
    archive().map(|(_, (source, _))| source.uri)
}

/// The folder with the unpacked `packages` below `tools`; made now if it is not there yet. `check` judges the result before it is kept.
///
/// # Errors
///
/// Why it cannot be made here.
pub fn provide(tools: &Path, packages: &Packages, check: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = root(tools, packages);
    if root.is_dir() {
        return Ok(root);
    }
    let (family, candidates) = archive()?;
    fs::create_dir_all(tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let lock = super::Lock::take(tools, "another run unpacks host tools; waiting for it")?;
    if root.is_dir() {
        return Ok(root);
    }
    // Under the lock: what is there now was left behind by an interrupted run.
    let partial = tools.join("partial");
    let mut failures = Vec::new();
    for suite in &candidates.1 {
        let names = packages.of(family).join(", ");
        let step = Step::start(&format!(
            "unpacking {names} from the suite {suite} of this machine's archive into {}",
            tools.display()
        ));
        let result = remove(&partial)
            .and_then(|()| unpack(&partial, &candidates.0, suite, family, packages.of(family), &step))
            .and_then(|()| check(&partial.join("root")));
        match result {
            Ok(()) => {
                fs::write(partial.join("suite"), suite)?;
                fs::remove_dir_all(partial.join("apt"))?;
                fs::rename(&partial, root.parent().unwrap_or(tools))?;
                step.done("host tools are ready");
                drop(lock);
                return Ok(root);
            }
            Err(error) => {
                step.failed(&format!("the suite {suite} does not do: {error:#}"));
                failures.push(format!("{suite}: {error:#}"));
            }
        }
    }
    remove(&partial)?;
    bail!(
        "no suite of this machine's archive has what is needed:\n{}",
        failures.join("\n")
    )
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
    } else {
        Ok(())
    }
}

/// This machine's family, its main archive and the suites to try.
fn archive() -> Result<(Family, (Source, Vec<String>))> {
    for program in ["apt-get", "apt-config", "dpkg-deb"] {
        if super::on_path(program).is_none() {
            bail!("this machine has no {program}");
        }
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("packages are unpacked on x86-64 machines only");
    }
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let (family, codename) =
        sources::parse_os_release(&release).context("neither Debian nor Ubuntu, says /etc/os-release")?;
    let all = sources::read_all(Path::new("/etc/apt"));
    let chosen = sources::choose(&all, family, &codename)
        .ok_or_else(|| anyhow!("apt's configuration names no main archive of {family:?} {codename}"))?;
    Ok((family, chosen))
}

fn unpack(to: &Path, source: &Source, suite: &str, family: Family, packages: &[&str], step: &Step) -> Result<()> {
    let apt = to.join("apt");
    let root = to.join("root");
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    fs::create_dir_all(&root)?;
    fs::write(apt.join("status"), "")?;
    let own = Path::new(family.keyring());
    let keyring = source
        .signed_by
        .clone()
        .or_else(|| own.exists().then(|| own.display().to_string()));
    let option = keyring.map_or(String::new(), |path| format!("[signed-by={path}] "));
    // What we need is in the components of the distribution itself.
    let components: Vec<&str> = source
        .components
        .iter()
        .map(String::as_str)
        .filter(|name| ["main", "universe"].contains(name))
        .collect();
    fs::write(
        apt.join("sources.list"),
        format!("deb {option}{} {suite} {}\n", source.uri, components.join(" ")),
    )?;
    let mut acquire = command("apt-config");
    let acquire = run_quietly(acquire.args(["dump", "Acquire"]), Duration::from_secs(30))?;
    fs::write(apt.join("apt.conf"), configuration(&apt, &acquire))?;
    let get = || {
        let mut get = command("apt-get");
        get.env("APT_CONFIG", apt.join("apt.conf"))
            .env("LC_ALL", "C")
            .arg("-qq");
        get
    };
    step.say("reading package lists");
    run_quietly(get().arg("update"), PATIENCE)?;
    step.say("downloading packages");
    run_quietly(
        get().args(["install", "--download-only", "-y"]).args(packages),
        PATIENCE,
    )?;
    let mut archives: Vec<PathBuf> = fs::read_dir(apt.join("cache/archives"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    archives.sort();
    for (index, archive) in archives.iter().enumerate() {
        step.say(&format!("unpacking package {} of {}", index + 1, archives.len()));
        run_quietly(command("dpkg-deb").arg("-x").arg(archive).arg(&root), PATIENCE)?;
    }
    Ok(())
}

/// An apt configuration with everything below `apt`, and the machine's own settings about reaching archives.
fn configuration(apt: &Path, acquire: &str) -> String {
    let apt = apt.display();
    let own: String = acquire
        .lines()
        .filter(|line| line.starts_with("Acquire::"))
        .fold(String::new(), |all, line| all + line + "\n");
    format!(
        "Dir::State \"{apt}/state\";\nDir::State::status \"{apt}/status\";\nDir::Cache \"{apt}/cache\";\n\
         Dir::Etc::sourcelist \"{apt}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"/dev/null\";\nDir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
         APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
         Acquire::AllowInsecureRepositories \"false\";\nAcquire::Languages \"none\";\nDebug::NoLocking \"true\";\n{own}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_hooks_stay_out_and_its_proxy_comes_along() {
        let text = configuration(
            Path::new("/t/apt"),
            "Acquire \"\";\nAcquire::http::Proxy \"http://p.example:1/\";\nAPT::Update::Post-Invoke:: \"rm -rf /\";\n",
        );
        assert!(text.contains("Acquire::http::Proxy") && !text.contains("Post-Invoke"));
        assert!(text.contains("Dir::State \"/t/apt/state\""));
    }

    #[test]
    fn the_key_follows_the_list() {
        let one = Packages {
            debian: &["a"],
            ubuntu: &["b"],
        };
        let two = Packages {
            debian: &["a", "c"],
            ubuntu: &["b"],
        };
        assert_ne!(one.key(), two.key());
        assert_eq!(
            one.key(),
            Packages {
                debian: &["a"],
                ubuntu: &["b"]
            }
            .key()
        );
    }
}
