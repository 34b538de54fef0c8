//! A small client for QMP, QEMU's control protocol: one JSON object a line, over a Unix socket.
//!
//! We listen and QEMU connects (`-chardev socket,server=off`), so there is nothing to poll for at the start. [`parse`] sorts what QEMU
//! says into [`Message`]s; [`Sender`] writes commands. Who waits for what is decided by [`crate::vm::Vm`].
//! Source: the QMP protocol specification in QEMU's documentation.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The greeting with QEMU's version, e.g. "10.0.2".
    Greeting(String),
    /// A command succeeded.
    Return {
        /// The id that the command carried.
        id: u64,
        /// What it returned.
        value: Value,
    },
    /// A command failed.
    Error {
        /// The id that the command carried, if QEMU understood that much.
        id: Option<u64>,
        /// QEMU's explanation.
        description: String,
    },
    /// Something happened in the machine.
    Event {
        /// Its name, e.g. `GUEST_PANICKED`.
        name: String,
        /// Its data, or null.
        data: Value,
    },
}

/// Understands one line from QEMU; `None` if it is nothing that QMP knows.
#[must_use]
pub fn parse(line: &str) -> Option<Message> {
    let value: Value = serde_json::from_str(line).ok()?;
    let id = value.get("id").and_then(Value::as_u64);
    if let Some(greeting) = value.get("QMP") {
        let number = |name| {
            greeting
                .pointer(&format!("/version/qemu/{name}"))
                .and_then(Value::as_u64)
                .unwrap_or(0)
        };
        return Some(Message::Greeting(format!(
            "{}.{}.{}",
            number("major"),
            number("minor"),
            number("micro")
        )));
    }
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        return Some(Message::Event {
            name: name.to_owned(),
            data: value.get("data").cloned().unwrap_or(Value::Null),
        });
    }
    if let Some(error) = value.get("error") {
        let description = error
            .get("desc")
            .and_then(Value::as_str)
            .unwrap_or("no description")
            .to_owned();
        return Some(Message::Error { id, description });
    }
    Some(Message::Return {
        id: id?,
        value: value.get("return")?.clone(),
    })
}

/// The writing half of a connection.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
    last_id: u64,
}

impl Sender {
    /// Commands go to `stream`.
    #[must_use]
    pub const fn new(stream: UnixStream) -> Self {
        Self { stream, last_id: 0 }
    }

    /// Sends a command and returns its id, by which the answer is known.
    ///
    /// # Errors
    ///
    /// The socket's: QEMU is gone.
    pub fn send(&mut self, command: &str, arguments: &Value) -> io::Result<u64> {
        self.last_id += 1;
        let mut object = json!({ "execute": command, "id": self.last_id });
        if let (false, Some(map)) = (arguments.is_null(), object.as_object_mut()) {
            map.insert("arguments".to_owned(), arguments.clone());
        }
        let mut line = object.to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes())?;
        Ok(self.last_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn lines_from_a_real_qemu() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Some(Message::Greeting("10.0.2".to_owned())));
        assert_eq!(
            parse(r#"{"return": {}, "id": 3}"#),
            Some(Message::Return {
                id: 3,
                value: json!({})
            })
        );
        let error = r#"{"id": 4, "error": {"class": "GenericError", "desc": "Device balloon not found"}}"#;
        assert_eq!(
            parse(error),
            Some(Message::Error {
                id: Some(4),
                description: "Device balloon not found".to_owned()
            })
        );
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        let data = json!({"guest": true, "reason": "guest-shutdown"});
        assert_eq!(
            parse(event),
            Some(Message::Event {
                name: "SHUTDOWN".to_owned(),
                data
            })
        );
        let bare = r#"{"event": "RESUME"}"#;
        assert_eq!(
            parse(bare),
            Some(Message::Event {
                name: "RESUME".to_owned(),
                data: Value::Null
            })
        );
    }

    #[test]
    fn nonsense_is_not_a_message() {
        for line in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"return": {}}"#,
            r#"{"id": 1}"#,
            r#"{"id": "x", "return": 1}"#,
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn commands_are_numbered_lines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sender = Sender::new(ours);
        assert_eq!(sender.send("cont", &Value::Null).unwrap(), 1);
        assert_eq!(sender.send("balloon", &json!({"value": 5})).unwrap(), 2);
        let lines: Vec<Value> = BufReader::new(theirs)
            .lines()
            .take(2)
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        assert_eq!(lines[0], json!({"execute": "cont", "id": 1}));
        assert_eq!(
            lines[1],
            json!({"execute": "balloon", "id": 2, "arguments": {"value": 5}})
        );
    }
}
