//! The model, driven by a guest that is made of literal bytes only.

mod dynamic_memory;
mod guest;
mod misbehaviour;
mod protocol;
mod synic;
mod threads;
mod violations;

use guest::RawGuest;
