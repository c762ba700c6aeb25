//! libfuzzer's entry to the target "net".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("net", data));
