//! A machine without its CPUs and devices: KVM's VM, guest memory, interrupt controllers and timer.
//!
//! Building goes in the order in which KVM does not wait for a grace period, of up to 20 ms, between the steps
//! (docs/decisions.md).

use std::arch::x86_64::__cpuid;

use arch_x86_64::layout;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};

use crate::config::ByteSize;
use crate::dirty_log;
use crate::error::{Doing, Error};
use crate::host::HostKind;
use crate::memory::GuestMemory;
use crate::pvm;
use crate::vcpu::state;

/// A machine with its memory and interrupt controllers in place.
pub struct Machine {
    /// KVM's side of it.
    pub fd: VmFd,
    /// The guest's memory.
    pub memory: GuestMemory,
}

impl Machine {
    /// Makes a machine on a host of this kind; `memory` maps the guest's memory.
    ///
    /// # Errors
    /// KVM refuses, or there is no memory.
    pub fn new(
        kvm: &Kvm,
        kind: HostKind,
        memory: impl FnOnce() -> Result<GuestMemory, Error>,
    ) -> Result<Self, Error> {
        let fd = create_vm(kvm)?;
        state::enable_events(&fd);
        if kind == HostKind::Pvm {
            pvm::prepare_vm(&fd)?;
        }
        let memory = memory()?;
        dirty_log::set_slots(&fd, &memory, false)?;
        create_interrupt_controllers(&fd)?;
        Ok(Self { fd, memory })
    }
}

/// Whether the host's CPU can address as much memory as a guest shall have.
///
/// # Errors
/// It cannot.
pub fn check_memory_fits_cpu(wanted: ByteSize) -> Result<(), Error> {
    let max = ByteSize(layout::max_memory(physical_address_bits()));
    if wanted > max {
        Err(Error::MemoryBeyondCpu { wanted, max })
    } else {
        Ok(())
    }
}

/// Leaf 0x8000_0008, EAX bits 0 to 7 (Intel SDM Vol 2, CPUID). A CPU without that leaf has 36.
fn physical_address_bits() -> u8 {
    const LEAF: u32 = 0x8000_0008;
    if __cpuid(LEAF & 1 << 31).eax < LEAF {
        36
    } else {
        __cpuid(LEAF).eax as u8
    }
}

/// Raises an edge-triggered interrupt line. When it returns, the interrupt is in a local APIC.
///
/// # Errors
/// KVM refuses.
pub(crate) fn pulse(fd: &VmFd, line: u32) -> Result<(), kvm_ioctls::Error> {
    [true, false]
        .into_iter()
        .try_for_each(|level| fd.set_irq_line(line, level))
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            // A signal during KVM_CREATE_VM interrupts it; it has no effect then.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.doing("create a virtual machine"),
        }
    }
}

fn create_interrupt_controllers(fd: &VmFd) -> Result<(), Error> {
    fd.set_tss_address(layout::KVM_TSS.0 as usize)
        .doing("place KVM's task state segment")?;
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.0)
        .doing("place KVM's identity map")?;
    fd.create_irq_chip().doing("create the interrupt controllers")?;
    // The speaker port answers without sound: guests time short waits by it.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    fd.create_pit2(pit).doing("create the timer")
}
