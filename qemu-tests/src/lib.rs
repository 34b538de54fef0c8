//! Makes images, brings up hosts, runs the guest.

pub mod image;
