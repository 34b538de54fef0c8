//! What an answer means: [`Verdict`].
//!
//! Statuses and sense data may contradict each other. The order here: an adapter that knows no such device is believed;
//! then sense data, if it is there and says something; then the device's status; then the adapter's.
//!
//! Sense data may be of an earlier command ("deferred", SPC-4 4.5.7): then this one was not executed, whatever became of the other.
//!
//! The status in the packet's header decides only where the adapter and the device call the command a success, and it an error: what may
//! not have been done is not reported as done. No host is known to say so. OpenVMM's `storvsp` makes that status of the adapter's, so
//! that it is 0 beside a success, and 0x80000005, a warning, beside an overrun; in reports of Linux's `storvsc` about Hyper-V the
//! error 0xc0000001 stands beside failures and beside overruns (0x12), whose count of bytes decides here. As guests, Linux, FreeBSD and
//! OpenVMM's `storvsc_driver` take a command's success from adapter and device alone.

use super::Error;
use super::protocol::{Executed, ScsiStatus, Sense, SenseKey, SrbStatus};

/// What to do about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is done: so many bytes.
    Done(u32),
    /// Send it again: at once, or after a pause if the device is busy. If it has been sent often enough, this is the error.
    Again { pause: bool, error: Error },
    /// It failed.
    Failed(Error),
}

/// An answer's meaning, and what it tells beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) verdict: Verdict,
    /// Something about the devices has changed: look again.
    pub(super) is_news: bool,
}

const fn again(error: Error) -> Verdict {
    Verdict::Again { pause: false, error }
}

const fn later(error: Error) -> Verdict {
    Verdict::Again { pause: true, error }
}

/// Tells what `executed` means for a command that asked for `asked` bytes.
pub(super) fn judge(executed: &Executed<'_>, asked: u32) -> Meaning {
    let mut is_news = false;
    let verdict = judge_inner(executed, asked, &mut is_news);
    Meaning { verdict, is_news }
}

fn judge_inner(executed: &Executed<'_>, asked: u32, is_news: &mut bool) -> Verdict {
    let Executed { srb, scsi, .. } = *executed;
    // Never more than was asked for, whatever the host says.
    let transferred = executed.transferred.min(asked);
    let failed = Error::Failed { srb, scsi };
    if matches!(srb, SrbStatus::SUCCESS | SrbStatus::DATA_OVERRUN)
        && matches!(scsi, ScsiStatus::GOOD | ScsiStatus::CONDITION_MET)
    {
        if srb == SrbStatus::SUCCESS && is_error(executed.status) {
            return again(Error::Contradicted {
                status: executed.status,
            });
        }
        return Verdict::Done(transferred);
    }
    if matches!(
        srb,
        SrbStatus::INVALID_LUN
            | SrbStatus::INVALID_TARGET
            | SrbStatus::INVALID_PATH
            | SrbStatus::NO_DEVICE
            | SrbStatus::NO_HBA
    ) {
        *is_news = true;
        return Verdict::Failed(Error::DiskGone);
    }
    if let Some(sense) = Sense::parse(executed.sense)
        && let Some(verdict) = judge_sense(&sense, is_deferred(executed.sense), transferred, is_news)
    {
        return verdict;
    }
    match scsi {
        ScsiStatus::BUSY | ScsiStatus::TASK_SET_FULL => return later(Error::Busy),
        ScsiStatus::RESERVATION_CONFLICT => return Verdict::Failed(Error::Reserved),
        ScsiStatus::TASK_ABORTED => return again(failed),
        _ => {}
    }
    match srb {
        SrbStatus::BUSY => later(Error::Busy),
        // Ended by somebody else's misfortune.
        SrbStatus::ABORTED | SrbStatus::BUS_RESET | SrbStatus::REQUEST_FLUSHED => again(failed),
        SrbStatus::TIMEOUT | SrbStatus::COMMAND_TIMEOUT | SrbStatus::SELECTION_TIMEOUT => later(failed),
        SrbStatus::PENDING => Verdict::Failed(Error::Protocol),
        SrbStatus::INVALID_REQUEST => Verdict::Failed(Error::Unsupported),
        _ => Verdict::Failed(failed),
    }
}

/// Returns true for a Windows status that is an error, and neither a success nor a warning.
const fn is_error(status: u32) -> bool {
    status >> 30 == 3
}

/// Returns true for sense data of an earlier command, which was called done: this one was not executed.
fn is_deferred(sense: &[u8]) -> bool {
    sense.first().is_some_and(|first| matches!(first & 0x7f, 0x71 | 0x73))
}

const fn judge_sense(sense: &Sense, is_deferred: bool, transferred: u32, is_news: &mut bool) -> Option<Verdict> {
    Some(match (sense.key, sense.code) {
        (SenseKey::NO_SENSE, (0, 0)) => return None,
        (SenseKey::RECOVERED_ERROR, _) if is_deferred => again(Error::Device(*sense)),
        // Somebody has to be told of it: sent again, this one would know nothing of it.
        (SenseKey::ABORTED_COMMAND, _) if is_deferred => Verdict::Failed(Error::Device(*sense)),
        (SenseKey::RECOVERED_ERROR, _) => Verdict::Done(transferred),
        (SenseKey::UNIT_ATTENTION, code) => {
            // Parameters or capacity, another medium, or the list of units has changed.
            *is_news |= matches!(code, (0x2a | 0x28 | 0x3f, _));
            again(Error::Device(*sense))
        }
        (SenseKey::NOT_READY, (0x3a, _)) => Verdict::Failed(Error::NotReady),
        (SenseKey::NOT_READY, _) => later(Error::NotReady),
        (SenseKey::MEDIUM_ERROR, _) => Verdict::Failed(Error::Medium { lba: sense.information }),
        (SenseKey::ILLEGAL_REQUEST, (0x20 | 0x24 | 0x26, _)) => Verdict::Failed(Error::Unsupported),
        (SenseKey::ILLEGAL_REQUEST, (0x21, _)) => {
            *is_news = true;
            Verdict::Failed(Error::OutOfRange)
        }
        (SenseKey::ILLEGAL_REQUEST, (0x25, _)) => {
            *is_news = true;
            Verdict::Failed(Error::DiskGone)
        }
        (SenseKey::DATA_PROTECT, (0x27, 0x07)) => Verdict::Failed(Error::NoSpace),
        (SenseKey::DATA_PROTECT, _) => Verdict::Failed(Error::WriteProtected),
        (SenseKey::ABORTED_COMMAND, _) => again(Error::Device(*sense)),
        _ => Verdict::Failed(Error::Device(*sense)),
    })
}
