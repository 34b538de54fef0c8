//! What a test orders from a dynamic-memory device, and what it learns of it.

use alloc::vec::Vec;
use std::sync::MutexGuard;

use super::super::bytes::join;
use super::super::locked;
use super::{Command, Config, Control, Phase, Shared, Status};

impl Control {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        locked(&self.shared)
    }

    /// Orders the guest to give up pages: in parts, until it has given them all or says that it has no more.
    pub fn balloon(&self, pages: u64) {
        self.lock().commands.push_back(Command::Balloon(pages));
    }

    /// Orders to give back pages that the guest has given up, the lowest first.
    pub fn unballoon(&self, pages: u64) {
        self.lock().commands.push_back(Command::UnballoonPages(pages));
    }

    /// Orders to give back any ranges (first page, number), also some that the guest never gave.
    pub fn unballoon_ranges(&self, ranges: &[(u64, u64)]) {
        self.lock().commands.push_back(Command::Unballoon(ranges.to_vec()));
    }

    /// Orders a hot add of a range (first page, number), in a region if one is given.
    pub fn hot_add(&self, range: (u64, u64), region: Option<(u64, u64)>) {
        self.lock().commands.push_back(Command::HotAdd { range, region });
    }

    /// Sends any bytes as a message, in any phase.
    pub fn send_raw(&self, message: &[u8]) {
        self.lock().commands.push_back(Command::Raw(message.to_vec()));
    }

    /// Tells the guest the largest page number that it will ever have.
    pub fn send_information(&self, last_page: u64) {
        let mut shared = self.lock();
        let body = join(&[
            &[0; 4],
            &16_u32.to_le_bytes(),
            &[0; 4],
            &8_u32.to_le_bytes(),
            &last_page.to_le_bytes(),
        ]);
        let message = shared.message(12, &body);
        shared.commands.push_back(Command::Raw(message));
    }

    /// Changes what the device is like, from the next opening on.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.lock().config);
    }

    /// Returns where the conversation is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Returns the version that was agreed on.
    #[must_use]
    pub fn version(&self) -> Option<u32> {
        self.lock().version
    }

    /// Returns the versions that the guest asked for, in order.
    #[must_use]
    pub fn asked_versions(&self) -> Vec<u32> {
        self.lock().asked_versions.clone()
    }

    /// Returns what the guest said it can: the flags, the least pages it needs, its last page.
    #[must_use]
    pub fn capabilities(&self) -> Option<[u64; 3]> {
        self.lock().capabilities
    }

    /// Returns the status reports so far.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        self.lock().statuses.clone()
    }

    /// Returns how many pages the guest has given up and not got back.
    #[must_use]
    pub fn ballooned_pages(&self) -> u64 {
        self.lock().ballooned_pages()
    }

    /// Returns the ranges (first page, number) that the guest has given up and not got back.
    #[must_use]
    pub fn ballooned_ranges(&self) -> Vec<(u64, u64)> {
        self.lock()
            .ballooned
            .iter()
            .map(|(first, count)| (*first, *count))
            .collect()
    }

    /// Returns the answers to hot adds: pages and result.
    #[must_use]
    pub fn hot_adds(&self) -> Vec<(u32, u32)> {
        self.lock().hot_adds.clone()
    }

    /// Returns how many balloon and unballoon responses came.
    #[must_use]
    pub fn responses(&self) -> (u32, u32) {
        let shared = self.lock();
        (shared.balloon_responses, shared.unballoon_responses)
    }
}
