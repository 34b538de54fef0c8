//! What the bus keeps for each processor.

use core::sync::atomic::{AtomicBool, AtomicU32};

use spin::RwLock;

use crate::Platform;
use crate::hyperv::{Synic, SynicConfig};
use crate::sync::DispatchSection;

/// The VMBus's synthetic interrupt source.
pub(super) const SINT: u8 = 2;
const _: () = assert!(SynicConfig::vmbus(0).sint == SINT);

/// A processor's part of the bus.
pub(super) struct Processor {
    /// The interrupt controller, while the processor is on-line for the bus. Written in a dispatch section, under the
    /// bus's lock of messages; read in a dispatch section, too ([`Processor::with_synic`]), and by a crash, which only
    /// tries.
    pub(super) synic: RwLock<Option<Synic>>,
    /// The hypervisor's number of the processor; valid while it is on-line.
    pub(super) vp: AtomicU32,
    /// True from the interrupt until its work begins.
    pub(super) is_marked: AtomicBool,
    /// True while its work is being done: it is not done twice at a time.
    pub(super) is_processing: AtomicBool,
    /// True if another processor has emptied the message slot: only this one can ask for the messages that wait for it.
    pub(super) owes_end_of_message: AtomicBool,
    /// True while it is being looked whether it may leave: no channel is given to it.
    pub(super) is_leaving: AtomicBool,
    /// True if a channel with this target wants its callback called without a signal of the host.
    pub(super) has_kicks: AtomicBool,
}

impl Processor {
    pub(super) const fn new() -> Self {
        Self {
            synic: RwLock::new(None),
            vp: AtomicU32::new(0),
            is_marked: AtomicBool::new(false),
            is_processing: AtomicBool::new(false),
            owes_end_of_message: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            has_kicks: AtomicBool::new(false),
        }
    }

    /// Looks at the interrupt controller. In a dispatch section: deferred work that came in between on this processor, and
    /// turns the controller off, would wait for the reader that it interrupted for ever.
    pub(super) fn with_synic<T>(&self, platform: &'static dyn Platform, look: impl FnOnce(Option<&Synic>) -> T) -> T {
        let _section = DispatchSection::enter(platform);
        let synic = self.synic.read();
        look(synic.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;

    #[test]
    fn whoever_looks_at_the_controller_keeps_deferred_work_off() {
        let processor = Processor::new();
        let depth = processor.with_synic(FakePlatform::new(), |synic| {
            assert!(synic.is_none());
            FakePlatform::dispatch_depth()
        });
        assert_eq!((depth, FakePlatform::dispatch_depth()), (1, 0));
    }
}
