//! The differentiated system description table: the devices that cannot be discovered, and the soft-off state.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Else, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{self, VirtioSlot};

const HEADER_SIZE: u32 = 36;
/// Revision 2: integers are 64 bits wide (§5.2.11.1).
const REVISION: u8 = 2;
/// The generation id's device.
const GENERATION_ID: &str = "VMGN";
/// The power button's device.
const POWER_BUTTON: &str = "PWRB";

/// The DSDT with the machine's own devices and the virtio devices, all in `\_SB`.
///
/// None has a _STA: without one a device is present and works (§6.3.7), and the guest has one object less to evaluate.
pub(super) fn dsdt(virtio: &[VirtioSlot]) -> Sdt {
    let mut aml = Vec::new();
    // _S5 (§7.4.2.6): SLP_TYP for soft off, twice, as if there were two control registers.
    let s5 = Package::new(vec![&layout::S5_SLEEP_TYPE, &layout::S5_SLEEP_TYPE]);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut aml);

    let own = [
        com1(),
        rtc(),
        pvpanic(),
        generation_id(),
        power_button(),
        generic_event(),
    ];
    let mut children: Vec<&dyn Aml> = own.iter().map(|device| device as &dyn Aml).collect();
    let virtio: Vec<Raw> = virtio.iter().map(virtio_mmio).collect();
    children.extend(virtio.iter().map(|device| device as &dyn Aml));
    Scope::new(Path::new("\\_SB_"), children).to_aml_bytes(&mut aml);

    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    table
}

/// Bytes of AML that are ready to be copied.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// A device object with an id, fixed resources and whatever else it has.
fn device(name: &str, id: &dyn Aml, resources: Vec<&dyn Aml>, more: &[&dyn Aml]) -> Raw {
    let id = Name::new(Path::new("_HID"), id);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&id, &resources];
    children.extend_from_slice(more);
    object(name, children)
}

/// A device object with these children.
fn object(name: &str, children: Vec<&dyn Aml>) -> Raw {
    let mut bytes = Vec::new();
    Device::new(Path::new(name), children).to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// The 16550 serial port; without 8259s Linux has its interrupt only from here.
fn com1() -> Raw {
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    // Consumer, edge-triggered, active high, exclusive: an ISA interrupt.
    let irq = Interrupt::new(true, true, false, false, layout::COM1_IRQ);
    device("COM1", &EISAName::new("PNP0501"), vec![&ports, &irq], &[])
}

/// The CMOS clock, without its interrupt: there are no alarms.
fn rtc() -> Raw {
    let ports = IO::new(layout::CMOS_PORT, layout::CMOS_PORT, 1, 2);
    device("RTC_", &EISAName::new("PNP0B00"), vec![&ports], &[])
}

/// The port by which a guest reports its panic (QEMU's docs/specs/pvpanic).
fn pvpanic() -> Raw {
    let ports = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    device("PEVT", &"QEMU0001", vec![&ports], &[])
}

/// The generation id, as Microsoft's "Virtual Machine Generation ID" (2012) has it. Drivers go by _CID; _HID is the
/// hypervisor's own. ADDR has the low and the high half of the address.
fn generation_id() -> Raw {
    const DRIVERS_NAME: &str = "VM_Gen_Counter";
    let id = Name::new(Path::new("_HID"), &"PSDA0001");
    let compatible = Name::new(Path::new("_CID"), &DRIVERS_NAME);
    let dos_name = Name::new(Path::new("_DDN"), &DRIVERS_NAME);
    let at = layout::GENERATION_ID.0;
    let (low, high) = (at as u32, (at >> 32) as u32);
    let address = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    object(GENERATION_ID, vec![&id, &compatible, &dos_name, &address])
}

/// The power button as a control method device (§4.8.2.2.1.2): hardware-reduced platforms have no other.
fn power_button() -> Raw {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
    object(POWER_BUTTON, vec![&id])
}

/// The generic event device (§5.6.9), which on a hardware-reduced platform has ACPI's interrupts. Its _EVT is told which it was.
fn generic_event() -> Raw {
    /// What the generation id's device is notified of when it has changed (Microsoft's paper).
    const CHANGED: u8 = 0x80;
    /// What the power button is notified of when it has been pressed (§5.6.6, table 5.163).
    const PRESSED: u8 = 0x80;
    // Consumers, edge-triggered, active high, exclusive.
    let [generation, button] = [layout::GENERATION_IRQ, layout::POWER_BUTTON_IRQ]
        .map(|line| Interrupt::new(true, true, false, false, line));
    let (generation_id, power_button) = (Path::new(GENERATION_ID), Path::new(POWER_BUTTON));
    let changed = Notify::new(&generation_id, &CHANGED);
    let pressed = Notify::new(&power_button, &PRESSED);
    let is_button = Equal::new(&Arg(0), &layout::POWER_BUTTON_IRQ);
    let if_button = If::new(&is_button, vec![&pressed]);
    let otherwise = Else::new(vec![&changed]);
    let event = Method::new(Path::new("_EVT"), 1, false, vec![&if_button, &otherwise]);
    device("GED_", &"ACPI0013", vec![&generation, &button], &[&event])
}

/// A virtio device over MMIO, by the id that Linux and others know it by. One id stands for all of them, so each needs a
/// _UID (ACPI 6.5 §6.1.12).
fn virtio_mmio(slot: &VirtioSlot) -> Raw {
    // The hole, in which they lie, is below 4 GiB.
    let registers = Memory32Fixed::new(true, slot.base.0 as u32, layout::VIRTIO_MMIO_SIZE as u32);
    // Consumer, edge-triggered, active high, exclusive: an irqfd is a pulse.
    let irq = Interrupt::new(true, true, false, false, slot.irq);
    let uid = Name::new(Path::new("_UID"), &slot.index);
    let name = format!("VR{:02X}", slot.index);
    device(&name, &"LNRO0005", vec![&registers, &irq], &[&uid])
}
