//! The hypervisor's part of a virtual processor: SynIC and timers.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::State;
use super::bytes::{join, low8};

/// A SINT's register after reset: masked.
const SINT_RESET: u64 = 0x1_0000;

/// A message on its way into a slot.
#[derive(Clone, Debug)]
pub(super) struct SlotMessage {
    pub(super) kind: u32,
    pub(super) payload: Vec<u8>,
    /// What the slot says its length is: not always the truth.
    pub(super) claimed_len: u8,
}

#[derive(Debug)]
pub(super) struct Processor {
    pub(super) vp_index: u32,
    pub(super) control: u64,
    pub(super) message_page: u64,
    pub(super) event_page: u64,
    pub(super) sints: [u64; 16],
    /// Configuration and count.
    pub(super) timers: [(u64, u64); 4],
    pub(super) assist_page: u64,
    queues: BTreeMap<usize, VecDeque<SlotMessage>>,
}

impl Processor {
    pub(super) const fn new(vp_index: u32) -> Self {
        Self {
            vp_index,
            control: 0,
            message_page: 0,
            event_page: 0,
            sints: [SINT_RESET; 16],
            timers: [(0, 0); 4],
            assist_page: 0,
            queues: BTreeMap::new(),
        }
    }

    pub(super) fn waiting_messages(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }
}

impl State {
    /// Finds the processor with a virtual processor's number.
    pub(super) fn processor_of_vp(&self, vp_index: u32) -> Option<usize> {
        self.processors
            .iter()
            .position(|processor| processor.vp_index == vp_index)
    }

    /// Queues a message for a slot and delivers it if the slot is free.
    pub(super) fn queue_message(&mut self, processor: usize, sint: usize, message: SlotMessage) {
        self.processors[processor]
            .queues
            .entry(sint)
            .or_default()
            .push_back(message);
        self.deliver_messages(processor);
    }

    /// Puts what waits into free slots.
    pub(super) fn deliver_messages(&mut self, index: usize) -> bool {
        let mut has_worked = false;
        let sints: Vec<usize> = self.processors[index].queues.keys().copied().collect();
        for sint in sints {
            has_worked |= self.deliver_to_slot(index, sint);
        }
        has_worked
    }

    fn deliver_to_slot(&mut self, index: usize, sint: usize) -> bool {
        let processor = &mut self.processors[index];
        if processor.control & 1 == 0 || processor.message_page & 1 == 0 {
            return false;
        }
        let slot = (processor.message_page & !0xfff) + sint as u64 * 256;
        let Some(queue) = processor.queues.get_mut(&sint).filter(|queue| !queue.is_empty()) else {
            return false;
        };
        let is_busy = || self.platform.guest_word32(slot, |word| word.load(Ordering::SeqCst)) != Ok(0);
        if is_busy() {
            // Bit 0 of the flags: a message is pending.
            let flags = self
                .platform
                .guest_word32(slot + 4, |word| word.fetch_or(0x100, Ordering::SeqCst));
            // The guest may have let the slot go before it could see the flag.
            if flags.is_err() || is_busy() {
                return false;
            }
        }
        let Some(message) = queue.pop_front() else { return false };
        let flags = u8::from(!queue.is_empty());
        let body = join(&[&[message.claimed_len, flags, 0, 0], &[0; 8], &message.payload]);
        let written = self.platform.guest_write(slot + 4, &body[..body.len().min(252)]);
        let released = self
            .platform
            .guest_word32(slot, |word| word.store(message.kind, Ordering::SeqCst));
        if written.is_err() || released.is_err() {
            self.violation(format!("the message page at {slot:#x} is not guest memory"));
            return false;
        }
        self.counters.messages_delivered += 1;
        self.raise(index, sint);
        true
    }

    /// Raises the interrupt of a SINT, unless it is masked.
    fn raise(&mut self, index: usize, sint: usize) {
        let register = self.processors[index].sints[sint];
        if register & 0x1_0000 == 0 {
            self.request_interrupt(index, low8(register));
        }
    }

    pub(super) fn request_interrupt(&mut self, index: usize, vector: u8) {
        if !self.interrupts.contains(&(index, vector)) {
            self.interrupts.push_back((index, vector));
        }
    }

    /// Sets an event flag of a SINT.
    pub(super) fn set_event_flag(&mut self, index: usize, sint: usize, flag: u16) {
        let processor = &self.processors[index];
        if flag >= 2048 || processor.control & 1 == 0 || processor.event_page & 1 == 0 {
            self.counters.events_lost += 1;
            return;
        }
        let word = (processor.event_page & !0xfff) + sint as u64 * 256 + u64::from(flag) / 64 * 8;
        let bit = 1_u64 << (flag % 64);
        match self
            .platform
            .guest_word64(word, |word| word.fetch_or(bit, Ordering::SeqCst))
        {
            Ok(before) if before & bit == 0 => {
                self.counters.events_delivered += 1;
                self.raise(index, sint);
            }
            Ok(_) => {}
            Err(error) => self.violation(format!("the event page: {error}")),
        }
    }

