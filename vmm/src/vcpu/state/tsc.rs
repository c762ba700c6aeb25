//! The time-stamp counter of a vCPU, and the timer that goes by it.
//!
//! A guest's TSC is the host's, scaled, plus an offset (Linux, Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET). The offset is
//! set, and not the MSR: a value of the MSR that is less than a second from what KVM expects is taken for an attempt to set
//! all vCPUs' TSCs alike, and not set; and vCPUs that are restored one after the other would get counters as far apart.

use std::ptr;
use std::sync::OnceLock;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use libc::c_ulong;
use tracing::warn;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{VcpuState, msrs};
use crate::error::{Doing, Error};

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` and the next one (Linux, include/uapi/linux/kvm.h). kvm-ioctls has them for
/// vCPUs on Arm only.
const KVM_SET_DEVICE_ATTR: c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: c_ulong = 0x4018_aee2;

/// KVM scales no TSC that differs by less than this from the host's (kvm.ko's parameter tsc_tolerance_ppm).
const TOLERANCE_PPM: u64 = 250;

/// The offset of a vCPU's TSC; `None` where KVM does not tell.
pub fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0;
    access(vcpu, KVM_GET_DEVICE_ATTR, &mut offset).ok()?;
    Some(offset)
}

fn access(vcpu: &VcpuFd, request: c_ulong, offset: &mut u64) -> Result<(), errno::Error> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: ptr::from_mut(offset) as u64,
        flags: 0,
    };
    // SAFETY: the descriptor is a vCPU's; KVM reads the attribute's description, and reads or writes the 8 bytes at `addr`, which are
    // `offset`, borrowed for as long as this takes.
    match unsafe { ioctl_with_ref(vcpu, request, &attribute) } {
        0 => Ok(()),
        _ => errno::errno_result(),
    }
}

/// Has the TSC count as quickly as it did.
///
/// # Errors
/// The host's is another one, and its CPU cannot scale it.
pub fn set_frequency(vcpu: &VcpuFd, wanted: u32) -> Result<(), Error> {
    let host = vcpu.get_tsc_khz().doing("read the TSC's frequency")?;
    if u64::from(host.abs_diff(wanted)) * 1_000_000 <= u64::from(host) * TOLERANCE_PPM {
        return Ok(());
    }
    vcpu.set_tsc_khz(wanted)
        .map_err(|_| Error::TscFrequency { wanted, host })
}

/// Lets the TSC go on from where it was. `shift` is by how much the offsets of all vCPUs change; who comes first says it.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState, shift: &OnceLock<u64>) -> Result<(), Error> {
    let Some(saved) = state.msr(msrs::IA32_TSC) else {
        return Ok(());
    };
    match (state.tsc_offset, offset(vcpu)) {
        (Some(old), Some(current)) => {
            let now = msrs::get(vcpu, msrs::IA32_TSC)?.unwrap_or(0);
            // What the TSC would be without an offset is `now - current`.
            let right = saved.wrapping_sub(now).wrapping_add(current);
            let shift = shift.get_or_init(|| right.wrapping_sub(old));
            let mut new = old.wrapping_add(*shift);
            access(vcpu, KVM_SET_DEVICE_ATTR, &mut new).doing("set a vCPU's TSC")?;
        }
        _ => msrs::set(vcpu, msrs::IA32_TSC, saved)?,
    }
    restore_deadline(vcpu, state, saved)
}

/// Starts the timer, where it runs. One that has fired is 0, and KVM stops a timer when told 0.
///
/// kvm-pvm shows every guest the host's own TSC. Where that is behind the saved one, because the host has been started since, the timer
/// fires when the time that it had left is over.
fn restore_deadline(vcpu: &VcpuFd, state: &VcpuState, saved: u64) -> Result<(), Error> {
    let Some(deadline) = state.msr(msrs::IA32_TSC_DEADLINE) else {
        return Ok(());
    };
    let now = msrs::get(vcpu, msrs::IA32_TSC)?.unwrap_or(saved);
    let behind = saved.saturating_sub(now);
    // What vCPUs are saved after each other is far less than a second.
    if behind <= u64::from(state.tsc_khz) * 1000 {
        return msrs::set(vcpu, msrs::IA32_TSC_DEADLINE, deadline);
    }
    warn!(
        "this host cannot set a guest's TSC, and its own is behind the snapshot's: a guest that takes its time from the TSC sees it stand still"
    );
    let deadline = match deadline {
        0 => 0,
        running => running.saturating_sub(behind).max(1),
    };
    msrs::set(vcpu, msrs::IA32_TSC_DEADLINE, deadline)
}
