//! The channel API over the in-kernel host. The names of most tests begin with the statement of KMCL's documentation that they
//! show: `ppc` process packet callbacks, `ssr` synchronous request, `gpm` GPADL from an MDL, `epp` the packet callback, `ged`
//! external data.

mod epp;
mod faults;
mod ged;
mod gpm;
mod initialise;
mod lifecycle;
mod meanwhile;
mod misbehave;
mod objects;
mod order;
mod packets;
mod ppc;
mod promises;
mod received;
mod restoring;
mod saving;
mod ssr;
mod support;
mod table;
mod threads;
