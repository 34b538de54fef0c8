//! The fixed ACPI description table (FADT): how this machine is switched off and reset.
//!
//! A Gen2 machine fills only the extended (`X_`) fields, older firmware only the legacy ones, an isolated guest has no PM1 registers
//! at all (hardware-reduced ACPI). What is to be written where is worked out here as data; somebody else writes it.
//! Source: ACPI Specification 6.5, sections 4.8.3, 5.2.9.

use super::aml::SleepType;

/// Sleep type and sleep enable in the PM1 control register.
const PM1_SLEEP_TYPE_SHIFT: u32 = 10;
const PM1_SLEEP_TYPE_MASK: u32 = 0b111 << PM1_SLEEP_TYPE_SHIFT;
const PM1_SLEEP_ENABLE: u32 = 1 << 13;
/// ACPI (rather than the firmware's legacy mode) owns the power management registers.
const PM1_SCI_ENABLE: u32 = 1;
/// Sleep type and sleep enable in the sleep control register of hardware-reduced ACPI.
const REDUCED_SLEEP_TYPE_SHIFT: u32 = 2;
const REDUCED_SLEEP_ENABLE: u32 = 1 << 5;
/// Flags of the FADT.
const FLAG_RESET_REGISTER: u32 = 1 << 10;
const FLAG_HARDWARE_REDUCED: u32 = 1 << 20;

/// A register that one write of this many bytes reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Port {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        width: u8,
    },
    /// A physical address, to be mapped uncached.
    Memory {
        /// The address.
        address: u64,
        /// 1, 2 or 4 bytes.
        width: u8,
    },
}

/// One step of switching off or resetting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write the value.
    Write {
        /// Where.
        register: Register,
        /// What.
        value: u32,
    },
    /// Read, clear these bits, set those, write back.
    Update {
        /// Where.
        register: Register,
        /// The bits to clear.
        clear: u32,
        /// The bits to set, afterwards.
        set: u32,
    },
    /// Wait, for a few milliseconds at the most, until one of these bits is set.
    Await {
        /// Where.
        register: Register,
        /// The bits.
        bits: u32,
    },
}

/// Why a table is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FadtError {
    /// Too short to say anything.
    #[error("the FADT has only {length} bytes")]
    Short {
        /// Its length.
        length: usize,
    },
    /// It names no register with which the machine could be switched off.
    #[error("the FADT names no power-off register")]
    NoPowerOff,
}

/// What the FADT says, as far as we use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fadt {
    /// Physical address of the DSDT, or 0.
    pub dsdt: u64,
    /// Whether the machine has hardware-reduced ACPI.
    pub is_hardware_reduced: bool,
    pm1a_control: Option<Register>,
    pm1b_control: Option<Register>,
    sleep_control: Option<Register>,
    reset: Option<(Register, u8)>,
    /// The port and the value that put the machine into ACPI mode.
    enable_acpi: Option<(u16, u8)>,
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// Fields beyond the end of an older table are zero.
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let end = offset.saturating_add(N);
        self.0
            .get(offset..end)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    fn byte(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.field(offset))
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }

    fn quad(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    /// A generic address structure: space, width in bits, offset in bits, access size, address.
    fn register(&self, offset: usize, default_width: u8) -> Option<Register> {
        let address = self.quad(offset + 4);
        if address == 0 {
            return None;
        }
        let width = match (self.byte(offset + 3), self.byte(offset + 1)) {
            (1, _) => 1,
            (2, _) => 2,
            (3, _) => 4,
            (_, 8) => 1,
            (_, 16) => 2,
            (_, 32) => 4,
            _ => default_width,
        };
        match self.byte(offset) {
            0 => Some(Register::Memory { address, width }),
            1 => Some(Register::Port {
                port: u16::try_from(address).ok()?,
                width,
            }),
            _ => None,
        }
    }

    fn legacy_port(&self, offset: usize) -> Option<Register> {
        let port = u16::try_from(self.word(offset)).ok().filter(|port| *port != 0)?;
        Some(Register::Port { port, width: 2 })
    }
}

