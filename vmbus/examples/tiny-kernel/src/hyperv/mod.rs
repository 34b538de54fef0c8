//! All that `vmbus` needs of this kernel ([`platform`], [`pool`]), and the loop that uses it ([`run`]).

pub(crate) mod platform;
pub(crate) mod pool;
pub(crate) mod run;
