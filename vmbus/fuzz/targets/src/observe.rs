//! What a run has met: [`note`] writes it down if somebody asked with [`recording`], for the test that every kind of
//! refusal is met.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

thread_local! {
    static MET: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
}

/// Notes that `value` of the enumeration `kind` was met: its name, without the fields.
pub(crate) fn note(kind: &str, value: &dyn Debug) {
    MET.with_borrow_mut(|met| {
        if let Some(met) = met {
            let text = format!("{value:?}");
            let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
            met.insert(format!("{kind}::{name}"));
        }
    });
}

/// Notes a number that went up, by its name.
pub(crate) fn note_counter(kind: &str, name: &str, value: u64) {
    if value > 0 {
        MET.with_borrow_mut(|met| {
            if let Some(met) = met {
                met.insert(format!("{kind}.{name}"));
            }
        });
    }
}

/// Whether somebody asked: then the heap grows by what was noted.
pub(crate) fn is_recording() -> bool {
    MET.with_borrow(Option::is_some)
}

/// Runs `work` and returns what it met.
pub fn recording(work: impl FnOnce()) -> BTreeSet<String> {
    MET.set(Some(BTreeSet::new()));
    work();
    MET.take().unwrap_or_default()
}
