//! Where everything is: every guest-physical address, I/O port and interrupt line of the machine, each with its reason.
//!
//! ```text
//! 0x0000_0500  boot GDT                       \
//! 0x0000_6000  PVH start info, its tables      |
//! 0x0000_7000  zero page (boot_params)         | RAM, free for the guest once it has booted
//! 0x0000_8000  boot stack (one page)           |
//! 0x0000_9000  boot page tables (six pages)    |
//! 0x0002_0000  command line (64 KiB at most)  /
//! 0x0009_c000  the generation id               \
//! 0x0009_d000  the VMM's stub page             |
//! 0x0009_e000  MP configuration table          | reserved in the memory map
//! 0x0009_fc00  MP floating pointer             |
//! 0x000e_0000  RSDP and the other ACPI tables /
//! 0x0010_0000  RAM: the kernel and, at the top, the initrd
//! 0xc000_0000  no RAM: virtio devices (from 0xd000_0000), I/O APIC, local APICs, KVM's own pages
//! 0x1_0000_0000  the rest of the RAM
//! ```

use vm_memory::GuestAddress;

/// First byte without RAM: 3 GiB.
///
/// The I/O APIC, the local APICs and KVM's own pages have fixed places below 4 GiB, so RAM has to stop before them. The
/// whole last GiB is left to them and to MMIO devices.
pub const MMIO_HOLE_START: GuestAddress = GuestAddress(0xc000_0000);
/// First byte after the hole: RAM goes on at 4 GiB.
pub const MMIO_HOLE_END: GuestAddress = GuestAddress(0x1_0000_0000);
/// Size of the hole in bytes.
pub const MMIO_HOLE_SIZE: u64 = MMIO_HOLE_END.0 - MMIO_HOLE_START.0;

/// Start of "high" memory, where a PC's firmware area ends: nothing that the guest loads from a file lies below it.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

/// The boot GDT, above the real-mode interrupt vectors and BIOS data area (0..0x500).
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// `hvm_start_info` of the PVH protocol.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH module list: one entry, the initrd.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map, up to [`ZERO_PAGE`].
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6080);
/// The zero page (`boot_params`) of the Linux boot protocol: 4 KiB.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer. No protocol promises a stack; one page of it lets a tiny guest call functions at once.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
/// The boot page tables: PML4, PDPT, then four page directories.
pub const BOOT_PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line with its NUL, in bytes. x86 Linux takes 2048 (COMMAND_LINE_SIZE).
pub const CMDLINE_SIZE: usize = 0x1_0000;

/// The generation id of the machine, [`GENERATION_ID_SIZE`] bytes at the start of a reserved page that has nothing else.
///
/// Microsoft's "Virtual Machine Generation ID" (2012) wants it on an 8-byte boundary, apart from what the operating system uses,
/// neither in RAM nor in ACPI memory of the map, and in a page that is only mapped as cacheable. A snapshot holds tables that
/// name this address: it cannot change.
pub const GENERATION_ID: GuestAddress = GuestAddress(0x9_c000);
/// Bytes of the generation id: 128 bits.
pub const GENERATION_ID_SIZE: usize = 16;
/// Interrupt line of the generic event device by which ACPI tells of a new generation id.
///
/// ACPI's own line on a PC. This is where the hardware-reduced platform, which has no SCI, has what stands in for it
/// (ACPI 6.5 §5.6.9), and no driver of another device looks for its interrupt there. Linux before 5.5 declares the line
/// level-triggered, but it has no driver for generation ids either (5.18).
pub const GENERATION_IRQ: u32 = 9;
/// Interrupt line of the generic event device by which ACPI tells of the power button.
///
/// On a PC it is the floating-point unit's, which since the 80486 has had an exception of its own: no driver looks here.
pub const POWER_BUTTON_IRQ: u32 = 13;

/// One reserved page that belongs to the VMM on every host kind: kvm-pvm hosts put their `syscall` repair there.
/// It is reserved everywhere so that a guest's memory map does not depend on the host.
pub const PVM_STUB: GuestAddress = GuestAddress(0x9_d000);
/// The MP configuration table. [`MAX_CPUS`] make it 5.2 KiB long, more than the KiB that guests search for the pointer.
pub const MP_TABLE: GuestAddress = GuestAddress(0x9_e000);
/// The MP floating pointer: "the last kilobyte of system base memory" (MP spec 1.4 §4), the first place but one where
/// Linux looks.
pub const MP_FLOATING_POINTER: GuestAddress = GuestAddress(0x9_fc00);
/// The RSDP: on a 16-byte boundary in 0xe0000..0x100000 (ACPI 6.5 §5.2.5.1), for kernels that search for it.
pub const RSDP: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for ACPI tables.
pub const ACPI_END: GuestAddress = HIGH_RAM_START;

