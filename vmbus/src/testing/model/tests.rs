//! The model, driven by a guest that is made of literal bytes only.

mod guest;
mod protocol;

use guest::RawGuest;
