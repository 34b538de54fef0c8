//! [`Synic`]: the synthetic interrupt controller of one processor, with its message page and its event flags page.
//!
//! Source: TLFS, "Virtual Interrupt Controller" and "Inter-Partition Communication".

use core::fmt;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::cpuid::{Capabilities, Privileges};
use super::hypervisor::Hypervisor;
use super::message::Message;
use super::overlay::{Overlay, OverlayError, Scope};
use super::registers::{PageRegister, Register, Registers};
use super::slot::{self, MessageSlot, Release, Words as _};
use super::timer;
use crate::Platform;
use crate::memory::OutOfRange;
use crate::platform::{NotMapped, OutOfPages, PageUse, ProcessorIndex};
use crate::sync::DispatchSection;

/// How many event flags a synthetic interrupt source has.
pub const EVENT_FLAG_COUNT: u32 = 2048;

/// How many synthetic interrupt sources a processor has.
const SINT_COUNT: u8 = 16;
/// The size of a source's part of either page.
const SLOT_LEN: usize = 256;
/// The first vector that is not the processor's own.
const FIRST_VECTOR: u8 = 32;

/// `HV_X64_MSR_SCONTROL`
const SYNIC_ENABLED: u64 = 1;
/// `HV_X64_MSR_SINTx`; what is not named is reserved and kept.
const SINT_VECTOR: u64 = 0xff;
const SINT_MASKED: u64 = 1 << 16;
const SINT_AUTO_EOI: u64 = 1 << 17;
const SINT_POLLING: u64 = 1 << 18;

/// Who ends the controller's interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndOfInterrupt {
    /// The handler, at the local APIC, as for any other interrupt.
    Explicit,
    /// The hypervisor, as it delivers them; the handler must not. Where a hypervisor wants this no more (hint
    /// "deprecating AutoEOI"), [`Synic::enable`] falls back to [`EndOfInterrupt::Explicit`].
    Automatic,
}

/// What [`Synic::enable`] needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SynicConfig {
    /// The synthetic interrupt source, from 1 to 15. The VMBus uses 2.
    pub sint: u8,
    /// The interrupt vector, at least 32.
    pub vector: u8,
    /// Who should end the interrupts; [`Synic::end_of_interrupt`] tells who does.
    pub end_of_interrupt: EndOfInterrupt,
}

impl SynicConfig {
    /// The VMBus's source (2), with `vector`, and no end-of-interrupt where the hypervisor allows that.
    #[must_use]
    pub const fn vmbus(vector: u8) -> Self {
        Self {
            sint: 2,
            vector,
            end_of_interrupt: EndOfInterrupt::Automatic,
        }
    }
}

/// Why the controller could not be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SynicError {
    /// The hypervisor has none.
    #[error("the hypervisor offers no synthetic interrupt controller")]
    NotOffered,
    /// The source is not from 1 to 15.
    #[error("there is no synthetic interrupt source {0} for guests")]
    BadSint(u8),
    /// The vector belongs to the processor's exceptions.
    #[error("interrupt vector {0} belongs to the processor")]
    BadVector(u8),
    /// The platform has no page.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The platform does not know its own page.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
    /// The hypervisor did not turn a page on.
    #[error("the hypervisor did not turn the message page or the event page on")]
    Refused,
}

impl From<OverlayError> for SynicError {
    fn from(error: OverlayError) -> Self {
        match error {
            OverlayError::OutOfPages(error) => Self::OutOfPages(error),
            OverlayError::NotMapped(error) => Self::NotMapped(error),
            OverlayError::Refused => Self::Refused,
        }
    }
}

/// The controller of another processor cannot be turned off from here: it stays on, and its two pages are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the interrupt controller of {0} is still on")]
pub struct LeftOn(pub ProcessorIndex);

