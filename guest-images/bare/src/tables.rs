//! The CPU's descriptor tables: segments, the task state with its I/O permissions, and the interrupt gates.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::boot::KERNEL_CODE;
use crate::traps;

/// Exceptions, and one vector for each pin of the I/O APIC.
pub const VECTORS: usize = 32 + crate::interrupts::PINS;
/// The vector of the I/O APIC's first pin.
pub const FIRST_INTERRUPT: u8 = 32;

/// An interrupt gate (Intel SDM Vol 3 Figure 6-8).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    /// A gate to privileged code; interrupts are off in the handler. Present, DPL 0, type 14.
    fn to(handler: u64) -> Self {
        Self {
            low: handler & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | 0x8e00 << 32
                | (handler & 0xffff_0000) << 32,
            high: handler >> 32,
        }
    }
}

#[repr(C, align(16))]
struct InterruptTable(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: there is one CPU, and it writes the table once, before any interrupt.
unsafe impl Sync for InterruptTable {}

static INTERRUPT_TABLE: InterruptTable = InterruptTable(UnsafeCell::new([Gate { low: 0, high: 0 }; VECTORS]));

// Code and data for both modes (Intel SDM Vol 3 §3.4.5), all flat, and the TSS. The 64-bit TSS (Intel SDM Vol 3 §8.7) has the
// handlers' stack and, at 0x68, one bit for each port: 0 allows it to user mode. (IOPL would do the same with less, but a
// kvm-pvm host loses it on the way to user mode.)
global_asm!(
    ".pushsection .tables, \"aw\"",
    ".balign 16",
    "bare_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    ".quad 0x00cf93000000ffff",
    ".quad 0x00cff3000000ffff",
    ".quad 0x00affb000000ffff",
    ".quad bare_tss_descriptor, 0",
    ".globl bare_gdt_pointer, bare_idt_pointer, bare_tss",
    "bare_gdt_pointer:",
    ".short bare_gdt_pointer - bare_gdt - 1",
    ".quad bare_gdt",
    "bare_idt_pointer:",
    ".short {VECTORS} * 16 - 1",
    ".quad {idt}",
    ".balign 128",
    "bare_tss:",
    ".long 0",
    ".quad bare_kernel_stack_top", // RSP0
    ".skip 0x66 - 12",
    ".short 0x68",
    ".skip 0x2000",
    ".byte 0xff", // "the byte after the bitmap" has all bits set (Intel SDM Vol 1 §19.5.2)
    ".popsection",
    VECTORS = const VECTORS,
    idt = sym INTERRUPT_TABLE,
);

/// Fills in the interrupt gates, in user mode and natively: the table's place has been told to the CPU before.
pub fn fill_interrupt_table() {
    for vector in 0..VECTORS {
        let gate = Gate::to(traps::entry(vector));
        // SAFETY: the vector is within the table, and nobody else has a reference to it.
        unsafe { INTERRUPT_TABLE.0.get().cast::<Gate>().add(vector).write(gate) };
    }
}
