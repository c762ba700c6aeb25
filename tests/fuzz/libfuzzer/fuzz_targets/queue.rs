//! libfuzzer's entry to the target "queue".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("queue", data));
