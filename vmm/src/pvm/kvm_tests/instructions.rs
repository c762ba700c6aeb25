//! Each instruction, at CPL 0.

use std::arch::x86_64::__cpuid_count;
use std::time::Instant;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};

use super::super::fallback::cpu::control;
use super::{CODE, DATA, DIRECTORY, Guest};

#[test]
fn kvm_int3_is_a_trap() {
    let mut guest = Guest::new();
    let outcome = guest.run(&[0x90, 0xcc], |_| {});
    assert_eq!(outcome.exception, Some(3));
    assert_eq!(guest.frame(&outcome)[..2], [CODE + 2, 0x10]);
}

#[test]
fn kvm_ud2_is_a_fault() {
    let mut guest = Guest::new();
    let outcome = guest.run(&[0x90, 0x0f, 0x0b], |_| {});
    assert_eq!(outcome.exception, Some(6));
    assert_eq!(guest.frame(&outcome)[0], CODE + 1);
}

#[test]
fn kvm_clac_and_stac() {
    let mut guest = Guest::new();
    let outcome = guest.finish(&[0x0f, 0x01, 0xcb], |_| {});
    assert_eq!(outcome.regs.rflags, 1 << 18 | 2);
    let outcome = guest.finish(&[0x0f, 0x01, 0xca], |r| r.rflags = 1 << 18 | 1 | 2);
    assert_eq!(outcome.regs.rflags, 3);
}

#[test]
fn kvm_popcnt() {
    let mut guest = Guest::new();
    // popcnt rax, rdi; popcnt cx, [rsi].
    let code = [0xf3, 0x48, 0x0f, 0xb8, 0xc7, 0x66, 0xf3, 0x0f, 0xb8, 0x0e];
    guest.store([0x01, 0x80, 0xff, 0xff], DATA);
    let outcome = guest.finish(&code, |r| {
        (r.rdi, r.rsi, r.rcx) = (0xff00_0000_0000_0f0f, DATA, u64::MAX);
        r.rflags = 0x8d7;
    });
    assert_eq!((outcome.regs.rax, outcome.regs.rcx), (16, 0xffff_ffff_ffff_0002));
    assert_eq!(outcome.regs.rflags, 2);
    let outcome = guest.finish(&[0xf3, 0x0f, 0xb8, 0xc7], |r| {
        (r.rdi, r.rax) = (1 << 32, u64::MAX)
    });
    assert_eq!((outcome.regs.rax, outcome.regs.rflags), (0, 0x42));
}

#[test]
fn kvm_cmpxchg16b() {
    let mut guest = Guest::new();
    // lock cmpxchg16b [rsi]
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    let set = |r: &mut kvm_regs| (r.rsi, r.rax, r.rdx, r.rbx, r.rcx) = (DATA, 1, 2, 3, 4);
    guest.store((1u128 | 2 << 64).to_le_bytes(), DATA);
    let outcome = guest.finish(&code, set);
    assert_eq!(outcome.regs.rflags & 0x40, 0x40);
    assert_eq!(guest.load(DATA), (3u128 | 4 << 64).to_le_bytes());
    let outcome = guest.finish(&code, set);
    assert_eq!(
        (outcome.regs.rflags & 0x40, outcome.regs.rax, outcome.regs.rdx),
        (0, 3, 4)
    );
    let outcome = guest.run(&code, |r| r.rsi = DATA + 8);
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(13), vec![0, CODE])
    );
}

#[test]
fn kvm_a_page_fault_has_its_address_and_code() {
    let mut guest = Guest::new();
    // cmpxchg16b [rsi], beyond the page tables.
    let outcome = guest.run(&[0x48, 0x0f, 0xc7, 0x0e], |r| r.rsi = 0x4000_0000);
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(14), vec![2, CODE])
    );
    assert_eq!(guest.vcpu.get_sregs().unwrap().cr2, 0x4000_0000);
}

#[test]
fn kvm_waits_and_fences() {
    let mut guest = Guest::new();
    // fwait; fninit; fnclex; lfence; mfence; sfence
    let code = [
        0x9b, 0xdb, 0xe3, 0xdb, 0xe2, 0x0f, 0xae, 0xe8, 0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xf8,
    ];
    guest.finish(&code, |_| {});
    guest.edit_sregs(|s| s.cr0 |= control::CR0_TS);
    for code in [&[0x9b][..], &[0xdb, 0xe3]] {
        assert_eq!(guest.run(code, |_| {}).exception, Some(7), "{code:x?}");
    }
}

