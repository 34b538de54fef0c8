//! The hypervisor: detection and capabilities, hypercalls, the synthetic interrupt controller, the reference clock,
//! timers and the crash report.
//!
//! - [`Hypervisor`]: what was detected and is used from then on. The operating system keeps one in a `static`.
//! - [`Capabilities`], [`NotHyperV`]: what the CPUID leaves say, or what was found instead.
//! - [`GuestId`], [`MessageInput`], [`HypercallError`]: hypercalls that post messages and signal events.
//! - [`Synic`], [`Message`]: the synthetic interrupt controller of one processor.
//! - [`Timer`]: a synthetic timer of one processor.
//! - [`machine`]: the instructions below all of this, so that tests put a model of a host in their place.
//!
//! Nothing here needs a heap. The host is not trusted: nothing that it writes to a register, a page or a CPUID leaf makes
//! these functions panic or loop for ever.
//!
//! # Contexts
//!
//! Each function says where it may be called. Nothing here is an interrupt handler; the only functions meant for one
//! ([`Synic::has_message`], [`Synic::has_event_flags`], [`Timer::set`]) look, or write one register: they take no lock,
//! allocate nothing and call nobody.
//!
//! Source: the Hypervisor Top-Level Functional Specification (TLFS); where hosts differ from it or from each other, the
//! function says so.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

mod clock;
mod cpuid;
mod crash;
mod hypercall;
mod hypervisor;
pub mod machine;
mod message;
mod overlay;
mod registers;
mod slot;
mod synic;
mod timer;

#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use clock::{ClockSource, ReferenceTscError};
pub use cpuid::{
    Capabilities, Features, HypervisorVersion, Isolation, IsolationKind, Limits, NotHyperV, Privileges,
    Recommendations, Signature,
};
pub use crash::CrashMessage;
pub use hypercall::{CallsInFlight, EnableError, GuestId, HypercallError, HypercallStatus, MessageInput};
pub use hypervisor::{Hypervisor, NotOffered};
pub use message::{Message, MessageType, TimerExpiry};
pub use synic::{EVENT_FLAG_COUNT, EndOfInterrupt, LeftOn, Synic, SynicConfig, SynicError};
pub use timer::{Timer, TimerDelivery, TimerError};
