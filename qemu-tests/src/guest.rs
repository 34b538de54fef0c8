//! What the guest says on its serial port.
//!
//! Lines for machines start at column 0 with `@@ `; everything else is for people. [`Splitter`] takes the bytes as they come and
//! separates the two without holding text back; [`Line`] is the meaning of a machine line:
//!
//! - `@@ report {...}`: the status report as one line of JSON (see [`crate::report`]);
//! - `@@ mark NAME [VALUE]`: the guest reached a point at which a test may act;
//! - `@@ verdict pass` or `@@ verdict fail REASON`: the last machine line.

use serde_json::Value;

/// How the guest judged its own run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that it was told to do worked.
    Pass,
    /// Something did not, with the guest's reason.
    Fail(String),
}

/// A machine line.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// The status report.
    Report(Value),
    /// A named point, with an optional value.
    Mark {
        /// The point's name, e.g. `dm-running`.
        name: String,
        /// The rest of the line, maybe empty.
        value: String,
    },
    /// The verdict.
    Verdict(Verdict),
    /// A line that this runner does not understand: an error in any test.
    Unknown(String),
}

/// The start of every machine line.
const PREFIX: &[u8] = b"@@ ";

/// Longest machine line that is kept; a guest gone wild must not fill our memory.
const LONGEST: usize = 1 << 20;

impl Line {
    /// Understands what follows `@@ ` on a line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim_end();
        let unknown = || Self::Unknown(text.to_owned());
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match (word, rest) {
            ("report", json) => serde_json::from_str(json).map_or_else(|_| unknown(), Self::Report),
            ("mark", rest) if !rest.is_empty() => {
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                Self::Mark {
                    name: name.to_owned(),
                    value: value.trim().to_owned(),
                }
            }
            ("verdict", "pass") => Self::Verdict(Verdict::Pass),
            ("verdict", rest) if rest == "fail" || rest.starts_with("fail ") => {
                Self::Verdict(Verdict::Fail(rest.get(5..).unwrap_or("no reason given").to_owned()))
            }
            _ => unknown(),
        }
    }
}

/// Separates machine lines from text for people.
#[derive(Debug, Default)]
pub struct Splitter {
    state: State,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At column 0, or in a prefix that may become `@@ ` (held in `line`).
    #[default]
    Start,
    /// In a line for people.
    Text,
    /// In a machine line, held in `line`.
    Machine,
}

impl Splitter {
    /// Takes the next bytes, appends what is for people to `text` and returns the machine lines that are complete.
    pub fn feed(&mut self, bytes: &[u8], text: &mut Vec<u8>) -> Vec<Line> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match self.state {
                State::Text => {
                    text.push(byte);
                    if byte == b'\n' {
                        self.state = State::Start;
                    }
                }
                State::Start => {
                    self.line.push(byte);
                    if self.line == PREFIX {
                        self.line.clear();
                        self.state = State::Machine;
                    } else if !PREFIX.starts_with(&self.line) {
                        // A carriage return alone leaves us at column 0.
                        self.state = if matches!(byte, b'\n' | b'\r') {
                            State::Start
                        } else {
                            State::Text
                        };
                        text.append(&mut self.line);
                    }
                }
                State::Machine if byte == b'\n' => {
                    lines.push(Line::parse(&String::from_utf8_lossy(&self.line)));
                    self.line.clear();
                    self.state = State::Start;
                }
                State::Machine if self.line.len() < LONGEST => self.line.push(byte),
                State::Machine => {}
            }
        }
        lines
    }

    /// Gives out what is still held at the end: the start of a line, or a machine line that was cut off.
    pub fn finish(&mut self, text: &mut Vec<u8>) {
        if self.state == State::Machine {
            text.extend_from_slice(PREFIX);
        }
        text.append(&mut self.line);
        self.state = State::Start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> (String, Vec<Line>) {
        let mut splitter = Splitter::default();
        let (mut text, mut lines) = (Vec::new(), Vec::new());
        for chunk in chunks {
            lines.extend(splitter.feed(chunk, &mut text));
        }
        splitter.finish(&mut text);
        (String::from_utf8(text).unwrap(), lines)
    }

    const SAMPLE: &[u8] =
        b"hello\r\n@@ mark dm-running\r\n@x\n@@ mark ballooned 4096\n a @@ mark no\n@@ verdict fail out of memory\n@@ verdict pass\nbye";

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let mark = |name: &str, value: &str| Line::Mark {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let expected = vec![
            mark("dm-running", ""),
            mark("ballooned", "4096"),
            Line::Verdict(Verdict::Fail("out of memory".to_owned())),
            Line::Verdict(Verdict::Pass),
        ];
        let text = "hello\r\n@x\n a @@ mark no\nbye";
        assert_eq!(split(&[SAMPLE]), (text.to_owned(), expected.clone()));
        let bytes: Vec<&[u8]> = SAMPLE.chunks(1).collect();
        assert_eq!(split(&bytes), (text.to_owned(), expected));
    }

    #[test]
    fn text_is_not_held_back() {
        let mut splitter = Splitter::default();
        let mut text = Vec::new();
        splitter.feed(b"> ", &mut text);
        assert_eq!(text, b"> ");
        splitter.feed(b"\n@", &mut text);
        assert_eq!(text, b"> \n");
        splitter.feed(b"home\n", &mut text);
        assert_eq!(text, b"> \n@home\n");
    }

    #[test]
    fn what_is_cut_off_is_text() {
        assert_eq!(split(&[b"@@ verdict pa"]), ("@@ verdict pa".to_owned(), vec![]));
        assert_eq!(split(&[b"@@"]), ("@@".to_owned(), vec![]));
    }

    #[test]
    fn malformed_lines_are_unknown() {
        for line in [
            "",
            "verdict",
            "verdict passed",
            "verdict failed",
            "mark",
            "report {",
            "reports {}",
            "Verdict pass",
        ] {
            assert!(matches!(Line::parse(line), Line::Unknown(_)), "{line}");
        }
        assert_eq!(
            Line::parse("verdict fail"),
            Line::Verdict(Verdict::Fail("no reason given".to_owned()))
        );
        assert_eq!(
            Line::parse(r#"report {"a":1}"#),
            Line::Report(serde_json::json!({"a": 1}))
        );
    }

    #[test]
    fn a_line_without_end_does_not_fill_memory() {
        let mut splitter = Splitter::default();
        let mut text = Vec::new();
        splitter.feed(b"@@ mark ", &mut text);
        for _ in 0..40 {
            splitter.feed(&[b'x'; 1 << 16], &mut text);
        }
        assert!(splitter.line.len() <= LONGEST);
    }
}
