//! libfuzzer's entry to the target "balloon".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("balloon", data));