impl Fadt {
    /// Reads a table, whose checksum the caller has checked.
    ///
    /// # Errors
    ///
    /// [`FadtError::Short`] if it has not even the fields of the first version.
    pub fn parse(table: &[u8]) -> Result<Self, FadtError> {
        if table.len() < 116 {
            return Err(FadtError::Short { length: table.len() });
        }
        let bytes = Bytes(table);
        let flags = bytes.word(112);
        let is_hardware_reduced = flags & FLAG_HARDWARE_REDUCED != 0;
        let (mut pm1a, mut pm1b) = (None, None);
        if !is_hardware_reduced {
            pm1a = bytes.register(172, 2).or_else(|| bytes.legacy_port(64));
            pm1b = bytes.register(184, 2).or_else(|| bytes.legacy_port(68));
        }
        let reset = bytes.register(116, 1).filter(|_| flags & FLAG_RESET_REGISTER != 0);
        let command = u16::try_from(bytes.word(48)).ok().filter(|port| *port != 0);
        let enable = bytes.byte(52);
        let extended_dsdt = bytes.quad(140);
        Ok(Self {
            dsdt: if extended_dsdt != 0 {
                extended_dsdt
            } else {
                u64::from(bytes.word(40))
            },
            is_hardware_reduced,
            pm1a_control: pm1a,
            pm1b_control: pm1b,
            sleep_control: bytes.register(244, 1),
            reset: reset.map(|register| (register, bytes.byte(128))),
            enable_acpi: command.filter(|_| enable != 0).map(|port| (port, enable)),
        })
    }

    /// Returns the steps that switch the machine off, for the sleep type that the DSDT gives.
    ///
    /// # Errors
    ///
    /// [`FadtError::NoPowerOff`] if there is no register to do it with.
    pub fn power_off(&self, sleep: SleepType) -> Result<impl Iterator<Item = Step>, FadtError> {
        let mut steps = [None; 4];
        if let Some(register) = self.sleep_control.filter(|_| self.is_hardware_reduced) {
            let value = u32::from(sleep.a & 0b111) << REDUCED_SLEEP_TYPE_SHIFT | REDUCED_SLEEP_ENABLE;
            steps[0] = Some(Step::Write { register, value });
        } else if let Some(pm1a) = self.pm1a_control {
            let update = |register, kind: u8| Step::Update {
                register,
                clear: PM1_SLEEP_TYPE_MASK | PM1_SLEEP_ENABLE,
                set: u32::from(kind & 0b111) << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP_ENABLE,
            };
            if let Some((port, value)) = self.enable_acpi {
                let register = Register::Port { port, width: 1 };
                steps[0] = Some(Step::Write {
                    register,
                    value: u32::from(value),
                });
                steps[1] = Some(Step::Await {
                    register: pm1a,
                    bits: PM1_SCI_ENABLE,
                });
            }
            steps[2] = Some(update(pm1a, sleep.a));
            steps[3] = self.pm1b_control.map(|pm1b| update(pm1b, sleep.b));
        } else {
            return Err(FadtError::NoPowerOff);
        }
        Ok(steps.into_iter().flatten())
    }

