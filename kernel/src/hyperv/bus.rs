//! The connection to the host: made at the start, perhaps again later, ended before the machine ends.

use boot::command_line::ProtocolVersion;
use spin::Once;
use vmbus::bus::{Bus, Config, ConnectError, OfferEvents};
use vmbus::hyperv::{EnableError, EndOfInterrupt, GuestId};
use vmbus::platform::ProcessorIndex;
use vmbus::protocol::Version;
use vmbus::{Deadline, bus};

use super::port::PLATFORM;
use crate::arch::{cpu, interrupts};
use crate::sync::IrqMutex;
use crate::task::deferred::{self, DeferredId};
use crate::{start, task, time};

/// The connection. Locked for moments only: the interrupt entry looks here.
static BUS: IrqMutex<Option<Bus>> = IrqMutex::new(None);

/// What the bus needs of the kernel, once.
struct Wiring {
    vector: u8,
    work: DeferredId,
}

static WIRING: Once<Wiring> = Once::new();

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// Not under Hyper-V.
    #[error("this is no Hyper-V: {0}")]
    NotHyperV(super::NotHyperV),
    /// Hypercalls do not work.
    #[error("cannot make hypercalls: {0}")]
    Hypercalls(#[from] EnableError),
    /// The bus.
    #[error("cannot connect to the VMBus: {0}")]
    Connect(#[from] ConnectError),
    /// The kernel has no vector or no place for deferred work left.
    #[error("the kernel has no interrupt vector or deferred work left for the VMBus")]
    NoWiring,
    /// The connection could not be ended.
    #[error("cannot leave the VMBus in order: {0}")]
    Leave(#[from] bus::Error),
    /// There is none.
    #[error("there is no connection to the VMBus")]
    NotConnected,
}

/// Turns on what there is of Hyper-V, and connects to the bus.
///
/// # Errors
///
/// [`BusError`].
pub fn start() -> Result<Bus, BusError> {
    let hypervisor = super::found().as_ref().map_err(|reason| BusError::NotHyperV(*reason))?;
    // First: a crash report needs no hypercalls, and what comes next is where a host that is not as it should be makes us panic.
    super::crash::arm();
    hypervisor.enable_hypercalls(&PLATFORM, GuestId::default())?;
    super::clock::start(hypervisor);
    time::reached("hyper-v");
    crate::end::set_leave(leave);
    let bus = connect()?;
    time::reached("vmbus-connected");
    Ok(bus)
}

/// Connects to the bus, as often as it is not connected.
///
/// # Errors
///
/// [`BusError`].
pub fn connect() -> Result<Bus, BusError> {
    let hypervisor = super::hypervisor().ok_or(BusError::NotConnected)?;
    let wiring = wiring().ok_or(BusError::NoWiring)?;
    let mut config = Config {
        vector: wiring.vector,
        // The vector's registration writes the end of interrupt, on every host alike.
        end_of_interrupt: EndOfInterrupt::Explicit,
        offer_events: Some(&OFFERS),
        ..Config::default()
    };
    if let Some(ProtocolVersion { major, minor }) = start::options().max_version {
        config.max_version = Version::new(major, minor);
    }
    let bus = Bus::connect(hypervisor, &PLATFORM, config)?;
    #[cfg(any(test, feature = "selftest"))]
    if let Some(host) = super::local::host() {
        bus.attach_host(host);
    }
    *BUS.lock() = Some(bus.clone());
    // Interrupts that came before the line above found no bus to tell.
    schedule(ProcessorIndex(cpu::current()));
    super::dynamic_memory::connected();
    super::storage::connected();
    Ok(bus)
}

/// Tells the drivers' tasks that offers have come or gone.
static OFFERS: Offers = Offers;

struct Offers;

impl OfferEvents for Offers {
    fn offers_changed(&self) {
        super::dynamic_memory::offers_changed();
        super::storage::offers_changed();
    }
}

/// Has deferred work, also where there is no connection. Returns whether there is room for it.
#[cfg(any(test, feature = "selftest"))]
pub(super) fn has_deferred_work() -> bool {
    wiring().is_some()
}

fn wiring() -> Option<&'static Wiring> {
    if let Some(wiring) = WIRING.get() {
        return Some(wiring);
    }
    let work = deferred::register(&process).ok()?;
    let vector = interrupts::allocate(on_interrupt, interrupts::EndOfInterrupt::Written).ok()?;
    Some(WIRING.call_once(|| Wiring { vector, work }))
}

/// The hard interrupt: marks, nothing more.
fn on_interrupt(processor: cpu::Processor) {
    if let Some(bus) = &*BUS.lock() {
        bus.acknowledge_interrupt(ProcessorIndex(processor));
    }
}

/// The deferred work.
fn process(processor: cpu::Processor) {
    if let Some(bus) = connected() {
        // What is left is scheduled again by the bus itself.
        let _progress = bus.process(ProcessorIndex(processor));
    } else {
        #[cfg(any(test, feature = "selftest"))]
        super::local::process();
    }
    task::notify();
}

/// Schedules the deferred work of a processor.
pub(super) fn schedule(processor: ProcessorIndex) {
    if let Some(wiring) = WIRING.get() {
        // Only processors that run take part in the bus.
        let scheduled = deferred::schedule(processor.0, wiring.work);
        debug_assert!(scheduled.is_ok());
    }
}

/// Returns the connection, if there is one.
pub fn connected() -> Option<Bus> {
    BUS.lock().clone()
}

/// The same, for the crash path, which may have stopped the holder of the lock.
pub(super) fn connected_in_emergency() -> Option<Bus> {
    match BUS.try_lock() {
        Some(bus) => bus.clone(),
        #[expect(unsafe_code, reason = "the holder of the lock has stopped for ever")]
        // SAFETY: only one processor runs, with interrupts off, in a panic; the lock's holder never goes on. What it guards is
        // written in one move, so it is one connection or the other.
        None => unsafe { BUS.lock_by_force() }.clone(),
    }
}

/// Runs `work` while the connection's lock is held.
#[cfg(any(test, feature = "selftest"))]
pub(crate) fn with_lock_held(work: impl FnOnce()) {
    let _held = BUS.lock();
    work();
}

/// Returns the vector of the host's interrupts.
#[cfg(any(test, feature = "selftest"))]
pub(crate) fn vector() -> Option<u8> {
    wiring().map(|wiring| wiring.vector)
}

/// Forgets the connection without a word to the host, as a loader does that crashes: what the host knows of stays as it is.
///
/// # Errors
///
/// [`BusError::NotConnected`].
pub fn abandon() -> Result<(), BusError> {
    let bus = BUS.lock().take().ok_or(BusError::NotConnected)?;
    // Its pages are the host's for ever: nothing of it may be given back.
    core::mem::forget(bus);
    Ok(())
}

/// Ends the connection.
///
/// # Errors
///
/// [`BusError`]; without the host's word what it may still use stays out of use.
pub fn disconnect(deadline: Deadline) -> Result<(), BusError> {
    let bus = connected().ok_or(BusError::NotConnected)?;
    let result = bus.disconnect(deadline);
    *BUS.lock() = None;
    Ok(result?)
}

/// Leaves a clean machine to the next system: drivers closed, bus unloaded, timer, clock, hypercall page and guest id cleared.
fn leave() {
    super::dynamic_memory::stop();
    super::storage::stop();
    match disconnect(Deadline::seconds(100)) {
        Ok(()) | Err(BusError::NotConnected) => {}
        Err(error) => log::warn!("{error}"),
    }
    super::clock::stop();
    if let Some(hypervisor) = super::hypervisor() {
        hypervisor.disable_reference_tsc();
        hypervisor.silence_processor();
        if hypervisor.disable_hypercalls().is_err() {
            log::warn!("the hypercall page is still in use");
        }
    }
}
