//! Tests of the ring: the rows of the requirements by name, golden bytes, a hostile peer, a queue as the model.

mod behaviour;
mod golden;
mod hostile;
mod memory;
mod model;
mod round_trips;
mod threads;

pub(super) mod support;
mod survivors;
#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "pages are mapped by system calls")]
mod twice;