/// Start of what the memory map calls reserved below 1 MiB; it ends at [`HIGH_RAM_START`].
pub const LOW_RESERVED_START: GuestAddress = GENERATION_ID;

/// Where a guest says that it has booted, if it is timed: Firecracker's guests know it there.
pub const BOOT_TIMER: GuestAddress = MMIO_HOLE_START;
/// The first virtio device; one after another from here, [`VIRTIO_MMIO_SIZE`] bytes each.
pub const VIRTIO_MMIO_START: GuestAddress = GuestAddress(0xd000_0000);
/// Guest-physical space of one virtio device in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Interrupt lines of the virtio devices, in the devices' order: those pins of the I/O APIC that no PC device has. First
/// those that no 8259 has either, then the free ones of a PC (not [`GENERATION_IRQ`] and [`POWER_BUTTON_IRQ`], nor the cascade
/// and those of the timer, keyboard, serial ports and clock).
pub const VIRTIO_IRQS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15];

/// Lines of the two 8259s of a PC.
const PIC_LINES: u32 = 16;

/// By what a kernel is interrupted by devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// The I/O APIC.
    IoApic,
    /// The two 8259s, though there is an I/O APIC: Linux's `noapic`.
    Pic,
}

/// Where a virtio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Which of them, from 0 on.
    pub index: usize,
    /// Its registers.
    pub base: GuestAddress,
    /// Its interrupt line.
    pub irq: u32,
}

/// The places of `count` virtio devices, or `None` if that are more than there are lines for. Of a kernel that does without the
/// I/O APIC, the first devices have lines of an 8259, and the others none that it hears.
pub fn virtio_slots(count: usize, kernel: Interrupts) -> Option<Vec<VirtioSlot>> {
    let slot = |(index, irq)| VirtioSlot {
        index,
        base: GuestAddress(VIRTIO_MMIO_START.0 + VIRTIO_MMIO_SIZE * index as u64),
        irq,
    };
    let mut irqs = VIRTIO_IRQS;
    if kernel == Interrupts::Pic {
        // false is less than true: in their order, those of an 8259 come first.
        irqs.sort_by_key(|irq| *irq >= PIC_LINES);
    }
    let irqs = irqs.get(..count)?.iter().copied();
    Some(irqs.enumerate().map(slot).collect())
}

/// The I/O APIC (MP spec 1.4 §3.6.5, where KVM's in-kernel one is too).
pub const IO_APIC: GuestAddress = GuestAddress(0xfec0_0000);
/// The local APICs (Intel SDM Vol 3 §11.4.1, the reset value of IA32_APIC_BASE).
pub const LOCAL_APIC: GuestAddress = GuestAddress(0xfee0_0000);
/// KVM's identity page table for real mode on VT-x without unrestricted guests (KVM_SET_IDENTITY_MAP_ADDR): one page.
pub const KVM_IDENTITY_MAP: GuestAddress = GuestAddress(0xfffb_c000);
/// KVM's task state segment for real mode (KVM_SET_TSS_ADDR): three pages, right after the identity map.
pub const KVM_TSS: GuestAddress = GuestAddress(0xfffb_d000);
/// Bytes of guest-physical space that KVM takes at [`KVM_IDENTITY_MAP`], the TSS included.
pub const KVM_RESERVED_SIZE: u64 = 4 * 4096;

