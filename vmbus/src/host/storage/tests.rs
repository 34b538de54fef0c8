//! A client that knows nothing but offsets: raw packets on a plain channel, with the numbers of the specifications.

mod commands;
mod data;
mod faults;
mod memory_disk;
mod protocol;
mod round_trips;
mod support;
mod threads;
