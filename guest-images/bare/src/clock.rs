//! Time: the CPU's time-stamp counter, and its frequency where CPUID tells it.

use core::arch::x86_64::{__cpuid, _rdtsc};

/// The time-stamp counter.
pub fn now() -> u64 {
    // SAFETY: every 64-bit CPU has the instruction, and it is allowed in user mode (CR4.TSD is clear).
    unsafe { _rdtsc() }
}

/// Cycles of the time-stamp counter in a second, if the hypervisor's timing leaf or the CPU's own tells.
pub fn frequency() -> Option<u64> {
    /// The hypervisor's timing information: kHz in EAX (a convention of VMware's that others follow).
    const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    /// The CPU's crystal clock in Hz (ECX) and the counter's ratio to it, EBX/EAX (Intel SDM Vol 3 §20.7.3).
    const CPU_TIMING: u32 = 0x15;
    if __cpuid(0x4000_0000).eax >= HYPERVISOR_TIMING {
        let khz = __cpuid(HYPERVISOR_TIMING).eax;
        if khz != 0 {
            return Some(u64::from(khz) * 1000);
        }
    }
    if __cpuid(0).eax < CPU_TIMING {
        return None;
    }
    let timing = __cpuid(CPU_TIMING);
    let hertz = u64::from(timing.ecx) * u64::from(timing.ebx);
    hertz.checked_div(timing.eax.into()).filter(|&hertz| hertz != 0)
}

/// Cycles as ns, if the frequency is known.
pub fn nanoseconds(cycles: u64) -> Option<u64> {
    let ns = u128::from(cycles) * 1_000_000_000 / u128::from(frequency()?);
    u64::try_from(ns).ok()
}