/// The synthetic interrupt controller of the processor that [`Synic::enable`] ran on.
///
/// Functions that touch registers say that they are for that processor. The others only touch the two pages and work from
/// any, which a crash needs. All of them take `&self`; what two callers at the same time get is what each of the slots'
/// atomics makes of it: nothing is lost but what [`Synic::take_message`] says.
///
/// Dropped without [`Synic::disable`], it stays on, and its pages are lost.
pub struct Synic {
    hypervisor: &'static Hypervisor,
    platform: &'static dyn Platform,
    processor: ProcessorIndex,
    messages: Overlay,
    events: Overlay,
    end_of_interrupt: EndOfInterrupt,
    /// One bit for each source that is not masked.
    sints: AtomicU16,
    flag_limit: AtomicU32,
}

impl Synic {
    /// Turns the current processor's controller on: message page, event page, and one source. What an earlier owner left
    /// there is turned off first. Context: task.
    ///
    /// From the end of this function on interrupts may come, even before the caller has stored the result; a caller that
    /// looks at messages and flags afterwards misses none.
    ///
    /// # Errors
    ///
    /// [`SynicError`]; nothing of ours is left on then.
    pub fn enable(
        hypervisor: &'static Hypervisor,
        platform: &'static dyn Platform,
        config: SynicConfig,
    ) -> Result<Self, SynicError> {
        if !hypervisor.capabilities().privileges.contains(Privileges::SYNIC) {
            return Err(SynicError::NotOffered);
        }
        check_source(config.sint, config.vector)?;
        let section = DispatchSection::enter(platform);
        let registers = hypervisor.registers();
        let was_owned = take_over(registers, hypervisor.capabilities());

        let enable_page = |register| Overlay::enable(registers, register, Scope::Processor, platform, PageUse::Data);
        let messages = enable_page(PageRegister::SIMP)?;
        let events = match enable_page(PageRegister::SIEFP) {
            Ok(events) => events,
            Err(error) => {
                messages.disable(registers);
                return Err(error.into());
            }
        };
        let control = registers.read(Register::SCONTROL);
        registers.write(Register::SCONTROL, control | SYNIC_ENABLED);
        let end_of_interrupt = if hypervisor.capabilities().allows_auto_eoi() {
            config.end_of_interrupt
        } else {
            EndOfInterrupt::Explicit
        };
        let synic = Self {
            hypervisor,
            platform,
            processor: platform.current_processor(),
            messages,
            events,
            end_of_interrupt,
            sints: AtomicU16::new(0),
            flag_limit: AtomicU32::new(EVENT_FLAG_COUNT),
        };
        synic.unmask(config.sint, config.vector);
        drop(section);
        if was_owned {
            log::info!(
                "the interrupt controller of {} was on: taken over from an earlier owner",
                synic.processor
            );
        }
        Ok(synic)
    }

    /// Returns the processor that this controller belongs to.
    #[must_use]
    pub const fn processor(&self) -> ProcessorIndex {
        self.processor
    }

    /// Returns who ends this controller's interrupts.
    #[must_use]
    pub const fn end_of_interrupt(&self) -> EndOfInterrupt {
        self.end_of_interrupt
    }

    /// Turns another source on, for a [`Timer`](super::Timer) in message mode for example. On the controller's processor.
    ///
    /// # Errors
    ///
    /// [`SynicError::BadSint`] or [`SynicError::BadVector`].
    pub fn enable_sint(&self, sint: u8, vector: u8) -> Result<(), SynicError> {
        check_source(sint, vector)?;
        self.unmask(sint, vector);
        Ok(())
    }

    /// Turns a source off. On the controller's processor.
    pub fn disable_sint(&self, sint: u8) {
        if self.sints.fetch_and(!sint_bit(sint), Ordering::Relaxed) & sint_bit(sint) != 0 {
            mask(self.hypervisor.registers(), sint);
        }
    }

    fn unmask(&self, sint: u8, vector: u8) {
        let registers = self.hypervisor.registers();
        let before = registers.read(Register::sint(sint));
        let kept = before & !(SINT_VECTOR | SINT_MASKED | SINT_AUTO_EOI | SINT_POLLING);
        let auto_eoi = match self.end_of_interrupt {
            EndOfInterrupt::Automatic => SINT_AUTO_EOI,
            EndOfInterrupt::Explicit => 0,
        };
        self.sints.fetch_or(sint_bit(sint), Ordering::Relaxed);
        registers.write(Register::sint(sint), kept | u64::from(vector) | auto_eoi);
    }

