//! The driver against a controller that does as a test says.
#![expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

mod adapters;
mod adversity;
mod bus;
mod commands;
mod fake;
mod finding;
mod life;
mod transfers;
mod turns;