    /// Returns when the next timer of any processor expires.
    pub(super) fn next_timer(&self) -> Option<u64> {
        let timers = self.processors.iter().flat_map(|processor| &processor.timers);
        timers
            .filter(|(config, count)| config & 1 != 0 && *count != 0)
            .map(|(_, count)| *count)
            .min()
    }

    /// Fires the timers that are due.
    pub(super) fn run_timers(&mut self, now: u64) -> bool {
        let mut has_worked = false;
        for index in 0..self.processors.len() {
            for timer in 0..4 {
                let (config, count) = self.processors[index].timers[timer];
                if config & 1 == 0 || count == 0 || count > now {
                    continue;
                }
                has_worked = true;
                // Bit 1: periodic, and then the count is the period. The model only has one-shot timers.
                self.processors[index].timers[timer].0 &= !1;
                if config & 0x1000 != 0 {
                    // Direct mode: bits 4 to 11 are the vector.
                    self.request_interrupt(index, low8(config >> 4));
                    continue;
                }
                let payload = join(&[
                    &u32::try_from(timer).unwrap_or(0).to_le_bytes(),
                    &[0; 4],
                    &count.to_le_bytes(),
                    &now.to_le_bytes(),
                ]);
                let message = SlotMessage {
                    kind: 0x8000_0010,
                    claimed_len: low8(payload.len() as u64),
                    payload,
                };
                self.queue_message(index, usize::from(low8(config >> 16) & 0xf), message);
            }
        }
        has_worked
    }

    /// Reads a register of the processor that asks. `None`: there is no such register.
    pub(super) fn read_register(&self, index: usize, register: u32, now: u64) -> Option<u64> {
        let processor = &self.processors[index];
        Some(match register {
            0x4000_0000 => self.guest_os_id,
            0x4000_0001 => self.hypercall_page,
            0x4000_0002 => u64::from(processor.vp_index),
            0x4000_0003 => u64::from(self.has_reset),
            0x4000_0010 | 0x4000_0020 => now,
            0x4000_0021 => self.reference_tsc,
            0x4000_0022 => self.config.tsc_per_unit * 10_000_000,
            0x4000_0023 => 200_000_000,
            0x4000_0073 => processor.assist_page,
            0x4000_0080 => processor.control,
            0x4000_0081 => 1,
            0x4000_0082 => processor.event_page,
            0x4000_0083 => processor.message_page,
            0x4000_0084 => 0,
            0x4000_0090..=0x4000_009f => processor.sints[(register - 0x4000_0090) as usize],
            0x4000_00b0..=0x4000_00b7 => {
                let (config, count) = processor.timers[((register - 0x4000_00b0) / 2) as usize];
                if register.is_multiple_of(2) { config } else { count }
            }
            0x4000_0100..=0x4000_0104 => self.crash_parameters[(register - 0x4000_0100) as usize],
            // Crash notification and message are supported.
            0x4000_0105 => 0xc000_0000_0000_0000,
            _ => return None,
        })
    }

    /// Writes a register of the processor that asks.
    pub(super) fn write_register(&mut self, index: usize, register: u32, value: u64) {
        match register {
            0x4000_0000 => {
                if value == 0 && self.hypercall_page & 1 != 0 && !self.is_crashing {
                    self.violation(String::from(
                        "the guest's id is taken back before the hypercall page (B1)",
                    ));
                }
                self.guest_os_id = value;
                if value == 0 {
                    self.hypercall_page &= !1;
                }
            }
            0x4000_0001 => self.write_hypercall_register(value),
            0x4000_0003 => self.has_reset |= value & 1 != 0,
            0x4000_0021 => self.write_reference_tsc(value),
            0x4000_0070..=0x4000_0072 => {}
            0x4000_0073 => self.processors[index].assist_page = value,
            0x4000_0080 => {
                self.check_teardown(index, "SCONTROL", self.processors[index].control, value);
                self.processors[index].control = value;
            }
            0x4000_0082 => {
                self.check_teardown(index, "SIEFP", self.processors[index].event_page, value);
                self.check_page_register("SIEFP", value);
                self.processors[index].event_page = value;
            }
            0x4000_0083 => {
                self.check_teardown(index, "SIMP", self.processors[index].message_page, value);
                self.check_page_register("SIMP", value);
                self.processors[index].message_page = value;
            }
            0x4000_0084 => self.counters.ends_of_message += 1,
            0x4000_0090..=0x4000_009f => {
                let is_masked = value & 0x1_0000 != 0;
                if !is_masked && value & 0xff < 16 {
                    self.violation(format!(
                        "SINT register {register:#x}: vector {:#x} faults",
                        value & 0xff
                    ));
                    return;
                }
                let is_deprecated = self.config.cpuid.get(4).is_some_and(|leaf| leaf[0] & 0x200 != 0);
                if !is_masked && value & 0x2_0000 != 0 && is_deprecated {
                    self.violation(format!("SINT register {register:#x}: AutoEOI is deprecated here"));
                }
                self.processors[index].sints[(register - 0x4000_0090) as usize] = value;
            }
            0x4000_00b0..=0x4000_00b7 => self.write_timer(index, register - 0x4000_00b0, value),
            0x4000_0100..=0x4000_0104 => self.crash_parameters[(register - 0x4000_0100) as usize] = value,
            0x4000_0105 => self.crash_control = Some(value),
            _ => self.violation(format!("a write of {value:#x} to register {register:#x} faults")),
        }
        self.deliver_messages(index);
    }

