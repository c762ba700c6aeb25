//! The ACPI tables: a hardware-reduced platform with its CPUs, interrupt wiring and legacy devices.
//!
//! Section numbers are those of the ACPI specification 6.5. The tables are small and their AML has no method that runs at
//! boot, because on a host that interprets guest kernels every byte that the guest's ACPI interpreter reads costs a microsecond.

mod dsdt;
mod madt;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{self, VirtioSlot};

/// What the tables describe beyond the machine that every guest has.
#[derive(Clone, Copy, Default)]
pub struct AcpiInfo<'a> {
    /// Number of CPUs, 1 to [`layout::MAX_CPUS`]; their APIC ids are 0 to `cpus` - 1.
    pub cpus: u32,
    /// The virtio devices.
    pub virtio: &'a [VirtioSlot],
}

/// Why the ACPI tables were not written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// No CPU, or more than APIC ids allow.
    #[error("ACPI tables cannot describe {0} CPUs; give the guest 1 to {max}", max = layout::MAX_CPUS)]
    Cpus(u32),
    /// The tables outgrow their place.
    #[error(
        "the ACPI tables have {size} bytes, but only {room} are kept for them; give the guest fewer devices"
    )]
    TooLarge {
        /// Size of all tables in bytes.
        size: u64,
        /// Room in bytes.
        room: u64,
    },
    /// There is no RAM where the tables go.
    #[error(
        "the ACPI tables cannot be written at {address:#x}: {source}; the guest needs at least 1 MiB of memory"
    )]
    Write {
        /// Where they go.
        address: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// OEMID and OEM Table ID of all tables (§5.2.6).
const OEM_ID: [u8; 6] = *b"POSADA";
const OEM_TABLE_ID: [u8; 8] = *b"POSADAVM";
const OEM_REVISION: u32 = 1;

/// Writes the tables and returns the address of the RSDP.
///
/// # Errors
/// Too many or no CPUs, too many devices, or a guest without low memory.
pub fn write<M: GuestMemoryBackend>(mem: &M, info: &AcpiInfo<'_>) -> Result<GuestAddress, AcpiError> {
    let cpus = u8::try_from(info.cpus)
        .ok()
        .filter(|&n| n > 0 && info.cpus <= layout::MAX_CPUS);
    let cpus = cpus.ok_or(AcpiError::Cpus(info.cpus))?;
    let tables = Tables::build(layout::RSDP, cpus, info.virtio);
    let room = layout::ACPI_END.0 - layout::RSDP.0;
    let size = tables.bytes.len() as u64;
    if size > room {
        return Err(AcpiError::TooLarge { size, room });
    }
    mem.write_slice(&tables.bytes, layout::RSDP)
        .map_err(|source| AcpiError::Write {
            address: layout::RSDP.0,
            source,
        })?;
    Ok(layout::RSDP)
}

/// All tables one after another, the RSDP first, as they lie in memory from `base` on.
struct Tables {
    base: GuestAddress,
    bytes: Vec<u8>,
}

impl Tables {
    fn build(base: GuestAddress, cpus: u8, virtio: &[VirtioSlot]) -> Self {
        let mut tables = Tables {
            base,
            bytes: vec![0; Rsdp::len()],
        };
        let dsdt = tables.add(&dsdt::dsdt(virtio));
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(tables.add(&fadt(dsdt)));
        xsdt.add_entry(tables.add(&madt::madt(cpus)));
        let xsdt = tables.add(&xsdt);
        let mut rsdp = Vec::new();
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
        tables
    }

    /// Appends a table at the next 8-byte boundary; returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let offset = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        self.base.0 + offset as u64
    }
}

/// IAPC_BOOT_ARCH (§5.2.9.3) bit 2: there is no VGA to probe. The i8042 bit (1) is clear although commands to reset the
/// machine are answered there: Linux would look for a keyboard and time out. LEGACY_DEVICES (0) is clear, as all devices
/// are in the namespace, and "CMOS RTC not present" (5) is clear, as there is one.
const NO_VGA: u16 = 1 << 2;
/// Ignored on a hardware-reduced platform (§5.2.9), but older Linux declares an interrupt for whatever it finds; 9 is the
/// PC's, and here the generic event device's, which stands in for it.
const SCI: u16 = layout::GENERATION_IRQ as u16;

/// The fixed description table (§5.2.9) of a hardware-reduced platform: no PM timer, no GPE blocks, no SCI.
///
/// Linux then does without the PIT and the 8259s: it takes its time from the TSC and the local APIC, and the interrupts
/// of legacy devices from the DSDT. Its order of ways to reboot begins with the reset register.
fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // These say that there are no power and sleep buttons, and no RTC wake-up, in fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless);
    fadt.sci_int = SCI.into();
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

/// An 8-bit register in I/O space (§5.2.3.2).
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}
