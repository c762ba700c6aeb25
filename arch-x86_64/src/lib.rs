//! What a guest CPU finds when it wakes up: memory map, boot protocols, CPUID, MSRs, registers, ACPI and MP tables.
//!
//! The crate turns a description into bytes in guest memory and register values. It knows neither KVM nor the
//! devices: the VMM passes what it gets here on to KVM, and places its devices where [`layout`] says they are.
//!
//! In the order of a boot: [`layout::ram_ranges`] says where the guest's memory lies, [`kernel::load`] and
//! [`initrd::load`] fill it, [`acpi::write`] and [`mptable::write`] describe the machine, [`boot::write`] writes what
//! the kernel's boot protocol asks for and returns the first CPU's [`registers::Registers`]; [`cpuid::adjust`] and
//! [`msr::boot_msrs`] complete each CPU.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod initrd;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod registers;
