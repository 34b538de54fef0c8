//! The protocol: what a client's packets do.
//!
//! The order of the initialisation is enforced as OpenVMM does: BEGIN, versions until one is known, PROPERTIES, END; anything else is
//! answered with 0xC0000184. A packet that is wrong in itself (no completion asked for, too short, memory in several ranges) is not answered at
//! all, and nothing more is read from the ring until the channel is opened again, which is what that host's worker does when it
//! stops.

use core::sync::atomic::Ordering;

use super::backend::{Direction, RequestMemory};
use super::fault::{self, Effect, Facts};
use super::state::{Held, Inner, Packet, Phase, Violation, Work};
use super::target::{self, Cdb};
use super::wire::{Answer, HEADER, Incoming, SRB_LONG, SRB_SHORT, Srb, operation as op, status, status_of};
use super::{Address, Outcome, ReportLuns, Reset, Version, opcode, srb_status};
use crate::fallible::TryPush;
use crate::kmcl::Error;

/// A reset's unit attention: "SCSI bus reset occurred".
const BUS_RESET_OCCURRED: (u8, u8) = (0x29, 0x02);

impl Inner {
    /// Takes a packet of the client.
    pub(super) fn receive(&self, packet: Packet) {
        let request = Incoming::copy(packet.payload());
        if let Err(violation) = self.check(&packet, &request) {
            self.note(violation);
            packet.abandon_and_stop();
            return;
        }
        let operation = request.operation();
        if operation == op::EXECUTE_SRB && self.session().phase == Phase::Ready {
            self.receive_command(packet, &request);
            return;
        }
        let effect = self.effect(&Facts {
            operation,
            command: None,
        });
        let mut answer = self.control(&request);
        if let Some(Effect::Status(status)) = effect {
            answer.put(8, &status.to_le_bytes());
        }
        self.finish(packet, answer, effect, (Address::default(), 0));
    }

    /// Checks what has to be right whatever the operation.
    fn check(&self, packet: &Packet, request: &Incoming) -> Result<(), Violation> {
        if !packet.wants_completion() {
            return Err(Violation::NoCompletionRequested);
        }
        let operation = request.operation();
        let least = match operation {
            op::EXECUTE_SRB if self.session().has_long_requests() => HEADER + SRB_LONG,
            op::EXECUTE_SRB => HEADER + SRB_SHORT,
            op::QUERY_PROTOCOL_VERSION => HEADER + 4,
            op::CREATE_SUB_CHANNELS => HEADER + 2,
            op::RESET_LUN
            | op::RESET_ADAPTER
            | op::RESET_BUS
            | op::BEGIN_INITIALIZATION
            | op::END_INITIALIZATION
            | op::QUERY_PROPERTIES => HEADER,
            _ => return Err(Violation::UnknownOperation(operation)),
        };
        if request.len() < least {
            return Err(Violation::ShortPacket {
                operation,
                len: request.len(),
            });
        }
        Ok(())
    }

    fn effect(&self, facts: &Facts) -> Option<Effect> {
        if !self.has_faults.load(Ordering::Relaxed) {
            return None;
        }
        let mut faults = self.faults.lock(self.platform);
        let effect = fault::take(&mut faults, facts);
        self.has_faults.store(!faults.is_empty(), Ordering::Relaxed);
        effect
    }

    /// Does what an operation other than a SCSI command asks for.
    fn control(&self, request: &Incoming) -> Answer {
        let operation = request.operation();
        let mut session = self.session();
        let known = Version::from_wire(request.version()).filter(|version| *version <= self.config.max_version);
        let status = match (session.phase, operation) {
            (Phase::Begin, op::BEGIN_INITIALIZATION) => {
                session.phase = Phase::Version;
                status::SUCCESS
            }
            (Phase::Version, op::QUERY_PROTOCOL_VERSION) => match known {
                Some(version) => {
                    session.version = version;
                    session.phase = Phase::Properties;
                    status::SUCCESS
                }
                None => status::REVISION_MISMATCH,
            },
            (Phase::Properties, op::QUERY_PROPERTIES) => {
                session.phase = Phase::End;
                status::SUCCESS
            }
            (Phase::End | Phase::Ready, op::CREATE_SUB_CHANNELS) if session.has_long_requests() => {
                match request.sub_channels() {
                    0 => status::SUCCESS,
                    _ => status::INVALID_PARAMETER,
                }
            }
            (Phase::End, op::END_INITIALIZATION) => {
                session.phase = Phase::Ready;
                status::SUCCESS
            }
            (Phase::Ready, op::RESET_LUN | op::RESET_ADAPTER | op::RESET_BUS) => {
                self.reset();
                status::SUCCESS
            }
            _ => {
                self.note(Violation::OutOfOrder(operation));
                status::INVALID_DEVICE_STATE
            }
        };
        let is_done = status == status::SUCCESS;
        self.set_session(session);
        let answer = Answer::new(request, status);
        match operation {
            op::QUERY_PROTOCOL_VERSION if status != status::INVALID_DEVICE_STATE => {
                answer.with_version(request.version())
            }
            op::QUERY_PROPERTIES if is_done => {
                // There can be more channels, and none is offered.
                let more_channels = session.has_long_requests().then_some(0);
                answer.with_properties(more_channels, self.config.max_transfer_bytes)
            }
            _ => answer,
        }
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        if self.config.reset == Reset::Ignored {
            return;
        }
        let held = core::mem::take(&mut *self.held.lock(self.platform));
        for held in held {
            held.answer_with(self, Outcome::of(srb_status::BUS_RESET, 0));
        }
        for (_, disk) in &*self.disks.lock(self.platform) {
            disk.raise_attention(BUS_RESET_OCCURRED.0, BUS_RESET_OCCURRED.1);
        }
    }

