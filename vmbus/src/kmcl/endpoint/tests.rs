//! Numbers of the phases, and looks from inside and outside of callbacks.

use super::*;

#[test]
fn a_phase_goes_through_a_number() {
    for phase in [
        Phase::Closed,
        Phase::Opening,
        Phase::Paused,
        Phase::Starting,
        Phase::Receiving,
        Phase::Running,
        Phase::Suspending,
        Phase::Ended,
    ] {
        assert_eq!(Phase::from(phase as u8), phase);
    }
}
