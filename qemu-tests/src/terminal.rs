//! The user's terminal: raw while a guest runs, which keys are for us, and what of the guest's text is shown.

use std::io::{IsTerminal, Read};

use anyhow::Result;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

use crate::vm::Event;

/// The terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
pub struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Puts the terminal at standard input, if it is one, into raw mode.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn raw() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Our own lines end with a bare newline.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Takes out of a guest's text what would play with the user's terminal: firmware clears the screen and moves about on it.
#[derive(Debug, Default)]
pub struct Filter {
    state: Escape,
    /// Whether something is left out that would have moved to another line.
    moved: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    Text,
    /// After an escape character.
    Begun,
    /// In a control sequence.
    Sequence,
}

impl Filter {
    /// What of `bytes` is to be shown. Control sequences (ECMA-48: ESC `[` ... a byte from `@` to `~`) are left out, colours (`m`) too.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        const ESCAPE: u8 = 0x1b;
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (_, ESCAPE) => Escape::Begun,
                (Escape::Begun, b'[') => Escape::Sequence,
                (Escape::Sequence, b'@'..=b'~') => {
                    self.moved |= byte == b'H';
                    Escape::Text
                }
                (Escape::Sequence, _) => Escape::Sequence,
                (Escape::Begun | Escape::Text, byte) => {
                    if std::mem::take(&mut self.moved) && !matches!(byte, b'\r' | b'\n') {
                        text.extend_from_slice(b"\r\n");
                    }
                    text.push(byte);
                    Escape::Text
                }
            };
        }
        text
    }
}

/// Reads what the user types until `send` refuses.
pub fn read_keys(send: &mut dyn FnMut(Event) -> bool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 1024];
    let mut stdin = std::io::stdin();
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        for event in keys.feed(buffer.get(..count).unwrap_or_default()) {
            if !send(event) {
                return;
            }
        }
    }
}

/// Tells keys for us from keys for the guest.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        const CTRL_A: u8 = 1;
        const CTRL_C: u8 = 3;
        let mut events = Vec::new();
        let mut typed = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x') | (false, CTRL_C) => {
                    events.push(Event::Quit);
                    return events;
                }
                (true, b'c') => typed.push(CTRL_C),
                (true, b'a') => typed.push(CTRL_A),
                (_, byte) => typed.push(byte),
            }
        }
        if !typed.is_empty() {
            events.push(Event::Typed(typed));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firmwares_screen_becomes_lines() {
        let mut filter = Filter::default();
        assert_eq!(filter.feed(b"\x1b[2J\x1b[01;01H\x1b[=3hBds\r\n"), b"\r\nBds\r\n");
        assert_eq!(filter.feed(b"a\x1b"), b"a");
        assert_eq!(filter.feed(b"[0;3"), b"");
        assert_eq!(filter.feed(b"7mb\x1bc[d"), b"bc[d");
    }

    #[test]
    fn keys() {
        let mut keys = Keys::default();
        let mut shown = |bytes: &[u8]| format!("{:?}", keys.feed(bytes));
        assert_eq!(shown(b"ab"), "[Typed([97, 98])]");
        assert_eq!(shown(b"\x01"), "[]");
        assert_eq!(shown(b"a\x01c"), "[Typed([1, 3])]");
        assert_eq!(shown(b"\x01x"), "[Quit]");
        assert_eq!(shown(b"\x03"), "[Quit]");
        assert_eq!(shown(b"x"), "[Typed([120])]");
    }
}