    fn address(&self, srb: &Srb) -> Address {
        Address {
            path: self.config.forced_path().unwrap_or(srb.path),
            target: srb.target,
            lun: srb.lun,
        }
    }

    /// Takes a SCSI command.
    fn receive_command(&self, mut packet: Packet, request: &Incoming) {
        let srb = request.srb();
        let (address, cdb) = (self.address(&srb), Cdb(srb.cdb));
        if let Some(count) = self.commands.get(usize::from(cdb.opcode())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Err(violation) = self.check_memory(&mut packet, &srb) {
            self.note(violation);
            packet.abandon_and_stop();
            return;
        }
        if let Some(outcome) = self.refusal(&srb) {
            complete(packet, &answer_of(request, &outcome));
            return;
        }
        let mut effect = self.effect(&Facts {
            operation: op::EXECUTE_SRB,
            command: Some((address, cdb)),
        });
        if effect.is_none() && self.holds_all.load(Ordering::Relaxed) {
            effect = Some(Effect::Hold);
        }
        let outcome = match effect {
            Some(Effect::Hold) => {
                self.hold(packet, (address, cdb.opcode()), Work::Execute(srb));
                return;
            }
            Some(Effect::Answer(outcome)) => outcome,
            Some(Effect::ExecuteAndAnswer(outcome)) => {
                self.execute(&mut packet, &srb, None);
                outcome
            }
            Some(Effect::Data(ref data)) => {
                with_memory(&mut packet, &srb, |memory| target::false_data(data.bytes(), memory))
            }
            Some(Effect::Short(limit)) => self.execute(&mut packet, &srb, Some(limit)),
            Some(Effect::Status(status)) => self.execute(&mut packet, &srb, None).with_status(status),
            _ => self.execute(&mut packet, &srb, None),
        };
        self.finish(packet, answer_of(request, &outcome), effect, (address, cdb.opcode()));
    }

    /// Refuses a request whose fields cannot be.
    fn refusal(&self, srb: &Srb) -> Option<Outcome> {
        let expected = if self.session().has_long_requests() {
            SRB_LONG
        } else {
            SRB_SHORT
        };
        let (violation, srb_status) = if usize::from(srb.length) != expected {
            (Violation::SrbLength(srb.length), srb_status::BAD_SRB_BLOCK_LENGTH)
        } else if !(1..=16).contains(&srb.cdb_length) {
            (Violation::CdbLength(srb.cdb_length), srb_status::INVALID_REQUEST)
        } else if srb.direction > 2 || (srb.transfer > 0 && srb.direction == 2) {
            (Violation::Direction(srb.direction), srb_status::INVALID_REQUEST)
        } else if srb.transfer > self.config.max_transfer_bytes {
            let len = u64::from(srb.transfer);
            (Violation::TransferTooLong(len), srb_status::INVALID_REQUEST)
        } else {
            return None;
        };
        self.note(violation);
        Some(Outcome::of(srb_status, 0))
    }

    /// Checks the memory that comes with a request. From then on it is pinned.
    fn check_memory(&self, packet: &mut Packet, srb: &Srb) -> Result<(), Violation> {
        let len = srb.transfer as usize;
        let too_short = |memory| Violation::MemoryTooShort {
            transfer: srb.transfer,
            memory,
        };
        if !packet.has_external_data() {
            return if len == 0 { Ok(()) } else { Err(too_short(0)) };
        }
        match packet.external_data() {
            Ok(external) if external.len() < len => Err(too_short(external.len())),
            Ok(_) => Ok(()),
            Err(Error::InvalidExternalData { ranges, .. }) if ranges > 1 => Err(Violation::TooManyRanges(ranges)),
            Err(Error::InvalidExternalData { len, .. }) => Err(Violation::TransferTooLong(len as u64)),
            Err(_) => Err(Violation::MemoryNotLent),
        }
    }

    /// Executes a command.
    pub(super) fn execute(&self, packet: &mut Packet, srb: &Srb, limit: Option<u32>) -> Outcome {
        let cdb = Cdb(srb.cdb);
        let disk = self.disk(self.address(srb));
        with_memory(packet, srb, |memory| match (cdb.opcode(), &disk) {
            (opcode::REPORT_LUNS, _) => self.report_luns(srb, cdb, memory),
            (_, Some(disk)) => target::execute(disk, cdb, memory, limit),
            (opcode::INQUIRY, None) => target::inquiry_of_nothing(srb.lun, cdb, memory),
            _ => Outcome::no_such_unit(),
        })
    }

    /// Answers REPORT LUNS for a path and target.
    fn report_luns(&self, srb: &Srb, cdb: Cdb, memory: &RequestMemory<'_>) -> Outcome {
        if self.config.report_luns == ReportLuns::Refused {
            return Outcome::illegal(0x20);
        }
        let mut is_there = [false; 256];
        for (address, _) in &*self.disks.lock(self.platform) {
            // The path as the request has it, even where another one counts: so do hosts.
            if (address.path, address.target) == (srb.path, srb.target)
                && let Some(entry) = is_there.get_mut(usize::from(address.lun))
            {
                *entry = true;
            }
        }
        target::report_luns(&is_there, cdb, memory)
    }

    /// Keeps a request until it is released.
    fn hold(&self, packet: Packet, (address, opcode): (Address, u8), work: Work) {
        let held = Held {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            packet,
            address,
            opcode,
            work,
        };
        // Without memory the packet is dropped, which answers it with nothing.
        if self.held.lock(self.platform).try_push(held).is_err() {
            log::warn!(target: "vmbus::host::storage", "no memory to hold a request");
        }
    }

    /// Does what remains to be done for a request that was held.
    pub(super) fn go_on(&self, mut held: Held) {
        let answer = match held.work {
            Work::Send(answer) => answer,
            Work::Execute(srb) => {
                let outcome = self.execute(&mut held.packet, &srb, None);
                answer_of(&Incoming::copy(held.packet.payload()), &outcome)
            }
        };
        complete(held.packet, &answer);
    }

    /// Answers a request with an outcome.
    pub(super) fn send(&self, packet: Packet, outcome: Outcome) {
        let answer = answer_of(&Incoming::copy(packet.payload()), &outcome);
        complete(packet, &answer);
    }

    /// Sends an answer, or what a fault makes of it.
    fn finish(&self, packet: Packet, mut answer: Answer, effect: Option<Effect>, what: (Address, u8)) {
        match effect {
            Some(Effect::Hold | Effect::HoldAnswer) => self.hold(packet, what, Work::Send(answer)),
            Some(Effect::NeverAnswer) => packet.abandon(),
            Some(Effect::AnswerTwice) => {
                let (channel, id) = (packet.channel().uncounted(), packet.transaction_id());
                complete(packet, &answer);
                stray(&channel, id, &answer);
            }
            Some(Effect::StrayAnswer(id)) => {
                stray(packet.channel(), id, &answer);
                complete(packet, &answer);
            }
            Some(Effect::Rewrite(rewrite)) => {
                rewrite.apply(&mut answer);
                complete(packet, &answer);
            }
            _ => complete(packet, &answer),
        }
    }
}

/// Runs `work` on the memory that came with a request, cut to what is to be moved. It was checked when the request came.
fn with_memory(packet: &mut Packet, srb: &Srb, work: impl FnOnce(&RequestMemory<'_>) -> Outcome) -> Outcome {
    let direction = match srb.direction {
        0 => Direction::FromClient,
        1 => Direction::ToClient,
        _ => Direction::Unsaid,
    };
    let external = packet.external_data().ok();
    work(&RequestMemory::new(external.as_ref(), direction, srb.transfer as usize))
}

fn answer_of(request: &Incoming, outcome: &Outcome) -> Answer {
    let status = outcome.status.unwrap_or(status_of(outcome.srb_status));
    Answer::new(request, status).with_outcome(outcome)
}

fn complete(packet: Packet, answer: &Answer) {
    if let Err(refused) = packet.complete(answer.as_bytes()) {
        log::warn!(target: "vmbus::host::storage", "no answer: {refused}");
    }
}

fn stray(channel: &crate::kmcl::Channel<super::state::Context>, id: u64, answer: &Answer) {
    if let Err(error) = channel.send_stray_completion(id, answer.as_bytes()) {
        log::warn!(target: "vmbus::host::storage", "no second answer: {error}");
    }
}
