//! Tells a panic's reset from an orderly one, for guests that have no pvpanic to say so.
//!
//! Before an orderly reboot Linux masks every pin of the I/O APIC, and then either disables its local APIC or
//! leaves it in virtual wire mode, with another spurious vector (arch/x86/kernel/reboot.c,
//! native_machine_shutdown). A panic resets from the midst of things: pins are still open or, where the console
//! has not been opened yet and the kernel is not built for SMP, the local APIC is still enabled.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::{VcpuFd, VmFd};
use tracing::debug;

/// Spurious-interrupt vector register of the local APIC (Intel SDM Vol 3 §12.9), and its enable bit.
const APIC_SPIV: usize = 0xf0;
const APIC_SPIV_ENABLED: u8 = 1 << 0;
/// The vector that Linux uses for as long as it runs. It is that of an APIC that nobody has set up, too.
const LINUX_SPURIOUS_VECTOR: u8 = 0xff;
/// The mask bit of a redirection entry (82093AA I/O APIC data sheet §3.2.4).
const REDIRECTION_MASKED: u64 = 1 << 16;

/// Whether the reset that this vCPU has just asked for is that of a panic. No, where KVM does not tell.
pub fn is_emergency(vcpu: &VcpuFd, vm: &VmFd) -> bool {
    let told = local_apic(vcpu).and_then(|(vector, enabled)| {
        Ok(vector == LINUX_SPURIOUS_VECTOR && (enabled || io_apic_has_open_pin(vm)?))
    });
    told.unwrap_or_else(|error| {
        debug!("cannot read the interrupt controllers: {error}");
        false
    })
}

/// The local APIC's spurious vector, and whether it is enabled.
fn local_apic(vcpu: &VcpuFd) -> Result<(u8, bool), kvm_ioctls::Error> {
    let apic = vcpu.get_lapic()?;
    let [vector, flags] = [apic.regs[APIC_SPIV], apic.regs[APIC_SPIV + 1]].map(|byte| byte as u8);
    Ok((vector, flags & APIC_SPIV_ENABLED != 0))
}

fn io_apic_has_open_pin(vm: &VmFd) -> Result<bool, kvm_ioctls::Error> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: KVM_GET_IRQCHIP has filled this member of the union, as chip_id asked it to; any bits are a value of it.
    let pins = unsafe { chip.chip.ioapic.redirtbl };
    // SAFETY: both members of an entry are the same 64 bits, as a number and as fields.
    Ok(pins
        .iter()
        .any(|pin| unsafe { pin.bits } & REDIRECTION_MASKED == 0))
}
