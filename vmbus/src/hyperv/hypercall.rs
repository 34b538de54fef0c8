//! Hypercalls: the page through which they go, the two calls that the VMBus needs, and what their status means.
//!
//! Source: TLFS, "Hypercall Interface" and "Inter-Partition Communication".
#![expect(unsafe_code, reason = "calls into the hypercall page")]

use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::overlay::{Overlay, OverlayError, Scope};
use super::registers::{PageRegister, Register, Registers};
use crate::Platform;
use crate::hyperv::machine::Machine;
use crate::memory::{Gpa, Pfn, SharedPages};
use crate::platform::{NotMapped, OutOfPages, PageUse};
use crate::protocol::ConnectionId;
use crate::sync::Lock;

/// `HvCallPostMessage`
const CALL_POST_MESSAGE: u64 = 0x5c;
/// `HvCallSignalEvent`, with its input in registers (bit 16).
const CALL_SIGNAL_EVENT_FAST: u64 = 0x5d | 1 << 16;
/// How often to look whether calls in flight have ended; each look pauses. A call takes microseconds.
const LOOKS_FOR_CALLS_IN_FLIGHT: u32 = 1_000_000;
/// The same for a system that ends: one of its calls may never come back.
const LOOKS_IN_EMERGENCY: u32 = 10_000;

/// Who this guest is, as the hypervisor wants to know before any hypercall (`HV_X64_MSR_GUEST_OS_ID`, open-source form).
///
/// This crate claims to be nobody else: the operating system type is a number of our own, [`GuestId::TYPE_VMBUS_CRATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestId(u64);

impl GuestId {
    /// The operating system type of systems built on this crate: `v`. The TLFS assigns 1 to Linux, 2 to FreeBSD, 3 to Xen
    /// and 4 to illumos; the rest of the 7 bits is free.
    pub const TYPE_VMBUS_CRATE: u8 = 0x76;

    /// Makes an id of type [`GuestId::TYPE_VMBUS_CRATE`]: `system` is the operating system's own choice to tell itself
    /// apart, `version` and `build` are its version.
    #[must_use]
    pub const fn new(system: u8, version: u32, build: u16) -> Self {
        Self::with_type(Self::TYPE_VMBUS_CRATE, system, version, build)
    }

    /// Makes an id with an operating system type that was assigned to the system. Only the lower 7 bits count.
    #[must_use]
    pub const fn with_type(system_type: u8, system: u8, version: u32, build: u16) -> Self {
        const OPEN_SOURCE: u64 = 1 << 63;
        Self(
            OPEN_SOURCE
                | ((system_type & 0x7f) as u64) << 56
                | (system as u64) << 48
                | (version as u64) << 16
                | build as u64,
        )
    }

    /// Returns the value of the register. It is never zero.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Default for GuestId {
    /// The version of this crate, from a system that has not said who it is.
    fn default() -> Self {
        Self::new(0, 1, 0)
    }
}

/// Why hypercalls could not be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnableError {
    /// The hypervisor does not let this partition make hypercalls.
    #[error("the hypervisor offers no hypercalls")]
    NotOffered,
    /// The platform has no page.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The platform does not know its own page.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
    /// An earlier owner has locked the hypercall page at `page`, until the machine is reset.
    #[error("the hypercall page is locked at {page:?} until the machine is reset")]
    Locked {
        /// Where the page is.
        page: Pfn,
    },
    /// The hypervisor did not turn the page on.
    #[error("the hypervisor did not turn the hypercall page on")]
    Refused,
    /// Another [`Hypervisor`](super::Hypervisor) of this program has the machine's one hypercall page, or this one had a call in flight
    /// when it was shut down in an emergency.
    #[error("the hypercall page is in use")]
    InUse,
}

impl From<OverlayError> for EnableError {
    fn from(error: OverlayError) -> Self {
        match error {
            OverlayError::OutOfPages(error) => Self::OutOfPages(error),
            OverlayError::NotMapped(error) => Self::NotMapped(error),
            OverlayError::Refused => Self::Refused,
        }
    }
}

/// A hypercall has not come back, so the hypercall page stays on. Another processor, or a task that was interrupted in the
/// middle of one, has to go on first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} hypercalls are still in flight")]
pub struct CallsInFlight {
    /// How many.
    pub count: usize,
}

/// The status of a hypercall (`HV_STATUS`). Any value is possible.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HypercallStatus(pub u16);

