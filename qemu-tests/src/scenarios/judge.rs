//! What makes a run a success.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{Expect, Seen};
use crate::guest::Verdict;
use crate::vm::Ending;

/// QEMU's exit statuses: `isa-debug-exit` makes `value << 1 | 1` of what the guest writes.
pub mod status {
    /// The guest wrote 0x10: all is well.
    pub const PASS: i32 = 33;
    /// The guest wrote 0x11: something failed.
    pub const FAIL: i32 = 35;
    /// The guest wrote 0x12: it panicked.
    pub const PANIC: i32 = 37;
    /// The guest wrote 0x13: there is no Hyper-V.
    pub const NO_HYPERV: i32 = 39;
}

/// Compares a run with what was expected.
///
/// # Errors
///
/// The first thing that differs, with what the guest said last.
pub fn judge(expect: Expect, seconds: u64, seen: &Seen) -> Result<()> {
    check(expect, seconds, seen).map_err(|error| {
        anyhow::anyhow!(
            "{error:#}\nthe guest's last lines:\n{}",
            crate::process::tail(&seen.text, 8)
        )
    })
}

fn check(expect: Expect, seconds: u64, seen: &Seen) -> Result<()> {
    let outcome = &seen.outcome;
    if let Some(Verdict::Fail(reason)) = &outcome.verdict
        && matches!(expect, Expect::Pass | Expect::SilentPass)
    {
        bail!("the guest says: {reason}");
    }
    if outcome.killed == Some(Ending::Deadline) {
        bail!(
            "the guest did not end within {seconds} s; its verdict was {:?}",
            outcome.verdict
        );
    }
    let wanted = match expect {
        Expect::Pass | Expect::SilentPass => status::PASS,
        Expect::Panic => status::PANIC,
        Expect::NoHyperv => status::NO_HYPERV,
        Expect::PanicOff | Expect::PowerOff | Expect::Reset(_) | Expect::NoKernel | Expect::Script => 0,
    };
    ensure!(
        outcome.status == Some(wanted),
        "QEMU's exit status is {}, expected {wanted}",
        describe(outcome.status)
    );
    if let Some(line) = outcome.unknown.first() {
        bail!("the guest sent a machine line that nobody understands: @@ {line}");
    }
    match expect {
        Expect::Pass => ensure!(outcome.verdict == Some(Verdict::Pass), "the guest gave no verdict"),
        Expect::SilentPass => {}
        Expect::NoHyperv => {
            ensure!(outcome.verdict.is_some(), "the guest gave no verdict");
            // The signature that QEMU's emulator has in CPUID leaf 0x40000000.
            ensure!(
                seen.text.contains("TCGTCGTCGTCG"),
                "the guest does not say what it found instead of Hyper-V"
            );
        }
        Expect::Panic => panic_report(seen)?,
        Expect::PanicOff => {
            panic_report(seen)?;
            ended_by_guest(seen, "guest-shutdown")?;
        }
        Expect::PowerOff => ended_by_guest(seen, "guest-shutdown")?,
        Expect::Reset(way) => {
            ended_by_guest(seen, "guest-reset")?;
            // Each way says so before it is tried: the last one that was is the one that worked.
            let last = seen
                .text
                .lines()
                .rev()
                .find_map(|line| line.trim().strip_prefix("reset by "));
            ensure!(last == Some(way), "the machine was reset by {last:?}, expected {way}");
        }
        Expect::NoKernel => ensure!(
            outcome.verdict.is_none() && outcome.report.is_none(),
            "a kernel started that should not have"
        ),
        Expect::Script => {}
    }
    if !matches!(expect, Expect::Panic | Expect::PanicOff) {
        let panicked = outcome.events.iter().any(|(name, _)| name == "GUEST_PANICKED");
        ensure!(!panicked, "the guest reported a crash");
    }
    Ok(())
}

/// QEMU must say that the machine's end was the guest's wish, and the guest that it was done.
fn ended_by_guest(seen: &Seen, reason: &str) -> Result<()> {
    ensure!(seen.outcome.verdict.is_some(), "the guest gave no verdict");
    let event = seen.outcome.events.iter().find(|(name, _)| name == "SHUTDOWN");
    let Some((_, data)) = event else {
        bail!("QEMU reported no SHUTDOWN")
    };
    let told = data.get("reason").and_then(Value::as_str);
    ensure!(told == Some(reason), "the machine ended by {told:?}, expected {reason}");
    Ok(())
}

/// The five numbers that the guest announced (`@@ mark crash P0 P1 P2 P3 P4`) must be those that QEMU got.
fn panic_report(seen: &Seen) -> Result<()> {
    let announced = seen
        .outcome
        .marks
        .iter()
        .find(|(name, _)| name == "crash")
        .map(|(_, value)| value.as_str());
    let Some(announced) = announced else {
        bail!("the guest did not announce its crash report (@@ mark crash P0 P1 P2 P3 P4)")
    };
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let announced: Vec<Option<u64>> = announced.split_whitespace().map(number).collect();
    let event = seen.outcome.events.iter().find(|(name, _)| name == "GUEST_PANICKED");
    let Some((_, data)) = event else {
        bail!("QEMU reported no GUEST_PANICKED")
    };
    let got: Vec<Option<u64>> = (1..=5)
        .map(|index| data.pointer(&format!("/info/arg{index}")).and_then(Value::as_u64))
        .collect();
    ensure!(
        announced.len() == 5 && announced.iter().all(Option::is_some),
        "the announced crash report is not five hexadecimal numbers"
    );
    ensure!(
        announced == got,
        "the guest announced {announced:x?}, but QEMU got {got:x?}"
    );
    ensure!(got.iter().any(|value| *value != Some(0)), "the crash report is empty");
    Ok(())
}

