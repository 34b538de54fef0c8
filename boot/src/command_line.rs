//! The kernel's options, from its command line.
//!
//! Words are separated by spaces; each is `key` or `key=value`. Where a key comes twice, the last one counts, so that a user's
//! options win over those that a host puts in front.
//!
//! | key | values | meaning |
//! |---|---|---|
//! | `log` | `off`, `error`, `warn`, `info`, `debug`, `trace` | what is logged; default `info` |
//! | `vmbus.max_version` | `6.0` ... `2.4` | newest protocol version to try |
//! | `exit` | `qemu`, `poweroff`, `halt`, `reset`, `reset-hypervisor`, `reset-fault` | how the machine ends; default: power off, but after a failure it stays on with its text; `qemu` writes to the port 0xf4 of `isa-debug-exit`; `reset` tries ACPI first, the others begin further down |
//! | `once` | | end after the status table |
//! | `show` | `/PATH` or `DISK.PARTITION:/PATH` | print this file of a disk, or list this folder, before the status table |
//! | `report` | | print the machine-readable report after the status table |
//! | `selftest` | names, separated by commas | run these tests inside the guest, say the verdict and end (a kernel built with the feature `selftest`) |
//! | `console` | `serial`, `none` | where text goes; default `serial` |

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// Warnings too.
    Warn,
    /// State changes too.
    Info,
    /// Details too.
    Debug,
    /// Every packet too.
    Trace,
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By QEMU's `isa-debug-exit` at port 0xf4.
    Qemu,
    /// By power off.
    PowerOff,
    /// Not at all: the processor halts.
    Halt,
    /// By a reset, beginning with this way.
    Reset(ResetWay),
}

/// The ways to reset a machine, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResetWay {
    /// By the reset register that ACPI names.
    Acpi,
    /// By the hypervisor's reset register.
    Hypervisor,
    /// By a triple fault.
    Fault,
}

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleChoice {
    /// The first serial port, if there is one.
    Serial,
    /// Nowhere.
    None,
}

/// A version of the VMBus protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// The number before the dot.
    pub major: u16,
    /// The number after the dot.
    pub minor: u16,
}

/// A word of the command line that could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem<'a> {
    /// Nobody knows this key.
    #[error("unknown option \"{0}\"")]
    UnknownKey(&'a str),
    /// The key is known, the value is not.
    #[error("option \"{key}\" cannot be \"{value}\"")]
    BadValue {
        /// The key.
        key: &'a str,
        /// The value.
        value: &'a str,
    },
    /// A word that is not text.
    #[error("an option is not valid UTF-8")]
    NotText,
}

/// The kernel's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// What is logged.
    pub log: LogLevel,
    /// Newest VMBus version to try; none: as new as we know.
    pub max_version: Option<ProtocolVersion>,
    /// How the machine ends; none: power off where that is known, else halt; after a failure halt, so that its text stays on the screen.
    pub exit: Option<Exit>,
    /// End after the status table.
    pub once: bool,
    /// Print the machine-readable report.
    pub report: bool,
    /// Where text goes.
    pub console: ConsoleChoice,
    /// A file or folder of a disk to print, as the kernel's `files::path` understands it.
    pub show: Option<&'a str>,
    selftests: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            log: LogLevel::Info,
            max_version: None,
            exit: None,
            once: false,
            report: false,
            console: ConsoleChoice::Serial,
            show: None,
            selftests: "",
        }
    }
}