#[test]
fn kvm_fwait_reports_a_pending_x87_exception() {
    let mut guest = Guest::new();
    let mut xsave = guest.vcpu.get_xsave().unwrap();
    // FCW: division by zero is not masked. FSW: it has happened (ZE, ES, B).
    xsave.region[0] = 0x8084_037b;
    xsave.region[128] |= 1;
    // SAFETY: the guest has no state beyond the 4 KiB of this structure.
    unsafe { guest.vcpu.set_xsave(&xsave).unwrap() };
    assert_eq!(guest.run(&[0x9b], |_| {}).exception, Some(16));
    // fnclex; fwait
    guest.finish(&[0xdb, 0xe2, 0x9b], |_| {});
}

#[test]
fn kvm_mxcsr() {
    let mut guest = Guest::new();
    guest.store(0x9fc0u32.to_le_bytes(), DATA);
    // ldmxcsr [rsi]; stmxcsr [rdi]
    let code = [0x0f, 0xae, 0x16, 0x0f, 0xae, 0x1f];
    guest.finish(&code, |r| (r.rsi, r.rdi) = (DATA, DATA + 64));
    assert_eq!(guest.load(DATA + 64), 0x9fc0u32.to_le_bytes());
    guest.store(0x1_0000u32.to_le_bytes(), DATA);
    let outcome = guest.run(&code, |r| (r.rsi, r.rdi) = (DATA, DATA + 64));
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(13), vec![0, CODE])
    );
    // Even back at its reset value it is what was loaded last.
    guest.store(0x1f80u32.to_le_bytes(), DATA);
    guest.finish(&code, |r| (r.rsi, r.rdi) = (DATA, DATA + 64));
    assert_eq!(guest.load(DATA + 64), 0x1f80u32.to_le_bytes());
}

#[test]
fn kvm_xgetbv() {
    let mut guest = Guest::new();
    let xcr0 = guest.vcpu.get_xcrs().unwrap().xcrs[0].value;
    let outcome = guest.finish(&[0x0f, 0x01, 0xd0], |_| {});
    assert_eq!(outcome.regs.rdx << 32 | outcome.regs.rax, xcr0);
    assert_eq!(guest.run(&[0x0f, 0x01, 0xd0], |r| r.rcx = 7).exception, Some(13));
}

#[test]
fn kvm_random_numbers() {
    let mut guest = Guest::new();
    // rdrand rax; rdseed rdx: up to ten tries each, as Intel advises.
    let mut draw = |code: &[u8]| {
        let outcome = (0..10)
            .map(|_| guest.finish(code, |_| {}))
            .find(|o| o.regs.rflags & 1 != 0);
        let outcome = outcome.expect("a random number");
        assert_eq!(outcome.regs.rflags, 3);
        outcome.regs.rax
    };
    let rdrand = [0x48, 0x0f, 0xc7, 0xf0];
    assert_ne!(draw(&rdrand), draw(&rdrand));
    assert_ne!(draw(&[0x48, 0x0f, 0xc7, 0xf8]), 0);
}

#[test]
fn kvm_tsc_and_processor_number() {
    let mut guest = Guest::new();
    let aux = kvm_msr_entry {
        index: 0xc000_0103,
        data: 0x1003,
        ..Default::default()
    };
    assert_eq!(
        guest.vcpu.set_msrs(&Msrs::from_entries(&[aux]).unwrap()).unwrap(),
        1
    );
    // rdtscp; shl rdx, 32; or rax, rdx; mov rbx, rax; mov rsi, rcx; rdtscp; shl rdx, 32; or rax, rdx
    let code = [
        0x0f, 0x01, 0xf9, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc3, 0x48, 0x89, 0xce, 0x0f,
        0x01, 0xf9, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0,
    ];
    let outcome = guest.finish(&code, |_| {});
    assert!(outcome.regs.rax > outcome.regs.rbx);
    assert_eq!((outcome.regs.rcx, outcome.regs.rsi), (0x1003, 0x1003));
    // rdpid rdi: KVM's emulator knows it, and refuses it where KVM does not offer the feature (CPUID.7.0:ECX bit 22).
    let outcome = guest.run(&[0xf3, 0x0f, 0xc7, 0xff], |_| {});
    match guest.offers(7, |leaf| leaf.ecx & 1 << 22 != 0) {
        true => assert_eq!((outcome.exception, outcome.regs.rdi), (None, 0x1003)),
        false => assert_eq!(outcome.exception, Some(6)),
    }
}

