//! The guest's side of a [`Host`]: what a kernel does around a bus, so that each test need not do it again.

use super::Host;
use crate::bus::Bus;

impl Host {
    /// Does for `bus` what a kernel does: the host's interrupts arrive there, and what was deferred is done, also while somebody waits.
    pub fn drive(&self, bus: &Bus) {
        let handle = bus.clone();
        self.set_interrupt_handler(move |processor, _| handle.acknowledge_interrupt(processor));
        let handle = bus.clone();
        self.platform().set_deferred_handler(move |processor| {
            handle.process(processor);
        });
    }

    /// Lets the host and `bus` work until nothing is left to do now.
    ///
    /// # Panics
    ///
    /// If they keep each other busy.
    #[track_caller]
    pub fn settle_with(&self, bus: &Bus) {
        let is_at_rest = || !self.run() & !bus.poll().is_more;
        assert!((0..1000).any(|_| is_at_rest()), "host and guest keep each other busy");
    }
}
