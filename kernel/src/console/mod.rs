//! Text output: every console that exists gets every line.
//!
//! [`Console`] is one of them: the serial port ([`serial`]) or, as soon as there is memory for it, the framebuffer, which then gets what
//! was said before as well. [`log`](mod@logger) writes through here, and so does the panic path, which takes the consoles even from a
//! holder that died with them. Lines for machines start with `@@ `; they go to the serial port alone.

pub mod framebuffer;
pub mod grid;
pub mod logger;
pub mod serial;

use self::framebuffer::{PixelFormat, Screen, VideoMemory};
use crate::sync::IrqMutex;
use crate::{hyperv, memory};
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

/// What is kept of the text from before there is another console than the serial one, in bytes.
const EARLY: usize = 1536;

struct Consoles {
    serial: Option<serial::Serial>,
    others: [Option<Box<dyn Console>>; OTHERS],
    early: Early,
}

static CONSOLES: IrqMutex<Consoles> = IrqMutex::new(Consoles {
    serial: None,
    others: [const { None }; OTHERS],
    early: Early::new(),
});

impl Consoles {
    fn write(&mut self, text: &[u8], style: Style, to: Audience) {
        if let Some(serial) = &mut self.serial {
            serial.write(text, style);
        }
        if to == Audience::Machines {
            return;
        }
        for console in self.others.iter_mut().flatten() {
            console.write(text, style);
        }
        if self.others.iter().all(Option::is_none) {
            self.early.keep(text, style);
        }
    }
}

/// Who a piece of text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    People,
    Machines,
}

/// The first words, for a console that comes later. What does not fit is not kept.
struct Early {
    /// Pieces: style, length, that many bytes.
    bytes: [u8; EARLY],
    used: usize,
}

impl Early {
    const STYLES: [Style; 4] = [Style::Plain, Style::Dim, Style::Warning, Style::Error];

    const fn new() -> Self {
        Self {
            bytes: [0; EARLY],
            used: 0,
        }
    }

    fn keep(&mut self, text: &[u8], style: Style) {
        let style = Self::STYLES.iter().position(|known| *known == style);
        for piece in text.chunks(usize::from(u8::MAX)) {
            let room = self.bytes.get_mut(self.used..self.used + 2 + piece.len());
            let (Some([kind, length, bytes @ ..]), Some(style)) = (room, style) else {
                return;
            };
            *kind = u8::try_from(style).unwrap_or(0);
            *length = u8::try_from(piece.len()).unwrap_or(0);
            bytes.copy_from_slice(piece);
            self.used += 2 + piece.len();
        }
    }

    /// Gives a console what was kept.
    fn tell(&self, console: &mut dyn Console) {
        let mut rest = self.bytes.get(..self.used).unwrap_or(&[]);
        while let [style, length, bytes @ ..] = rest {
            let (text, more) = bytes.split_at(usize::from(*length).min(bytes.len()));
            let style = Self::STYLES.get(usize::from(*style)).copied().unwrap_or(Style::Plain);
            console.write(text, style);
            rest = more;
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

/// Whether there is a serial port.
#[must_use]
pub fn has_serial() -> bool {
    CONSOLES.lock().serial.is_some()
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
    let access = framebuffer::access(hyperv::found());
    // Only what is seen: some firmware gives far more memory than the mode takes.
    let mapped = memory::map_for(info.address, info.visible_length(), access)
        .ok()
        .and_then(|at| NonNull::new(at.cast::<u32>()));
    #[expect(unsafe_code, reason = "takes over video memory")]
    // SAFETY: the loader says that this is the framebuffer; its lines are mapped for writing for good, and nobody else uses it.
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

/// Adds a console, and tells it what was said before there was any. Returns it if there is no room.
///
/// # Errors
///
/// The console, if there are too many.
pub fn add(mut console: Box<dyn Console>) -> Result<(), Box<dyn Console>> {
    let consoles = &mut *CONSOLES.lock();
    match consoles.others.iter_mut().find(|slot| slot.is_none()) {
        Some(slot) => {
            consoles.early.tell(&mut *console);
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

/// Writes formatted text to every console, unless somebody holds them. Returns whether it did.
pub(crate) fn print_if_free(style: Style, text: fmt::Arguments<'_>) -> bool {
    let Some(mut consoles) = CONSOLES.try_lock() else {
        return false;
    };
    write_to(&mut consoles, style, text);
    true
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

/// Runs `work` while the consoles' lock is held.
#[cfg(any(test, feature = "selftest"))]
pub(crate) fn with_lock_held(work: impl FnOnce()) {
    let _held = CONSOLES.lock();
    work();
}

fn write_to(consoles: &mut Consoles, style: Style, text: fmt::Arguments<'_>) {
    let mut line = Buffered {
        consoles,
        style,
        audience: None,
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
    /// Known from the first bytes.
    audience: Option<Audience>,
    buffer: [u8; 128],
    used: usize,
}

impl Buffered<'_> {
    fn flush(&mut self) {
        let text = self.buffer.get(..self.used).unwrap_or(&[]);
        let audience = *self.audience.get_or_insert_with(|| {
            if text.starts_with(b"@@ ") {
                Audience::Machines
            } else {
                Audience::People
            }
        });
        self.consoles.write(text, self.style, audience);
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Pieces of text in their styles.
    type Said = Vec<(Vec<u8>, Style)>;

    /// A console that remembers.
    #[derive(Default)]
    struct Memory(Arc<spin::Mutex<Said>>);

    impl Console for Memory {
        fn write(&mut self, text: &[u8], style: Style) {
            self.0.lock().push((text.to_vec(), style));
        }
    }

    #[test]
    fn the_first_words_are_kept_in_their_styles_for_a_console_that_comes_later() {
        let mut early = Early::new();
        early.keep(b"careful\n", Style::Warning);
        early.keep(&[b'x'; 300], Style::Dim);
        early.keep(&[b'y'; 2 * EARLY], Style::Error);
        let mut console = Memory::default();
        early.tell(&mut console);
        let told = console.0.lock();
        assert_eq!(told[0], (b"careful\n".to_vec(), Style::Warning));
        assert_eq!(told[1], (vec![b'x'; 255], Style::Dim));
        assert_eq!(told[2], (vec![b'x'; 45], Style::Dim));
        assert!(
            told[3..]
                .iter()
                .all(|(text, style)| text == &[b'y'; 255] && *style == Style::Error)
        );
    }

    #[test]
    fn a_breakpoint_takes_the_consoles_from_nobody() {
        let breakpoint = crate::arch::interrupts::Frame {
            vector: 3,
            ..Default::default()
        };
        with_lock_held(|| {
            crate::arch::exceptions::handle(&breakpoint);
            assert!(
                CONSOLES.try_lock().is_none(),
                "whoever was interrupted goes on with them"
            );
        });
    }

    #[test]
    fn lines_for_machines_are_not_for_people() {
        let console = Memory::default();
        let said = Arc::clone(&console.0);
        let mut consoles = Consoles {
            serial: None,
            others: [Some(Box::new(console)), None],
            early: Early::new(),
        };
        let long = "z".repeat(300);
        write_to(&mut consoles, Style::Plain, format_args!("@@ report {long}\n"));
        assert!(said.lock().is_empty());
        write_to(&mut consoles, Style::Plain, format_args!("hello @@ {long}\n"));
        assert_eq!(said.lock().iter().map(|(text, _)| text.len()).sum::<usize>(), 310);
        assert_eq!(consoles.early.used, 0, "kept only while nobody else listens");
    }
}
