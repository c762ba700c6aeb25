//! From the PVH entry point to user mode: the instructions that run with privilege before [`main`](crate::main), and the page tables.
//!
//! Where a host interprets a guest's privileged code each instruction costs as much as a thousand native ones. So everything is
//! laid out by the assembler and the linker, and some thirty instructions are left.

use core::arch::global_asm;

/// Selectors of the segments in the GDT; those of user mode with its privilege level.
pub const KERNEL_CODE: u16 = 0x08;
pub const USER_DATA: u16 = 0x18 | 3;
pub const USER_CODE: u16 = 0x20 | 3;
const TASK_STATE: u16 = 0x28;

/// Interrupts stay off in user mode: they wait for [`wait_for_interrupt`](crate::interrupts::wait), and no polling loop is disturbed.
pub const USER_FLAGS: u16 = 0x2;

// XEN_ELFNOTE_PHYS32_ENTRY (Xen's public/elfnote.h): how PVH loaders find the entry point.
global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long bare_start",
    ".popsection",
);

// PVH (Xen's docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, no paging, interrupts off, start info at ebx.
global_asm!(
    ".pushsection .boot, \"ax\"",
    ".code32",
    ".globl bare_start",
    "bare_start:",
    "mov esp, offset bare_kernel_stack_top",
    "mov eax, offset bare_page_map",
    "mov cr3, eax",
    "mov eax, 0x620", // PAE, OSFXSR, OSXMMEXCPT: compiled code uses SSE
    "mov cr4, eax",
    "mov ecx, 0xc0000080", // IA32_EFER
    "mov eax, 0x100",      // LME
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x80000033", // PG, NE, ET, MP, PE
    "mov cr0, eax",
    "lgdt [bare_gdt_pointer]",
    ".byte 0xea", // a far jump, to 64-bit code
    ".long bare_long_mode",
    ".short {KERNEL_CODE}",
    ".code64",
    "bare_long_mode:",
    "mov eax, {TASK_STATE}",
    "ltr ax",
    "lidt [bare_idt_pointer]",
    "mov edi, ebx",
    "push {USER_DATA}",
    "push offset bare_user_stack_top",
    "push {USER_FLAGS}",
    "push {USER_CODE}",
    "push offset bare_user_mode",
    "iretq",
    "bare_user_mode:",
    "xor ebp, ebp", // marks the outermost frame (System V ABI, x86-64 supplement, § 3.4.1)
    "call {main}",
    ".popsection",
    KERNEL_CODE = const KERNEL_CODE,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    USER_FLAGS = const USER_FLAGS,
    TASK_STATE = const TASK_STATE,
    main = sym crate::main,
);

// 4-level paging (Intel SDM Vol 3 §4.5): the low 4 GiB mapped to themselves in pages of 2 MiB, for user mode as well. The last
// GiB, where devices are, is not cached.
global_asm!(
    ".pushsection .tables, \"aw\"",
    ".balign 4096",
    "bare_page_map: .quad bare_page_directory_pointers + 0x7",
    ".balign 4096",
    "bare_page_directory_pointers:",
    ".quad bare_page_directories + 0x7",
    ".quad bare_page_directories + 0x1007",
    ".quad bare_page_directories + 0x2007",
    ".quad bare_page_directories + 0x3007",
    ".balign 4096",
    "bare_page_directories:",
    ".set bare_page, 0",
    ".rept 1536",
    ".quad bare_page + 0x87", // present, writable, user, large
    ".set bare_page, bare_page + 0x200000",
    ".endr",
    ".rept 512",
    ".quad bare_page + 0x9f", // the same, and PWT and PCD
    ".set bare_page, bare_page + 0x200000",
    ".endr",
    ".popsection",
);

// The stacks: 4 KiB for handlers, which are short, and 256 KiB for the program.
global_asm!(
    ".pushsection .bss, \"aw\", @nobits",
    ".globl bare_kernel_stack_top, bare_user_stack_top",
    ".balign 16",
    ".skip 0x1000",
    "bare_kernel_stack_top:",
    ".skip 0x40000",
    "bare_user_stack_top:",
    ".popsection",
);
