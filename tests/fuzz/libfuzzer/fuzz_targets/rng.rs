//! libfuzzer's entry to the target "rng".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("rng", data));
