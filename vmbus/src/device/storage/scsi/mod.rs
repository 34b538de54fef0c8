//! SCSI, as far as a disk needs it: commands ([`Cdb`]) and the data that they bring ([`Inquiry`], [`Capacity`], ...).
//!
//! Commands are made only of what the caller says, data is parsed only as far as it came; no function here fails on any bytes.
//! Sources: the public drafts of SPC-4 and SBC-3 (T10).

mod cdb;
mod data;
#[cfg(test)]
mod tests;

pub use cdb::{Cdb, unmap_parameters};
pub use data::{
    Capacity, DeviceKind, Identity, Inquiry, MAX_IDENTITY, Text, UnmapLimits, is_write_protected, knows_write_through,
    luns, parse_block_limits, parse_identity, parse_provisioning, parse_serial, vpd_pages,
};
