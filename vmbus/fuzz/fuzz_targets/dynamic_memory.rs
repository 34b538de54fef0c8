//! `fuzz_targets::dynamic_memory` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::dynamic_memory(data));
