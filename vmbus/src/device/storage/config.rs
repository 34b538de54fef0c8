//! What a controller's channel is to be like: [`Config`].

use crate::kmcl::Instance;
use crate::protocol::{Guid, class};

/// What a controller's channel is to be like. The default suits a disk under moderate load; it takes about 300 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The class of the offer: [`SCSI`](super::SCSI) or [`IDE`](super::IDE).
    pub class: Guid,
    /// Which offer of the class.
    pub instance: Instance,
    /// How many commands may be in flight or in line at a time, on all disks of the controller.
    pub commands: u32,
    /// Data pages of each of the two rings.
    pub ring_pages: usize,
    /// The longest transfer of one command in bytes, if the host allows as much; at most 1 MiB, at least a page.
    pub max_transfer: u32,
    /// How many buffers there are for calls that copy, and for what the driver asks for itself; at least 1.
    pub copy_buffers: usize,
    /// Bytes of each; at least a page.
    pub copy_buffer_len: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            class: class::STORAGE,
            instance: Instance::Any,
            // Miri takes long for each.
            commands: if cfg!(all(test, miri)) { 64 } else { 128 },
            ring_pages: 16,
            max_transfer: 1024 * 1024,
            copy_buffers: 2,
            copy_buffer_len: 64 * 1024,
        }
    }
}
