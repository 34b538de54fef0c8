//! The rings of a channel inside this kernel: one block of pages, seen from both ends.
#![expect(unsafe_code, reason = "makes rings of pages that both ends reach")]

use crate::Platform;
use crate::fallible::Shared;
use crate::kmcl::Error;
use crate::kmcl::transport::{RingPages, Rings};
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::platform::Callers;
use crate::ring::{Consumer, Producer, SharedRing};

/// Makes a ring of the `1 + data_pages` pages from `first` on.
fn ring(pages: &Shared<SharedPages>, first: usize, data_pages: usize) -> Result<RingPages, Error> {
    let size = data_pages
        .checked_mul(PAGE_SIZE)
        .and_then(|size| u32::try_from(size).ok());
    let size = size.filter(|size| *size != 0).ok_or(Error::Bus)?;
    let end = first.checked_add(1).and_then(|first| first.checked_add(data_pages));
    if end.is_none_or(|end| end > pages.page_count()) {
        return Err(Error::Bus);
    }
    // SAFETY: the page lies inside the block, as just checked.
    let control = unsafe { pages.base().add(first.wrapping_mul(PAGE_SIZE)) };
    // SAFETY: at least one more page lies behind it.
    let data = unsafe { control.add(PAGE_SIZE) };
    // SAFETY: 1. the pages lie inside the block, which the keeper keeps; 2. the block is made below for these rings, and
    // nothing else reaches it.
    let ring = unsafe { SharedRing::new(control, data, size, pages.clone()) }.map_err(|_| Error::Bus)?;
    Ok(match pages.platform().callers() {
        Callers::Anywhere => ring,
        Callers::OneProcessor | Callers::OneAtATime => ring.with_peer_on_this_processor(),
    })
}

/// The pages of a channel's two rings.
#[derive(Clone)]
pub(super) struct Block {
    pages: Shared<SharedPages>,
    to_server_pages: usize,
    to_client_pages: usize,
}

impl Block {
    fn to_server(&self) -> Result<RingPages, Error> {
        ring(&self.pages, 0, self.to_server_pages)
    }

    fn to_client(&self) -> Result<RingPages, Error> {
        ring(
            &self.pages,
            self.to_server_pages.saturating_add(1),
            self.to_client_pages,
        )
    }

    /// Makes the server's halves, which go on where an earlier server's stopped.
    pub(super) fn attach_server(&self) -> Result<Rings, Error> {
        Ok(Rings {
            outgoing: Producer::attach(self.to_client()?).map_err(|_| Error::Bus)?,
            incoming: Consumer::attach(self.to_server()?, []).map_err(|_| Error::Bus)?,
        })
    }
}

/// Allocates the two rings of a channel, and returns the client's and the server's halves.
pub(super) fn allocate(
    platform: &'static dyn Platform,
    to_server_pages: usize,
    to_client_pages: usize,
) -> Result<(Block, Rings, Rings), Error> {
    let page_count = to_server_pages.saturating_add(to_client_pages).saturating_add(2);
    let pages = SharedPages::allocate(platform, page_count)?;
    let block = Block {
        pages: Shared::try_new(pages)?,
        to_server_pages,
        to_client_pages,
    };
    let client = Rings {
        outgoing: Producer::create(block.to_server()?),
        incoming: Consumer::create(block.to_client()?, []),
    };
    let server = block.attach_server()?;
    Ok((block, client, server))
}