    /// Returns true if a message lies in the slot of `sint`. One read of memory. Context: any, the interrupt entry
    /// included.
    #[must_use]
    pub fn has_message(&self, sint: u8) -> bool {
        // Relaxed: whoever takes the message orders its reading.
        self.message_slot(sint)
            .is_ok_and(|slot| slot.load(0, Ordering::Relaxed) != 0)
    }

    /// Returns true if an event flag of `sint` below the limit is set. Reads memory only. Context: any, the interrupt
    /// entry included.
    #[must_use]
    pub fn has_event_flags(&self, sint: u8) -> bool {
        // Relaxed: as above.
        self.event_words(sint)
            .any(|(_, word)| word.load(Ordering::Relaxed) != 0)
    }

    /// Takes the message out of the slot of `sint`: copies it once, frees the slot, and lets the hypervisor deliver the
    /// next one if it has said that one waits. Not for the interrupt entry. On the controller's processor, one caller at
    /// a time.
    ///
    /// A hostile host can fill the slot faster than it is emptied: the caller bounds its loop.
    #[must_use]
    pub fn take_message(&self, sint: u8) -> Option<Message> {
        self.take(sint, Release::Always)
    }

    /// Like [`Synic::take_message`], for the crash path: from any processor, and while another one may have stopped in
    /// the middle of `take_message`. A message of another type that came in its place meanwhile is not lost.
    #[must_use]
    pub fn take_message_in_emergency(&self, sint: u8) -> Option<Message> {
        self.take(sint, Release::IfUnchanged)
    }

    /// Lets the hypervisor deliver the messages that wait for a slot. [`Synic::take_message`] does so where it is needed; this
    /// is for the controller's own processor after another one has emptied a slot
    /// ([`Synic::take_message_in_emergency`]), because the hypervisor looks at the queue of the processor that asks. On the
    /// controller's processor.
    pub fn end_of_message(&self) {
        self.hypervisor.registers().write(Register::EOM, 0);
    }

    pub(super) fn message_slot(&self, sint: u8) -> Result<MessageSlot<'_>, OutOfRange> {
        MessageSlot::new(self.messages.pages(), slot_offset(sint))
    }

    fn take(&self, sint: u8, release: Release) -> Option<Message> {
        let slot = self.message_slot(sint).ok()?;
        slot::take(&slot, release, || self.end_of_message())
    }

    /// Sets how many event flags, from 0 on, [`Synic::take_event_flags`] looks at: one more than the largest in use,
    /// rounded up. It starts at all of them. Context: any.
    pub fn set_flag_limit(&self, count: u32) {
        // Relaxed: a number by itself.
        self.flag_limit.store(count.min(EVENT_FLAG_COUNT), Ordering::Relaxed);
    }

    /// Takes all event flags of `sint` below the limit and hands each to `each`. Not for the interrupt entry. Context:
    /// deferred work or task, on any processor.
    ///
    /// Bounded: at most [`EVENT_FLAG_COUNT`] calls.
    pub fn take_event_flags(&self, sint: u8, mut each: impl FnMut(u32)) {
        for (base, word) in self.event_words(sint) {
            // Relaxed: only a hint; most words are empty, and taking the line away from the host costs it.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: pairs with the host's setting the flag after it wrote to the ring.
            let mut flags = word.swap(0, Ordering::AcqRel);
            while flags != 0 {
                each(base | flags.trailing_zeros());
                // The lowest bit that is set goes.
                flags &= flags.wrapping_sub(1);
            }
        }
    }

    /// Returns the words of event flags of `sint` below the limit, each with the number of its first flag.
    fn event_words(&self, sint: u8) -> impl Iterator<Item = (u32, &AtomicU64)> {
        let limit = self.flag_limit.load(Ordering::Relaxed);
        let start = slot_offset(sint);
        let offsets = start..start.saturating_add(SLOT_LEN);
        (0..limit.div_ceil(64))
            .zip(offsets.step_by(8))
            .filter_map(|(index, offset)| {
                let word = self.events.pages().word(offset).ok()?;
                Some((index << 6, word))
            })
    }

    /// Turns the controller off: timers in message mode, then its sources, then the pages, which go back to the platform.
    /// A [`Timer`](super::Timer) in direct mode goes on: it needs nothing of this. Context: task, on the controller's
    /// processor.
    ///
    /// # Errors
    ///
    /// [`LeftOn`] on another processor: the pages are lost then, since the hypervisor may still write there.
    pub fn disable(self) -> Result<(), LeftOn> {
        let _section = DispatchSection::enter(self.platform);
        if self.platform.current_processor() != self.processor {
            return Err(LeftOn(self.processor));
        }
        let registers = self.hypervisor.registers();
        stop_timers(registers, self.hypervisor.capabilities(), TimersToStop::MessageMode);
        let sints = self.sints.load(Ordering::Relaxed);
        for sint in (0..SINT_COUNT).filter(|sint| sints & sint_bit(*sint) != 0) {
            mask(registers, sint);
        }
        let control = registers.read(Register::SCONTROL);
        self.messages.disable(registers);
        self.events.disable(registers);
        registers.write(Register::SCONTROL, control & !SYNIC_ENABLED);
        Ok(())
    }
}

