//! `fuzz_targets::kmcl` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::kmcl(data));
