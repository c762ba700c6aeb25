//! The model-specific registers of a vCPU, all at once.

use std::sync::OnceLock;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use tracing::debug;

use crate::error::{Doing, Error};

/// The time-stamp counter (Intel SDM Vol 4, table 2-2).
pub const IA32_TSC: u32 = 0x10;
/// When the local APIC's timer fires, as a value of the TSC (Intel SDM Vol 3 §12.5.4.1).
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Where a guest wants to be told the time of its boot: KVM writes that to the guest's memory when this is written, and else does
/// nothing (Linux, Documentation/virt/kvm/x86/msr.rst). So it is a command, and what it did is in the memory.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];

/// What KVM keeps for a guest and does not list: the MTRRs of variable ranges, of fixed ones, and their default type (Intel SDM Vol 3
/// §13.11.2), and which errors each bank of machine-check registers reports (IA32_MCi_CTL, §17.3.2.1).
fn unlisted() -> impl Iterator<Item = u32> {
    let mtrrs = (0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..0x270);
    mtrrs.chain([0x2ff]).chain((0..32).map(|bank| 0x400 + 4 * bank))
}

/// The numbers of the MSRs that make up a vCPU's state.
pub struct MsrNumbers {
    /// What KVM may be able to tell.
    candidates: Vec<u32>,
    /// What it did tell of the first vCPU that was asked.
    readable: OnceLock<Vec<u32>>,
}

impl MsrNumbers {
    /// Those that KVM lists, and those that it keeps and does not list.
    pub fn of(kvm: &Kvm) -> Result<Self, Error> {
        let list = kvm
            .get_msr_index_list()
            .doing("list the MSRs of a virtual machine")?;
        let mut candidates: Vec<u32> = list.as_slice().to_vec();
        candidates.extend(unlisted());
        candidates.push(IA32_TSC_DEADLINE);
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|index| !WALL_CLOCK.contains(index));
        Ok(Self {
            candidates,
            readable: OnceLock::new(),
        })
    }

    /// Reads them all.
    pub fn read(&self, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, Error> {
        let known = self.readable.get();
        let values = read(vcpu, known.unwrap_or(&self.candidates))?;
        // Two threads may have found it at the same time, and found the same.
        let _ = self
            .readable
            .get_or_init(|| values.iter().map(|msr| msr.index).collect());
        Ok(values)
    }
}

/// Reads the MSRs of `numbers` that can be read. KVM stops at the first that it cannot tell, and says how far it came
/// (KVM API, KVM_GET_MSRS); the next call goes on behind it.
fn read(vcpu: &VcpuFd, mut numbers: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut values = Vec::with_capacity(numbers.len());
    while !numbers.is_empty() {
        let some = &numbers[..numbers.len().min(KVM_MAX_MSR_ENTRIES)];
        let entries: Vec<_> = some.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs = list(&entries)?;
        let told = vcpu.get_msrs(&mut msrs).doing("read a vCPU's MSRs")?;
        values.extend_from_slice(&msrs.as_slice()[..told]);
        if let Some(untold) = some.get(told) {
            debug!("KVM lists MSR {untold:#x} and cannot read it");
        }
        numbers = &numbers[some.len().min(told + 1)..];
    }
    Ok(values)
}

/// Sets MSRs. KVM stops at the first that it refuses (KVM API, KVM_SET_MSRS). One that has the value already needs no setting, nor one
/// that this KVM does not know and that was 0, as at reset.
///
/// # Errors
/// KVM refuses a value that matters.
pub fn write<'a>(vcpu: &VcpuFd, msrs: impl Iterator<Item = &'a kvm_msr_entry>) -> Result<(), Error> {
    let entries: Vec<kvm_msr_entry> = msrs.copied().collect();
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let set = vcpu.set_msrs(&list(some)?).doing("set a vCPU's MSRs")?;
        if let Some(refused) = some.get(set)
            && get(vcpu, refused.index)?.unwrap_or(0) != refused.data
        {
            return Err(Error::MsrValue {
                index: refused.index,
                value: refused.data,
            });
        }
        rest = &rest[some.len().min(set + 1)..];
    }
    Ok(())
}

/// Reads one MSR; `None` if KVM does not know it.
pub fn get(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, Error> {
    let mut msrs = list(&[entry(index, 0)])?;
    let told = vcpu.get_msrs(&mut msrs).doing("read an MSR of a vCPU")?;
    Ok(msrs.as_slice()[..told].first().map(|msr| msr.data))
}

/// Sets one MSR.
pub fn set(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), Error> {
    write(vcpu, [entry(index, value)].iter())
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries).map_err(|_| Error::CpuidTooLong(entries.len()))
}
