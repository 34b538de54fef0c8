//! What a controller is told to do wrong: [`Fault`], a [`Filter`] for requests and an [`Effect`] on them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::opcode as op;
use super::target::Cdb;
use super::wire::{Answer, operation};
use super::{Address, Outcome};
use crate::fallible::{OutOfMemory, ReservedVec, Shared, try_box, try_vec_zeroed};

/// What is known of a request when faults are looked for.
pub(super) struct Facts {
    pub(super) operation: u32,
    pub(super) command: Option<(Address, Cdb)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    All,
    Any,
    Operation(u32),
    Command(u8),
    Reads,
    Writes,
    Flushes,
}

/// Which requests a fault meets.
#[derive(Clone, Debug)]
pub struct Filter {
    kind: Kind,
    address: Option<Address>,
    blocks: Option<Range<u64>>,
}

impl Filter {
    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            address: None,
            blocks: None,
        }
    }

    /// Any request: SCSI commands, and what initialises and resets the controller.
    #[must_use]
    pub const fn all() -> Self {
        Self::of(Kind::All)
    }

    /// Any SCSI command.
    #[must_use]
    pub const fn any() -> Self {
        Self::of(Kind::Any)
    }

    /// Requests of this [`operation`] of the protocol: those of the initialisation, say.
    #[must_use]
    pub const fn operation(operation: u32) -> Self {
        Self::of(Kind::Operation(operation))
    }

    /// SCSI commands with this [`opcode`](super::opcode).
    #[must_use]
    pub const fn command(opcode: u8) -> Self {
        Self::of(Kind::Command(opcode))
    }

    /// Reads of any length.
    #[must_use]
    pub const fn reads() -> Self {
        Self::of(Kind::Reads)
    }

    /// Writes of any length.
    #[must_use]
    pub const fn writes() -> Self {
        Self::of(Kind::Writes)
    }

    /// Commands that flush the cache.
    #[must_use]
    pub const fn flushes() -> Self {
        Self::of(Kind::Flushes)
    }

    /// Only those for this disk.
    #[must_use]
    pub const fn at(mut self, address: Address) -> Self {
        self.address = Some(address);
        self
    }

    /// Only those that touch one of these blocks.
    #[must_use]
    pub const fn blocks(mut self, blocks: Range<u64>) -> Self {
        self.blocks = Some(blocks);
        self
    }

    fn meets(&self, facts: &Facts) -> bool {
        let opcode = facts.command.map(|(_, cdb)| cdb.opcode());
        let is_kind = match self.kind {
            Kind::All => true,
            Kind::Any => facts.operation == operation::EXECUTE_SRB,
            Kind::Operation(operation) => facts.operation == operation,
            Kind::Command(command) => opcode == Some(command),
            Kind::Reads => matches!(opcode, Some(op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16)),
            Kind::Writes => matches!(opcode, Some(op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16)),
            Kind::Flushes => matches!(opcode, Some(op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16)),
        };
        let is_there = self
            .address
            .is_none_or(|wanted| facts.command.is_some_and(|(address, _)| address == wanted));
        let touches = self.blocks.as_ref().is_none_or(|wanted| {
            let named = facts.command.and_then(|(_, cdb)| cdb.blocks());
            named.is_some_and(|(first, count)| first < wanted.end && wanted.start < first.saturating_add(count))
        });
        is_kind && is_there && touches
    }
}

type Rewriter = Shared<Box<dyn Fn(&mut Answer) + Send + Sync>>;

/// What happens to a request.
#[derive(Clone)]
#[non_exhaustive]
pub enum Effect {
    /// It is not executed, and answered like this.
    Answer(Outcome),
    /// It is executed, and answered like this.
    ExecuteAndAnswer(Outcome),
    /// It is answered with this status in the packet's header: for operations that are no SCSI commands.
    Status(u32),
    /// A read or write moves only so many bytes, and succeeds.
    Short(u32),
    /// It is not executed; these are its data, as far as the client's memory reaches: see [`Effect::data`].
    Data(FalseData),
    /// It is executed when the test releases it.
    Hold,
    /// It is executed, and answered when the test releases it.
    HoldAnswer,
    /// It is never answered. Its memory stays lent until the channel ends.
    NeverAnswer,
    /// It is answered twice.
    AnswerTwice,
    /// Before its answer comes another one, for a request with this id.
    StrayAnswer(u64),
    /// Its answer's bytes are changed: see [`Effect::rewrite`].
    Rewrite(Rewrite),
}

