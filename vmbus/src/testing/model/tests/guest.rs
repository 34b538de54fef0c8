//! A guest by hand: registers, slots and rings as numbers.
#![expect(unsafe_code, reason = "makes the machine's unsafe calls")]

use std::vec::Vec;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::Platform;
use crate::hyperv::machine::Machine;
use crate::memory::SharedPages;
use crate::platform::PageUse;
use crate::testing::FakePlatform;
use crate::testing::model::{Config, Host};

pub(super) struct RawGuest {
    pub(super) platform: &'static FakePlatform,
    pub(super) host: &'static Host,
    code: SharedPages,
    messages: SharedPages,
    pub(super) events: SharedPages,
    input: SharedPages,
    pub(super) connection: u32,
}

impl RawGuest {
    /// A guest with its hypercall page and SynIC on, not yet in contact.
    pub(super) fn new(config: Config) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, config);
        let page = |page_use| SharedPages::allocate_for(platform, 1, page_use).unwrap();
        let guest = Self {
            platform,
            host,
            code: page(PageUse::HypercallCode),
            messages: page(PageUse::Data),
            events: page(PageUse::Data),
            input: page(PageUse::Data),
            connection: 1,
        };
        guest.wrmsr(0x4000_0000, 0x8100_0000_0000_0001);
        guest.wrmsr(0x4000_0001, guest.code.gpa().unwrap().get() | 1);
        guest.wrmsr(0x4000_0083, guest.messages.gpa().unwrap().get() | 1);
        guest.wrmsr(0x4000_0082, guest.events.gpa().unwrap().get() | 1);
        guest.wrmsr(0x4000_0092, 0x30);
        guest.wrmsr(0x4000_0080, 1);
        guest
    }

    pub(super) fn wrmsr(&self, register: u32, value: u64) {
        // SAFETY: the pages in the values belong to this guest.
        unsafe { self.host.write_msr(register, value) };
    }

    pub(super) fn rdmsr(&self, register: u32) -> u64 {
        // SAFETY: reading a register of the model harms nobody.
        unsafe { self.host.read_msr(register) }
    }

    pub(super) fn hypercall(&self, control: u64, input: u64) -> u64 {
        // SAFETY: the page is enabled, the input belongs to this guest.
        unsafe { self.host.hypercall(self.code.base(), control, input, 0) }
    }

    /// Posts a channel message from `offset` of the input page, and returns the status.
    pub(super) fn post_at(&self, offset: usize, connection: u32, message: &[u8]) -> u64 {
        let mut input = [0; 256];
        input[0..4].copy_from_slice(&connection.to_le_bytes());
        input[8] = 1;
        input[12] = u8::try_from(message.len()).unwrap();
        input[16..16 + message.len()].copy_from_slice(message);
        let len = input.len().min(4096 - offset);
        self.input.write_at(offset, &input[..len]).unwrap();
        self.hypercall(0x5c, self.input.gpa().unwrap().get() + offset as u64)
    }

    /// Posts words as a channel message to the connection that was agreed on.
    pub(super) fn post(&self, words: &[u32]) {
        assert_eq!(self.post_at(0, self.connection, &bytes(words)), 0);
    }

    /// Takes the message out of the slot of SINT 2, if there is one.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.host.run();
        let slot: &AtomicU32 = self.messages.word(2 * 256).unwrap();
        if slot.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut message = [0; 256];
        self.messages.read_at(2 * 256, &mut message).unwrap();
        assert_eq!(message[0..4], [1, 0, 0, 0], "a channel message");
        slot.store(0, Ordering::SeqCst);
        let mut flags = [0];
        self.messages.read_at(2 * 256 + 5, &mut flags).unwrap();
        if flags[0] & 1 != 0 {
            self.wrmsr(0x4000_0084, 0);
        }
        Some(message[16..16 + usize::from(message[4])].to_vec())
    }

    /// What the slot of SINT 2 says its length is.
    pub(super) fn claimed_len(&self) -> u8 {
        let mut len = [0];
        self.messages.read_at(2 * 256 + 4, &mut len).unwrap();
        len[0]
    }

    /// Takes all messages there are.
    pub(super) fn take_all(&self) -> Vec<Vec<u8>> {
        core::iter::from_fn(|| self.take()).collect()
    }

    pub(super) fn take_words(&self) -> Vec<u32> {
        words(&self.take().unwrap())
    }

    /// Makes contact for a version, and returns the answer.
    pub(super) fn contact(&mut self, version: u32, connection: u32) -> Option<Vec<u32>> {
        let sint = if version >= 0x5_0000 { 2 } else { 0 };
        let message = bytes(&[14, 0, version, 0, sint, 0, 0, 0, 0, 0]);
        if self.post_at(0, connection, &message) != 0 {
            return None;
        }
        self.connection = connection;
        let answer = self.take().map(|answer| words(&answer));
        if let Some(answer) = &answer
            && version >= 0x5_0000
            && answer[2] & 0xff == 1
        {
            self.connection = answer[3];
        }
        answer
    }

    /// Makes a GPADL of all pages, with as many messages as it takes.
    pub(super) fn gpadl(&self, channel: u32, id: u32, pages: &SharedPages) {
        let numbers: Vec<u64> = (0..pages.page_count())
            .map(|index| pages.pfn(index).unwrap().get())
            .collect();
        let len = u32::try_from(8 + 8 * numbers.len()).unwrap();
        let mut message = [
            8,
            0,
            channel,
            id,
            len | 1 << 16,
            u32::try_from(4096 * numbers.len()).unwrap(),
            0,
        ]
        .to_vec();
        let (first, rest) = numbers.split_at(numbers.len().min(26));
        message.extend(first.iter().flat_map(|number| halves(*number)));
        self.post(&message);
        for part in rest.chunks(28) {
            let mut message = [9, 0, 0, id].to_vec();
            message.extend(part.iter().flat_map(|number| halves(*number)));
            self.post(&message);
        }
    }

    /// The message that opens a channel.
    pub(super) fn open_words(channel: u32, open_id: u32, gpadl: u32, downstream: u32) -> Vec<u32> {
        let mut message = [5, 0, channel, open_id, gpadl, 0, downstream].to_vec();
        message.resize(37, 0);
        message
    }

    pub(super) fn signal(&self, connection: u32) -> u64 {
        self.hypercall(0x1_005d, u64::from(connection))
    }

    /// Turns everything off and gives the pages back.
    pub(super) fn leave(self) {
        self.wrmsr(0x4000_0092, 0x1_0000);
        self.wrmsr(0x4000_0083, 0);
        self.wrmsr(0x4000_0082, 0);
        self.wrmsr(0x4000_0080, 0);
        self.wrmsr(0x4000_0001, 0);
        self.wrmsr(0x4000_0000, 0);
        let (host, platform) = (self.host, self.platform);
        drop(self);
        assert!(host.is_at_rest());
        assert_eq!(platform.live_pages(), 0);
        host.assert_no_violations();
        platform.assert_no_faults();
    }

    /// An address in the hypercall input page.
    pub(super) fn input_base(&self) -> (NonNull<u8>, u64) {
        (
            self.input.base(),
            self.platform.translate(self.input.base()).unwrap().get(),
        )
    }
}

pub(super) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn halves(number: u64) -> [u32; 2] {
    [
        u32::try_from(number & 0xffff_ffff).unwrap(),
        u32::try_from(number >> 32).unwrap(),
    ]
}
