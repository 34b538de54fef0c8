//! Guest memory that the host holds: GPADLs, from header and bodies to the teardown.

use alloc::format;
use alloc::vec::Vec;

use super::super::State;
use super::super::bytes::{join, low32, to_usize, u16_at, u32_at, u64_at};
use super::super::config::Personality;
use super::UNSUCCESSFUL;

/// What `OpenVMM` answers to a bad GPADL.
const OPENVMM_GPADL_ERROR: u32 = 0x8000_ffff;

/// A range of guest memory, as a GPADL or a packet describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// The length in bytes.
    pub len_bytes: u32,
    /// The offset of the first byte in the first page.
    pub offset: u32,
    /// The pages.
    pub page_numbers: Vec<u64>,
}

impl GuestRange {
    /// How many pages a range of that length and offset takes.
    pub(in super::super) fn page_count(len_bytes: u32, offset: u32) -> usize {
        to_usize((u64::from(len_bytes) + u64::from(offset)).div_ceil(4096))
    }

    /// Cuts `count` ranges out of 64-bit words. `None` if the words are not exactly enough.
    pub(in super::super) fn parse_words(count: usize, words: &[u64]) -> Option<Vec<Self>> {
        let (ranges, rest) = Self::parse_front(count, words)?;
        rest.is_empty().then_some(ranges)
    }

    fn parse_front(count: usize, mut words: &[u64]) -> Option<(Vec<Self>, &[u64])> {
        let mut ranges = Vec::new();
        for _ in 0..count {
            let (head, rest) = words.split_first()?;
            let (len_bytes, offset) = (low32(*head), low32(*head >> 32));
            let (pages, rest) = rest.split_at_checked(Self::page_count(len_bytes, offset))?;
            ranges.push(Self {
                len_bytes,
                offset,
                page_numbers: pages.to_vec(),
            });
            words = rest;
        }
        Some((ranges, words))
    }
}

/// Memory that the guest shows to the host for longer than a packet.
#[derive(Clone, Debug)]
pub(in super::super) struct Gpadl {
    pub(in super::super) channel: u32,
    range_count: usize,
    /// The length that the header names, in words; it only has 16 bits.
    named_words: usize,
    words: Vec<u64>,
    /// Empty until the last body has come.
    pub(in super::super) ranges: Vec<GuestRange>,
}

impl Gpadl {
    pub(in super::super) fn page_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|range| range.page_numbers.iter().copied())
    }
}

impl State {
    pub(super) fn gpadl_header(&mut self, message: &[u8]) {
        let (channel, id) = (u32_at(message, 8), u32_at(message, 12));
        let (named_len, range_count) = (u16_at(message, 16), u16_at(message, 18));
        match self.server.channels.get(&channel) {
            None => {
                self.violation(format!("GPADL {id} for channel {channel}, which does not exist"));
                return;
            }
            // The guest could not know yet: no answer.
            Some(entry) if entry.is_rescinded => return,
            Some(_) => {}
        }
        if id == 0 || self.server.gpadls.contains_key(&id) {
            self.violation(format!("GPADL id {id} is zero or in use (G7)"));
            self.refuse_gpadl(channel, id);
            return;
        }
        if !message.len().is_multiple_of(4) || !(message.len() - 20).is_multiple_of(8) || !named_len.is_multiple_of(8) {
            self.violation(format!(
                "GPADL {id}: a header of {} bytes for {named_len}",
                message.len()
            ));
            self.refuse_gpadl(channel, id);
            return;
        }
        if message.len() > 20 + 27 * 8 {
            self.violation(format!("GPADL {id}: more than 26 page numbers in the header (G1)"));
        }
        let gpadl = Gpadl {
            channel,
            range_count: usize::from(range_count),
            named_words: usize::from(named_len) / 8,
            words: Vec::new(),
            ranges: Vec::new(),
        };
        self.server.gpadls.insert(id, gpadl);
        self.add_to_gpadl(id, &message[20..]);
    }

    pub(super) fn gpadl_body(&mut self, message: &[u8]) {
        let id = u32_at(message, 12);
        match self.server.gpadls.get(&id) {
            None => {
                let is_known_race = self.server.channels.values().any(|channel| channel.is_rescinded);
                if !is_known_race {
                    self.violation(format!("a body for GPADL {id}, which was not begun"));
                }
            }
            Some(gpadl) if !gpadl.ranges.is_empty() => {
                self.violation(format!("an extra body for GPADL {id}: QEMU ends at that (G1)"));
            }
            Some(_) if message.len() <= 16 || !(message.len() - 16).is_multiple_of(8) => {
                self.violation(format!("GPADL {id}: a body of {} bytes", message.len()));
            }
            Some(_) => self.add_to_gpadl(id, &message[16..]),
        }
    }

