//! The rings of a channel inside this kernel: one block of pages, seen from both ends.
#![expect(unsafe_code, reason = "makes rings of pages that both ends reach")]

use crate::Platform;
use crate::fallible::Shared;
use crate::kmcl::Error;
use crate::kmcl::transport::{RingPages, Rings};
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::ring::{Consumer, Producer, SharedRing};

/// Makes a ring of the `1 + data_pages` pages from `first` on.
fn ring(pages: &Shared<SharedPages>, first: usize, data_pages: usize) -> Result<RingPages, Error> {
    let size = u32::try_from(data_pages * PAGE_SIZE).map_err(|_| Error::Bus)?;
    if data_pages == 0 || first + 1 + data_pages > pages.page_count() {
        return Err(Error::Bus);
    }
    // SAFETY: the page lies inside the block, as just checked.
    let control = unsafe { pages.base().add(first * PAGE_SIZE) };
    // SAFETY: at least one more page lies behind it.
    let data = unsafe { control.add(PAGE_SIZE) };
    // SAFETY: 1. the pages lie inside the block, which the keeper keeps; 2. the block is made below for these rings, and
    // nothing else reaches it.
    unsafe { SharedRing::new(control, data, size, pages.clone()) }.map_err(|_| Error::Bus)
}

/// Allocates the two rings of a channel, and returns the client's and the server's halves.
pub(super) fn allocate(
    platform: &'static dyn Platform,
    to_server_pages: usize,
    to_client_pages: usize,
) -> Result<(Rings, Rings), Error> {
    let second = 1 + to_server_pages;
    let pages = Shared::try_new(SharedPages::allocate(platform, second + 1 + to_client_pages)?)?;
    let client = Rings {
        outgoing: Producer::create(ring(&pages, 0, to_server_pages)?),
        incoming: Consumer::create(ring(&pages, second, to_client_pages)?, []),
    };
    let server = Rings {
        outgoing: Producer::attach(ring(&pages, second, to_client_pages)?).map_err(|_| Error::Bus)?,
        incoming: Consumer::attach(ring(&pages, 0, to_server_pages)?, []).map_err(|_| Error::Bus)?,
    };
    Ok((client, server))
}
