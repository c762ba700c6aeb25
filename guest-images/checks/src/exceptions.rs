//! Each CPU exception that a user program can raise arrives as the right signal, with the right address.

use crate::trap::{Trap, catch, probe};
use crate::{Check, Outcome, last_error};

/// The checks of this module.
pub const CHECKS: &[Check] = &[
    ("divide", divide),
    ("undefined-instruction", undefined_instruction),
    ("breakpoint", breakpoint),
    ("single-step", single_step),
    ("null-write", null_write),
    ("kernel-read", kernel_read),
    ("kernel-jump", kernel_jump),
    ("non-canonical", non_canonical),
    ("privileged-hlt", privileged_hlt),
    ("privileged-out", privileged_out),
    ("no-execute", no_execute),
    ("read-only", read_only),
];

/// An address in the kernel's text, where Linux maps it (Linux, Documentation/x86/x86_64/mm.rst).
const KERNEL_TEXT: usize = 0xffff_ffff_8100_0000;

fn expect(signal: i32, trap: &Trap) -> Outcome {
    if trap.signal == signal {
        return Ok(());
    }
    Err(match trap.signal {
        0 => format!("no signal instead of signal {signal}"),
        other => format!("signal {other} instead of signal {signal}"),
    })
}

fn expect_fault_at(address: usize, trap: &Trap) -> Outcome {
    expect(libc::SIGSEGV, trap)?;
    if trap.address == address {
        return Ok(());
    }
    Err(format!(
        "the fault is reported at {:#x} instead of {address:#x}",
        trap.address
    ))
}

fn divide() -> Outcome {
    expect(
        libc::SIGFPE,
        &catch(|| probe!("xor edx, edx", "mov eax, 1", "xor ecx, ecx", "div ecx")),
    )
}

fn undefined_instruction() -> Outcome {
    expect(libc::SIGILL, &catch(|| probe!("ud2")))
}

fn breakpoint() -> Outcome {
    expect(libc::SIGTRAP, &catch(|| probe!("int3")))
}

fn single_step() -> Outcome {
    // RFLAGS bit 8 is TF; the trap comes after the instruction that follows popfq (Intel SDM Vol. 3, § 18.3.1.4).
    let step = || {
        probe!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop");
    };
    expect(libc::SIGTRAP, &catch(step))
}

fn null_write() -> Outcome {
    expect_fault_at(0x10, &catch(|| probe!("mov rax, 0x10", "mov dword ptr [rax], 1")))
}

fn kernel_read() -> Outcome {
    expect_fault_at(KERNEL_TEXT, &catch(|| probe!("mov rax, [r8]"; KERNEL_TEXT)))
}

/// A jump to the kernel's system call entry must fault like any other, whatever the registers say: a VMM that repairs `syscall` by
/// looking at such faults must not take it for one.
///
/// The kernel does not tell where that entry is, but it is at or just behind the start of the entry code, which begins at a multiple of
/// 2 MiB (Linux, arch/x86/kernel/vmlinux.lds.S, ALIGN_ENTRY_TEXT_BEGIN).
fn kernel_jump() -> Outcome {
    for entry in (KERNEL_TEXT..KERNEL_TEXT + (64 << 20))
        .step_by(2 << 20)
        .flat_map(|start| [start, start + 0x40])
    {
        let jump = || probe!("mov r11, 0x202", "lea rcx, [rip + 2f]", "mov eax, 39", "jmp r8"; entry);
        expect_fault_at(entry, &catch(jump))?;
    }
    Ok(())
}

fn non_canonical() -> Outcome {
    // #GP, for which there is no address.
    let read = || probe!("mov rax, [r8]"; 0x8000_0000_0000_0000_u64);
    expect(libc::SIGSEGV, &catch(read))
}

fn privileged_hlt() -> Outcome {
    expect(libc::SIGSEGV, &catch(|| probe!("hlt")))
}

fn privileged_out() -> Outcome {
    expect(libc::SIGSEGV, &catch(|| probe!("xor eax, eax", "out 0x80, al")))
}

fn no_execute() -> Outcome {
    with_page(libc::PROT_READ | libc::PROT_WRITE, |page| {
        // SAFETY: the page is writable and ours. 0xc3 is `ret`.
        unsafe { page.write_volatile(0xc3) };
        expect_fault_at(page.addr(), &catch(|| probe!("jmp r8"; page)))
    })
}

fn read_only() -> Outcome {
    with_page(libc::PROT_READ, |page| {
        expect_fault_at(page.addr(), &catch(|| probe!("mov byte ptr [r8], 1"; page)))
    })
}

fn with_page(protection: i32, check: impl FnOnce(*mut u8) -> Outcome) -> Outcome {
    // SAFETY: a new anonymous page at an address of the kernel's choice, unmapped when nobody has its address any more.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(last_error("mmap"));
        }
        let outcome = check(page.cast());
        libc::munmap(page, 4096);
        outcome
    }
}

/// `int 0x80` works in a guest only if its kernel and its host's KVM both support it: worth knowing, not a failure.
pub fn note_32_bit_system_call() {
    let mut result = 0_u64;
    let slot = &raw mut result;
    // 20 is getpid (Linux, arch/x86/entry/syscalls/syscall_32.tbl).
    let trap = catch(|| probe!("mov eax, 20", "int 0x80", "mov [r8], rax"; slot));
    match trap.signal {
        0 if result == u64::from(std::process::id()) => println!("note int80: 32-bit system calls work"),
        0 => println!("note int80: 32-bit system calls return {result}"),
        signal => println!("note int80: 32-bit system calls raise signal {signal}"),
    }
}
