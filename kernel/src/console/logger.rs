//! The [`log`] facade's way to the consoles: `[   0.004711] warn  vmbus::bus: text`, with the seconds since the first instruction.

use super::{Style, print};
use boot::command_line::LogLevel;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;

/// Installs the logger.
pub fn start(level: LogLevel) {
    // It fails only if there is a logger already, which then is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (style, level) = match record.level() {
            Level::Error => (Style::Error, "error"),
            Level::Warn => (Style::Warning, "warn "),
            Level::Info => (Style::Plain, "info "),
            Level::Debug => (Style::Dim, "debug"),
            Level::Trace => (Style::Dim, "trace"),
        };
        let micros = crate::time::now_ns() / 1000;
        let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
        print(
            style,
            format_args!(
                "[{seconds:4}.{rest:06}] {level} {}: {}\n",
                record.target(),
                record.args()
            ),
        );
    }

    fn flush(&self) {}
}
