//! The work of one processor: signals first, then messages.

use super::inner::{BusInner, Phase};
use super::processor::SINT;
use crate::hyperv::EVENT_FLAG_COUNT;
use crate::platform::ProcessorIndex;
use crate::protocol::ChannelId;
use core::sync::atomic::Ordering;

/// What a call of [`Bus::process`](super::Bus::process) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How many channels were signalled.
    pub signals: usize,
    /// How many messages were taken.
    pub messages: usize,
    /// True if there is more to do: the work was scheduled again, and a caller that polls calls again.
    pub is_more: bool,
}

const FLAG_WORDS: usize = EVENT_FLAG_COUNT as usize / 64;

impl BusInner {
    pub(super) fn process(&self, index: ProcessorIndex) -> Progress {
        let mut progress = Progress::default();
        let Some(processor) = self.processor(index) else {
            return progress;
        };
        // Acquire: pairs with the store below; the work before has ended. SeqCst: whoever returns here has been marked, and
        // the one that is at work sees the mark when it has ended.
        if processor.is_processing.swap(true, Ordering::SeqCst) {
            return progress;
        }
        // Before looking, so that what comes from here on marks again.
        processor.is_marked.swap(false, Ordering::AcqRel);
        if processor.owes_end_of_message.swap(false, Ordering::AcqRel) {
            processor.with_synic(self.platform, |synic| {
                if let Some(synic) = synic {
                    synic.end_of_message();
                }
            });
        }
        progress.signals = self.take_signals(index);
        self.run_kicks(index);
        if self.phase() == Phase::Down {
            self.leave_processor(index);
        } else {
            progress.messages = self.pump();
            self.free_due();
        }
        // Release: the next one sees what was done.
        processor.is_processing.store(false, Ordering::SeqCst);
        // A mark that was set meanwhile may have been scheduled for already, in vain: that call found this one at work and did
        // nothing. Left standing, it would keep every later interrupt from scheduling.
        if processor.is_marked.load(Ordering::SeqCst)
            || processor.has_kicks.load(Ordering::Acquire)
            || self.has_work(index)
        {
            progress.is_more = true;
            self.mark_again(index, processor);
        }
        progress
    }

    /// Takes the event flags and calls the callbacks of the channels that they are for.
    fn take_signals(&self, index: ProcessorIndex) -> usize {
        let mut flags = [0_u64; FLAG_WORDS];
        if let Some(processor) = self.processor(index) {
            processor.with_synic(self.platform, |synic| {
                let Some(synic) = synic else { return };
                synic.take_event_flags(SINT, |flag| {
                    let word = usize::try_from(flag / 64).ok().and_then(|word| flags.get_mut(word));
                    if let Some(word) = word {
                        *word |= 1 << (flag % 64);
                    }
                });
            });
        }
        // No lock is held from here on.
        let mut count: usize = 0;
        for (base, mut word) in (0_u32..).step_by(64).zip(flags) {
            while word != 0 {
                let flag = word.trailing_zeros();
                // The lowest bit that is set goes.
                word &= word.wrapping_sub(1);
                self.signalled(ChannelId(base | flag));
                count = count.saturating_add(1);
            }
        }
        count
    }

    /// Calls the callback of a channel that the other end has signalled.
    fn signalled(&self, channel: ChannelId) {
        let Some(core) = self.table.enter_channel(channel) else {
            self.counters.stray_signals.add_one();
            return;
        };
        self.counters.signals_received.add_one();
        core.note_signal();
        core.run();
        core.leave();
    }

    /// Calls the callbacks of channels that asked for it.
    fn run_kicks(&self, index: ProcessorIndex) {
        let Some(processor) = self.processor(index) else {
            return;
        };
        if !processor.has_kicks.swap(false, Ordering::AcqRel) {
            return;
        }
        for place in 0..self.table.len() {
            if let Some(core) = self.table.enter(place, |core| core.take_kick(index)) {
                core.note_kick();
                core.run();
                core.leave();
            }
        }
    }

    /// Frees memory that has rested long enough.
    fn free_due(&self) {
        while let Some(memory) = self.gpadls.take_due(self.now()) {
            self.counters.unparked_blocks.add(memory.blocks());
            drop(memory);
        }
    }
}
