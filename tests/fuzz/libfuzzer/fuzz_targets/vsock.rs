//! libfuzzer's entry to the target "vsock".
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| posada_fuzz::run("vsock", data));
