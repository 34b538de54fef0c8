//! Dynamic memory: ballooning, hot add and pressure reports (`DM_*`, `hv-balloon` in QEMU).
//!
//! The host takes pages away by asking the guest to allocate them and to name them ("balloon"), gives the same pages
//! back later ("unballoon"), adds memory at new addresses ("hot add"), and decides on all three from a report that
//! the guest sends each second.
//!
//! - [`protocol`]: the messages, as bytes and as values.
//! - [`DynamicMemory`]: the driver, which is the engine on a channel. This is what a kernel uses.
//! - [`Engine`]: the guest's side of the conversation, without input or output of its own: messages go in, messages and
//!   calls of a [`MemoryPool`] come out. Work is done in bounded slices.
//! - [`MemoryPool`]: what the operating system's page allocator offers to the engine.
//! - [`HeldPages`]: the pages that the host has. They belong to nobody in the guest and nobody touches them; they
//!   outlive the channel, its reopening, and the connection.
//!
//! # Which way around
//!
//! ```text
//!   Inbox ---packets--->  Engine::pump(now)  <----  the operating system: when the host has signalled, at
//!                            |          |           next_wakeup(), and at once after Progress::More
//!  Outbox <--messages--------+          +-------->  MemoryPool
//! ```
//!
//! One call works for one slice of a long request at most ([`Config::slice_steps`]), so it may stand in a main loop. A
//! driver over something other than a pair of boxes uses [`Engine::on_packet`] and [`Engine::poll`], of which `pump` is
//! made.
//!
//! # Examples
//!
//! A system whose memory is a stack of free frames, and a channel that is two queues:
//!
//! ```
//! use std::collections::VecDeque;
//! use vmbus::Instant;
//! use vmbus::device::dynamic_memory::{Config, Engine, Figures, Inbox, MemoryPool, PageRange, Progress, SendError, State};
//! use vmbus::memory::Pfn;
//!
//! struct Frames(Vec<Pfn>);
//!
//! impl MemoryPool for Frames {
//!     fn figures(&self) -> Figures {
//!         Figures { total_pages: 4096, free_pages: self.0.len() as u64, committed_pages: 4096 - self.0.len() as u64 }
//!     }
//!     fn take(&mut self, _max_pages: u64) -> Option<PageRange> {
//!         PageRange::new(self.0.pop()?, 1)
//!     }
//!     fn give_back(&mut self, pages: PageRange) {
//!         self.0.extend((pages.start().get()..pages.end().get()).map(Pfn::new));
//!     }
//! }
//!
//! struct Received(VecDeque<Vec<u8>>);
//!
//! impl Inbox for Received {
//!     fn front(&mut self) -> Option<&[u8]> {
//!         self.0.front().map(Vec::as_slice)
//!     }
//!     fn pop(&mut self) {
//!         self.0.pop_front();
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut engine = Engine::new(Config::default(), Frames((1000..4096).map(Pfn::new).collect()))?;
//! let mut received = Received(VecDeque::new());
//! let mut sent = Vec::new();
//! let mut send = |message: &[u8]| {
//!     sent.push(message.to_vec());
//!     Ok::<(), SendError>(())
//! };
//!
//! // The channel is open: begin, and go on whenever the host signals or `next_wakeup` comes.
//! engine.start();
//! while engine.pump(Instant::default(), &mut received, &mut send) == Progress::More {}
//! assert!(matches!(engine.state(), State::Negotiating { .. }));
//! assert_eq!(sent, [[1, 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]]);
//! # Ok(())
//! # }
//! ```
//!
//! # Trust
//!
//! Everything that the host says is an allegation: ranges are compared with the pages that are really held, sizes with
//! the bytes that really came, and no message can make one call do more than a slice of work.
//!
//! Sources: the protocol as Linux's `hv_balloon` (the guest) and QEMU's `hv-balloon` (the host) speak it. Microsoft has
//! not published a specification.
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

mod driver;
pub mod engine;
mod held;
mod pool;
pub mod protocol;
mod range;

pub use driver::DynamicMemory;
pub use engine::{Config, Counters, Delivery, Engine, Fault, Inbox, Outbox, Progress, SendError, State};
pub use held::{HeldPages, InsertError, Removal};
pub use pool::{AddRefused, Figures, MemoryPool, default_reserve_pages};
pub use range::PageRange;

use crate::protocol::Guid;

/// The class of the device in its offer.
pub const CLASS: Guid = Guid::literal("525074dc-8985-46e2-8057-a307dc18a502");

/// The pages that each of the channel's two rings should have for data. A balloon response takes up to one page; with
/// this, several fit.
pub const RING_DATA_PAGES: usize = 4;
