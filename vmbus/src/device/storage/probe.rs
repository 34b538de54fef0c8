//! Finding out what there is on a controller: [`Probe`].
//!
//! Hosts leave LUN 0 out, list units sparsely, answer REPORT LUNS or not, report a "unit attention" to the first command, and
//! claim an older standard than they follow; so everything beyond INQUIRY and READ CAPACITY is asked for, and may fail.

use super::Error;
use super::disk::{Flags, Found, Info};
use super::link::{Inner, Unit};
use super::operation::{Operation, Plan};
use super::protocol::{Address, Direction};
use super::scsi::{self, Capacity, Cdb, DeviceKind, Inquiry, UnmapLimits};
use crate::Deadline;
use crate::fallible::Shared;
use crate::kmcl;
use crate::memory::{DmaBuffer, Mdl};

/// Where the list of units is not to be had, so many are tried.
const PROBED_LUNS: u8 = 64;
/// Bytes of a list of 256 units.
const LUN_LIST_LEN: u32 = 8 + 8 * 256;
/// Bytes of a page of vital product data that are asked for.
const PAGE_LEN: u16 = 252;
/// Block sizes that there are: from 512 bytes to 64 KiB.
const BLOCK_SHIFTS: core::ops::RangeInclusive<u32> = 9..=16;

/// A set of units.
pub(super) struct Units([u64; 4]);

impl Units {
    fn insert(&mut self, lun: u8) {
        if let Some(word) = self.0.get_mut(usize::from(lun >> 6)) {
            *word |= 1 << (lun & 63);
        }
    }

    pub(super) fn contains(&self, lun: u8) -> bool {
        self.0
            .get(usize::from(lun >> 6))
            .is_some_and(|word| word >> (lun & 63) & 1 != 0)
    }
}

impl Error {
    /// Whether the controller, and not one device, is the matter.
    pub(super) const fn ends_scan(&self) -> bool {
        matches!(
            self,
            Self::ControllerGone | Self::TimedOut | Self::WouldDeadlock | Self::OutOfMemory(_) | Self::Channel(_)
        )
    }
}

/// A look at a controller.
pub(super) struct Probe<'a> {
    inner: &'a Shared<Inner>,
    is_ide: bool,
    target: u8,
    deadline: Deadline,
    buffer: DmaBuffer,
}

impl<'a> Probe<'a> {
    /// Begins, with one of the channel's buffers; `deadline` is absolute.
    pub(super) fn new(inner: &'a Shared<Inner>, is_ide: bool, deadline: Deadline) -> Result<Self, Error> {
        // The instance of an accelerated IDE disk names its target in the second field.
        let target = if is_ide {
            inner.channel.interface_instance().to_wire()[4]
        } else {
            0
        };
        Ok(Self {
            inner,
            is_ide,
            target,
            deadline,
            buffer: copy_buffer(inner, LUN_LIST_LEN as usize, deadline)?,
        })
    }

    fn unit(&self, lun: u8) -> Result<Shared<Unit>, Error> {
        let address = Address {
            path: 0,
            target: self.target,
            lun,
        };
        let mut unit = Unit::new(self.inner.clone(), address);
        unit.is_probed = true;
        Ok(Shared::try_new(unit)?)
    }

    /// Executes a command without data.
    fn execute(&self, unit: &Shared<Unit>, cdb: Cdb) -> Result<u32, Error> {
        let plan = Plan::Command {
            cdb,
            direction: Direction::None,
        };
        Operation::start(unit, plan, Mdl::empty(), 0).wait(self.deadline)
    }

