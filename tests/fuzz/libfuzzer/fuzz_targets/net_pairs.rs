//! libfuzzer's entry to the target "net-pairs".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("net-pairs", data));