impl<'a> Options<'a> {
    /// Reads a command line. Everything that cannot be used is told to `problem` and otherwise ignored.
    pub fn parse(line: &'a [u8], mut problem: impl FnMut(Problem<'a>)) -> Self {
        let mut options = Self::default();
        for word in line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            let Ok(word) = core::str::from_utf8(word) else {
                problem(Problem::NotText);
                continue;
            };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if let Err(found) = options.set(key, value) {
                problem(found);
            }
        }
        options
    }

    /// The names of the self-tests to run.
    pub fn selftests(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.selftests.split(',').filter(|name| !name.is_empty())
    }

    fn set(&mut self, key: &'a str, value: &'a str) -> Result<(), Problem<'a>> {
        let bad = Problem::BadValue { key, value };
        let flag = || if value.is_empty() { Ok(true) } else { Err(bad) };
        match key {
            "log" => {
                self.log = match value {
                    "off" => LogLevel::Off,
                    "error" => LogLevel::Error,
                    "warn" => LogLevel::Warn,
                    "info" => LogLevel::Info,
                    "debug" => LogLevel::Debug,
                    "trace" => LogLevel::Trace,
                    _ => return Err(bad),
                }
            }
            "vmbus.max_version" => self.max_version = Some(parse_version(value).ok_or(bad)?),
            "exit" => {
                self.exit = Some(match value {
                    "qemu" => Exit::Qemu,
                    "poweroff" => Exit::PowerOff,
                    "halt" => Exit::Halt,
                    "reset" => Exit::Reset(ResetWay::Acpi),
                    "reset-hypervisor" => Exit::Reset(ResetWay::Hypervisor),
                    "reset-fault" => Exit::Reset(ResetWay::Fault),
                    _ => return Err(bad),
                })
            }
            "once" => self.once = flag()?,
            "report" => self.report = flag()?,
            "show" => self.show = Some(value).filter(|path| !path.is_empty()),
            "selftest" => self.selftests = value,
            "console" => {
                self.console = match value {
                    "serial" => ConsoleChoice::Serial,
                    "none" => ConsoleChoice::None,
                    _ => return Err(bad),
                }
            }
            _ => return Err(Problem::UnknownKey(key)),
        }
        Ok(())
    }
}

fn parse_version(text: &str) -> Option<ProtocolVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ProtocolVersion {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> (Options<'_>, Vec<Problem<'_>>) {
        let mut problems = Vec::new();
        let options = Options::parse(line.as_bytes(), |problem| problems.push(problem));
        (options, problems)
    }

    #[test]
    fn every_key_is_understood() {
        let (options, problems) = parse(
            "log=warn  vmbus.max_version=5.3 exit=qemu once report selftest=smp,panic-task console=none show=1.2:/etc",
        );
        assert_eq!(problems, []);
        assert_eq!(options.log, LogLevel::Warn);
        assert_eq!(options.max_version, Some(ProtocolVersion { major: 5, minor: 3 }));
        assert_eq!(options.exit, Some(Exit::Qemu));
        assert!(options.once && options.report);
        assert_eq!(options.console, ConsoleChoice::None);
        assert_eq!(options.show, Some("1.2:/etc"));
        assert_eq!(options.selftests().collect::<Vec<_>>(), ["smp", "panic-task"]);
    }

    #[test]
    fn an_empty_line_gives_the_defaults() {
        let (options, problems) = parse("   ");
        assert_eq!((options, problems), (Options::default(), vec![]));
        assert_eq!(options.selftests().count(), 0);
    }

    #[test]
    fn a_reset_begins_where_it_is_told_to() {
        for (value, way) in [
            ("reset", ResetWay::Acpi),
            ("reset-hypervisor", ResetWay::Hypervisor),
            ("reset-fault", ResetWay::Fault),
        ] {
            assert_eq!(parse(&format!("exit={value}")).0.exit, Some(Exit::Reset(way)));
        }
    }

    #[test]
    fn the_last_of_two_counts() {
        assert_eq!(parse("log=trace log=off").0.log, LogLevel::Off);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named_and_the_rest_still_counts() {
        let (options, problems) = parse("panic=-1 log=loud once=yes vmbus.max_version=5 log=error");
        assert_eq!(options.log, LogLevel::Error);
        assert_eq!(
            problems,
            [
                Problem::UnknownKey("panic"),
                Problem::BadValue {
                    key: "log",
                    value: "loud"
                },
                Problem::BadValue {
                    key: "once",
                    value: "yes"
                },
                Problem::BadValue {
                    key: "vmbus.max_version",
                    value: "5"
                },
            ]
        );
        assert_eq!(problems[0].to_string(), "unknown option \"panic\"");
        let mut count = 0;
        Options::parse(b"\xff\xfe once", |problem| {
            count += usize::from(problem == Problem::NotText)
        });
        assert_eq!(count, 1);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in prop::collection::vec(any::<u8>(), 0..200)) {
            Options::parse(&line, |_| ());
        }
    }
}
