//! The command line: what `cargo run -- ...` understands.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::host::{self, Choice, Kvm};
use crate::image::Format;
use crate::nested::inside;
use crate::progress::say;
use crate::tools::{self, kernel, ovmf};
use crate::{fuzz, harness, image, scenarios, session, uefi};

/// Boots the kernel as a Hyper-V guest and shows what it finds.
#[derive(Debug, Parser)]
#[command(
    name = "cargo run --",
    bin_name = "cargo run --",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    boot: BootAndMore,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds and boots the kernel (the default)
    Boot(BootAndMore),
    /// Writes a bootable disk image, and beside it the script that makes a Hyper-V machine for it
    Image(ImageOptions),
    /// Says which hosts are usable here, and why not
    Hosts,
    /// Boots the given kernel; also what `cargo run --package kernel --target x86_64-unknown-none` calls
    Run(Run),
    /// Runs the fuzz targets of vmbus and tells what they have done; needs a nightly compiler
    Fuzz(fuzz::Options),
    /// Runs one VM test on this machine's KVM or emulator
    #[command(hide = true)]
    Scenario(Scenario),
}

/// How the kernel is booted.
#[derive(Clone, Debug, Args)]
pub struct Boot {
    /// The host to run on
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub host: Choice,
    /// Boot directly, without firmware; otherwise by UEFI from a disk, as a Gen2 machine does. Faster
    #[arg(long)]
    pub direct: bool,
    /// End after the status table; the default when standard input is no terminal
    #[arg(long)]
    pub once: bool,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory in MiB, or whatever QEMU understands behind -m
    #[arg(long, default_value = "128")]
    pub memory: String,
    /// Words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,
    /// Give the log a name of its own and keep it
    #[arg(long)]
    pub keep_logs: bool,
    /// Write the status report there, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Nested host: let time be the number of executed instructions, so that the same run takes the same time. Runs by UEFI that end by
    /// themselves do so anyway
    #[arg(long)]
    pub deterministic: bool,
    /// End the guest after this time on its host's clock; runs that end by themselves have 120 s
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// This is the runner inside the nested host
    #[arg(long, hide = true)]
    pub relayed: bool,
    /// Where the parts of a boot by UEFI are, inside the nested host
    #[command(flatten)]
    pub uefi: uefi::Options,
    /// Where OpenVMM is, inside the nested host: the program, maybe behind its loader
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub openvmm: Vec<String>,
    /// One more argument for the QEMU or OpenVMM that runs the guest
    #[arg(long = "argument", hide = true, allow_hyphen_values = true)]
    pub extra: Vec<String>,
}

#[derive(Debug, Args)]
struct BootAndMore {
    #[command(flatten)]
    boot: Boot,
    /// More arguments for the QEMU or OpenVMM that runs the guest, behind `--`
    #[arg(last = true, value_name = "ARGUMENTS")]
    more: Vec<String>,
}

impl BootAndMore {
    fn boot(mut self) -> Boot {
        self.boot.extra.extend(self.more);
        self.boot
    }
}

/// What image is written, and where.
#[derive(Debug, Args)]
pub struct ImageOptions {
    /// vhdx for Hyper-V, vhd for Azure, raw for QEMU and for writing to a medium
    #[arg(long, value_enum, default_value_t = Format::Vhdx)]
    pub format: Format,
    /// The file; default: vmbus with the format's extension
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    boot: Boot,
    /// The kernel: an ELF file with a PVH note
    kernel: PathBuf,
    /// More words for the kernel's command line
    words: Vec<String>,
}

