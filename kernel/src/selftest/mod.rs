//! Tests inside the guest.
use core::fmt;
/// x
#[derive(Debug)]
pub struct Failure {
    /// x
    pub name: &'static str,
}
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
/// x
///
/// # Errors
/// x
pub fn run<'a>(_: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    Ok(())
}