macro_rules! statuses {
    ($($(#[$attribute:meta])* $name:ident = $value:literal,)*) => {
        impl HypercallStatus {
            $($(#[$attribute])* pub const $name: Self = Self($value);)*

            /// Returns the TLFS's name without `HV_STATUS_`, if we know it.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    SUCCESS = 0x00,
    /// The hypervisor does not know the call.
    INVALID_HYPERCALL_CODE = 0x02,
    /// The call's control word is wrong.
    INVALID_HYPERCALL_INPUT = 0x03,
    /// The input area is not aligned or crosses a page.
    INVALID_ALIGNMENT = 0x04,
    /// A parameter is wrong.
    INVALID_PARAMETER = 0x05,
    /// The partition may not do this.
    ACCESS_DENIED = 0x06,
    /// The partition is not in the right state.
    INVALID_PARTITION_STATE = 0x07,
    /// The operation is not allowed now.
    OPERATION_DENIED = 0x08,
    /// The hypervisor has no memory.
    INSUFFICIENT_MEMORY = 0x0b,
    /// There is no such partition.
    INVALID_PARTITION_ID = 0x0d,
    /// There is no such virtual processor.
    INVALID_VP_INDEX = 0x0e,
    /// There is no such port.
    INVALID_PORT_ID = 0x11,
    /// There is no such connection.
    INVALID_CONNECTION_ID = 0x12,
    /// The port's queue is full.
    INSUFFICIENT_BUFFERS = 0x13,
    /// The previous message was not acknowledged.
    NOT_ACKNOWLEDGED = 0x14,
    /// The virtual processor is not in the right state.
    INVALID_VP_STATE = 0x15,
    /// The interrupt controller is not in the right state.
    INVALID_SYNIC_STATE = 0x18,
    /// The object is in use.
    OBJECT_IN_USE = 0x19,
    /// The object is not active.
    INACTIVE = 0x1c,
    /// The hypervisor has no resources.
    NO_RESOURCES = 0x1d,
    /// The feature is not there.
    FEATURE_UNAVAILABLE = 0x1e,
    /// The hypervisor's own deadline passed.
    TIME_OUT = 0x78,
}

impl HypercallStatus {
    /// Takes the status from the result value of a hypercall, bits 0 to 15.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the status is the lower 16 bits")]
    pub const fn from_result(result: u64) -> Self {
        Self(result as u16)
    }

    /// Returns true if the same call may succeed later with nothing changed but the load on the host.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::INSUFFICIENT_MEMORY
                | Self::INSUFFICIENT_BUFFERS
                | Self::NOT_ACKNOWLEDGED
                | Self::NO_RESOURCES
                | Self::TIME_OUT
        )
    }

    const fn into_result(self) -> Result<(), HypercallError> {
        match self {
            Self::SUCCESS => Ok(()),
            Self::INVALID_CONNECTION_ID => Err(HypercallError::InvalidConnection),
            status if status.is_transient() => Err(HypercallError::Retry(status)),
            status => Err(HypercallError::Failed(status)),
        }
    }
}

impl fmt::Display for HypercallStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(formatter, "{name} ({:#x})", self.0),
            None => write!(formatter, "hypercall status {:#x}", self.0),
        }
    }
}

impl fmt::Debug for HypercallStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why a hypercall failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HypercallError {
    /// Not now: the host is short of something. Try again, a bounded number of times, with growing delays.
    #[error("the hypervisor is busy: {0}")]
    Retry(HypercallStatus),
    /// Never, as long as the call is the same.
    #[error("the hypervisor refused: {0}")]
    Failed(HypercallStatus),
    /// There is no such connection. At first contact this means that the host does not listen there, and the next
    /// version of the ladder is due; later, some hosts mean "not now" by it.
    #[error("the hypervisor knows no such connection")]
    InvalidConnection,
    /// Hypercalls are not turned on.
    #[error("hypercalls are not turned on")]
    Disabled,
    /// Another caller is using the same [`MessageInput`] at this moment.
    #[error("the message input area is in use")]
    InputInUse,
    /// More payload than a message holds.
    #[error("a message holds at most {max} bytes, not {len}", max = MessageInput::PAYLOAD_MAX)]
    TooLong {
        /// How many bytes there were.
        len: usize,
    },
}

impl HypercallError {
    /// Returns true if the same call may succeed later.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Retry(_) | Self::InputInUse)
    }
}

