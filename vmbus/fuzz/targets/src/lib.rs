//! What the fuzzer runs: each target is a function of bytes that ends, whatever the bytes are, or panics where a promise of
//! `vmbus` is broken.
//!
//! `../fuzz_targets` has a program of one line for each, which libFuzzer runs; `tests/corpus.rs` runs them with the inputs that
//! were kept. See `../README.md`.
#![expect(
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a target panics where a promise is broken, and cuts arbitrary numbers to what a field holds"
)]

mod arena;
mod driver;
mod dynamic_memory;
mod host_actions;
mod host_steps;
mod input;
mod kmcl;
mod messages;
mod observe;
mod offers;
mod pool;
mod ring_reader;
mod ring_writer;
mod storage;
mod wire;
mod world;

pub use dynamic_memory::dynamic_memory;
pub use host_actions::host_actions;
pub use kmcl::kmcl;
pub use messages::messages;
pub use observe::recording;
pub use offers::offers;
pub use ring_reader::ring_reader;
pub use ring_writer::ring_writer;
pub use storage::storage;

/// The system's heap, which counts, so that a run can tell whether it left something behind.
#[global_allocator]
static HEAP: vmbus::testing::TestHeap = vmbus::testing::TestHeap;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its program and of its folder of inputs.
    pub name: &'static str,
    /// Runs it with an input.
    pub run: fn(&[u8]),
    /// Shows an input as what it means.
    pub show: fn(&[u8]) -> String,
}

macro_rules! targets {
    ($($name:ident,)+) => {
        /// Every target.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $name::$name,
            show: $name::show,
        },)+];
    };
}

targets! {
    dynamic_memory,
    host_actions,
    kmcl,
    messages,
    offers,
    ring_reader,
    ring_writer,
    storage,
}
