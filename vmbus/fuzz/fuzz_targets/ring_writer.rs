//! `fuzz_targets::ring_writer` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::ring_writer(data));
