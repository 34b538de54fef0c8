//! Rings in the test's own memory, and a peer written from the wire format with its own constants.

#![expect(
    unsafe_code,
    reason = "test memory is reached as shared memory is: by atomics through raw pointers"
)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use crate::ring::{Consumer, Producer, SharedRing};

#[derive(Debug)]
#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

/// Pages of a ring: one of control words, the rest data.
#[derive(Debug)]
pub(crate) struct Pages(Box<[Page]>);

/// What the tests keep of a ring: its pages, and how the peer reaches them.
#[derive(Clone)]
pub(crate) struct Peer {
    pages: Arc<Pages>,
}

pub(crate) type Ring = SharedRing<Arc<Pages>>;

pub(crate) const IN: usize = 0;
pub(crate) const OUT: usize = 4;
pub(crate) const MASK: usize = 8;
pub(crate) const PENDING: usize = 12;
pub(crate) const FEATURES: usize = 64;

impl Peer {
    /// A ring with this many data pages, full of old rubbish.
    pub(crate) fn new(data_pages: usize) -> Self {
        let page = || Page([const { AtomicU64::new(0xa5a5_a5a5_a5a5_a5a5) }; 512]);
        Self {
            pages: Arc::new(Pages((0..=data_pages).map(|_| page()).collect())),
        }
    }

    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.pages.0).cast()
    }

    pub(crate) fn size(&self) -> u32 {
        u32::try_from((self.pages.0.len() - 1) * 4096).unwrap()
    }

    /// One more view of the ring.
    pub(crate) fn ring(&self) -> Ring {
        // SAFETY: within the pages.
        let data = unsafe { self.base().add(4096) };
        // SAFETY: the pages are aligned, all of them follow each other, they live as long as the `Arc` in the ring does, and all
        // access to them is atomic.
        unsafe { SharedRing::new(self.base(), data, self.size(), self.pages.clone()) }.unwrap()
    }

    pub(crate) fn pair<const N: usize>(&self) -> (Producer<Ring>, Consumer<Ring, Box<[u64]>>) {
        let producer = Producer::create(self.ring());
        let consumer = Consumer::attach(self.ring(), vec![0; N].into_boxed_slice()).unwrap();
        (producer, consumer)
    }

    fn control(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: within the first page.
        let word = unsafe { self.base().add(offset) };
        // SAFETY: aligned, alive, and only reached by atomics of this size.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }

    pub(crate) fn get(&self, offset: usize) -> u32 {
        self.control(offset).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, offset: usize, value: u32) {
        self.control(offset).store(value, Ordering::SeqCst);
    }

    fn word(&self, at: u32) -> &AtomicU64 {
        let index = (at % self.size()) as usize / 8;
        &self.pages.0[1 + index / 512].0[index % 512]
    }

    /// Data bytes, around the end.
    pub(crate) fn bytes(&self, at: u32, len: u32) -> Vec<u8> {
        assert!(at.is_multiple_of(8) && len.is_multiple_of(8));
        (0..len / 8)
            .flat_map(|n| self.word(at + n * 8).load(Ordering::SeqCst).to_le_bytes())
            .collect()
    }

    /// Stores data words, around the end.
    pub(crate) fn store(&self, at: u32, words: &[u64]) {
        for (n, word) in (0..).zip(words) {
            self.word(at + n * 8).store(*word, Ordering::SeqCst);
        }
    }

    /// Stores a descriptor.
    pub(crate) fn descriptor(&self, at: u32, packet_type: u16, offset8: u16, len8: u16, flags: u16, id: u64) {
        let first = u64::from(packet_type) | u64::from(offset8) << 16 | u64::from(len8) << 32 | u64::from(flags) << 48;
        self.store(at, &[first, id]);
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|n| (seed.wrapping_mul(31).wrapping_add(n * 7) >> 1).to_le_bytes()[0] ^ 0x5a)
        .collect()
}

/// The same, padded with zeroes to a multiple of 8.
pub(crate) fn padded_pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = pattern(seed, len);
    bytes.resize(len.next_multiple_of(8), 0);
    bytes
}