fn describe(status: Option<i32>) -> String {
    let text = |number: i32| match number {
        status::PASS => "33 (pass)".to_owned(),
        status::FAIL => "35 (the guest failed)".to_owned(),
        status::PANIC => "37 (the guest panicked)".to_owned(),
        status::NO_HYPERV => "39 (the guest found no Hyper-V)".to_owned(),
        0 => "0 (powered off, or a triple fault)".to_owned(),
        other => other.to_string(),
    };
    status.map_or_else(|| "none (killed by a signal)".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Outcome;
    use serde_json::json;

    fn seen(verdict: Option<Verdict>, status: Option<i32>) -> Seen {
        Seen {
            outcome: Outcome {
                verdict,
                status,
                ..Outcome::default()
            },
            text: "a\nlast words\n".to_owned(),
        }
    }

    fn failure(expect: Expect, seen: &Seen) -> String {
        judge(expect, 10, seen).unwrap_err().to_string()
    }

    #[test]
    fn a_pass_needs_verdict_and_status() {
        assert!(judge(Expect::Pass, 10, &seen(Some(Verdict::Pass), Some(33))).is_ok());
        assert!(failure(Expect::Pass, &seen(None, Some(33))).contains("no verdict"));
        assert!(failure(Expect::Pass, &seen(Some(Verdict::Pass), Some(0))).contains("status is 0"));
        assert!(failure(Expect::Pass, &seen(Some(Verdict::Pass), None)).contains("signal"));
        let text = failure(Expect::Pass, &seen(Some(Verdict::Fail("no offers".into())), Some(35)));
        assert!(text.contains("no offers") && text.contains("last words"), "{text}");
        assert!(judge(Expect::SilentPass, 10, &seen(None, Some(33))).is_ok());
        assert!(judge(Expect::SilentPass, 10, &seen(None, Some(35))).is_err());
    }

    #[test]
    fn other_reasons_to_fail() {
        let mut late = seen(Some(Verdict::Pass), None);
        late.outcome.killed = Some(Ending::Deadline);
        assert!(failure(Expect::Pass, &late).contains("within 10 s"));
        let mut odd = seen(Some(Verdict::Pass), Some(33));
        odd.outcome.unknown.push("verdict passed".into());
        assert!(failure(Expect::Pass, &odd).contains("verdict passed"));
        let mut crashed = seen(Some(Verdict::Pass), Some(33));
        crashed.outcome.events.push(("GUEST_PANICKED".into(), Value::Null));
        assert!(failure(Expect::Pass, &crashed).contains("crash"));
    }

    #[test]
    fn a_panic_must_carry_the_announced_report() {
        let mut run = seen(None, Some(37));
        assert!(failure(Expect::Panic, &run).contains("announce"));
        run.outcome
            .marks
            .push(("crash".into(), "0x1 0x2 0x3 0x4 0xffffffff81000000".into()));
        assert!(failure(Expect::Panic, &run).contains("no GUEST_PANICKED"));
        let info =
            json!({"type": "hyper-v", "arg1": 1, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 0xffff_ffff_8100_0000_u64});
        run.outcome
            .events
            .push(("GUEST_PANICKED".into(), json!({"action": "run", "info": info})));
        assert!(judge(Expect::Panic, 10, &run).is_ok());
        run.outcome.marks[0].1 = "0x1 0x2 0x3 0x4 0x5".into();
        assert!(failure(Expect::Panic, &run).contains("but QEMU got"));
        run.outcome.status = Some(33);
        assert!(failure(Expect::Panic, &run).contains("expected 37"));
    }

    #[test]
    fn an_end_by_the_guest_is_told_by_both_sides() {
        let mut run = seen(Some(Verdict::Fail("no Hyper-V".into())), Some(0));
        assert!(failure(Expect::PowerOff, &run).contains("no SHUTDOWN"));
        let event = |reason: &str| ("SHUTDOWN".to_owned(), json!({"guest": true, "reason": reason}));
        run.outcome.events.push(event("guest-reset"));
        assert!(failure(Expect::PowerOff, &run).contains("expected guest-shutdown"));
        run.text = "reset by ACPI's register\r\nreset by a triple fault\r\n".to_owned();
        assert!(judge(Expect::Reset("a triple fault"), 10, &run).is_ok());
        assert!(failure(Expect::Reset("ACPI's register"), &run).contains("triple fault"));
        run.outcome.events = vec![event("guest-shutdown")];
        assert!(judge(Expect::PowerOff, 10, &run).is_ok());
        run.outcome.verdict = None;
        assert!(failure(Expect::PowerOff, &run).contains("no verdict"));
        assert!(judge(Expect::NoKernel, 10, &run).is_ok());
        run.outcome.verdict = Some(Verdict::Pass);
        assert!(failure(Expect::NoKernel, &run).contains("should not"));
    }

    #[test]
    fn without_hyperv_the_guest_says_what_it_found() {
        let mut run = seen(Some(Verdict::Fail("no Hyper-V".into())), Some(39));
        assert!(failure(Expect::NoHyperv, &run).contains("found"));
        run.text.push_str("hypervisor: TCGTCGTCGTCG");
        assert!(judge(Expect::NoHyperv, 10, &run).is_ok());
    }
}