    /// Executes a command that brings data; returns what came.
    fn ask<'b>(&mut self, unit: &Shared<Unit>, cdb: Cdb, target: &'b mut [u8]) -> Result<&'b [u8], Error> {
        // What was there before is not the device's.
        target.fill(0);
        let len = target.len();
        self.buffer.write_at(0, target).map_err(|_| Error::OutOfRange)?;
        let memory = self.buffer.slice(0, len).map_err(|_| Error::OutOfRange)?;
        let plan = Plan::Command {
            cdb,
            direction: Direction::In,
        };
        let mut operation = Operation::start(unit, plan, memory.into(), 0);
        let result = operation.wait(self.deadline);
        if operation.is_lent() {
            // The host still has it.
            self.buffer = copy_buffer(self.inner, LUN_LIST_LEN as usize, self.deadline)?;
        }
        let transferred = (result? as usize).min(len);
        self.buffer.read_at(0, target).map_err(|_| Error::OutOfRange)?;
        Ok(target.get(..transferred).unwrap_or_default())
    }

    /// Returns the units that there may be.
    pub(super) fn units(&mut self) -> Result<Units, Error> {
        let mut units = Units([0; 4]);
        if self.is_ide {
            units.insert(0);
            return Ok(units);
        }
        let unit = self.unit(0)?;
        let mut list = [0; LUN_LIST_LEN as usize];
        match self.ask(&unit, Cdb::report_luns(LUN_LIST_LEN), &mut list) {
            // A list has a header at least.
            Ok(bytes) if bytes.len() >= 8 => scsi::luns(bytes).for_each(|lun| units.insert(lun)),
            Err(error) if error.ends_scan() => return Err(error),
            _ => (0..PROBED_LUNS).for_each(|lun| units.insert(lun)),
        }
        Ok(units)
    }

    /// Asks a unit what it is; `None` if there is none, or none that has blocks.
    pub(super) fn identify(&mut self, lun: u8) -> Result<Option<Found>, Error> {
        let unit = self.unit(lun)?;
        let mut bytes = [0; Inquiry::LEN as usize];
        let inquiry = match self.ask(&unit, Cdb::inquiry(Inquiry::LEN), &mut bytes) {
            Ok(bytes) => Inquiry::parse(bytes),
            Err(Error::DiskGone | Error::Unsupported) => None,
            Err(error) => return Err(error),
        };
        let Some(inquiry) = inquiry else { return Ok(None) };
        if matches!(inquiry.kind, DeviceKind::Other(_)) {
            return Ok(None);
        }
        // Takes away what the device has to say about the time before.
        match self.execute(&unit, Cdb::test_unit_ready()) {
            Err(Error::DiskGone) => return Ok(None),
            Err(error) if error.ends_scan() => return Err(error),
            _ => {}
        }
        let capacity = match self.capacity(&unit) {
            Err(Error::DiskGone) => return Ok(None),
            // A drive without a medium.
            Err(Error::NotReady) if inquiry.is_removable => Capacity {
                blocks: 0,
                block_len: 2048,
                physical_exponent: 0,
            },
            capacity => capacity?,
        };
        let block_shift = capacity.block_len.trailing_zeros();
        if !capacity.block_len.is_power_of_two() || !BLOCK_SHIFTS.contains(&block_shift) {
            log::warn!(target: "vmbus::storage", "LUN {lun} has blocks of {} bytes", capacity.block_len);
            return Ok(None);
        }
        let mut flags = Flags::empty();
        let mode = self.mode(&unit)?;
        flags.set(
            Flags::WRITE_PROTECTED,
            inquiry.kind == DeviceKind::Optical || scsi::is_write_protected(&mode),
        );
        flags.set(Flags::WRITE_THROUGH, scsi::knows_write_through(&mode));
        flags.set(Flags::REMOVABLE, inquiry.is_removable);
        let mut found = Found {
            address: unit.address,
            info: Info {
                kind: inquiry.kind,
                vendor: inquiry.vendor,
                product: inquiry.product,
                revision: inquiry.revision,
                serial: None,
                identity: None,
                physical_block_len: capacity.block_len << capacity.physical_exponent.min(8),
            },
            #[expect(clippy::cast_possible_truncation, reason = "checked above")]
            block_shift: block_shift as u8,
            blocks: capacity.blocks,
            flags,
            unmap: UnmapLimits::default(),
            max_blocks: 0,
        };
        self.pages(&unit, &mut found)?;
        Ok(Some(found))
    }

    fn capacity(&mut self, unit: &Shared<Unit>) -> Result<Capacity, Error> {
        let mut bytes = [0; Capacity::LEN_10 as usize];
        let ten = self.ask(unit, Cdb::read_capacity_10(), &mut bytes)?;
        let ten = Capacity::parse_10(ten).ok_or(Error::Protocol)?;
        let mut bytes = [0; Capacity::LEN_16 as usize];
        let sixteen = self.ask(unit, Cdb::read_capacity_16(Capacity::LEN_16), &mut bytes);
        match sixteen.map(Capacity::parse_16) {
            Ok(Some(sixteen)) if sixteen.block_len != 0 => Ok(sixteen),
            Err(error) if error.ends_scan() || error == Error::DiskGone => Err(error),
            // Not known there: which is all right for a disk that the short form can tell of.
            _ if ten.blocks <= u64::from(u32::MAX) => Ok(ten),
            Ok(_) => Err(Error::Protocol),
            Err(error) => Err(error),
        }
    }

    /// Asks for the header of the mode pages; zeros if it is not to be had.
    fn mode(&mut self, unit: &Shared<Unit>) -> Result<[u8; 4], Error> {
        let mut bytes = [0; 4];
        match self.ask(unit, Cdb::mode_sense(4), &mut bytes) {
            Ok(header) if header.len() == 4 => Ok(bytes),
            Err(error) if error.ends_scan() => Err(error),
            _ => Ok([0; 4]),
        }
    }

    /// Asks for a page of vital product data; nothing if it is not to be had.
    fn page<'b>(
        &mut self,
        unit: &Shared<Unit>,
        page: u8,
        bytes: &'b mut [u8; PAGE_LEN as usize],
    ) -> Result<&'b [u8], Error> {
        match self.ask(unit, Cdb::inquiry_page(page, PAGE_LEN), bytes) {
            Err(error) if error.ends_scan() => Err(error),
            result => Ok(result.unwrap_or_default()),
        }
    }

    fn pages(&mut self, unit: &Shared<Unit>, found: &mut Found) -> Result<(), Error> {
        let mut bytes = [0; PAGE_LEN as usize];
        let mut has = [false; 4];
        for page in scsi::vpd_pages(self.page(unit, 0, &mut bytes)?) {
            match page {
                0x80 => has[0] = true,
                0x83 => has[1] = true,
                0xb0 => has[2] = true,
                0xb2 => has[3] = true,
                _ => {}
            }
        }
        if has[0] {
            found.info.serial = scsi::parse_serial(self.page(unit, 0x80, &mut bytes)?);
        }
        if has[1] {
            found.info.identity = scsi::parse_identity(self.page(unit, 0x83, &mut bytes)?);
        }
        if has[2]
            && let Some((max_blocks, unmap)) = scsi::parse_block_limits(self.page(unit, 0xb0, &mut bytes)?)
        {
            found.max_blocks = max_blocks;
            if has[3] && scsi::parse_provisioning(self.page(unit, 0xb2, &mut bytes)?) {
                found.unmap = unmap;
            }
        }
        Ok(())
    }
}

/// Takes one of the channel's buffers; a fresh one if all are in use, or lent to a host that never answers; or waits for one.
pub(super) fn copy_buffer(inner: &Inner, len: usize, deadline: Deadline) -> Result<DmaBuffer, Error> {
    let channel = &inner.channel;
    let buffer = channel.wait_until(deadline, || match spare_buffer(inner, len) {
        Err(kmcl::Error::TooManyPackets) => None,
        result => Some(result),
    })?;
    Ok(buffer?)
}

/// As [`copy_buffer`], without waiting: [`kmcl::Error::TooManyPackets`] if there is none.
pub(super) fn spare_buffer(inner: &Inner, len: usize) -> Result<DmaBuffer, kmcl::Error> {
    match inner.channel.allocate_bounce_buffer(len) {
        // All in use, or not as long as a block of this disk.
        Err(kmcl::Error::TooManyPackets | kmcl::Error::InvalidExternalData { .. }) => {
            DmaBuffer::allocate(inner.channel.platform(), len).map_err(|_| kmcl::Error::TooManyPackets)
        }
        result => result,
    }
}
