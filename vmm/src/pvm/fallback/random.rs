//! Random numbers for the guest's `rdrand` and `rdseed`, from the host kernel's generator.

/// 64 random bits, or `None` if the host has none to give without waiting, which the guest is told as the CPU would tell it.
pub(super) fn random() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes at most `bytes.len()` bytes to `bytes`, which lives throughout the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    (got == 8).then(|| u64::from_ne_bytes(bytes))
}
