//! The first serial port (COM1), a 16550 UART, as a console.
//!
//! Three things make it fit for virtual machines. There may be none: then [`Serial::open`] says so, and the kernel goes on. Every
//! access is an exit to the host: after one look at the line status up to 16 bytes are written, because a look per byte costs
//! up to 5 ms a byte on hosts that report an empty transmitter only when their backend has drained. And the backend may never
//! drain, as a pipe that nobody reads: no wait for the transmitter is without end, that of the initialisation included.
#![expect(unsafe_code, reason = "port I/O")]

use super::{Console, Style};
use uart_16550::backend::{Backend, PioBackend};
use uart_16550::{Config, Uart16550};

const COM1: u16 = 0x3f8;

/// Looks at the line status before the port is taken for stuck. A look costs 5 us or more in a virtual machine.
const PATIENCE: u32 = 50_000;

/// Line status register, and its bits for an empty transmitter.
const LINE_STATUS: u8 = 5;
const TRANSMITTER_EMPTY: u8 = 0x40;
const ROOM_TO_SEND: u8 = 0x20;

/// The registers, with an end to the wait in `uart_16550`'s initialisation, which looks at the line status until what firmware wrote
/// has left the transmitter.
#[derive(Debug)]
struct Patient<B> {
    port: B,
    /// How often the transmitter may still be found busy before it is called empty; `None`: it is never.
    looks_left: Option<u32>,
}

impl<B: Backend> Backend for Patient<B> {
    unsafe fn read(&mut self, offset: u8) -> u8 {
        // SAFETY: by the caller.
        let value = unsafe { self.port.read(offset) };
        if offset != LINE_STATUS || value & TRANSMITTER_EMPTY != 0 {
            return value;
        }
        match &mut self.looks_left {
            None => value,
            Some(0) => value | TRANSMITTER_EMPTY | ROOM_TO_SEND,
            Some(left) => {
                *left -= 1;
                value
            }
        }
    }

    unsafe fn write(&mut self, offset: u8, value: u8) {
        // SAFETY: by the caller.
        unsafe { self.port.write(offset, value) };
    }
}

/// A serial port.
#[derive(Debug)]
pub struct Serial<B: Backend = PioBackend> {
    uart: Uart16550<Patient<B>>,
    /// Nobody took the last byte in reasonable time: text is dropped until somebody does.
    stuck: bool,
}

impl Serial {
    /// Initialises the port; none if there is none.
    #[must_use]
    pub fn open() -> Option<Self> {
        // SAFETY: These are the registers of COM1 by convention; nothing else in the kernel touches them, and where there is no
        // port, reads give ones and writes go nowhere.
        let uart = unsafe { Uart16550::new_port(COM1) }.ok()?;
        // SAFETY: As above.
        unsafe { Self::with(*uart.backend()) }
    }
}

impl<B: Backend> Serial<B> {
    /// # Safety
    ///
    /// `port` reaches the registers of a UART, or nothing, and nothing else touches them.
    unsafe fn with(port: B) -> Option<Self> {
        let port = Patient {
            port,
            looks_left: Some(PATIENCE),
        };
        // SAFETY: By the caller.
        let mut uart = unsafe { Uart16550::new_with_backend(port) };
        // Not the crate's loopback test: it costs 50 exits, and misbehaves on some virtual ports.
        uart.init(Config {
            baud_rate: uart_16550::BaudRate::Baud115200,
            ..Config::DEFAULT
        })
        .ok()?;
        let stuck = uart.backend_mut().looks_left.take() == Some(0);
        Some(Self { uart, stuck })
    }

    /// Returns a byte that has come in, if there is one.
    pub fn read_byte(&mut self) -> Option<u8> {
        self.uart.try_receive_byte().ok()
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let mut patience = if self.stuck { 1 } else { PATIENCE };
        while !bytes.is_empty() {
            let sent = self.uart.send_bytes(bytes);
            if sent > 0 {
                bytes = bytes.get(sent..).unwrap_or(&[]);
                patience = PATIENCE;
                self.stuck = false;
                continue;
            }
            patience -= 1;
            if patience == 0 {
                self.stuck = true;
                return;
            }
            core::hint::spin_loop();
        }
    }
}

