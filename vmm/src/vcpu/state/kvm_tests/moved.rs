//! What a guest notices of a move: nothing.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED, kvm_msr_entry, kvm_xcrs};
use vm_memory::{Bytes, GuestAddress};

use super::super::msrs;
use super::*;

/// The local APIC's page (Intel SDM Vol 3 §12.4.1).
const APIC: u32 = 0xfee0_0000;

#[test]
fn kvm_an_input_that_was_answered_arrives() {
    // mov ecx, 5; again: in eax, PORT; add rbx, rax; mov [DATA + rcx*8], rbx; out PORT + 1, al; loop again.
    let code = [
        &[0xb9, 5, 0, 0, 0][..],
        &[0xe5, PORT, 0x48, 0x01, 0xc3],
        &[0x48, 0x89, 0x1c, 0xcd],
        &(DATA as u32).to_le_bytes(),
        &[0xe6, PORT + 1, 0xe2, 0xef],
    ]
    .concat();
    assert_eq!(moved_at_every_exit(|| Guest::new(1, &code)), 10);
}

#[test]
fn kvm_a_string_of_inputs_and_one_of_outputs_lose_no_byte() {
    // mov edi, DATA; mov ecx, 3000; mov edx, PORT; rep insb; mov esi, DATA; mov ecx, 5; inc edx; rep outsb.
    let data = (DATA as u32).to_le_bytes();
    let code = [
        &[0xbf][..],
        &data,
        &[0xb9, 0xb8, 0x0b, 0, 0, 0xba, PORT, 0, 0, 0, 0xf3, 0x6c, 0xbe],
        &data,
        &[0xb9, 5, 0, 0, 0, 0xff, 0xc2, 0xf3, 0x6e],
    ]
    .concat();
    assert!(moved_at_every_exit(|| Guest::new(1, &code)) > 1);
}

#[test]
fn kvm_an_access_in_two_pieces_is_whole() {
    // mov rbx, MMIO + 0xffc; mov rax, [rbx]; mov [DATA], rax; mov [rbx], rax; xchg [rbx], rax; mov [DATA + 8], rax.
    let data = |offset: u32| (DATA as u32 + offset).to_le_bytes();
    let code = [
        &[0x48, 0xbb][..],
        &(MMIO + 0xffc).to_le_bytes(),
        &[0x48, 0x8b, 0x03, 0x48, 0x89, 0x04, 0x25],
        &data(0),
        &[0x48, 0x89, 0x03, 0x48, 0x87, 0x03, 0x48, 0x89, 0x04, 0x25],
        &data(8),
    ]
    .concat();
    assert!(moved_at_every_exit(|| Guest::new(1, &code)) >= 4);
}