impl fmt::Debug for Synic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Synic")
            .field("processor", &self.processor)
            .field("end_of_interrupt", &self.end_of_interrupt)
            .field("sints", &self.sints)
            .finish_non_exhaustive()
    }
}

const fn slot_offset(sint: u8) -> usize {
    ((sint % SINT_COUNT) as usize).saturating_mul(SLOT_LEN)
}

const fn sint_bit(sint: u8) -> u16 {
    1 << (sint % SINT_COUNT)
}

const fn check_source(sint: u8, vector: u8) -> Result<(), SynicError> {
    // Source 0 is the hypervisor's own.
    if sint == 0 || sint >= SINT_COUNT {
        return Err(SynicError::BadSint(sint));
    }
    if vector < FIRST_VECTOR {
        return Err(SynicError::BadVector(vector));
    }
    Ok(())
}

fn mask(registers: Registers, sint: u8) {
    let value = registers.read(Register::sint(sint));
    if value & SINT_MASKED == 0 {
        registers.write(Register::sint(sint), value | SINT_MASKED);
    }
}

/// Which timers to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimersToStop {
    /// Those whose messages need the message page.
    MessageMode,
    /// All.
    All,
}

fn stop_timers(registers: Registers, capabilities: &Capabilities, which: TimersToStop) {
    if !capabilities.privileges.contains(Privileges::SYNTHETIC_TIMERS) {
        return;
    }
    for index in 0..timer::TIMER_COUNT {
        let configuration = registers.read(Register::stimer_config(index));
        let is_direct = configuration & timer::DIRECT != 0;
        if configuration == 0 || (which == TimersToStop::MessageMode && is_direct) {
            continue;
        }
        // Configuration first, so that writing the count does not enable it again.
        registers.write(Register::stimer_config(index), 0);
        registers.write(Register::stimer_count(index), 0);
    }
}

/// Turns off what an earlier owner has left on. Firmware, a loader or another kernel may not have cleaned up, and the
/// hypervisor would go on writing to their pages, which are somebody's memory now. Returns true if there was one.
fn take_over(registers: Registers, capabilities: &Capabilities) -> bool {
    let has_owner =
        registers.read_page(PageRegister::SIMP).is_enabled() || registers.read_page(PageRegister::SIEFP).is_enabled();
    if has_owner {
        silence(registers, capabilities, TimersToStop::MessageMode);
    }
    has_owner
}

/// Turns everything synthetic of the current processor off. Takes no lock.
pub(super) fn silence(registers: Registers, capabilities: &Capabilities, timers: TimersToStop) {
    stop_timers(registers, capabilities, timers);
    if !capabilities.privileges.contains(Privileges::SYNIC) {
        return;
    }
    for sint in 0..SINT_COUNT {
        mask(registers, sint);
    }
    registers.disable_page(PageRegister::SIMP);
    registers.disable_page(PageRegister::SIEFP);
    let control = registers.read(Register::SCONTROL);
    registers.write(Register::SCONTROL, control & !SYNIC_ENABLED);
}
