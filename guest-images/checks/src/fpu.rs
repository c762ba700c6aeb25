//! FPU and vector registers survive signals, and system calls and switches between processes that use them all at once.

use std::time::{Duration, Instant};

use crate::processes::{fork, wait};
use crate::trap::{catch, probe};
use crate::{Check, Outcome};

/// The checks of this module.
pub const CHECKS: &[Check] = &[("fpu-signal", across_a_signal), ("fpu-switches", across_switches)];

/// How long the processes of `across_switches` compete: some twenty time slices.
const COMPETITION: Duration = Duration::from_millis(500);

/// The handler clears xmm7 and the x87 stack; rt_sigreturn must bring the interrupted code's back.
fn across_a_signal() -> Outcome {
    let before = [0x0123_4567_89ab_cdef_u64, 0xfedc_ba98_7654_3210];
    let mut after = [0_u64; 2];
    let mut pi = 0_f64;
    let slots = [
        before.as_ptr().expose_provenance(),
        after.as_mut_ptr().expose_provenance(),
        (&raw mut pi).expose_provenance(),
    ];
    // The registers are stored in the same block, so this goes on at a label of its own instead of the probe's end.
    let trap = catch(|| {
        probe!(
            "mov rdx, [r8]",
            "movdqu xmm7, [rdx]",
            "fldpi",
            "lea rax, [rip + 3f]",
            "mov [rcx], rax",
            "ud2",
            "3:",
            "mov rdx, [r8 + 8]",
            "movdqu [rdx], xmm7",
            "mov rdx, [r8 + 16]",
            "fstp qword ptr [rdx]";
            slots.as_ptr()
        );
    });
    if trap.signal != libc::SIGILL {
        return Err(format!("signal {} instead of {}", trap.signal, libc::SIGILL));
    }
    if after != before {
        return Err(format!(
            "xmm7 is {after:x?} after the signal instead of {before:x?}"
        ));
    }
    if pi != std::f64::consts::PI {
        return Err(format!("the x87 stack holds {pi} after the signal instead of pi"));
    }
    Ok(())
}

/// Three processes, each with values of its own in a vector register and on the x87 stack, take turns on the CPU.
fn across_switches() -> Outcome {
    let avx = is_x86_feature_detected!("avx");
    let children = [1, 2, 3].map(|seed| fork(|| compete(seed, avx)));
    let mut outcome = Ok(());
    for child in children {
        match wait(child?) {
            Ok(0) => {}
            Ok(1) => outcome = Err("a vector register changed across sched_yield".to_owned()),
            Ok(2) => outcome = Err("the x87 stack changed across sched_yield".to_owned()),
            Ok(status) => outcome = Err(format!("a child exited with status {status}")),
            Err(why) => outcome = Err(why),
        }
    }
    println!("note fpu-switches: with {}", if avx { "AVX" } else { "SSE only" });
    outcome
}

fn compete(seed: u64, avx: bool) -> i32 {
    let before = [seed * 11 + 1, seed * 7 + 2, seed * 5 + 3, seed * 3 + 4];
    let number = seed as f64 + 1.5;
    let start = Instant::now();
    while start.elapsed() < COMPETITION {
        let mut after = before;
        let mut kept = 0_f64;
        // 24 is sched_yield (Linux, arch/x86/entry/syscalls/syscall_64.tbl).
        // SAFETY: the blocks read and write only the arrays that they are given; AVX only where the CPU and the kernel have it.
        unsafe {
            if avx {
                std::arch::asm!(
                    "vmovdqu ymm7, [{from}]", "fld qword ptr [{number}]", "mov eax, 24", "syscall",
                    "vmovdqu [{to}], ymm7", "fstp qword ptr [{kept}]", "vzeroupper",
                    from = in(reg) &before, to = in(reg) &mut after, number = in(reg) &number, kept = in(reg) &mut kept,
                    out("rax") _, out("rcx") _, out("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
                    out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
                    out("xmm13") _, out("xmm14") _, out("xmm15") _,
                );
            } else {
                std::arch::asm!(
                    "movdqu xmm7, [{from}]", "fld qword ptr [{number}]", "mov eax, 24", "syscall",
                    "movdqu [{to}], xmm7", "fstp qword ptr [{kept}]",
                    from = in(reg) &before, to = in(reg) &mut after, number = in(reg) &number, kept = in(reg) &mut kept,
                    out("rax") _, out("rcx") _, out("r11") _, out("xmm7") _,
                );
            }
        }
        if after != before {
            return 1;
        }
        if kept != number {
            return 2;
        }
    }
    0
}