/// First serial port, COM1 of a PC: eight ports.
pub const COM1_PORT: u16 = 0x3f8;
/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// CMOS index port; the data port follows it.
pub const CMOS_PORT: u16 = 0x70;
/// Data port of the i8042 keyboard controller.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command and status port of the i8042: the command 0xfe resets the machine.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// The pvpanic device, where QEMU has it (docs/specs/pvpanic).
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI SLEEP_CONTROL_REG of the hardware-reduced model (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI SLEEP_STATUS_REG (ACPI 6.5 §4.8.3.7).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI RESET_REG (ACPI 6.5 §4.8.3.6).
pub const RESET_PORT: u16 = 0x602;
/// What a guest writes to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 1;
/// The SLP_TYP value that means S5, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;

/// Most CPUs a guest can have.
///
/// APIC ids are the CPU numbers and are 8 bits wide in xAPIC mode; 0xff means all CPUs (Intel SDM Vol 3 §11.6.1), and the
/// MP table needs one more id for the I/O APIC. That leaves 0..=253.
pub const MAX_CPUS: u32 = 254;

/// Most guest memory in bytes for a host CPU with `physical_address_bits` (CPUID 0x80000008 EAX bits 0..8).
pub fn max_memory(physical_address_bits: u8) -> u64 {
    // 52 bits are the most the architecture has (Intel SDM Vol 3 §4.1.4); RAM above the hole is moved up by its size.
    let addressable = 1u64 << physical_address_bits.clamp(32, 52);
    if addressable <= MMIO_HOLE_END.0 {
        MMIO_HOLE_START.0
    } else {
        addressable - MMIO_HOLE_SIZE
    }
}

/// Where `bytes` of RAM lie in guest-physical space: from 0 up to the hole, the rest from 4 GiB on.
///
/// Each element is a start address and a size in bytes. 0 bytes give no range.
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(MMIO_HOLE_START.0);
    let mut ranges = Vec::with_capacity(2);
    if low > 0 {
        ranges.push((GuestAddress(0), low));
    }
    if bytes > low {
        ranges.push((MMIO_HOLE_END, bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_out() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ram_ranges(0), []);
        assert_eq!(ram_ranges(4096), [(GuestAddress(0), 4096)]);
        assert_eq!(ram_ranges(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        assert_eq!(
            ram_ranges(3 * GIB + 4096),
            [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 4096)]
        );
        assert_eq!(
            ram_ranges(64 * GIB),
            [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 61 * GIB)]
        );
    }

    #[test]
    fn virtio_devices_lie_in_the_hole_each_with_its_own_line() {
        let slots = virtio_slots(VIRTIO_IRQS.len(), Interrupts::IoApic).unwrap();
        for pair in slots.windows(2) {
            assert_eq!(pair[0].base.0 + VIRTIO_MMIO_SIZE, pair[1].base.0);
        }
        assert!(slots[0].base >= MMIO_HOLE_START);
        assert!(slots[slots.len() - 1].base.0 + VIRTIO_MMIO_SIZE <= IO_APIC.0);
        let mut irqs: Vec<u32> = slots.iter().map(|slot| slot.irq).collect();
        irqs.sort_unstable();
        irqs.dedup();
        assert_eq!(irqs.len(), slots.len());
        for taken in [COM1_IRQ, GENERATION_IRQ, POWER_BUTTON_IRQ] {
            assert!(!irqs.contains(&taken), "line {taken}");
        }
        assert_eq!(virtio_slots(slots.len() + 1, Interrupts::IoApic), None);
    }

    #[test]
    fn without_the_io_apic_the_first_devices_have_lines_that_are_heard() {
        let slots = virtio_slots(VIRTIO_IRQS.len(), Interrupts::Pic).unwrap();
        let irqs = Vec::from_iter(slots.iter().map(|slot| slot.irq));
        assert_eq!(irqs[..9], [5, 6, 7, 10, 11, 12, 14, 15, 16]);
        let mut all = VIRTIO_IRQS;
        all.rotate_left(8);
        assert_eq!(irqs, all);
    }

    #[test]
    fn memory_ends_where_addresses_do() {
        for bits in [33u8, 36, 39, 46, 52] {
            let (start, size) = ram_ranges(max_memory(bits))[1];
            assert_eq!(start.0 + size, 1 << bits);
        }
        assert_eq!(max_memory(32), MMIO_HOLE_START.0);
        assert_eq!(max_memory(0), MMIO_HOLE_START.0);
        assert_eq!(max_memory(255), max_memory(52));
    }

    #[test]
    fn low_areas_do_not_overlap() {
        let areas = [
            (BOOT_GDT.0, 0x100),
            (PVH_START_INFO.0, 56),
            (PVH_MODULES.0, 32),
            (PVH_MEMORY_MAP.0, 128 * 24),
            (ZERO_PAGE.0, 0x1000),
            (BOOT_STACK_TOP.0 & !0xfff, 0x1000),
            (BOOT_PAGE_TABLES.0, 6 * 0x1000),
            (CMDLINE.0, CMDLINE_SIZE as u64),
            (GENERATION_ID.0, 0x1000),
            (PVM_STUB.0, 0x1000),
            (MP_TABLE.0, 0x1c00),
            (MP_FLOATING_POINTER.0, 16),
            (RSDP.0, 0x2_0000),
            (HIGH_RAM_START.0, 1),
        ];
        for pair in areas.windows(2) {
            assert!(
                pair[0].0 + pair[0].1 <= pair[1].0,
                "{:#x} reaches into {:#x}",
                pair[0].0,
                pair[1].0
            );
        }
    }
}
