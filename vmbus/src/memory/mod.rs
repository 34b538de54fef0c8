//! Memory: guest-physical addresses, pages that the host may see, and the ways to touch them soundly.
//!
//! The host may read and write the memory in these types at any moment. So there is never a `&[u8]` or `&mut [u8]` over
//! it: it is copied in and out, or read and written as atomics. What was copied out once is checked and used from the
//! copy.
//!
//! - [`Gpa`] and [`Pfn`]: a guest-physical address, and the number of a guest page of 4 KiB.
//! - [`SharedPages`]: an owned block of pages from the [`Platform`](crate::Platform), released when dropped.
//! - `DmaBuffer`: a counted range of such pages, to lend to the host; `Mdl`: a chain of such ranges.
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

mod address;
mod copy;
#[cfg(feature = "alloc")]
mod dma;
#[cfg(feature = "alloc")]
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "offsets and lengths of memory that exists, checked where they come in: none is the other end's"
    )
)]
mod mdl;
mod pages;

pub use address::{Gpa, PAGE_SIZE, Pfn, pages_for};
#[cfg(feature = "alloc")]
pub use dma::{DmaBuffer, DmaError};
#[cfg(feature = "alloc")]
pub use mdl::{Mdl, MdlError, PageListError, PageSpan, WireExtent};
pub use pages::{OutOfRange, SharedPages, SharedWord};