/// The memory from which the hypervisor reads a message that is being posted: 8-aligned and within one page, as every
/// host wants it.
///
/// One caller at a time posts from it; a second one at the same moment gets [`HypercallError::InputInUse`]. So the
/// crash path has one of its own.
#[derive(Debug)]
pub struct MessageInput {
    pages: SharedPages,
    gpa: Gpa,
    is_in_use: AtomicBool,
}

impl MessageInput {
    /// The most payload in bytes that a message holds.
    pub const PAYLOAD_MAX: usize = 240;
    /// `HV_INPUT_POST_MESSAGE`: connection, reserved, type, payload size, payload.
    const LEN: usize = 16 + Self::PAYLOAD_MAX;

    /// Allocates an input area: one page.
    ///
    /// # Errors
    ///
    /// [`EnableError::OutOfPages`] or [`EnableError::NotMapped`].
    pub fn allocate(platform: &'static dyn Platform) -> Result<Self, EnableError> {
        let pages = SharedPages::allocate(platform, 1)?;
        let gpa = pages.gpa()?;
        Ok(Self {
            pages,
            gpa,
            is_in_use: AtomicBool::new(false),
        })
    }

    /// Fills the whole area, so that nothing of an earlier message is left in it.
    fn fill(&self, connection: ConnectionId, message_type: u32, payload: &[u8]) -> Result<(), HypercallError> {
        let too_long = HypercallError::TooLong { len: payload.len() };
        let payload_len = u32::try_from(payload.len()).map_err(|_| too_long)?;
        let mut area = [0; Self::LEN];
        let (header, room) = area.split_at_mut(16);
        let (fields, _) = header.as_chunks_mut::<4>();
        for (field, value) in fields.iter_mut().zip([connection.0, 0, message_type, payload_len]) {
            *field = value.to_le_bytes();
        }
        room.get_mut(..payload.len()).ok_or(too_long)?.copy_from_slice(payload);
        // The area lies inside the page, so this cannot fail.
        self.pages.write_at(0, &area).map_err(|_| too_long)
    }
}

/// The right to use a [`MessageInput`], given back when dropped.
struct InUse<'a>(&'a AtomicBool);

