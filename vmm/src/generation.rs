//! The machine's generation id: 128 random bits that a machine has for itself, and that change when it is restored, cloned or rewound.
//!
//! The guest is told of a change by ACPI (`arch-x86_64`'s DSDT), and Linux then seeds its random numbers anew: no two machines
//! of one snapshot go on with the same ones.

use std::io;

use arch_x86_64::layout;
use kvm_ioctls::VmFd;
use vm_memory::Bytes;

use crate::error::{Doing, Error};
use crate::machine;
use crate::memory::GuestMemory;

/// Gives the machine a generation id of its own, before it boots.
///
/// # Errors
/// The host has no random numbers to give, or the guest no low memory.
pub fn write_new(memory: &GuestMemory) -> Result<(), Error> {
    let mut id = [0; layout::GENERATION_ID_SIZE];
    getrandom::fill(&mut id).doing("get random numbers for the guest's generation id")?;
    memory
        .write_slice(&id, layout::GENERATION_ID)
        .map_err(io::Error::other)
        .doing("write the guest's generation id")
}

/// Gives a machine that goes on from a snapshot another generation id, and interrupts it to say so.
///
/// For the time when all that the snapshot has, memory, local APICs and I/O APIC, is in place and no vCPU has run since: the id is
/// then there before the guest's next instruction, and the interrupt waits in a local APIC. (Not an irqfd: KVM would inject
/// it later, from a thread of its own, and the guest might first use the random numbers of its twin.)
///
/// # Errors
/// Those of [`write_new`], or KVM refuses.
pub fn renew(fd: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    write_new(memory)?;
    machine::pulse(fd, layout::GENERATION_IRQ).doing("tell the guest of its new generation id")
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
    use kvm_ioctls::{Kvm, VcpuFd};

    use super::*;
    use crate::config::ByteSize;

    const PIN: usize = layout::GENERATION_IRQ as usize;
    const VECTOR: u8 = 0x31;

    fn memory() -> GuestMemory {
        crate::memory::map(ByteSize(2 << 20)).unwrap()
    }

    fn id(memory: &GuestMemory) -> [u8; layout::GENERATION_ID_SIZE] {
        memory.read_obj(layout::GENERATION_ID).unwrap()
    }

    #[test]
    fn each_id_is_another_and_nothing_is_written_beside_it() {
        let memory = memory();
        let mut ids = vec![id(&memory)];
        for _ in 0..8 {
            write_new(&memory).unwrap();
            assert!(!ids.contains(&id(&memory)), "{ids:x?}");
            ids.push(id(&memory));
        }
        let mut page = [0; 4096];
        memory.read_slice(&mut page, layout::GENERATION_ID).unwrap();
        assert!(page[layout::GENERATION_ID_SIZE..].iter().all(|byte| *byte == 0));
    }

    /// A machine whose guest has opened the generic event device's line, as Linux does it.
    fn listening() -> (VmFd, VcpuFd) {
        let kvm = Kvm::new().expect("this test needs /dev/kvm; run `make test KVM=none` to leave it out");
        let fd = kvm.create_vm().unwrap();
        fd.create_irq_chip().unwrap();
        let vcpu = fd.create_vcpu(0).unwrap();
        let mut apic = vcpu.get_lapic().unwrap();
        // Software-enabled (Intel SDM Vol 3 §12.9).
        apic.regs[0xf1] |= 1;
        vcpu.set_lapic(&apic).unwrap();
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        fd.get_irqchip(&mut chip).unwrap();
        // Fixed, edge-triggered, not masked, to the APIC with the id 0 (82093AA data sheet §3.2.4).
        // SAFETY: KVM_GET_IRQCHIP has filled this member of the union, as chip_id asked it to.
        unsafe { chip.chip.ioapic.redirtbl[PIN].bits = VECTOR.into() };
        fd.set_irqchip(&chip).unwrap();
        (fd, vcpu)
    }

    /// Whether the interrupt waits in the local APIC: bit `VECTOR` of the IRR (Intel SDM Vol 3 §12.8.4), of which each 32 bits
    /// take 16 bytes.
    fn waits(vcpu: &VcpuFd) -> bool {
        let bit = usize::from(VECTOR);
        let byte = vcpu.get_lapic().unwrap().regs[0x200 + bit / 32 * 16 + bit % 32 / 8];
        byte as u8 & 1 << (bit % 8) != 0
    }

    #[test]
    fn kvm_has_the_interrupt_before_a_vcpu_runs() {
        let (fd, vcpu) = listening();
        let memory = memory();
        write_new(&memory).unwrap();
        let before = id(&memory);
        assert!(!waits(&vcpu));
        renew(&fd, &memory).unwrap();
        assert_ne!(id(&memory), before);
        assert!(waits(&vcpu));
    }

    #[test]
    fn a_guest_without_low_memory_is_an_error() {
        let ranges = [(vm_memory::GuestAddress(0), 0x9_c000)];
        let error = write_new(&GuestMemory::from_ranges(&ranges).unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot write the guest's generation id: "),
            "{error}"
        );
    }
}
