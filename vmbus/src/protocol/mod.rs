//! Wire types only: what VMBus puts into messages and rings.

pub mod packet;