impl<B: Backend + Send> Console for Serial<B> {
    fn write(&mut self, text: &[u8], _style: Style) {
        // Lines are translated into one buffer, so that line ends do not break the bursts.
        let mut buffer = [0; 256];
        for piece in text.chunks(buffer.len() / 2) {
            let mut used = 0;
            for &byte in piece {
                let both = [b'\r', byte];
                let out = if byte == b'\n' { &both[..] } else { &both[1..] };
                if let Some(room) = buffer.get_mut(used..used + out.len()) {
                    room.copy_from_slice(out);
                    used += out.len();
                }
            }
            self.send(buffer.get(..used).unwrap_or(&[]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UART whose transmitter is empty again after some looks at the line status (register 5).
    #[derive(Default)]
    struct Model {
        registers: [u8; 8],
        sent: Vec<u8>,
        looks: usize,
        looks_per_drain: usize,
        fifo: usize,
        longest_burst: usize,
    }

    impl Backend for Model {
        unsafe fn read(&mut self, offset: u8) -> u8 {
            if offset == 5 {
                self.looks += 1;
                if self.looks.is_multiple_of(self.looks_per_drain + 1) {
                    self.fifo = 0;
                }
                return if self.fifo == 0 { 0x60 } else { 0 };
            }
            if offset == 2 {
                0xc1
            } else {
                self.registers[offset as usize]
            }
        }

        unsafe fn write(&mut self, offset: u8, value: u8) {
            let divisor = self.registers[3] & 0x80 != 0;
            if offset == 0 && !divisor {
                self.sent.push(value);
                self.fifo += 1;
                self.longest_burst = self.longest_burst.max(self.fifo);
            }
            self.registers[offset as usize] = value;
        }
    }

    fn serial(looks_per_drain: usize) -> Serial<Model> {
        // SAFETY: The model accepts everything.
        let mut serial = unsafe { Serial::with(Model::default()) }.unwrap();
        model(&mut serial).looks_per_drain = looks_per_drain;
        model(&mut serial).looks = 0;
        serial
    }

    fn model(serial: &mut Serial<Model>) -> &mut Model {
        &mut serial.uart.backend_mut().port
    }

    #[test]
    fn text_goes_out_in_bursts_with_carriage_returns() {
        let mut serial = serial(0);
        serial.write(b"0123456789\n0123456789\n0123456789\n", Style::Plain);
        let model = model(&mut serial);
        assert_eq!(model.sent, b"0123456789\r\n0123456789\r\n0123456789\r\n");
        assert_eq!(model.longest_burst, 16);
        assert_eq!(model.looks, 3, "one look per 16 bytes");
    }

    #[test]
    fn long_text_is_not_lost() {
        let mut serial = serial(1);
        let text = vec![b'\n'; 1000];
        serial.write(&text, Style::Plain);
        assert_eq!(model(&mut serial).sent, b"\r\n".repeat(1000));
    }

    #[test]
    fn b4_a_port_that_nobody_drains_does_not_stop_the_kernel() {
        let mut serial = serial(usize::MAX - 1);
        serial.write(&[b'x'; 40], Style::Plain);
        assert!(serial.stuck);
        let looks = model(&mut serial).looks;
        serial.write(&[b'y'; 40], Style::Plain);
        assert_eq!(
            model(&mut serial).looks,
            looks + 1,
            "one look, then the text is dropped"
        );
        model(&mut serial).looks_per_drain = 0;
        serial.write(b"back", Style::Plain);
        assert!(!serial.stuck && model(&mut serial).sent.ends_with(b"back"));
    }

    #[test]
    fn b4_a_port_that_nobody_drains_does_not_stop_the_initialisation() {
        let full = Model {
            // What firmware wrote, and nobody reads.
            fifo: 16,
            looks_per_drain: usize::MAX - 1,
            ..Model::default()
        };
        // SAFETY: The model accepts everything.
        let mut serial = unsafe { Serial::with(full) }.unwrap();
        let looks = model(&mut serial).looks;
        assert!(looks <= PATIENCE as usize + 20, "{looks} looks");
        serial.write(b"lost", Style::Plain);
        assert_eq!(
            (model(&mut serial).looks, model(&mut serial).sent.as_slice()),
            (looks + 1, b"".as_slice()),
            "it is known to be stuck: one look, and the text is dropped"
        );
        model(&mut serial).looks_per_drain = 0;
        serial.write(b"back", Style::Plain);
        assert_eq!(model(&mut serial).sent, b"back");
    }

    #[test]
    fn b4_an_absent_port_is_no_console() {
        struct Absent;
        impl Backend for Absent {
            unsafe fn read(&mut self, _: u8) -> u8 {
                0xff
            }
            unsafe fn write(&mut self, _: u8, _: u8) {}
        }
        // SAFETY: The model accepts everything.
        assert!(unsafe { Serial::with(Absent) }.is_none());
    }
}
