//! What KVM knows of a machine beside its vCPUs: interrupt controllers, timer and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error};

/// The state of a machine whose vCPUs are paused.
///
/// The guest's clock (kvmclock) goes on after a restore from where it stood: the time for which there was no machine is not seen as monotonic
/// time, so no timer is late. The guest's idea of the time of day is behind by as much; it is the guest's to ask for the right one, from the RTC.
/// For a machine that is paused and goes on, nothing is set, and clocks have gone on beside it.
#[derive(Clone, Serialize, Deserialize)]
pub struct MachineState {
    /// The first of the two 8259 interrupt controllers.
    pub pic_master: kvm_irqchip,
    /// The second one.
    pub pic_slave: kvm_irqchip,
    /// The I/O APIC.
    pub ioapic: kvm_irqchip,
    /// The 8254 timer.
    pub pit: kvm_pit_state2,
    /// kvmclock, in nanoseconds.
    pub clock: u64,
}

impl MachineState {
    /// Takes the state of a machine with interrupt controllers and timer. vCPUs and devices must have been paused.
    ///
    /// An interrupt goes from the timer through a controller to a vCPU, and they are read in this order, so that one on its way is seen.
    ///
    /// # Errors
    /// KVM refuses to tell something.
    pub fn save(vm: &VmFd) -> Result<Self, Error> {
        Ok(Self {
            clock: vm.get_clock().doing("read the guest's clock")?.clock,
            pit: vm.get_pit2().doing("read the timer")?,
            pic_master: read(vm, KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: read(vm, KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: read(vm, KVM_IRQCHIP_IOAPIC)?,
        })
    }

    /// Gives a machine this state. Its vCPUs must have theirs, and not run: KVM delivers what the I/O APIC holds at once.
    ///
    /// # Errors
    /// KVM refuses something.
    pub fn restore(&self, vm: &VmFd) -> Result<(), Error> {
        // Flags would have the clock go on as if it had never stopped (KVM API, KVM_SET_CLOCK, KVM_CLOCK_REALTIME).
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).doing("set the guest's clock")?;
        for chip in [&self.pic_master, &self.pic_slave, &self.ioapic] {
            vm.set_irqchip(chip).doing("set an interrupt controller")?;
        }
        vm.set_pit2(&self.pit).doing("set the timer")
    }
}

fn read(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, Error> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).doing("read an interrupt controller")?;
    Ok(chip)
}