    fn write_timer(&mut self, index: usize, number: u32, value: u64) {
        let timer = &mut self.processors[index].timers[(number / 2) as usize];
        if number.is_multiple_of(2) {
            timer.0 = value;
            if value & 0x1000 == 0 && value >> 16 & 0xf == 0 {
                // Message mode needs a SINT: a timer without one cannot be enabled.
                timer.0 &= !1;
            }
        } else {
            timer.1 = value;
            // Bit 3: a count enables the timer; zero always stops it.
            if value == 0 {
                timer.0 &= !1;
            } else if timer.0 & 8 != 0 {
                timer.0 |= 1;
            }
        }
    }

    /// Timers stop first, then SINTs are masked, then the pages go.
    fn check_teardown(&mut self, index: usize, name: &str, before: u64, value: u64) {
        if before & 1 == 0 || value & 1 != 0 || self.is_crashing {
            return;
        }
        let processor = &self.processors[index];
        let open = processor.sints.iter().position(|sint| sint & 0x1_0000 == 0);
        let running = processor.timers.iter().position(|timer| timer.0 & 1 != 0);
        if let Some(sint) = open {
            self.violation(format!("{name} goes off while SINT {sint} is not masked (B7)"));
        }
        if let Some(timer) = running {
            self.violation(format!("{name} goes off while timer {timer} runs (B7)"));
        }
    }

    fn check_page_register(&mut self, name: &str, value: u64) {
        if value & 1 != 0 && !self.has_guest_page(value) {
            self.violation(format!(
                "{name} enabled at {:#x}, which is not guest memory",
                value & !0xfff
            ));
        }
    }

    pub(super) fn has_guest_page(&self, gpa: u64) -> bool {
        self.platform.page_use(gpa).is_some()
    }

    fn write_hypercall_register(&mut self, value: u64) {
        if value & 1 == 0 {
            self.hypercall_page = value;
            return;
        }
        if self.guest_os_id == 0 {
            self.violation(format!(
                "the hypercall page is enabled ({value:#x}) before the guest's id is set"
            ));
            return;
        }
        let base = value & !0xfff;
        match self.platform.page_use(base) {
            None => {
                self.violation(format!("the hypercall page at {base:#x} is not guest memory"));
                return;
            }
            Some(crate::platform::PageUse::HypercallCode) => {}
            Some(other) => self.violation(format!("the hypercall page at {base:#x} was allocated for {other:?}")),
        }
        self.hypercall_page = value;
        // vmcall; ret
        if let Err(error) = self.platform.guest_write(base, &[0x0f, 0x01, 0xc1, 0xc3]) {
            self.violation(format!("the hypercall page: {error}"));
        }
    }

    fn write_reference_tsc(&mut self, value: u64) {
        self.reference_tsc = value;
        if value & 1 == 0 {
            return;
        }
        self.check_page_register("reference TSC", value);
        // time = (tsc * scale >> 64) + offset; the scale makes units of the counter into units of 100 ns.
        let scale = u64::try_from((1_u128 << 64) / u128::from(self.config.tsc_per_unit.max(2))).unwrap_or(u64::MAX);
        let page = join(&[&self.tsc_sequence.to_le_bytes(), &[0; 4], &scale.to_le_bytes(), &[0; 8]]);
        if let Err(error) = self.platform.guest_write(value & !0xfff, &page) {
            self.violation(format!("the reference TSC page: {error}"));
        }
    }
}