#[derive(Debug, Args)]
struct Scenario {
    /// Its name
    name: String,
    /// Our kernel
    #[arg(long)]
    kernel: PathBuf,
    #[command(flatten)]
    uefi: uefi::Options,
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    if inside::is_init() {
        inside::run();
        return ExitCode::FAILURE;
    }
    match act(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(cli: Cli) -> Result<bool> {
    match cli.command {
        None => session::boot(&cli.boot.boot(), None),
        Some(Command::Boot(boot)) => session::boot(&boot.boot(), None),
        Some(Command::Image(options)) => image::make(&options).map(|()| true),
        Some(Command::Hosts) => {
            print!("{}", hosts());
            Ok(true)
        }
        Some(Command::Fuzz(options)) => fuzz::run(&options),
        Some(Command::Run(run)) => {
            let mut boot = run.boot;
            if !run.words.is_empty() {
                boot.cmdline = format!("{} {}", boot.cmdline, run.words.join(" ")).trim().to_owned();
            }
            session::boot(&boot, Some(&run.kernel))
        }
        Some(Command::Scenario(scenario)) => run_scenario(&scenario),
    }
}

/// The log goes to standard output, the result into a file in the current folder.
fn run_scenario(arguments: &Scenario) -> Result<bool> {
    let scenario =
        scenarios::find(&arguments.name).with_context(|| format!("no scenario is called {}", arguments.name))?;
    let stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let tools = scenarios::Tools {
        qemu: tools::qemu()?,
        kernel: arguments.kernel.clone(),
        uefi: arguments.uefi.parts(),
    };
    let verdict = scenarios::run(&scenario, &tools, stdout);
    std::fs::write(harness::RESULT, serde_json::to_string(&verdict)?)?;
    Ok(verdict.failure.is_none())
}

fn hosts() -> String {
    let qemu = match tools::installed_qemu() {
        Ok(qemu) => format!("QEMU {} is installed", qemu.version),
        Err(error) => format!("{error:#}"),
    };
    let linux = match kernel::find(std::path::Path::new("/")) {
        Ok(kernel) => format!("Linux {} is installed", kernel.version),
        Err(error) => format!("{error:#}"),
    };
    let firmware = match ovmf::find(std::path::Path::new("/")) {
        Ok(firmware) => format!("UEFI firmware is installed: {}", firmware.code.display()),
        Err(error) => format!("{error:#}"),
    };
    let openvmm = tools::on_path("openvmm").map_or_else(
        || "openvmm is not on the PATH (only --host openvmm needs it)".to_owned(),
        |path| format!("OpenVMM is {}", path.display()),
    );
    let unpacked = if tools::unpacked() {
        format!("unpacked in {}", tools::folder().display())
    } else {
        match tools::apt::possible() {
            Ok(from) => format!(
                "not unpacked yet; the first run unpacks them from {from} into {}",
                tools::folder().display()
            ),
            Err(error) => format!("cannot be unpacked here: {error:#}"),
        }
    };
    let (kvm, auto) = match host::probe_kvm() {
        Kvm::Usable => (
            "usable: it has Hyper-V's synthetic interrupt controller".to_owned(),
            "kvm",
        ),
        Kvm::Unusable(why) => (format!("not usable: {why}"), "nested"),
    };
    format!(
        "kvm     {kvm}\nnested  needs no KVM, only the programs below\nauto    takes {auto}\n\nprograms\n  {qemu}\n  {firmware}\n  {linux}\n  {openvmm}\n  packages: {unpacked}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn boot_is_the_default() {
        let line =
            "x --host nested --direct --once --cpus 2 --memory 64,maxmem=33G --timeout 5 --report r.json -- --net x";
        let cli = parse(line);
        assert!(cli.command.is_none());
        let boot = cli.boot.boot();
        assert_eq!(
            (boot.host, boot.once, boot.cpus, boot.timeout),
            (Choice::Nested, true, 2, Some(5))
        );
        assert_eq!((boot.memory.as_str(), boot.direct), ("64,maxmem=33G", true));
        assert_eq!(boot.extra, ["--net", "x"]);
        let Some(Command::Boot(boot)) = parse("x boot --deterministic").command else {
            panic!("no boot")
        };
        let boot = boot.boot();
        assert!(boot.deterministic && boot.host == Choice::Auto && !boot.once);
    }

    #[test]
    fn fuzzing_takes_minutes_and_targets() {
        let Some(Command::Fuzz(options)) = parse("x fuzz --minutes 0.5 --seed 1 --target kmcl --target offers").command
        else {
            panic!("no fuzzing")
        };
        assert!((options.minutes - 0.5).abs() < f64::EPSILON);
        assert_eq!(options.target, ["kmcl", "offers"]);
        assert_eq!(options.seed, Some(1));
    }

    #[test]
    fn the_cargo_runner_passes_words() {
        let Some(Command::Run(run)) = parse("x run target/kernel log=debug selftest=connect").command else {
            panic!("no run")
        };
        assert_eq!(run.kernel, PathBuf::from("target/kernel"));
        assert_eq!(run.words, ["log=debug", "selftest=connect"]);
    }

    #[test]
    fn what_the_nested_host_passes_is_understood() {
        let words = [
            "x",
            "run",
            "--host",
            "kvm",
            "--relayed",
            "--cpus=1",
            "--memory=128",
            "--cmdline=log=warn -x",
            "--once",
            "--uefi-loader=/l",
            "--uefi-code=/c",
            "--uefi-variables=/v",
            "--openvmm=/ld.so",
            "--openvmm=--library-path",
            "--argument=-vga",
            "/files/kernel",
        ];
        let Some(Command::Run(run)) = Cli::try_parse_from(words).unwrap().command else {
            panic!("no run")
        };
        assert_eq!(run.boot.cmdline, "log=warn -x");
        assert!(run.boot.relayed && run.boot.uefi.parts().is_some());
        assert_eq!(run.boot.openvmm, ["/ld.so", "--library-path"]);
        assert_eq!(run.boot.extra, ["-vga"]);
        let empty = Cli::try_parse_from(["x", "run", "--cmdline=", "/k"]).unwrap();
        let Some(Command::Run(run)) = empty.command else {
            panic!("no run")
        };
        assert_eq!(run.boot.cmdline, "");
    }

    #[test]
    fn mistakes_are_errors() {
        for line in ["x --host xen", "x --cpus many", "x nonsense", "x hosts --once"] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
