//! The status: a table for people, one line of JSON for machines.
use alloc::string::String;
use core::fmt;
/// x
#[derive(Debug)]
pub struct Report {}
impl Report {
    /// x
    #[must_use]
    pub fn collect() -> Self {
        Self {}
    }
    /// x
    #[must_use]
    pub fn to_json(&self) -> String {
        String::new()
    }
}
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, ns) in crate::time::phases() {
            writeln!(f, "{name} {ns}")?;
        }
        Ok(())
    }
}
