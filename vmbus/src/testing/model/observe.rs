//! What a test asks a [`Host`] about the guest, and the guest's side of interrupts.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::processor::Processor;
use super::{Action, Counters, FakePlatform, GuestRange, HANDLERS, Host, InterruptHandler, bytes, locked};
use crate::platform::ProcessorIndex;

impl Host {
    /// Returns the platform whose memory the host uses.
    #[must_use]
    pub const fn platform(&self) -> &'static FakePlatform {
        self.platform
    }

    /// Returns what the guest did wrong so far.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Returns what the guest did wrong so far, and forgets it: for tests of wrong-doing.
    pub fn take_violations(&self) -> Vec<String> {
        core::mem::take(&mut self.lock().violations)
    }

    /// Checks that the guest did nothing wrong.
    ///
    /// # Panics
    ///
    /// If it did.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "the guest broke the protocol: {violations:#?}");
    }

    /// Returns what the host counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Returns the guest's steps so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Action> {
        self.lock().steps.clone()
    }

    /// Returns the number of the next step.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.lock().steps.len()
    }

    /// Returns the version of the contact that was accepted, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<u32> {
        self.lock().server.contact.as_ref().map(|contact| contact.version)
    }

    /// Returns the feature flags that were agreed on.
    #[must_use]
    pub fn features(&self) -> u32 {
        self.lock()
            .server
            .contact
            .as_ref()
            .map_or(0, |contact| contact.features)
    }

    /// Returns the addresses of the pages that the contact named: the two monitor pages, and before version 5.0 the interrupt
    /// page.
    #[must_use]
    pub fn contact_pages(&self) -> Vec<u64> {
        let state = self.lock();
        state
            .server
            .contact
            .iter()
            .flat_map(|contact| contact.pages())
            .collect()
    }

    /// Returns whether the guest has set a channel's bit in the interrupt page, as the host sees it. Before version 5.0 only.
    #[must_use]
    pub fn has_interrupt_bit(&self, channel: u32) -> bool {
        let (platform, page) = {
            let state = self.lock();
            let contact = state.server.contact.as_ref();
            (state.platform, contact.map_or(0, |contact| contact.interrupt_page))
        };
        let word = u64::from(channel / 32 * 4);
        // The guest's bits are in the second half.
        page != 0
            && platform
                .guest_word32(page + 2048 + word, |word| word.load(Ordering::Acquire))
                .is_ok_and(|word| word >> (channel % 32) & 1 != 0)
    }

    /// Returns how many GPADLs there are.
    #[must_use]
    pub fn gpadl_count(&self) -> usize {
        self.lock().server.gpadls.len()
    }

    /// Returns the ranges of a GPADL, or `None` if it is not there or not complete.
    #[must_use]
    pub fn gpadl(&self, id: u32) -> Option<Vec<GuestRange>> {
        let state = self.lock();
        let gpadl = state.server.gpadls.get(&id)?;
        (!gpadl.ranges.is_empty()).then(|| gpadl.ranges.clone())
    }

    /// Returns the five crash parameters and the control word, if the guest has reported a crash.
    #[must_use]
    pub fn crash(&self) -> Option<([u64; 5], u64)> {
        let state = self.lock();
        state.crash_control.map(|control| (state.crash_parameters, control))
    }

    /// Returns whether the guest asked for a reset.
    #[must_use]
    pub fn has_reset(&self) -> bool {
        self.lock().has_reset
    }

    /// Returns whether nothing of the guest is left with the host: no SynIC page, hypercall page, GPADL or contact.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let state = self.lock();
        let has_pages = state.processors.iter().any(|processor| {
            let timers = processor.timers.iter().any(|timer| timer.0 & 1 != 0);
            let sints = processor.sints.iter().any(|sint| sint & 0x1_0000 == 0);
            (processor.message_page | processor.event_page | processor.control) & 1 != 0 || timers || sints
        });
        !has_pages
            && (state.hypercall_page | state.reference_tsc) & 1 == 0
            && state.server.gpadls.is_empty()
            && state.server.contact.is_none()
    }

    /// Returns how many messages wait for a free slot of a processor.
    #[must_use]
    pub fn waiting_messages(&self, processor: u32) -> usize {
        let state = self.lock();
        state
            .processors
            .get(processor as usize)
            .map_or(0, Processor::waiting_messages)
    }

    /// Makes `handler` the guest's interrupt handler: called with the processor and the vector, on that processor.
    pub fn set_interrupt_handler(&self, handler: impl Fn(ProcessorIndex, u8) + Send + Sync + 'static) {
        let handler: InterruptHandler = Box::new(handler);
        let handler: &'static InterruptHandler = Box::leak(Box::new(handler));
        locked(&HANDLERS).push(handler);
        *locked(&self.interrupt_handler) = Some(handler);
    }

    /// Turns the guest's interrupts off: what is raised stays pending.
    pub fn disable_interrupts(&self) {
        self.lock().interrupts_enabled = false;
    }

    /// Turns the guest's interrupts on, and delivers what is pending.
    pub fn enable_interrupts(&self) {
        self.lock().interrupts_enabled = true;
        self.settle();
    }

    /// Takes the interrupts that no handler took: processor and vector.
    pub fn take_interrupts(&self) -> Vec<(u32, u8)> {
        let pending: Vec<_> = self.lock().interrupts.drain(..).collect();
        pending
            .into_iter()
            .map(|(processor, vector)| (bytes::len32(processor), vector))
            .collect()
    }
}
