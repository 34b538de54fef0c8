//! How a [`Host`] works: what is left to do is done with no lock held, inside the guest's accesses or while it waits.

use alloc::format;
use alloc::vec::Vec;

use super::bytes::u32_at;
use super::knobs::StepRule;
use super::{Action, Device, Event, Host, HostChannel, Personality, State, When, bytes, locked};
use crate::Platform;
use crate::platform::ProcessorIndex;
use crate::testing::HostSide;
use crate::testing::heap::Exempt;

impl Host {
    /// Lets the host work until nothing is left to do now. Returns true if it did anything.
    pub fn run(&self) -> bool {
        let _exempt = Exempt::enter();
        let mut has_worked = false;
        for _ in 0..10_000 {
            if !self.run_once() {
                return has_worked;
            }
            has_worked = true;
        }
        has_worked
    }

    fn run_once(&self) -> bool {
        let now = self.platform.time();
        let mut has_worked = false;
        {
            let mut state = self.lock();
            if let Some((connection, message)) = state.inbox.pop_front() {
                state.serve(connection, &message);
                has_worked = true;
            }
            while let Some(index) = state.later.iter().position(|(at, _)| *at <= now) {
                let (_, message) = state.later.remove(index);
                state.send_late(message);
                has_worked = true;
            }
            has_worked |= state.run_timers(now);
            if state.config.personality == Personality::OpenVmm {
                // It looks at the slots by itself.
                for index in 0..state.processors.len() {
                    has_worked |= state.deliver_messages(index);
                }
            }
        }
        has_worked |= self.settle();
        let open: Vec<u32> = {
            let state = self.lock();
            let channels = state.server.channels.iter();
            channels
                .filter(|(_, channel)| channel.opening.is_some())
                .map(|(id, _)| *id)
                .collect()
        };
        for id in open {
            has_worked |= self
                .with_device(id, |device, channel| device.run(channel))
                .unwrap_or(false);
        }
        has_worked |= self.settle();
        has_worked
    }

    pub(super) fn processor(&self) -> usize {
        self.platform.current_processor().0 as usize
    }

    /// Does what steps and messages left to do, with no lock held. Returns true if there was anything.
    pub(super) fn settle(&self) -> bool {
        let mut has_worked = false;
        loop {
            let event = self.lock().events.pop_front();
            if let Some(event) = event {
                has_worked = true;
                self.handle(event);
                continue;
            }
            if !self.deliver_interrupt() {
                return has_worked;
            }
            has_worked = true;
        }
    }

    pub(super) fn handle(&self, event: Event) {
        let (Event::Opened(id) | Event::Signalled(id) | Event::Closed(id)) = event;
        {
            let mut state = self.lock();
            if let Some(channel) = state.server.channels.get_mut(&id)
                && channel.is_device_out
            {
                channel.missed.push(event);
                return;
            }
        }
        self.with_device(id, |device, channel| match event {
            Event::Opened(_) => device.opened(channel),
            Event::Signalled(_) => device.signalled(channel),
            Event::Closed(_) => device.closed(),
        });
    }

    /// Runs a device without the lock. `None` if there is none, or if it is running already (further down this stack, or
    /// on another thread).
    pub(super) fn with_device<R>(
        &self,
        id: u32,
        work: impl FnOnce(&mut dyn Device, &HostChannel<'_>) -> R,
    ) -> Option<R> {
        let mut device = {
            let mut state = self.lock();
            let channel = state.server.channels.get_mut(&id)?;
            let device = channel.device.take()?;
            channel.is_device_out = true;
            device
        };
        let result = work(&mut *device, &self.channel(id));
        let mut state = self.lock();
        if let Some(channel) = state.server.channels.get_mut(&id) {
            channel.device = Some(device);
            channel.is_device_out = false;
            let missed = core::mem::take(&mut channel.missed);
            state.events.extend(missed);
        }
        Some(result)
    }

    pub(super) fn deliver_interrupt(&self) -> bool {
        let Some(handler) = *locked(&self.interrupt_handler) else {
            return false;
        };
        let (processor, vector) = {
            let mut state = self.lock();
            if !state.interrupts_enabled {
                return false;
            }
            // An interrupt waits while its processor is in one.
            let ready = state
                .interrupts
                .iter()
                .position(|(processor, _)| !state.is_in_interrupt[*processor]);
            let Some((processor, vector)) = ready.and_then(|index| state.interrupts.remove(index)) else {
                return false;
            };
            state.is_in_interrupt[processor] = true;
            (processor, vector)
        };
        let index = bytes::len32(processor);
        {
            let _here = self.platform.on_processor(index);
            let _guest = Exempt::leave();
            handler(ProcessorIndex(index), vector);
        }
        self.lock().is_in_interrupt[processor] = false;
        true
    }

    /// Counts a step and does what was planned for this side of it.
    pub(super) fn step(&self, action: Action) -> usize {
        self.platform.note_activity();
        let step = {
            let mut state = self.lock();
            state.steps.push(action);
            state.steps.len() - 1
        };
        self.do_planned(step, When::Before, action);
        step
    }

    pub(super) fn end_step(&self, step: usize, action: Action) {
        self.do_planned(step, When::After, action);
        self.settle();
    }

    pub(super) fn do_planned(&self, step: usize, when: When, action: Action) {
        loop {
            let work = {
                let mut state = self.lock();
                let is_due = |rule: &StepRule| rule.step == step && rule.when == when;
                let Some(index) = state.step_rules.iter().position(is_due) else {
                    return;
                };
                state.step_rules.remove(index).work
            };
            work(self, action);
        }
    }

    pub(super) fn look_at_time(&self) -> u64 {
        let now = self.platform.look_at_clock();
        let is_due = {
            let mut state = self.lock();
            // Time is for everybody: the host gets on while the guest looks at the clock.
            let is_due = !state.inbox.is_empty()
                || state.later.iter().any(|(at, _)| *at <= now)
                || state.next_timer().is_some_and(|at| at <= now)
                || now - state.last_look.min(now) >= 10_000;
            if is_due {
                state.last_look = now;
            }
            is_due
        };
        if is_due {
            self.run();
        }
        now
    }
}

impl State {
    /// Sends an answer that was held back, and does what was held back with it.
    fn send_late(&mut self, message: Vec<u8>) {
        match u32_at(&message, 0) {
            12 => {
                self.server.gpadls.remove(&u32_at(&message, 8));
            }
            17 => self.reset_server(),
            _ => {}
        }
        self.send_message(message);
    }
}

impl HostSide for Host {
    fn run(&self) -> bool {
        Self::run(self)
    }

    fn next_event(&self) -> Option<u64> {
        let state = self.lock();
        let later = state.later.iter().map(|(at, _)| *at).min();
        let devices = state
            .server
            .channels
            .values()
            .filter_map(|channel| channel.device.as_ref()?.next_event());
        [later, state.next_timer(), devices.min()].into_iter().flatten().min()
    }

    fn releasing(&self, page_numbers: &[u64]) {
        let _exempt = Exempt::enter();
        let mut state = self.lock();
        if let Some(claim) = state.claims_on(page_numbers) {
            state.violation(format!("memory is released while the host has it as {claim} (G3)"));
        }
    }
}
