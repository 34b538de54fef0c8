//! Text output: every console that exists gets every line.
//!
//! [`Console`] is one of them: the serial port ([`serial`]) or, later, the framebuffer. [`log`](mod@logger) writes through here, and so
//! does the panic path, which takes the consoles even from a holder that died with them. Lines for machines start with `@@ `.

pub mod framebuffer;
pub mod grid;
pub mod logger;
pub mod serial;

use self::framebuffer::{PixelFormat, Screen, VideoMemory};
use crate::memory;
use crate::sync::IrqMutex;
use alloc::boxed::Box;
use boot::info::Framebuffer;
use core::fmt::{self, Write};
use core::ptr::NonNull;

/// How a piece of text is meant. A console without colours ignores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Ordinary text.
    Plain,
    /// Details.
    Dim,
    /// A warning.
    Warning,
    /// An error or a panic.
    Error,
}

/// A place where text goes.
pub trait Console: Send {
    /// Writes text; `\n` ends a line.
    fn write(&mut self, text: &[u8], style: Style);
}

/// Consoles besides the serial one.
const OTHERS: usize = 2;

struct Consoles {
    serial: Option<serial::Serial>,
    others: [Option<Box<dyn Console>>; OTHERS],
}

static CONSOLES: IrqMutex<Consoles> = IrqMutex::new(Consoles {
    serial: None,
    others: [const { None }; OTHERS],
});

impl Consoles {
    fn write(&mut self, text: &[u8], style: Style) {
        if let Some(serial) = &mut self.serial {
            serial.write(text, style);
        }
        for console in self.others.iter_mut().flatten() {
            console.write(text, style);
        }
    }
}

/// Takes the serial port as a console, if there is one. Returns whether there is.
pub fn start_serial() -> bool {
    let serial = serial::Serial::open();
    let found = serial.is_some();
    CONSOLES.lock().serial = serial;
    found
}

/// Returns a byte that has come in at the serial port, if there is one. It does not wait.
pub fn read_byte() -> Option<u8> {
    CONSOLES.lock().serial.as_mut().and_then(serial::Serial::read_byte)
}

/// Takes the framebuffer as a console, if there is one. Returns whether there is.
#[must_use]
pub fn start_framebuffer(info: &Framebuffer) -> bool {
    if !info.is_usable() {
        return false;
    }
    let mapped = memory::map_device(info.address, info.length)
        .ok()
        .and_then(|at| NonNull::new(at.cast::<u32>()));
    #[expect(unsafe_code, reason = "takes over video memory")]
    // SAFETY: the loader says that this is the framebuffer; it is mapped for writing for good, and nobody else uses it.
    let memory = mapped.and_then(|base| unsafe { VideoMemory::new(info, base) });
    let format = PixelFormat {
        red_mask: info.red_mask,
        green_mask: info.green_mask,
        blue_mask: info.blue_mask,
    };
    memory
        .and_then(|memory| Screen::new(memory, format))
        .is_some_and(|screen| add(Box::new(screen)).is_ok())
}

/// Adds a console. Returns it if there is no room.
///
/// # Errors
///
/// The console, if there are too many.
pub fn add(console: Box<dyn Console>) -> Result<(), Box<dyn Console>> {
    let mut consoles = CONSOLES.lock();
    match consoles.others.iter_mut().find(|slot| slot.is_none()) {
        Some(slot) => {
            *slot = Some(console);
            Ok(())
        }
        None => Err(console),
    }
}

/// Writes formatted text to every console.
pub fn print(style: Style, text: fmt::Arguments<'_>) {
    write_to(&mut CONSOLES.lock(), style, text);
}

/// Writes formatted text to every console, even if somebody holds them.
///
/// Only for the panic path: the holder must never run again.
pub(crate) fn print_by_force(style: Style, text: fmt::Arguments<'_>) {
    #[expect(unsafe_code, reason = "a panic while a line is being written must still be seen")]
    // SAFETY: The panic path runs with interrupts off on the only running processor and never returns to the holder. A console's
    // state is a few numbers, each of which makes sense at any time.
    let mut consoles = unsafe { CONSOLES.lock_by_force() };
    write_to(&mut consoles, style, text);
}

fn write_to(consoles: &mut Consoles, style: Style, text: fmt::Arguments<'_>) {
    let mut line = Buffered {
        consoles,
        style,
        buffer: [0; 128],
        used: 0,
    };
    // Formatting fails only if a `Display` implementation does; then what there is of the text has been written.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Collects pieces of text, because consoles are fast with long pieces and slow with short ones.
struct Buffered<'a> {
    consoles: &'a mut Consoles,
    style: Style,
    buffer: [u8; 128],
    used: usize,
}

impl Buffered<'_> {
    fn flush(&mut self) {
        self.consoles
            .write(self.buffer.get(..self.used).unwrap_or(&[]), self.style);
        self.used = 0;
    }
}

impl Write for Buffered<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.buffer.len() {
                self.flush();
            }
            if let Some(slot) = self.buffer.get_mut(self.used) {
                *slot = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

/// Prints a line to every console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::print($crate::console::Style::Plain, ::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}