impl<'a> InUse<'a> {
    fn claim(flag: &'a AtomicBool) -> Result<Self, HypercallError> {
        // Acquire: pairs with the release in `drop`: the previous call has ended.
        match flag.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Self(flag)),
            Err(_) => Err(HypercallError::InputInUse),
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The hypercall page, and the calls that go through it.
pub(super) struct HypercallPage {
    /// Where to call; null while the page is off.
    entry: AtomicPtr<u8>,
    /// How many calls are between looking at `entry` and coming back.
    calls_in_flight: AtomicUsize,
    overlay: Lock<Option<Overlay>>,
    /// The machine's hypercall page is this one.
    is_owner: AtomicBool,
    /// Whose pages they are; kept for the lock's dispatch section.
    platform: spin::Once<&'static dyn Platform>,
}

impl HypercallPage {
    pub(super) const fn new() -> Self {
        Self {
            entry: AtomicPtr::new(ptr::null_mut()),
            calls_in_flight: AtomicUsize::new(0),
            overlay: Lock::new(None),
            is_owner: AtomicBool::new(false),
            platform: spin::Once::new(),
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        !self.entry.load(Ordering::Relaxed).is_null()
    }

    /// Context: task.
    pub(super) fn enable(
        &self,
        registers: Registers,
        platform: &'static dyn Platform,
        guest: GuestId,
    ) -> Result<(), EnableError> {
        let platform = *self.platform.call_once(|| platform);
        let mut overlay = self.overlay.lock(platform);
        if self.is_enabled() {
            return Ok(());
        }
        if self.is_owner.load(Ordering::Acquire) {
            return Err(EnableError::InUse);
        }
        if let Some(overlay) = overlay.take() {
            // An emergency has turned it off, when nobody was in it any more.
            overlay.disable(registers);
        }
        // An earlier owner's page goes first: between its id and ours, nothing is on.
        let before = registers.read_page(PageRegister::HYPERCALL);
        if before.is_locked() {
            return Err(EnableError::Locked { page: before.page() });
        }
        if !registers.machine().take_hypercall_page() {
            return Err(EnableError::InUse);
        }
        registers.disable_page(PageRegister::HYPERCALL);
        registers.write(Register::GUEST_OS_ID, guest.get());
        let made = Overlay::enable(
            registers,
            PageRegister::HYPERCALL,
            Scope::Machine,
            platform,
            PageUse::HypercallCode,
        );
        match made {
            Ok(made) => {
                let entry = made.pages().base().as_ptr();
                *overlay = Some(made);
                self.is_owner.store(true, Ordering::Release);
                self.entry.store(entry, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => {
                registers.write(Register::GUEST_OS_ID, 0);
                registers.machine().give_hypercall_page_back();
                Err(error.into())
            }
        }
    }

    /// Context: task.
    pub(super) fn disable(&self, registers: Registers) -> Result<(), CallsInFlight> {
        let Some(platform) = self.platform.get() else {
            return Ok(());
        };
        let mut overlay = self.overlay.lock(*platform);
        let entry = self.entry.swap(ptr::null_mut(), Ordering::SeqCst);
        if let Err(error) = self.wait_for_calls(LOOKS_FOR_CALLS_IN_FLIGHT) {
            // Nothing has changed: the page stays where the calls in flight expect it.
            self.entry.store(entry, Ordering::SeqCst);
            return Err(error);
        }
        let is_owner = self.is_owner.swap(false, Ordering::AcqRel);
        if let Some(overlay) = overlay.take() {
            overlay.disable(registers);
        }
        if is_owner {
            Self::give_back(registers);
        }
        Ok(())
    }

    /// Turns the page and the guest's id off and gives nothing back. Context: any; takes no lock. For a system that ends.
    ///
    /// Where a call stays in flight, the page stays on: on its way back from the hypervisor the call would find whatever lies there.
    /// Whoever comes next replaces it.
    pub(super) fn disable_in_emergency(&self, registers: Registers) {
        if self.entry.swap(ptr::null_mut(), Ordering::SeqCst).is_null() {
            return;
        }
        if self.wait_for_calls(LOOKS_IN_EMERGENCY).is_ok() && self.is_owner.swap(false, Ordering::AcqRel) {
            registers.disable_page(PageRegister::HYPERCALL);
            Self::give_back(registers);
        }
    }

    /// The page is off: withdraws the guest's id, too, and lets others have the page.
    fn give_back(registers: Registers) {
        registers.write(Register::GUEST_OS_ID, 0);
        registers.machine().give_hypercall_page_back();
    }

    fn wait_for_calls(&self, looks: u32) -> Result<(), CallsInFlight> {
        // SeqCst here, in `disable` and in `CallInFlight`: either a caller sees the null entry, or this sees the caller.
        for _ in 0..looks {
            if self.calls_in_flight.load(Ordering::SeqCst) == 0 {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        Err(CallsInFlight {
            count: self.calls_in_flight.load(Ordering::SeqCst),
        })
    }

    pub(super) fn post_message(
        &self,
        machine: &'static dyn Machine,
        input: &MessageInput,
        connection: ConnectionId,
        message_type: u32,
        payload: &[u8],
    ) -> Result<(), HypercallError> {
        let _in_use = InUse::claim(&input.is_in_use)?;
        input.fill(connection, message_type, payload)?;
        let call = CallInFlight::begin(self)?;
        // SAFETY: the page is on and stays on as long as `call` lives. The call reads its input from the page that `input`
        // owns and that `_in_use` keeps for this call, and has no output.
        let result = unsafe { machine.hypercall(call.entry, CALL_POST_MESSAGE, input.gpa.get(), 0) };
        HypercallStatus::from_result(result).into_result()
    }

    pub(super) fn signal_event(
        &self,
        machine: &'static dyn Machine,
        connection: ConnectionId,
        flag: u16,
    ) -> Result<(), HypercallError> {
        let input = u64::from(connection.0) | u64::from(flag) << 32;
        let call = CallInFlight::begin(self)?;
        // SAFETY: the page is on and stays on as long as `call` lives. A fast call: its input is a value.
        let result = unsafe { machine.hypercall(call.entry, CALL_SIGNAL_EVENT_FAST, input, 0) };
        HypercallStatus::from_result(result).into_result()
    }
}

impl fmt::Debug for HypercallPage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HypercallPage")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// A call on its way: as long as it lives, the page stays on.
struct CallInFlight<'a> {
    page: &'a HypercallPage,
    entry: NonNull<u8>,
}

impl<'a> CallInFlight<'a> {
    fn begin(page: &'a HypercallPage) -> Result<Self, HypercallError> {
        page.calls_in_flight.fetch_add(1, Ordering::SeqCst);
        if let Some(entry) = NonNull::new(page.entry.load(Ordering::SeqCst)) {
            return Ok(Self { page, entry });
        }
        page.calls_in_flight.fetch_sub(1, Ordering::SeqCst);
        Err(HypercallError::Disabled)
    }
}

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        self.page.calls_in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
