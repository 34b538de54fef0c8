//! The rings of a channel inside this kernel: one block of pages, seen from both ends.
#![expect(unsafe_code, reason = "makes rings of pages that both ends reach")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Platform;
use crate::fallible::Shared;
use crate::kmcl::Error;
use crate::kmcl::transport::{RingPages, Rings};
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::platform::Callers;
use crate::protocol::packet::PacketType;
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
    // SAFETY: 1. the pages lie inside the block, which the keeper keeps; 2. the block is made below for these rings, and what else
    // reaches it (`forge_...`) does so by the same atomics.
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

    /// Where the ring that the client reads starts in the block, in bytes.
    const fn to_client_start(&self) -> usize {
        self.to_server_pages.saturating_add(1).saturating_mul(PAGE_SIZE)
    }

    /// A word of a control page. Never in bytes: the other end may be looking at it as this.
    fn control_word(&self, offset: usize) -> Result<&AtomicU32, Error> {
        self.pages.word(offset).map_err(|_| Error::Bus)
    }

    /// Writes the server's write index, as it may not be.
    pub(super) fn forge_write_index(&self, index: u32) -> Result<(), Error> {
        self.control_word(self.to_client_start())?
            .store(index, Ordering::Release);
        Ok(())
    }

    /// Writes the server's read index, as it may not be.
    pub(super) fn forge_read_index(&self, index: u32) -> Result<(), Error> {
        // Behind the write index of the ring to the server, which is the block's first.
        self.control_word(4)?.store(index, Ordering::Release);
        Ok(())
    }

    /// Puts an in-band packet of 16 bytes with its trailer behind what the server has written, of which the descriptor says
    /// anything.
    pub(super) fn forge_packet(&self, data_offset8: u16, length8: u16) -> Result<(), Error> {
        const LEN: usize = 24;
        let size = self.to_client_pages.saturating_mul(PAGE_SIZE);
        let index = self.control_word(self.to_client_start())?.load(Ordering::Relaxed);
        // It may have been forged.
        let index = usize::try_from(index & !7).map_err(|_| Error::Bus)?;
        let place = |offset: usize| index.saturating_add(offset).checked_rem(size).unwrap_or(0);
        let [d0, d1] = data_offset8.to_le_bytes();
        let [l0, l1] = length8.to_le_bytes();
        let descriptor = [PacketType::IN_BAND.0.to_le_bytes()[0], 0, d0, d1, l0, l1, 0, 0];
        for (offset, word) in [(0, descriptor), (8, [0; 8]), (16, [0; 8])] {
            let data = self.to_client_start().saturating_add(PAGE_SIZE);
            let target: &AtomicU64 = self
                .pages
                .word(data.saturating_add(place(offset)))
                .map_err(|_| Error::Bus)?;
            target.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        self.forge_write_index(u32::try_from(place(LEN)).map_err(|_| Error::Bus)?)
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
