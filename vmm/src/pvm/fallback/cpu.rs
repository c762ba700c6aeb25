//! What the instruction fallback needs of a vCPU: its registers, its extended state, and a way to raise an exception.

use std::io;

use super::xstate::XsaveImage;

/// Encoding number of RAX, as used by [`Cpu::gpr`] (Intel SDM Vol 2A §2.1.5, table 2-2).
pub const RAX: u8 = 0;
/// Encoding number of RCX.
pub const RCX: u8 = 1;
/// Encoding number of RDX.
pub const RDX: u8 = 2;
/// Encoding number of RBX.
pub const RBX: u8 = 3;

/// Bits of RFLAGS (Intel SDM Vol 1 §3.4.3).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// Resume: cleared by every instruction that completes (Vol 3B §18.3.1.1).
    pub const RF: u64 = 1 << 16;
    /// Alignment check; with CR4.SMAP, allows supervisor access to user pages.
    pub const AC: u64 = 1 << 18;
    /// The six flags that an arithmetic instruction defines.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Bits of the control registers (Intel SDM Vol 3A §2.5) and of IA32_EFER (§2.2.1).
pub mod control {
    /// CR0: WAIT obeys [`CR0_TS`].
    pub const CR0_MP: u64 = 1 << 1;
    /// CR0: no x87, SSE instructions are undefined.
    pub const CR0_EM: u64 = 1 << 2;
    /// CR0: FPU state belongs to another task.
    pub const CR0_TS: u64 = 1 << 3;
    /// CR0: x87 errors are reported as #MF.
    pub const CR0_NE: u64 = 1 << 5;
    /// CR0: read-only pages bind supervisor writes too.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0: paging.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4: RDTSC and RDTSCP are for CPL 0 only.
    pub const CR4_TSD: u64 = 1 << 2;
    /// CR4: translations can be global.
    pub const CR4_PGE: u64 = 1 << 7;
    /// CR4: the operating system saves SSE state.
    pub const CR4_OSFXSR: u64 = 1 << 9;
    /// CR4: five-level paging.
    pub const CR4_LA57: u64 = 1 << 12;
    /// CR4: RDFSBASE and its kin are defined.
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    /// CR4: process-context identifiers.
    pub const CR4_PCIDE: u64 = 1 << 17;
    /// CR4: XSAVE and its kin are defined.
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    /// CR4: the supervisor may not execute user pages.
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4: the supervisor may not touch user pages unless RFLAGS.AC is set.
    pub const CR4_SMAP: u64 = 1 << 21;
    /// CR4: protection keys for user pages; RDPKRU and WRPKRU are defined.
    pub const CR4_PKE: u64 = 1 << 22;
    /// IA32_EFER: long mode is active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// IA32_EFER: bit 63 of a page table entry forbids execution.
    pub const EFER_NXE: u64 = 1 << 11;
}

/// The registers that decide how instructions and addresses are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the root of the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// CS.L: in long mode, the code segment is a 64-bit one.
    pub code64: bool,
}

/// A segment with a base address that 64-bit mode uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// Where a descriptor table lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u32,
}

/// An exception to raise in the guest (Intel SDM Vol 3A §6.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// #BP, a trap: RIP already points behind the `int3`.
    Breakpoint,
    /// #UD.
    InvalidOpcode,
    /// #NM.
    DeviceNotAvailable,
    /// #SS with error code 0: a non-canonical address relative to RSP or RBP.
    StackFault,
    /// #GP with error code 0.
    GeneralProtection,
    /// #PF.
    PageFault {
        /// Goes to CR2.
        address: u64,
        /// See [`super::paging`] for its bits.
        code: u32,
    },
    /// #MF.
    FloatingPoint,
}

impl Exception {
    /// Interrupt vector, 3 to 16.
    pub fn vector(self) -> u8 {
        match self {
            Exception::Breakpoint => 3,
            Exception::InvalidOpcode => 6,
            Exception::DeviceNotAvailable => 7,
            Exception::StackFault => 12,
            Exception::GeneralProtection => 13,
            Exception::PageFault { .. } => 14,
            Exception::FloatingPoint => 16,
        }
    }

    /// The error code the CPU pushes, for the vectors that have one.
    pub fn error_code(self) -> Option<u32> {
        match self {
            Exception::StackFault | Exception::GeneralProtection => Some(0),
            Exception::PageFault { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// One virtual CPU, stopped at an instruction.
///
/// Methods that return [`io::Result`] ask the hypervisor; the others work on registers that are at hand.
pub trait Cpu {
    /// A general purpose register, by its encoding number (0 to 15; the number is taken modulo 16).
    fn gpr(&self, number: u8) -> u64;
    /// Sets all 64 bits of a general purpose register.
    fn set_gpr(&mut self, number: u8, value: u64);
    /// The address of the instruction.
    fn rip(&self) -> u64;
    /// Sets the address of the next instruction.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// Control registers and privilege level.
    fn mode(&self) -> Mode;
    /// Base address of FS or GS.
    fn segment_base(&self, segment: Segment) -> u64;
    /// Sets the base address of FS or GS.
    fn set_segment_base(&mut self, segment: Segment, base: u64);
    /// The global descriptor table.
    fn gdt(&self) -> DescriptorTable;
    /// The local descriptor table; all zero where there is none.
    fn ldt(&self) -> DescriptorTable;
    /// Reads a model-specific register.
    fn msr(&mut self, index: u32) -> io::Result<u64>;
    /// Extended control register 0.
    fn xcr0(&mut self) -> io::Result<u64>;
    /// Fills `image` with the x87, SSE and extended state, in the standard format.
    fn get_xsave(&mut self, image: &mut XsaveImage) -> io::Result<()>;
    /// Makes `image` the x87, SSE and extended state.
    fn set_xsave(&mut self, image: &XsaveImage) -> io::Result<()>;
    /// Drops every cached translation, global ones included.
    fn flush_tlb(&mut self) -> io::Result<()>;
    /// Raises an exception as soon as the guest runs again; sets CR2 for a page fault.
    fn raise(&mut self, exception: Exception) -> io::Result<()>;
}
