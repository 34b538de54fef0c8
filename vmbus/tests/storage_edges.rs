//! What real hosts and disks do that a storage driver has to live with: the driver over the controller in this kernel, one edge
//! after the other. (Random sequences are in `storage.rs`.)
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

#[path = "storage_edges/answers.rs"]
mod answers;
#[path = "storage_edges/coming_and_going.rs"]
mod coming_and_going;
#[path = "storage_edges/finding.rs"]
mod finding;
#[path = "storage_edges/ground.rs"]
mod ground;
#[path = "storage_edges/lies.rs"]
mod lies;
#[path = "storage_edges/sizes.rs"]
mod sizes;
