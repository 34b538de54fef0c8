//! `fuzz_targets::host_actions` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::host_actions(data));
