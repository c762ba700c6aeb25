//! Instructions that user mode has too, over random inputs: the fallback against this very CPU.

use std::arch::asm;

use proptest::prelude::*;

use super::super::compare_exchange_16;
use super::super::cpu::{RAX, RBX, RCX, RDX, rflags};
use super::*;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

const RSI: u8 = 6;
const RDI: u8 = 7;

/// Runs an instruction with RAX, RDX and RDI set, from all arithmetic flags set; returns the three and the arithmetic flags.
macro_rules! on_cpu {
    ($instruction:literal, $rax:expr, $rdx:expr, $rdi:expr) => {{
        let (mut rax, mut rdx, mut rdi): (u64, u64, u64) = ($rax, $rdx, $rdi);
        let mut flags = rflags::ARITHMETIC;
        // SAFETY: the instructions below touch the three registers and push and pop one word. Setting the flags to the arithmetic
        // ones alone leaves the direction flag clear, as Rust demands.
        unsafe {
            asm!("push {f}", "popfq", $instruction, "pushfq", "pop {f}",
                f = inout(reg) flags, inout("rax") rax, inout("rdx") rdx, inout("rdi") rdi);
        }
        (rax, rdx, rdi, flags & rflags::ARITHMETIC)
    }};
}

fn assert_same(code: &[u8], [rax, rdx, rdi]: [u64; 3], expected: (u64, u64, u64, u64)) {
    let mut guest = Guest::new();
    guest.cpu.rflags = 2 | rflags::ARITHMETIC;
    guest.cpu.set_gpr(RAX, rax);
    guest.cpu.set_gpr(RDX, rdx);
    guest.cpu.set_gpr(RDI, rdi);
    guest.finish(code);
    let flags = guest.cpu.rflags & rflags::ARITHMETIC;
    assert_eq!(
        (guest.cpu.gpr(RAX), guest.cpu.gpr(RDX), guest.cpu.gpr(RDI), flags),
        expected,
        "{code:02x?}"
    );
}

fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(0xffff_0000),
        any::<u64>(),
        (0u32..64).prop_map(|n| 1 << n)
    ]
}

proptest! {
    #[test]
    fn popcnt(rax in operand(), rdx in operand(), rdi in operand()) {
        let r = [rax, rdx, rdi];
        assert_same(&[0xf3, 0x48, 0x0f, 0xb8, 0xc7], r, on_cpu!("popcnt rax, rdi", rax, rdx, rdi));
        assert_same(&[0xf3, 0x0f, 0xb8, 0xc7], r, on_cpu!("popcnt eax, edi", rax, rdx, rdi));
        assert_same(&[0x66, 0xf3, 0x0f, 0xb8, 0xd7], r, on_cpu!("popcnt dx, di", rax, rdx, rdi));
        assert_same(&[0xf3, 0x48, 0x0f, 0xb8, 0xff], r, on_cpu!("popcnt rdi, rdi", rax, rdx, rdi));
    }

    #[test]
    fn cmpxchg16b(there in any::<u128>(), equal: bool, other in any::<u128>(), new in any::<u128>(), lock: bool) {
        let expected = if equal { there } else { other };
        let mut cell = [there];
        // SAFETY: `cell` is 16 aligned bytes that nothing else uses while `slice` does.
        let slice = unsafe { VolatileSlice::new(cell.as_mut_ptr().cast(), 16) };
        let seen = compare_exchange_16(&slice, expected, new).unwrap();

        let mut guest = Guest::new();
        guest.cpu.rflags = 2 | rflags::ARITHMETIC;
        guest.store(DATA, &there.to_le_bytes());
        for (register, value) in
            [(RDX, expected >> 64), (RAX, expected), (RCX, new >> 64), (RBX, new), (RSI, DATA.into())]
        {
            guest.cpu.set_gpr(register, value as u64);
        }
        let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
        guest.finish(if lock { &code } else { &code[1..] });
        prop_assert_eq!(u128::from_le_bytes(guest.load(DATA)), cell[0]);
        let in_registers = u128::from(guest.cpu.gpr(RDX)) << 64 | u128::from(guest.cpu.gpr(RAX));
        prop_assert_eq!(in_registers, seen);
        let zero = if seen == expected { rflags::ZF } else { 0 };
        prop_assert_eq!(guest.cpu.rflags, 2 | rflags::ARITHMETIC & !rflags::ZF | zero);
    }
}