#[test]
fn kvm_segment_bases() {
    let mut guest = Guest::new();
    guest.store(77u64.to_le_bytes(), DATA);
    // wrfsbase rsi; wrgsbase rsi; rdfsbase rax; rdgsbase rdx; mov rbx, gs:[0]
    let code = [
        0xf3, 0x48, 0x0f, 0xae, 0xd6, 0xf3, 0x48, 0x0f, 0xae, 0xde, 0xf3, 0x48, 0x0f, 0xae, 0xc0, 0xf3, 0x48,
        0x0f, 0xae, 0xca, 0x65, 0x48, 0x8b, 0x1c, 0x25, 0, 0, 0, 0,
    ];
    let outcome = guest.finish(&code, |r| r.rsi = DATA);
    assert_eq!(
        (outcome.regs.rax, outcome.regs.rdx, outcome.regs.rbx),
        (DATA, DATA, 77)
    );
}

#[test]
fn kvm_invpcid_makes_a_changed_translation_show() {
    let mut guest = Guest::new();
    const REMAPPED: u64 = 6 << 20;
    guest.store(11u64.to_le_bytes(), 4 << 20);
    guest.store(22u64.to_le_bytes(), REMAPPED);
    // mov rbx, [rdi]; mov [rdx], rcx: change the page directory; invpcid rax, [rsi]; mov rdi, [rdi]
    let code = [
        0x48, 0x8b, 0x1f, 0x48, 0x89, 0x0a, 0x66, 0x0f, 0x38, 0x82, 0x06, 0x48, 0x8b, 0x3f,
    ];
    let outcome = guest.finish(&code, |r| {
        (r.rdi, r.rsi, r.rax) = (REMAPPED, DATA, 2);
        (r.rdx, r.rcx) = (DIRECTORY + 3 * 8, 4 << 20 | 0x87);
    });
    assert_eq!((outcome.regs.rbx, outcome.regs.rdi), (22, 11));
}

#[test]
fn kvm_verw() {
    let mut guest = Guest::new();
    // verw ax, for a writable segment, a read-only one, and the null selector.
    for (selector, writable) in [(0x18, true), (0x20, false), (0, false)] {
        let outcome = guest.finish(&[0x0f, 0x00, 0xe8], |r| r.rax = selector);
        assert_eq!(outcome.regs.rflags & 0x40 != 0, writable, "{selector:#x}");
    }
}

#[test]
fn kvm_serialize() {
    let mut guest = Guest::new();
    let outcome = guest.run(&[0x0f, 0x01, 0xe8], |_| {});
    // CPUID.7.0:EDX bit 14: not every CPU has it. On one that has not, KVM's emulator may know it all the same.
    let is_there = __cpuid_count(7, 0).edx & 1 << 14 != 0;
    match outcome.exception {
        None => {}
        Some(exception) => assert_eq!((exception, is_there), (6, false)),
    }
}

