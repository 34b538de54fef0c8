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

use crate::hyperv::{HypercallError, Hypervisor, MessageInput};
use crate::protocol::ConnectionId;

/// Posts a message to the scripted host, which is lent nothing by it.
#[expect(unsafe_code, reason = "a real host may be lent memory by a message")]
fn post(
    hypervisor: &Hypervisor,
    input: &MessageInput,
    connection: u32,
    message_type: u32,
    payload: &[u8],
) -> Result<(), HypercallError> {
    // SAFETY: the host only keeps what was posted.
    unsafe { hypervisor.post_message(input, ConnectionId(connection), message_type, payload) }
}