#[test]
fn compare_exchange_refuses_what_is_not_16_aligned_bytes() {
    let guest = Guest::new();
    for (offset, len) in [(8, 16), (0, 8), (0, 32), (1, 16)] {
        let slice = guest.ram.get_slice(GuestAddress(DATA + offset), len).unwrap();
        assert_eq!(compare_exchange_16(&slice, 0, 1), None);
    }
    assert_eq!(guest.load(DATA), [0; 64]);
}

#[test]
fn compare_exchange_is_atomic_among_threads() {
    const ROUNDS: u64 = 20_000;
    let guest = Guest::new();
    let add = || {
        let slice = guest.ram.get_slice(GuestAddress(DATA), 16).unwrap();
        let mut seen = 0;
        for _ in 0..ROUNDS {
            loop {
                // Both halves count, so that a torn write shows.
                let before = seen;
                seen = compare_exchange_16(&slice, before, before + (1 << 64 | 1)).unwrap();
                if seen == before {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(add))));
    assert_eq!(
        u128::from_le_bytes(guest.load(DATA)),
        u128::from(3 * ROUNDS) << 64 | u128::from(3 * ROUNDS)
    );
}

#[test]
fn random_numbers_have_their_size_and_differ() {
    let mut guest = Guest::new();
    // rdrand rax; rdseed edi; rdrand dx
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        guest.cpu.rflags = 2 | rflags::ARITHMETIC;
        guest.finish(&[0x48, 0x0f, 0xc7, 0xf0]);
        assert_eq!(guest.cpu.rflags, 2 | rflags::CF);
        seen.insert(guest.cpu.gpr(RAX));
        guest.cpu.set_gpr(RDI, u64::MAX);
        guest.finish(&[0x0f, 0xc7, 0xff]);
        assert!(guest.cpu.gpr(RDI) <= 0xffff_ffff);
        guest.cpu.set_gpr(RDX, u64::MAX);
        guest.finish(&[0x66, 0x0f, 0xc7, 0xf2]);
        assert!(guest.cpu.gpr(RDX) >= !0xffff);
    }
    assert_eq!(seen.len(), 4);
}

/// `stmxcsr` and `ldmxcsr` of every value that this CPU takes, which it says itself.
#[test]
fn mxcsr_is_stored_and_loaded_as_the_cpu_does() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RSI, DATA);
    for value in [0x1f80u32, 0, 0xffbf, 0x9fc0, 0x1234] {
        let (mut real, mut saved) = (0u32, 0u32);
        // SAFETY: all exceptions stay masked while no SSE instruction runs, and the old value comes back.
        unsafe {
            asm!("stmxcsr [{saved}]", "ldmxcsr [{value}]", "stmxcsr [{real}]", "ldmxcsr [{saved}]",
                saved = in(reg) &mut saved, value = in(reg) &value, real = in(reg) &mut real);
        }
        guest.store(DATA, &value.to_le_bytes());
        guest.finish(&[0x0f, 0xae, 0x16]);
        guest.store(DATA, &[0; 4]);
        guest.finish(&[0x0f, 0xae, 0x1e]);
        assert_eq!(u32::from_le_bytes(guest.load(DATA)), real);
        assert_eq!(saved & 0x1f80, 0x1f80);
    }
}

#[test]
fn xgetbv_and_rdpid_say_what_the_cpu_says() {
    let (low, high): (u32, u32);
    // SAFETY: as in `components`.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    let mut guest = Guest::new();
    guest.cpu.xcr0 = u64::from(high) << 32 | u64::from(low);
    guest.cpu.gprs = [u64::MAX; 16];
    guest.cpu.set_gpr(RCX, 0xffff_ffff_0000_0000);
    guest.finish(&[0x0f, 0x01, 0xd0]);
    assert_eq!(
        (guest.cpu.gpr(RAX), guest.cpu.gpr(RDX)),
        (low.into(), high.into())
    );
    guest.cpu.msrs.insert(0xc000_0103, 0x1003);
    guest.finish(&[0xf3, 0x0f, 0xc7, 0xff]);
    assert_eq!(guest.cpu.gpr(RDI), 0x1003);
}
