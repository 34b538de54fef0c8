//! `println!` and the log, on the first serial port. A Gen2 machine may have none: then the text goes nowhere. Where there is one, its
//! driver waits until the host takes each byte, for ever if it does not: fit for QEMU, not for a port that nobody reads.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt::{self, Write as _};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550, Uart16550Tty};

const COM1: u16 = 0x3f8;

static PORT: Mutex<Option<Uart16550Tty<PioBackend>>> = Mutex::new(None);

/// Finds the port, and lets the log go there.
pub(crate) fn start() {
    // SAFETY: the registers of the first serial port, by convention; nothing else here touches them.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(COM1) }
        && uart.init(Config::DEFAULT).is_ok()
    {
        *PORT.lock() = Some(Uart16550Tty::from_inner(uart));
    }
    if log::set_logger(&Log).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Writes to the port.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    if let Some(port) = &mut *PORT.lock() {
        // It fails only where formatting does, and that is no reason to stop.
        let _ = port.write_fmt(text);
    }
}

macro_rules! println {
    ($($text:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use println;

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        println!("{:5} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}
