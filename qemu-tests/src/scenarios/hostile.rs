//! Scripts of the tests in which the host does what it should not, or the guest has to end in an awkward moment.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::gen2::Reboots;
use super::{Script, Seen};
use crate::vm::Vm;

/// The guest breaks its own rings (it has a host inside): it complains once of each, with channel and device, and of no other.
#[derive(Clone, Debug, Default)]
pub struct BrokenRings {
    broken: Vec<String>,
}

impl BrokenRings {
    const COMPLAINT: &str = " ends: the peer broke its ring: ";
}

impl Script for BrokenRings {
    fn mark(&mut self, _vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        if name == "ring-broken" {
            self.broken.push(value.to_owned());
        }
        Ok(())
    }

    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(!self.broken.is_empty(), "the guest has broken no ring");
        let complaints: Vec<&str> = seen
            .text
            .lines()
            .filter(|line| line.contains(Self::COMPLAINT))
            .collect();
        for broken in &self.broken {
            let who = format!("{broken},{}", Self::COMPLAINT);
            let count = complaints.iter().filter(|line| line.contains(&who)).count();
            ensure!(
                count == 1,
                "the guest complained {count} times of {broken}: {complaints:#?}"
            );
        }
        ensure!(
            complaints.len() == self.broken.len(),
            "the guest complained of other rings, too: {complaints:#?}"
        );
        figures.insert("broken rings".into(), complaints.len() as f64);
        Ok(())
    }
}

/// A panic must show where it came from, and tell the host the same.
#[derive(Clone, Copy, Debug)]
pub struct Backtraced;

impl Backtraced {
    /// Callers that there are at least: of the panic, of the test, of the list of tests, of what runs it.
    const CALLERS: usize = 3;

    fn addresses(text: &str) -> Vec<u64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("backtrace:"));
        let words = line.unwrap_or_default().split_whitespace();
        words
            .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect()
    }
}

impl Script for Backtraced {
    fn end(&mut self, seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let addresses = Self::addresses(&seen.text);
        ensure!(
            addresses.len() >= Self::CALLERS && addresses.iter().all(|address| *address != 0),
            "the backtrace has only {addresses:x?}"
        );
        let event = seen.outcome.events.iter().find(|(name, _)| name == "GUEST_PANICKED");
        let caller = event.and_then(|(_, data)| data.pointer("/info/arg2").and_then(Value::as_u64));
        ensure!(
            caller == addresses.first().copied(),
            "the host was told of {caller:x?}, the backtrace has {addresses:x?}"
        );
        Ok(())
    }
}

/// As [`Reboots`], and each time the guest was busy.
#[derive(Clone, Debug, Default)]
pub struct BusyReboots {
    reboots: Reboots,
    /// Requests that were answered before a reset, and those that were on their way.
    resets: Vec<(u64, u64)>,
}

impl Script for BusyReboots {
    fn event(&mut self, vm: &mut Vm, name: &str, data: &Value) -> Result<()> {
        self.reboots.event(vm, name, data)
    }

    fn mark(&mut self, vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        if name == "reset-busy" {
            let (answered, open) = value.split_once(' ').context("the mark has no two numbers")?;
            let (answered, open) = (answered.parse()?, open.parse()?);
            ensure!(
                answered > 0 && open > 0,
                "there was no traffic: {answered} requests answered, {open} on their way"
            );
            self.resets.push((answered, open));
        }
        self.reboots.mark(vm, name, value)
    }

    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(
            self.resets.len() >= 2,
            "the guest has told of {} resets",
            self.resets.len()
        );
        for (number, (answered, open)) in (1..).zip(&self.resets) {
            figures.insert(format!("reset {number}: answered before"), *answered as f64);
            figures.insert(format!("reset {number}: on their way"), *open as f64);
        }
        self.reboots.end(seen, figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_found_in_the_text() {
        let text = "PANIC in task\r\n  backtrace: 0xffffffff80001000 0x12\r\n  more";
        assert_eq!(Backtraced::addresses(text), [0xffff_ffff_8000_1000, 0x12]);
        assert!(Backtraced::addresses("  backtrace:\r\n").is_empty());
        assert!(Backtraced::addresses("no").is_empty());
    }

    #[test]
    fn each_broken_ring_has_its_complaint() {
        let script = || BrokenRings {
            broken: vec!["channel 5 of device a".into(), "channel 55 of device b".into()],
        };
        let end = |text: &str| {
            let seen = Seen {
                text: text.into(),
                ..Seen::default()
            };
            script().end(&seen, &mut BTreeMap::new())
        };
        let complaint = |who: &str| format!("WARN x, {who},{}index\n", BrokenRings::COMPLAINT);
        let (a, b) = (complaint("channel 5 of device a"), complaint("channel 55 of device b"));
        assert!(end(&format!("{a}{b}")).is_ok());
        assert!(end(&a).is_err(), "one is missing");
        assert!(end(&format!("{a}{b}{b}")).is_err(), "one is said twice");
        assert!(end(&format!("{a}{b}{}", complaint("channel 6 of device c"))).is_err());
    }
}