/// All forms of saving and restoring, one after the other, bring a state back that was loaded at the start.
#[test]
fn kvm_extended_state_survives_saving_and_restoring() {
    let mut guest = Guest::new();
    let has_xsaves = __cpuid_count(0xd, 1).eax & 1 << 3 != 0;
    let saves: [&[u8]; 4] = [
        &[0x48, 0x0f, 0xae, 0x26], // xsave64 [rsi]
        &[0x48, 0x0f, 0xae, 0x36], // xsaveopt64 [rsi]
        &[0x48, 0x0f, 0xc7, 0x26], // xsavec64 [rsi]
        &[0x48, 0x0f, 0xc7, 0x2e], // xsaves64 [rsi]
    ];
    // xrstor64 [rdi]; fninit; <save>; xrstor64 [rbx]: the initial state; xrstor64 [rsi]; xsave64 [rbp]
    let (load, clear) = ([0x48, 0x0f, 0xae, 0x2f], [0x48, 0x0f, 0xae, 0x2b]);
    let (back, back_supervisor) = ([0x48, 0x0f, 0xae, 0x2e], [0x48, 0x0f, 0xc7, 0x1e]);
    let store = [0x48, 0x0f, 0xae, 0x65, 0x00];
    let mut state = [0u8; 576];
    (160..416).for_each(|i| state[i] = i as u8);
    (0..8).for_each(|n| (0..10).for_each(|i| state[32 + n * 16 + i] = (n * 16 + i) as u8));
    state[..8].copy_from_slice(&[0x7f, 0x02, 0, 0x38, 0xff, 0, 0, 0]);
    state[24..28].copy_from_slice(&0x9fc0u32.to_le_bytes());
    state[512] = 3;
    for (n, save) in saves
        .into_iter()
        .enumerate()
        .filter(|(n, _)| *n < 3 || has_xsaves)
    {
        let back = if n == 3 { back_supervisor } else { back };
        let code = [&load[..], save, &clear, &back, &store].concat();
        guest.store([0; 8192], DATA);
        guest.store(state, DATA);
        guest.finish(&code, |r| {
            (r.rdi, r.rbx, r.rsi, r.rbp) = (DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000);
            (r.rax, r.rdx) = (3, 0);
        });
        let got: [u8; 576] = guest.load(DATA + 0x3000);
        assert_eq!(got[..28], state[..28], "form {n}");
        assert_eq!((&got[32..416], got[512] & 3), (&state[32..416], 3), "form {n}");
    }
    // A header that no format allows.
    guest.store([1], DATA + 520);
    assert_eq!(
        guest.run(&load, |r| (r.rdi, r.rax) = (DATA, 3)).exception,
        Some(13)
    );
}

/// MXCSR and the x87 control word reach the CPU even where no component is in use.
#[test]
fn kvm_restoring_the_initial_state_resets_mxcsr() {
    let mut guest = Guest::new();
    guest.store(0x9fc0u32.to_le_bytes(), DATA);
    guest.store([0; 576], DATA + 64);
    guest.store((1u64 << 63 | 3).to_le_bytes(), DATA + 64 + 520);
    // ldmxcsr [rsi]; xrstor64 [rsi+64], compacted and with nothing in use; stmxcsr [rsi]
    let code = [0x0f, 0xae, 0x16, 0x48, 0x0f, 0xae, 0x6e, 0x40, 0x0f, 0xae, 0x1e];
    guest.finish(&code, |r| (r.rsi, r.rax) = (DATA, 3));
    assert_eq!(guest.load(DATA), 0x1f80u32.to_le_bytes());
}

/// Not a check but a figure: what one completed instruction costs. Where the CPU does it all there is nothing to tell.
#[test]
fn kvm_cost_of_a_completed_instruction() {
    const ROUNDS: u64 = 5000;
    let mut guest = Guest::new();
    let cases: [(&str, &[u8]); 6] = [
        ("clac", &[0x0f, 0x01, 0xca]),
        ("popcnt rax, rdi", &[0xf3, 0x48, 0x0f, 0xb8, 0xc7]),
        ("lock cmpxchg16b [rsi]", &[0xf0, 0x48, 0x0f, 0xc7, 0x0e]),
        ("fwait", &[0x9b]),
        ("xsave64 [rsi]", &[0x48, 0x0f, 0xae, 0x26]),
        ("xrstor64 [rsi]", &[0x48, 0x0f, 0xae, 0x2e]),
    ];
    for (name, code) in cases {
        // dec rbp; jnz back to the start
        let back = -(code.len() as i8 + 5);
        let code = [code, &[0x48, 0xff, 0xcd, 0x75, back as u8]].concat();
        let start = Instant::now();
        let outcome = guest.finish(&code, |r| (r.rbp, r.rsi, r.rax) = (ROUNDS, DATA, 7));
        assert_eq!(outcome.regs.rbp, 0);
        assert!(outcome.completed == 0 || outcome.completed == ROUNDS as usize);
        if outcome.completed > 0 {
            println!(
                "{name}: {:.2} µs",
                start.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64
            );
        }
    }
}