/// What a command brings instead of what the disk has.
#[derive(Clone)]
pub struct FalseData(Shared<Vec<u8>>);

impl FalseData {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A change of an answer's bytes.
#[derive(Clone)]
pub struct Rewrite(Rewriter);

impl Rewrite {
    pub(super) fn apply(&self, answer: &mut Answer) {
        (self.0)(answer);
    }
}

impl Effect {
    /// Has a command bring these bytes instead of what the disk has, and succeed: a page that lies, say, or a capacity that cannot be.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn data(bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let mut copy = try_vec_zeroed(bytes.len())?;
        copy.copy_from_slice(bytes);
        Ok(Self::Data(FalseData(Shared::try_new(copy)?)))
    }

    /// Changes the answer's bytes, and its length, as `change` does.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn rewrite(change: impl Fn(&mut Answer) + Send + Sync + 'static) -> Result<Self, OutOfMemory> {
        let boxed: Box<dyn Fn(&mut Answer) + Send + Sync> = try_box(change)?;
        Ok(Self::Rewrite(Rewrite(Shared::try_new(boxed)?)))
    }
}

impl fmt::Debug for Rewrite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Rewrite").finish_non_exhaustive()
    }
}

impl fmt::Debug for FalseData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("FalseData").field(&self.0.len()).finish()
    }
}

impl fmt::Debug for Effect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(outcome) => formatter.debug_tuple("Answer").field(outcome).finish(),
            Self::ExecuteAndAnswer(outcome) => formatter.debug_tuple("ExecuteAndAnswer").field(outcome).finish(),
            Self::Status(status) => formatter.debug_tuple("Status").field(status).finish(),
            Self::Short(len) => formatter.debug_tuple("Short").field(len).finish(),
            Self::Data(data) => data.fmt(formatter),
            Self::Hold => formatter.write_str("Hold"),
            Self::HoldAnswer => formatter.write_str("HoldAnswer"),
            Self::NeverAnswer => formatter.write_str("NeverAnswer"),
            Self::AnswerTwice => formatter.write_str("AnswerTwice"),
            Self::StrayAnswer(id) => formatter.debug_tuple("StrayAnswer").field(id).finish(),
            Self::Rewrite(_) => formatter.write_str("Rewrite"),
        }
    }
}

/// Something that goes wrong: once, unless it is told otherwise.
#[derive(Clone, Debug)]
pub struct Fault {
    filter: Filter,
    effect: Effect,
    skip: u32,
    left: Option<u32>,
}

impl Fault {
    /// Has the first request that the filter meets go wrong.
    #[must_use]
    pub const fn new(filter: Filter, effect: Effect) -> Self {
        Self {
            filter,
            effect,
            skip: 0,
            left: Some(1),
        }
    }

    /// Lets so many requests pass first.
    #[must_use]
    pub const fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// Meets so many requests.
    #[must_use]
    pub const fn times(mut self, requests: u32) -> Self {
        self.left = Some(requests);
        self
    }

    /// Meets all requests.
    #[must_use]
    pub const fn always(mut self) -> Self {
        self.left = None;
        self
    }
}

/// Finds the first fault that meets a request, and what it does.
pub(super) fn take(faults: &mut Vec<Fault>, facts: &Facts) -> Option<Effect> {
    let index = faults.iter_mut().position(|fault| {
        if !fault.filter.meets(facts) {
            return false;
        }
        let passes = fault.skip > 0;
        fault.skip = fault.skip.saturating_sub(1);
        !passes && fault.left != Some(0)
    })?;
    let fault = faults.get_mut(index)?;
    fault.left = fault.left.map(|left| left - 1);
    let effect = fault.effect.clone();
    if fault.left == Some(0) {
        drop(faults.take_at(index));
    }
    Some(effect)
}