    fn add_to_gpadl(&mut self, id: u32, bytes: &[u8]) {
        let personality = self.config.personality;
        let Some(gpadl) = self.server.gpadls.get_mut(&id) else {
            return;
        };
        gpadl.words.extend(bytes.chunks_exact(8).map(|word| u64_at(word, 0)));
        let channel = gpadl.channel;
        let (have, named) = (gpadl.words.len(), gpadl.named_words);
        // The real end follows from the ranges. The named length has 16 bits: Hyper-V goes on if a range is too long for it.
        let is_long = gpadl.words.first().is_some_and(|head| low32(*head) / 4096 > 8190);
        match GuestRange::parse_front(gpadl.range_count, &gpadl.words) {
            Some((ranges, [])) if !ranges.is_empty() => {
                if have % 0x2000 != named % 0x2000 {
                    self.violation(format!("GPADL {id}: {have} words, the header names {named}"));
                }
                self.finish_gpadl(channel, id, ranges);
            }
            None if have < named || (is_long && personality == Personality::HyperV) => {}
            _ => {
                self.violation(format!(
                    "GPADL {id}: {have} words do not fit its ranges, the header names {named}"
                ));
                self.server.gpadls.remove(&id);
                self.refuse_gpadl(channel, id);
            }
        }
    }

    fn finish_gpadl(&mut self, channel: u32, id: u32, ranges: Vec<GuestRange>) {
        let mut problem = None;
        for range in &ranges {
            if range.len_bytes == 0 || range.offset >= 4096 {
                problem = Some(format!(
                    "GPADL {id}: {} bytes at offset {}",
                    range.len_bytes, range.offset
                ));
            }
            let missing = range
                .page_numbers
                .iter()
                .find(|number| !self.has_guest_page(**number * 4096));
            if let Some(number) = missing {
                problem = Some(format!("GPADL {id}: page {number:#x} is not guest memory"));
            }
        }
        let is_qemu = self.config.personality == Personality::Qemu;
        let is_plain = ranges.len() == 1 && ranges[0].offset == 0 && ranges[0].len_bytes.is_multiple_of(4096);
        if is_qemu && !is_plain {
            // Dropped without an answer.
            self.violation(format!(
                "GPADL {id}: not one range of whole pages, which is all that QEMU takes"
            ));
            self.server.gpadls.remove(&id);
            return;
        }
        if let Some(problem) = problem {
            self.violation(problem);
            self.server.gpadls.remove(&id);
            self.refuse_gpadl(channel, id);
            return;
        }
        if self.reply_is_failure(8) {
            self.server.gpadls.remove(&id);
        } else if let Some(gpadl) = self.server.gpadls.get_mut(&id) {
            gpadl.ranges = ranges;
        }
        self.answer_gpadl(channel, id, 0);
    }

    fn refuse_gpadl(&mut self, channel: u32, id: u32) {
        match self.config.personality {
            Personality::Qemu => {}
            Personality::OpenVmm => self.answer_gpadl(channel, id, OPENVMM_GPADL_ERROR),
            Personality::HyperV => self.answer_gpadl(channel, id, UNSUCCESSFUL),
        }
    }

    fn answer_gpadl(&mut self, channel: u32, id: u32, status: u32) {
        let answer = join(&[
            &[10, 0, 0, 0, 0, 0, 0, 0],
            &channel.to_le_bytes(),
            &id.to_le_bytes(),
            &status.to_le_bytes(),
        ]);
        self.reply(8, answer);
    }

    pub(super) fn gpadl_teardown(&mut self, message: &[u8]) {
        let (channel, id) = (u32_at(message, 8), u32_at(message, 12));
        match self.server.gpadls.get(&id) {
            None => {
                let is_rescinded = self
                    .server
                    .channels
                    .get(&channel)
                    .is_some_and(|entry| entry.is_rescinded);
                if !is_rescinded {
                    self.violation(format!("teardown of GPADL {id}, which does not exist"));
                }
                return;
            }
            Some(gpadl) if gpadl.channel != channel => {
                self.violation(format!(
                    "teardown of GPADL {id} of channel {}, not {channel}",
                    gpadl.channel
                ));
                return;
            }
            Some(_) => {}
        }
        let openings = self.server.channels.values().filter_map(|entry| entry.opening.as_ref());
        if openings.into_iter().any(|opening| opening.gpadl == id) {
            self.violation(format!(
                "teardown of GPADL {id} while channel {channel} is open with it (G3)"
            ));
            return;
        }
        // With a withheld answer, the host still holds the memory.
        if !self.reply_is_withheld(11) {
            self.server.gpadls.remove(&id);
        }
        self.reply(11, join(&[&[12, 0, 0, 0, 0, 0, 0, 0], &id.to_le_bytes()]));
    }
}
