//! What the fuzzer runs: each target is a function of bytes that ends, whatever the bytes are, or panics where a promise of
//! `vmbus` is broken.
//!
//! `../fuzz_targets` has a program of one line for each, which libFuzzer runs; `tests/corpus.rs` runs them with the inputs that
//! were kept. See `../README.md`.

mod arena;
mod dynamic_memory;
mod host_steps;
mod input;
mod messages;
mod observe;
mod offers;
mod pool;
mod ring_reader;
mod ring_writer;
mod wire;
mod world;

pub use dynamic_memory::dynamic_memory;
pub use messages::messages;
pub use observe::recording;
pub use offers::offers;
pub use ring_reader::ring_reader;
pub use ring_writer::ring_writer;

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

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "messages",
        run: messages,
        show: messages::show,
    },
    Target {
        name: "dynamic_memory",
        run: dynamic_memory,
        show: dynamic_memory::show,
    },
    Target {
        name: "offers",
        run: offers,
        show: offers::show,
    },
    Target {
        name: "ring_reader",
        run: ring_reader,
        show: ring_reader::show,
    },
    Target {
        name: "ring_writer",
        run: ring_writer,
        show: ring_writer::show,
    },
];