    /// Returns the step that resets the machine, if it has such a register.
    #[must_use]
    pub fn reset(&self) -> Option<Step> {
        self.reset.map(|(register, value)| Step::Write {
            register,
            value: u32::from(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn table(length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut table = vec![0; length];
        for (offset, bytes) in fields {
            table[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        table
    }

    fn steps(fadt: &Fadt, a: u8, b: u8) -> Vec<Step> {
        fadt.power_off(SleepType { a, b }).unwrap().collect()
    }

    const SLEEP: u32 = 0x3c00;

    /// A Gen2 machine: legacy fields 0, X_PM1a_CNT at port 0x404 (16 bits), reset by writing 1 to port 0x433.
    fn gen2() -> Vec<u8> {
        table(
            276,
            &[
                (112, &0x0000_0400_u32.to_le_bytes()),
                (116, &[1, 8, 0, 1, 0x33, 4]),
                (128, &[1]),
                (140, &0xf7_7000_u64.to_le_bytes()),
                (172, &[1, 16, 0, 2, 4, 4]),
            ],
        )
    }

    #[test]
    fn a_gen2_machine_has_only_extended_fields() {
        let fadt = Fadt::parse(&gen2()).unwrap();
        assert_eq!(fadt.dsdt, 0xf7_7000);
        let pm1a = Register::Port { port: 0x404, width: 2 };
        assert_eq!(
            steps(&fadt, 5, 0),
            [Step::Update {
                register: pm1a,
                clear: SLEEP,
                set: 0x3400
            }]
        );
        assert_eq!(
            fadt.reset(),
            Some(Step::Write {
                register: Register::Port { port: 0x433, width: 1 },
                value: 1
            })
        );
    }

    #[test]
    fn qemu_has_legacy_fields_and_an_smi_command() {
        // q35: PM1a_CNT at 0x604, SMI_CMD 0xb2, ACPI_ENABLE 2, reset register 0xcf9 with value 0x0f.
        let fields: [(usize, &[u8]); 7] = [
            (40, &[0, 0x10, 0xfe, 7]),
            (48, &[0xb2]),
            (52, &[2]),
            (64, &[4, 6]),
            (112, &0x84a5_u32.to_le_bytes()),
            (116, &[1, 8, 0, 0, 0xf9, 0x0c]),
            (128, &[0x0f]),
        ];
        let fadt = Fadt::parse(&table(244, &fields)).unwrap();
        assert_eq!(fadt.dsdt, 0x7fe_1000);
        let pm1a = Register::Port { port: 0x604, width: 2 };
        assert_eq!(
            steps(&fadt, 0, 0),
            [
                Step::Write {
                    register: Register::Port { port: 0xb2, width: 1 },
                    value: 2
                },
                Step::Await {
                    register: pm1a,
                    bits: 1
                },
                Step::Update {
                    register: pm1a,
                    clear: SLEEP,
                    set: 0x2000
                },
            ]
        );
        assert_eq!(
            fadt.reset(),
            Some(Step::Write {
                register: Register::Port { port: 0xcf9, width: 1 },
                value: 0x0f
            })
        );
    }

    #[test]
    fn openvmm_powers_off_at_404() {
        let fadt = Fadt::parse(&table(276, &[(64, &[4, 4]), (172, &[1, 16, 0, 2, 4, 4])])).unwrap();
        let pm1a = Register::Port { port: 0x404, width: 2 };
        assert_eq!(
            steps(&fadt, 0, 0),
            [Step::Update {
                register: pm1a,
                clear: SLEEP,
                set: 0x2000
            }]
        );
        assert_eq!(fadt.reset(), None, "the flag does not promise the register");
    }

    #[test]
    fn extended_fields_win_over_legacy_ones() {
        let fadt = Fadt::parse(&table(
            276,
            &[
                (64, &[0, 9]),
                (172, &[0, 32, 0, 3, 0, 0, 0, 0xfe]),
                (184, &[1, 16, 0, 2, 8, 9]),
            ],
        ));
        let steps = steps(&fadt.unwrap(), 1, 2);
        let memory = Register::Memory {
            address: 0xfe00_0000,
            width: 4,
        };
        let port = Register::Port { port: 0x908, width: 2 };
        let update = |register, set| Step::Update {
            register,
            clear: SLEEP,
            set,
        };
        assert_eq!(steps, [update(memory, 0x2400), update(port, 0x2800)]);
    }

    #[test]
    fn hardware_reduced_machines_use_the_sleep_control_register() {
        let flags = (1_u32 << 20 | 1 << 10).to_le_bytes();
        let sleep_control: &[u8] = &[1, 8, 0, 1, 0, 5];
        let fields = [
            (112, flags.as_slice()),
            (172, &[1, 16, 0, 2, 4, 4]),
            (244, sleep_control),
        ];
        let fadt = Fadt::parse(&table(276, &fields)).unwrap();
        let register = Register::Port { port: 0x500, width: 1 };
        assert_eq!(steps(&fadt, 5, 0), [Step::Write { register, value: 0x34 }]);
        // An isolated guest may have none: then there is nothing to write, also not to PM1, which does not exist.
        let bare = Fadt::parse(&table(276, &fields[..2])).unwrap();
        assert_eq!(
            bare.power_off(SleepType { a: 5, b: 0 }).err(),
            Some(FadtError::NoPowerOff)
        );
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        assert_eq!(Fadt::parse(&[0; 115]), Err(FadtError::Short { length: 115 }));
        let empty = Fadt::parse(&[0; 116]).unwrap();
        assert_eq!(
            empty.power_off(SleepType { a: 0, b: 0 }).err(),
            Some(FadtError::NoPowerOff)
        );
        // A register in PCI configuration space, and a port beyond the last.
        let fields: [(usize, &[u8]); 3] = [(112, &[0, 4]), (116, &[2, 8, 0, 1, 1]), (172, &[1, 16, 0, 2, 0, 0, 1])];
        let odd = Fadt::parse(&table(276, &fields)).unwrap();
        assert_eq!(
            (odd.reset(), odd.power_off(SleepType { a: 0, b: 0 }).is_err()),
            (None, true)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(table in prop::collection::vec(any::<u8>(), 0..300), a in any::<u8>(), b in any::<u8>()) {
            if let Ok(fadt) = Fadt::parse(&table) {
                let _ = fadt.reset();
                if let Ok(steps) = fadt.power_off(SleepType { a, b }) {
                    prop_assert!(steps.count() <= 4);
                }
            }
        }
    }
}
