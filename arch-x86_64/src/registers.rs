//! The register values of a CPU that is about to execute its first guest instruction, as plain numbers.
//!
//! The VMM converts them to what its hypervisor interface takes.

/// A segment register with its hidden part (Intel SDM Vol 3 §3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Last valid offset, in bytes whatever `g` says.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Descriptor type, 4 bits (Intel SDM Vol 3 §3.4.5.1, §3.5).
    pub type_: u8,
    /// Present.
    pub present: bool,
    /// Descriptor privilege level, 0..=3.
    pub dpl: u8,
    /// Default operand size: 32-bit code or stack.
    pub db: bool,
    /// Code or data segment (not a system segment).
    pub s: bool,
    /// 64-bit code.
    pub l: bool,
    /// The limit counts 4 KiB pages.
    pub g: bool,
}

impl Segment {
    /// Execute/read code, accessed.
    const CODE: u8 = 0xb;
    /// Read/write data, accessed.
    const DATA: u8 = 0x3;
    /// Busy 32-bit TSS, which is also the 64-bit one's type in IA-32e mode (Intel SDM Vol 3 Table 3-2).
    const BUSY_TSS: u8 = 0xb;

    const fn flat(selector: u16, type_: u8, long: bool) -> Self {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: true,
            dpl: 0,
            db: !long,
            s: true,
            l: long,
            g: true,
        }
    }

    /// A flat 64-bit code segment.
    pub const fn code64(selector: u16) -> Self {
        Segment::flat(selector, Self::CODE, true)
    }

    /// A flat 32-bit code segment.
    pub const fn code32(selector: u16) -> Self {
        Segment::flat(selector, Self::CODE, false)
    }

    /// A flat read/write data segment.
    pub const fn data(selector: u16) -> Self {
        Segment::flat(selector, Self::DATA, false)
    }

    /// A task register that is loaded but leads nowhere: base 0, limit 0x67, busy, as PVH demands and VM entry checks.
    pub const fn empty_tss() -> Self {
        Segment {
            base: 0,
            limit: 0x67,
            selector: 0,
            type_: Self::BUSY_TSS,
            present: true,
            dpl: 0,
            db: false,
            s: false,
            l: false,
            g: false,
        }
    }

    /// The 8-byte descriptor that loads this segment (Intel SDM Vol 3 §3.4.5, Figure 3-8).
    pub const fn descriptor(&self) -> u64 {
        let limit = if self.g { self.limit >> 12 } else { self.limit } as u64;
        let access = self.type_ as u64
            | (self.s as u64) << 4
            | (self.dpl as u64 & 3) << 5
            | (self.present as u64) << 7
            | (self.l as u64) << 13
            | (self.db as u64) << 14
            | (self.g as u64) << 15;
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | (self.base >> 24 & 0xff) << 56
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of the table's last byte.
    pub limit: u16,
}

/// The boot CPU's registers; those not named here are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// First instruction, guest-physical (paging maps it to itself where it is on).
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Linux boot protocol: address of the zero page.
    pub rsi: u64,
    /// PVH: address of `hvm_start_info`.
    pub rbx: u64,
    /// Flags: only the bit that is always set.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Data segment.
    pub es: Segment,
    /// Data segment.
    pub fs: Segment,
    /// Data segment.
    pub gs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table. Empty: protocols enter with interrupts off, and a fault before the guest has its own
    /// table is a triple fault, which the VMM reports.
    pub idt: DescriptorTable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_flat_ones() {
        // The values Linux has in its own boot GDT (arch/x86/boot/compressed/head_64.S).
        assert_eq!(Segment::code64(0x10).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Segment::code32(0x10).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(Segment::data(0x18).descriptor(), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn a_descriptor_splits_base_and_limit() {
        let segment = Segment {
            base: 0x1234_5678,
            limit: 0xa_bcde,
            g: false,
            ..Segment::empty_tss()
        };
        assert_eq!(segment.descriptor(), 0x120a_8b34_5678_bcde);
    }
}
