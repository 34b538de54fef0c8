//! The guest's instructions end here: CPUID, registers, hypercalls.
#![expect(unsafe_code, reason = "the trait `Machine` is unsafe to implement")]

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;

use super::bytes::{self, is_zero, low16, low32, to_usize, u32_at};
use super::{Action, Event, Host, Pace};
use crate::Platform;
use crate::hyperv::machine::{Cpuid, Machine};
use crate::testing::heap::Exempt;

impl Host {
    fn post_message(&self, control: u64, input: u64) -> u64 {
        const SUCCESS: u64 = 0;
        let bytes = if control & 0x1_0000 == 0 {
            self.read_input(input, 256)
        } else {
            None
        };
        let connection = bytes.as_ref().map_or(0, |bytes| u32_at(bytes, 0));
        let message_type = bytes.as_ref().map_or(0, |bytes| u32_at(bytes, 16));
        let action = Action::Post {
            connection,
            message_type,
        };
        let step = self.step(action);
        let status = match bytes {
            None => {
                let mut state = self.lock();
                state.violation(format!(
                    "HvPostMessage ({control:#x}) with input at {input:#x}: it takes memory, 8-byte aligned, within a page"
                ));
                if control & 0x1_0000 != 0 { 3 } else { 4 }
            }
            Some(bytes) => self.accept_post(&bytes),
        };
        {
            let mut state = self.lock();
            if status == SUCCESS {
                state.counters.posts += 1;
            } else {
                state.counters.refused_posts += 1;
            }
        }
        self.end_step(step, action);
        status
    }

    fn accept_post(&self, input: &[u8]) -> u64 {
        let (connection, kind) = (u32_at(input, 0), u32_at(input, 8));
        let len = to_usize(u64::from(u32_at(input, 12)));
        let mut state = self.lock();
        if let Some(status) = take_failure(&mut state.failing_posts) {
            return status;
        }
        if !is_zero(&input[4..8]) {
            state.violation(String::from("HvPostMessage: the reserved bytes are not zero"));
            return 5;
        }
        if len > 240 {
            state.violation(format!("HvPostMessage: {len} bytes of payload, 240 at most"));
            return 5;
        }
        if !state.ports.contains(&connection) {
            return 0x12;
        }
        if kind != 1 {
            state.violation(format!("HvPostMessage: message type {kind}, the VMBus takes 1"));
            return SUCCESS_BUT_IGNORED;
        }
        let message = input[16..16 + len].to_vec();
        match state.config.pace {
            Pace::AtOnce => {
                state.serve(connection, &message);
                0
            }
            Pace::Later if state.inbox.len() >= state.config.queue_limit => 0x13,
            Pace::Later => {
                state.inbox.push_back((connection, message));
                0
            }
        }
    }

    fn signal_event(&self, control: u64, input: u64) -> u64 {
        let parameters = if control & 0x1_0000 == 0 {
            self.read_input(input, 8).map(|bytes| bytes::u64_at(&bytes, 0))
        } else {
            Some(input)
        };
        let connection = low32(parameters.unwrap_or(0));
        let action = Action::Signal { connection };
        let step = self.step(action);
        let status = match parameters {
            None => {
                let mut state = self.lock();
                state.violation(format!(
                    "HvSignalEvent with input at {input:#x}: 8-byte aligned, within a page"
                ));
                4
            }
            Some(parameters) => self.accept_signal(parameters),
        };
        self.end_step(step, action);
        status
    }

    fn accept_signal(&self, parameters: u64) -> u64 {
        let (connection, flag, reserved) = (low32(parameters), low16(parameters >> 32), parameters >> 48);
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(status) = take_failure(&mut state.failing_signals) {
            return status;
        }
        if reserved != 0 || flag != 0 {
            state.violation(format!(
                "HvSignalEvent with flag {flag} and reserved bits {reserved:#x}"
            ));
            return 5;
        }
        let found = state
            .server
            .channels
            .iter_mut()
            .find(|(_, channel)| channel.connection == connection);
        let Some((id, channel)) = found.filter(|(_, channel)| channel.opening.is_some()) else {
            state.counters.stray_signals += 1;
            return 0x12;
        };
        channel.counters.signals += 1;
        if let Some(rings) = &channel.rings {
            let is_useless = rings.is_signal_useless(state.platform);
            channel.counters.useless_signals += u64::from(is_useless);
        }
        state.events.push_back(Event::Signalled(*id));
        0
    }

    /// Reads a hypercall's input as strictly as a host does.
    fn read_input(&self, input: u64, len: u64) -> Option<Vec<u8>> {
        if !input.is_multiple_of(8) || input / 4096 != (input + len - 1) / 4096 {
            return None;
        }
        let mut bytes = vec![0; to_usize(len)];
        self.platform.guest_read(input, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// Taken, but nobody listens.
const SUCCESS_BUT_IGNORED: u64 = 0;

fn take_failure(failures: &mut Vec<(u64, u32)>) -> Option<u64> {
    failures.retain(|(_, times)| *times > 0);
    let (status, times) = failures.first_mut()?;
    *times -= 1;
    Some(*status)
}

// SAFETY: the methods do to the caller's memory only what a host does, through atomics.
unsafe impl Machine for Host {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Cpuid {
        let _exempt = Exempt::enter();
        let state = self.lock();
        let values = match leaf {
            // Bit 31 of ECX: a hypervisor is present.
            1 => [0, 0, 0x8000_0000, 0],
            0x4000_0000.. => {
                let index = to_usize(u64::from(leaf - 0x4000_0000));
                state.config.cpuid.get(index).copied().unwrap_or([0; 4])
            }
            _ => [0; 4],
        };
        let [eax, ebx, ecx, edx] = values;
        Cpuid { eax, ebx, ecx, edx }
    }

    fn timestamp(&self) -> u64 {
        let _exempt = Exempt::enter();
        let units = self.look_at_time();
        units.wrapping_mul(self.lock().config.tsc_per_unit)
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        let _exempt = Exempt::enter();
        let now = if register == 0x4000_0020 {
            self.look_at_time()
        } else {
            0
        };
        let mut state = self.lock();
        state.read_register(self.processor(), register, now).unwrap_or_else(|| {
            state.violation(format!("a read of register {register:#x} faults"));
            0
        })
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        let _exempt = Exempt::enter();
        let action = if register == 0x4000_0084 {
            Action::EndOfMessage
        } else {
            Action::WriteRegister { register, value }
        };
        let step = self.step(action);
        let processor = self.processor();
        self.lock().write_register(processor, register, value);
        self.end_step(step, action);
    }

    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, _output: u64) -> u64 {
        let _exempt = Exempt::enter();
        {
            let mut state = self.lock();
            let here = self.platform.translate(page).map_or(0, |gpa| gpa.get());
            if state.guest_os_id == 0 || state.hypercall_page & 1 == 0 || here != state.hypercall_page & !0xfff {
                let registers = (state.guest_os_id, state.hypercall_page);
                state.violation(format!(
                    "a hypercall through {here:#x}, with guest id and hypercall page {registers:#x?}"
                ));
                return 2;
            }
            // Bits 17 to 26: the size of a variable header; 27 to 31, 32 to 63: repetitions and reserved.
            if control >> 17 != 0 {
                state.violation(format!("a hypercall with control word {control:#x}"));
                return 3;
            }
        }
        match control & 0xffff {
            0x5c => self.post_message(control, input),
            0x5d => self.signal_event(control, input),
            code => {
                self.lock().violation(format!("hypercall {code:#x} is unknown here"));
                2
            }
        }
    }
}
