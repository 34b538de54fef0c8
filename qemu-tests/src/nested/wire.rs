//! Frames on the serial line between the middle Linux and the outside: a header line, then that many bytes.
//!
//! `KIND JOB LENGTH\n` and the payload: binary-safe, and readable in a dump. A serial port is chosen because every distribution's kernel
//! has its driver built in.

use std::io::{self, BufRead, Write};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inside: the middle Linux is up and listens.
    Up,
    /// Inside: a job begins.
    Begin,
    /// Inside: a job's standard output.
    Out,
    /// Inside: a job's standard error.
    Err,
    /// Inside: a file that a job left: its name, a zero byte, its content.
    File,
    /// Inside: a job's exit status in decimal digits; `killed` if it had none.
    Exit,
    /// Inside: something went wrong in the middle Linux itself.
    Trouble,
    /// Outside: input for the running job.
    In,
    /// Outside: end the running job.
    Stop,
}

const NAMES: [(Kind, &str); 9] = [
    (Kind::Up, "up"),
    (Kind::Begin, "begin"),
    (Kind::Out, "out"),
    (Kind::Err, "err"),
    (Kind::File, "file"),
    (Kind::Exit, "exit"),
    (Kind::Trouble, "trouble"),
    (Kind::In, "in"),
    (Kind::Stop, "stop"),
];

/// No frame is longer; a longer payload is sent in pieces where that makes sense.
const LONGEST: usize = 64 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The number of the job that it is about.
    pub job: usize,
    /// Its content.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame.
    #[must_use]
    pub fn new(kind: Kind, job: usize, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            job,
            payload: payload.into(),
        }
    }

    /// Writes the frame, at once.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let name = NAMES
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .map_or("", |(_, name)| name);
        let mut bytes = format!("{name} {} {}\n", self.job, self.payload.len()).into_bytes();
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads a frame; `None` at the end.
    ///
    /// # Errors
    ///
    /// The reader's, or that this is no frame.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut header = String::new();
        if from.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let (kind, job, length) = parse(&header)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no frame: {header:?}")))?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(Self { kind, job, payload }))
    }
}

fn parse(header: &str) -> Option<(Kind, usize, usize)> {
    let mut words = header.strip_suffix('\n')?.split(' ');
    let name = words.next()?;
    let kind = NAMES.iter().find(|(_, known)| *known == name)?.0;
    let (job, length) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next().is_none() && length <= LONGEST).then_some((kind, job, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frames: Vec<Frame> = NAMES
            .iter()
            .enumerate()
            .map(|(job, (kind, _))| Frame::new(*kind, job, [b'\n', 0, 0xff, b'x'].repeat(job)))
            .collect();
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut reader = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut reader).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut reader).unwrap(), None);
    }

    #[test]
    fn damage_is_noticed() {
        for text in [
            "out 1 4\nabc",
            "out 1\n",
            "out 1 4 5\nabcd",
            "nonsense 0 0\n",
            "out x 0\n",
            "out 0 99999999999\n",
            "out 0 0",
        ] {
            assert!(Frame::read(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