#[test]
fn kvm_an_interrupt_that_waits_is_delivered_once() {
    // mov rsi, APIC; mov dword [rsi + 0xf0], 0x1ff (enabled); mov dword [rsi + 0x300], 0x40050 (to itself, vector 0x50);
    // out PORT, al; mov ecx, 20,000,000; sti; again: test rbx, rbx; loopz again; cli; xor ecx, ecx; out PORT, al.
    // (kvm-pvm interrupts a guest's kernel code at its own convenience.)
    let code = [
        &[0xbe][..],
        &APIC.to_le_bytes(),
        &[0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 1, 0, 0],
        &[0xc7, 0x86, 0, 3, 0, 0, 0x50, 0, 4, 0],
        &[0xe6, PORT, 0xb9],
        &20_000_000u32.to_le_bytes(),
        &[0xfb, 0x48, 0x85, 0xdb, 0xe1, 0xfb, 0xfa, 0x31, 0xc9, 0xe6, PORT],
    ]
    .concat();
    // inc rbx; out PORT + 2, al; mov dword [rsi + 0xb0], 0 (the end of the interrupt).
    let handler = [
        &[0x48, 0xff, 0xc3, 0xe6, PORT + 2][..],
        &[0xc7, 0x86, 0xb0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let make = || {
        let guest = Guest::new(1, &code);
        guest.handle(0x50, &handler);
        guest
    };
    assert_eq!(make().finish().regs.rbx, 1);
    assert_eq!(moved_at_every_exit(make), 3);
}

/// A guest that has come to its first exit and does nothing more of note, but counts in rbx how often `vector` was handled.
fn counting(vector: u8) -> Guest {
    // out PORT, al; nop; nop.
    let mut guest = Guest::new(1, &[0xe6, PORT, 0x90, 0x90]);
    guest.handle(vector, &[0x48, 0xff, 0xc3]);
    assert!(guest.run(0, 1).is_continue());
    guest
}

#[test]
fn kvm_an_exception_that_is_being_delivered_arrives() {
    let mut guest = counting(6);
    guest.save(); // The instruction is finished.
    let mut events = guest.vcpus[0].get_vcpu_events().unwrap();
    (events.exception.injected, events.exception.nr) = (1, 6);
    guest.vcpus[0].set_vcpu_events(&events).unwrap();
    let saved = guest.save();
    assert_eq!(guest.restored(&saved).finish().regs.rbx, 1);
}

#[test]
fn kvm_an_nmi_that_waits_arrives() {
    let mut guest = counting(2);
    guest.vcpus[0].nmi().unwrap();
    let saved = guest.save();
    assert_eq!(guest.restored(&saved).finish().regs.rbx, 1);
}

#[test]
fn kvm_a_vcpu_that_has_halted_is_woken() {
    let mut guest = counting(2);
    guest.save();
    let halted = kvm_bindings::kvm_mp_state {
        mp_state: KVM_MP_STATE_HALTED,
    };
    guest.vcpus[0].set_mp_state(halted).unwrap();
    let saved = guest.save();
    let mut moved = guest.restored(&saved);
    assert_eq!(moved.vcpus[0].get_mp_state().unwrap(), halted);
    moved.vcpus[0].nmi().unwrap();
    assert_eq!(moved.finish().regs.rbx, 1);
}

#[test]
fn kvm_a_timer_that_runs_goes_on() {
    // mov rsi, APIC; enable it; mov dword [rsi + 0x320], 0x40050 (the timer in deadline mode, vector 0x50);
    // mfence; rdtsc; shl rdx, 32; add rax, rdx; add rax, 250,000,000; mov rdx, rax; shr rdx, 32; mov ecx, 0x6e0; wrmsr;
    // out PORT, al; mov ecx, 20,000,000; sti; again: test rbx, rbx; loopz again; cli.
    let code = [
        &[0xbe][..],
        &APIC.to_le_bytes(),
        &[0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 1, 0, 0],
        &[0xc7, 0x86, 0x20, 3, 0, 0, 0x50, 0, 4, 0],
        &[
            0x0f, 0xae, 0xf0, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 32, 0x48, 0x01, 0xd0,
        ],
        &[0x48, 0x05],
        &250_000_000u32.to_le_bytes(),
        &[
            0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 32, 0xb9, 0xe0, 6, 0, 0, 0x0f, 0x30,
        ],
        &[0xe6, PORT, 0xb9],
        &20_000_000u32.to_le_bytes(),
        &[0xfb, 0x48, 0x85, 0xdb, 0xe1, 0xfb, 0xfa],
    ]
    .concat();
    let mut guest = Guest::new(1, &code);
    guest.handle(0x50, &[0x48, 0xff, 0xc3]);
    assert!(guest.run(0, 1).is_continue());
    let saved = guest.save();
    assert!(saved.cpus[0].msr(msrs::IA32_TSC_DEADLINE).unwrap() > 0);
    assert_eq!(guest.restored(&saved).finish().regs.rbx, 1);
}

#[test]
fn kvm_vector_registers_of_a_user_program_are_kept() {
    // SAFETY: every x86-64 CPU has CPUID; leaves that it does not have are zeros or those of another one.
    if __cpuid_count(1, 0).ecx & 1 << 28 == 0 {
        return;
    }
    // vmovdqu ymm0, [DATA]; vmovdqu ymm15, [DATA + 32]; out PORT, al; vmovdqu [DATA + 64], ymm0; vmovdqu [DATA + 96], ymm15.
    let data = |offset: u32| (DATA as u32 + offset).to_le_bytes();
    let code = [
        &[0xc5, 0xfe, 0x6f, 0x04, 0x25][..],
        &data(0),
        &[0xc5, 0x7e, 0x6f, 0x3c, 0x25],
        &data(32),
        &[0xe6, PORT, 0xc5, 0xfe, 0x7f, 0x04, 0x25],
        &data(64),
        &[0xc5, 0x7e, 0x7f, 0x3c, 0x25],
        &data(96),
    ]
    .concat();
    let pattern: Vec<u8> = (1..=64).collect();
    let make = || {
        let guest = Guest::new(1, &code);
        in_user_mode(&guest);
        guest.store(DATA, &pattern);
        guest
    };
    assert_eq!(make().finish().data[64..128], pattern);
    assert_eq!(moved_at_every_exit(make), 1);
}

/// The guest's program is to be one of user mode that may use ports and AVX.
fn in_user_mode(guest: &Guest) {
    let vcpu = &guest.vcpus[0];
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.dpl, sregs.ss.dpl) = (3, 3);
    (sregs.cs.selector, sregs.ss.selector) = (0x23, 0x2b);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    regs.rflags |= 3 << 12; // IOPL
    vcpu.set_regs(&regs).unwrap();
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = 7; // x87, SSE, AVX
    vcpu.set_xcrs(&xcrs).unwrap();
}

#[test]
fn kvm_a_second_cpu_that_waits_can_be_started() {
    // mov rsi, APIC; enable it; mov dword [rsi + 0x310], 1 << 24 (to APIC id 1); out PORT, al; mov dword [rsi + 0x300], 0x4500 (INIT);
    // out PORT, al; mov dword [rsi + 0x300], 0x4608 (start at 0x8000); out PORT, al.
    let code = [
        &[0xbe][..],
        &APIC.to_le_bytes(),
        &[0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 1, 0, 0],
        &[0xc7, 0x86, 0x10, 3, 0, 0, 0, 0, 0, 1, 0xe6, PORT],
        &[0xc7, 0x86, 0, 3, 0, 0, 0, 0x45, 0, 0, 0xe6, PORT],
        &[0xc7, 0x86, 0, 3, 0, 0, 0x08, 0x46, 0, 0, 0xe6, PORT],
    ]
    .concat();
    // In real mode: mov al, 0x5a; out PORT + 3, al; out DONE, al.
    let start = [0xb0, 0x5a, 0xe6, PORT + 3, 0xe6, DONE, 0xf4];
    for exits in 0..=3 {
        let mut guest = Guest::new(2, &code);
        guest.store(HANDLER, &start);
        assert!(guest.run(0, exits).is_continue());
        let saved = guest.save();
        if exits == 0 {
            assert_eq!(saved.cpus[1].mp_state.mp_state, KVM_MP_STATE_UNINITIALIZED);
        }
        let mut moved = guest.restored(&saved);
        moved.finish();
        assert!(moved.run(1, usize::MAX).is_break(), "moved at exit {exits}");
        let written = moved.probe.written.lock().unwrap();
        assert!(written.contains(&(3, vec![0x5a])), "moved at exit {exits}");
    }
}

#[test]
fn kvm_the_guests_clock_is_told_of_a_pause() {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    const FLAGS: u64 = 29;
    let mut guest = Guest::new(1, &[0xe6, PORT, 0xe6, PORT]);
    // There is no clock yet, which is no error.
    super::super::tell_of_pause(&guest.vcpus[0]).unwrap();
    let clock = kvm_msr_entry {
        index: SYSTEM_TIME,
        data: DATA | 1,
        ..Default::default()
    };
    msrs::write(&guest.vcpus[0], [clock].iter()).unwrap();
    assert!(guest.run(0, 1).is_continue());
    let stopped = |guest: &Guest| {
        let flags: u8 = guest.ram.read_obj(GuestAddress(DATA + FLAGS)).unwrap();
        flags & 2 != 0
    };
    assert!(!stopped(&guest));
    super::super::tell_of_pause(&guest.vcpus[0]).unwrap();
    assert!(guest.run(0, 1).is_continue());
    assert!(stopped(&guest));
}
