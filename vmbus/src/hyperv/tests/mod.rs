//! Tests of the hypervisor layer against a scripted host.
//!
//! The host is written from the TLFS with literal numbers, not with the constants under test.

mod clock;
mod detection;
mod fake;
mod hypercalls;
mod round_trips;
mod synic;
mod timers_and_crash;
