//! What the CPU enters with privilege after the start: exceptions, device interrupts, and what a program asks for by [`halt`] and [`send`].
//!
//! Handlers are assembler and short: they may be interpreted. An exception goes on in user mode, with [`report`].

use core::arch::global_asm;
use core::sync::atomic::AtomicU32;

use crate::boot::{USER_CODE, USER_DATA, USER_FLAGS};
use crate::interrupts::{COUNTS, DEVICES, PENDING, TOTAL};
use crate::serial::{DATA, LINE_STATUS, TRANSMITTER_EMPTY};
use crate::{power, println};

/// Bytes between two entries.
const ENTRY_SIZE: usize = 16;

unsafe extern "C" {
    /// The first of [`VECTORS`](crate::tables::VECTORS) entries.
    static bare_trap_entries: u8;
    fn bare_halt(seen: u32);
    fn bare_send(count: usize, bytes: *const u8);
}

/// The address of a vector's entry.
pub fn entry(vector: usize) -> u64 {
    (&raw const bare_trap_entries).addr() as u64 + (vector * ENTRY_SIZE) as u64
}

// An entry pushes the exception's number, after a zero where the CPU pushes no error code (Intel SDM Vol 3 Table 6-1), or the pin's.
global_asm!(
    ".pushsection .text.traps, \"ax\"",
    ".globl bare_trap_entries, bare_halt, bare_send",
    ".balign {ENTRY_SIZE}",
    "bare_trap_entries:",
    ".set vector, 0",
    ".rept 32",
    ".balign {ENTRY_SIZE}",
    ".if vector == 6",
    "jmp bare_invalid_opcode",
    ".else",
    ".if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30",
    "push 0",
    ".endif",
    "push vector",
    "jmp bare_exception",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".set pin, 0",
    ".rept {PINS}",
    ".balign {ENTRY_SIZE}",
    "push pin",
    "jmp bare_interrupt",
    ".set pin, pin + 1",
    ".endr",
    // What a program asks for with privilege, it asks by an invalid instruction at an address that the handler knows: a software
    // interrupt does not arrive on kvm-pvm hosts. Arguments are in edi and rsi, and callers expect nothing of rax, rcx, rdx and rsi.
    "bare_halt: ud2",
    "ret",
    "bare_send: ud2",
    "ret",
    "bare_invalid_opcode:",
    "cmp qword ptr [rsp], offset bare_halt",
    "je 2f",
    "cmp qword ptr [rsp], offset bare_send",
    "je 4f",
    "push 0",
    "push 6",
    "jmp bare_exception",
    // `sti` takes effect after the next instruction, so that no interrupt comes between the comparison and the halt.
    "2: cmp edi, [{TOTAL}]",
    "jne 3f",
    "sti",
    "hlt",
    "3: add qword ptr [rsp], 2",
    "iretq",
    "4: mov edx, {LINE_STATUS}",
    "in al, dx",
    "test al, {TRANSMITTER_EMPTY}",
    "jz 4b",
    "mov edx, {DATA}",
    "mov ecx, edi",
    "rep outsb",
    "jmp 3b",
    // The program is lost: report with its stack from the top.
    "bare_exception:",
    "pop rdi",
    "pop rsi",
    "mov rdx, [rsp]",
    "mov rcx, cr2",
    "push {USER_DATA}",
    "push offset bare_user_stack_top",
    "push {USER_FLAGS}",
    "push {USER_CODE}",
    "push offset bare_report",
    "iretq",
    "bare_report: call {report}",
    // A virtio device wants its interrupt acknowledged (virtio 1.3 §4.2.2, InterruptStatus 0x60 and InterruptACK 0x64); here it
    // costs an eighth of what it costs in user mode. 0xb0 of the local APIC is the end of interrupt.
    "bare_interrupt:",
    "push rax",
    "push rcx",
    "push rdx",
    "mov ecx, [rsp + 24]",
    "mov edx, [{DEVICES} + rcx * 4]",
    "test edx, edx",
    "jz 5f",
    "mov eax, [rdx + 0x60]",
    "mov [rdx + 0x64], eax",
    "or [{PENDING} + rcx * 4], eax",
    "5: inc dword ptr [{COUNTS} + rcx * 4]",
    "inc dword ptr [{TOTAL}]",
    "mov edx, 0xfee000b0",
    "mov dword ptr [rdx], 0",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 8",
    "iretq",
    ".popsection",
    ENTRY_SIZE = const ENTRY_SIZE,
    PINS = const crate::interrupts::PINS,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    USER_FLAGS = const USER_FLAGS,
    TOTAL = sym TOTAL,
    DEVICES = sym DEVICES,
    PENDING = sym PENDING,
    COUNTS = sym COUNTS,
    report = sym report,
    LINE_STATUS = const LINE_STATUS,
    TRANSMITTER_EMPTY = const TRANSMITTER_EMPTY,
    DATA = const DATA,
);

/// Halts the CPU until there has been an interrupt since there were `seen` of them.
pub fn halt(seen: u32) {
    // SAFETY: the handler halts the CPU and changes nothing; the counters that change meanwhile are atomic.
    unsafe { bare_halt(seen) }
}

/// Sends bytes by the serial port as soon as it has sent what it was given before: no more than its FIFO takes.
///
/// User mode could do it too, but on a kvm-pvm host each byte would take 0.09 ms instead of a tenth of that.
pub fn send(bytes: &[u8]) {
    // SAFETY: the handler reads exactly the slice, and writes to a port that does not touch memory.
    unsafe { bare_send(bytes.len(), bytes.as_ptr()) }
}

/// Says which exception it was, and ends the machine as crashed.
extern "C" fn report(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    static REPORTS: AtomicU32 = AtomicU32::new(0);
    // An exception while the first one is told would be told for ever.
    if REPORTS.fetch_add(1, core::sync::atomic::Ordering::Relaxed) == 0 {
        println!("FAILED: exception {vector}, error code {error:#x}, at rip {rip:#x}, cr2 {cr2:#x}");
    }
    power::crash()
}
