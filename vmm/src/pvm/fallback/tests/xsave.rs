//! The XSAVE family against the CPU's own, over random states, masks and areas; and what the CPU would refuse.

use std::arch::asm;

use proptest::prelude::*;

use super::super::cpu::{RAX, RDX};
use super::super::xstate::{Layout, XSTATE_BV};
use super::super::{Error, Unsupported};
use super::*;

const SIZE: usize = 4096;
const RSI: u8 = 6;
const COMPACTED: u64 = 1 << 63;

#[derive(Clone)]
#[repr(C, align(64))]
struct Area([u8; SIZE]);

impl Area {
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.0[at..].first_chunk().unwrap())
    }

    fn set_word(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// An XSAVE area with random but valid contents, for `xrstor`. `compacted` chooses the format.
fn state(bytes: Vec<u8>, bv: u64, compacted: Option<u64>) -> Area {
    let mut area = Area(bytes.try_into().unwrap());
    let legacy = &mut area.0;
    // FCW; FSW with a stack top only; no last instruction, since AMD CPUs do not keep one without an exception.
    legacy[..24].fill(0);
    legacy[..4].copy_from_slice(&[0x7f, 0x02, 0, 0x38]);
    legacy[4] = 0x81;
    // MXCSR: any flags and masks, no reserved bits.
    legacy[26..28].fill(0);
    // The x87 registers have 10 bytes each.
    (0..8).for_each(|n| legacy[42 + n * 16..48 + n * 16].fill(0));
    legacy[512..576].fill(0);
    // A PKRU that denied key 0 would deny this test its memory.
    let layout = Layout::of_this_cpu(SIZE);
    let mut at = 576usize;
    for n in 2..63 {
        let Some(c) = layout.component(n) else { continue };
        let offset = match compacted {
            None => c.offset,
            Some(bv) if bv >> n & 1 != 0 => {
                let offset = if c.aligned { at.next_multiple_of(64) } else { at };
                at = offset + c.size;
                offset
            }
            Some(_) => continue,
        };
        if n == 9 {
            area.0[offset] &= 0xfc;
            area.0[offset + 4..offset + 8].fill(0);
        }
    }
    area.set_word(XSTATE_BV, bv);
    if let Some(components) = compacted {
        area.set_word(XSTATE_BV + 8, components | COMPACTED);
    }
    area
}

/// On the CPU: loads `start`, tells what state that gave, runs the instruction on `area`, tells what state that gave.
macro_rules! on_cpu {
    ($instruction:literal, $start:expr, $area:expr, $mask:expr) => {{
        let zero = Area([0; SIZE]);
        let (mut saved, mut before, mut after) = (Box::new(Area([0; SIZE])), zero.clone(), zero);
        let (start, area): (&Area, &mut Area) = (&$start, &mut $area);
        let all = components();
        // SAFETY: every area holds all components named in the masks; the state at the start comes back at the end, and no
        // instruction between them depends on it.
        unsafe {
            asm!(
                "xsave64 [{saved}]",
                "xrstor64 [{start}]",
                "xsave64 [{before}]",
                "mov eax, {mask:e}",
                concat!($instruction, " [{area}]"),
                "mov eax, {all:e}",
                "xsave64 [{after}]",
                "xrstor64 [{saved}]",
                saved = in(reg) &mut *saved, start = in(reg) start, before = in(reg) &mut before,
                area = in(reg) area, after = in(reg) &mut after, mask = in(reg) $mask, all = in(reg) all,
                inout("rax") all => _, in("rdx") 0,
            );
        }
        (before, after)
    }};
}

/// A guest whose extended state is `state`, with RSI at `area` and the mask set.
fn guest_with(state: &Area, area: &Area, mask: u64) -> Guest {
    let mut guest = Guest::new();
    let image = guest.cpu.xsave.bytes_mut();
    image.copy_from_slice(&state.0[..image.len()]);
    guest.store(DATA, &area.0);
    guest.cpu.set_gpr(RSI, DATA);
    guest.cpu.set_gpr(RAX, mask & 0xffff_ffff);
    guest.cpu.set_gpr(RDX, mask >> 32);
    guest
}

fn assert_saves(code: &[u8], start: &Area, area: &Area, mask: u64, on_cpu: (Area, Area), expected: &Area) {
    let mut guest = guest_with(&on_cpu.0, area, mask);
    guest.finish(code);
    let got: [u8; SIZE] = guest.load(DATA);
    let differs = (0..SIZE).find(|i| got[*i] != expected.0[*i]);
    assert_eq!(
        differs,
        None,
        "{code:02x?} mask {mask:#x} start {:#x}",
        start.word(XSTATE_BV)
    );
}

fn assert_restores(code: &[u8], area: &Area, mask: u64, (before, after): (Area, Area)) {
    let mut guest = guest_with(&before, area, mask);
    guest.finish(code);
    let image = guest.cpu.xsave.bytes();
    let differs = (0..image.len())
        .filter(|i| !(512..576).contains(i))
        .find(|i| image[*i] != after.0[*i]);
    assert_eq!(
        differs,
        None,
        "{code:02x?} mask {mask:#x} header {:x?}",
        &area.0[512..528]
    );
    // The CPU may count a component as in use although it is in its initial state, not the other way round.
    let used = guest.cpu.xsave.xstate_bv();
    assert_eq!(used & !after.word(XSTATE_BV) & !3, 0);
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), SIZE)
}

fn subset() -> impl Strategy<Value = u64> {
    prop_oneof![Just(u64::MAX), any::<u64>()].prop_map(|mask| mask & components())
}

// A context switch may make the CPU count a component as in use that was not (PKRU, which the kernel writes then): a run counts
// if that is the same before and after.
macro_rules! check_save {
    ($name:literal, $code:expr, $start:expr, $area:expr, $mask:expr) => {{
        let run = |_| {
            let mut expected = $area.clone();
            let states = on_cpu!($name, $start, expected, $mask);
            (expected, states)
        };
        let undisturbed =
            |(_, (before, after)): &(Area, (Area, Area))| before.word(XSTATE_BV) == after.word(XSTATE_BV);
        let (expected, states) = (0..100).map(run).find(undisturbed).expect("an undisturbed run");
        assert_saves(&$code, &$start, &$area, $mask, states, &expected);
    }};
}

macro_rules! check_restore {
    ($name:literal, $code:expr, $start:expr, $area:expr, $mask:expr) => {{
        let mut area = $area.clone();
        let states = on_cpu!($name, $start, area, $mask);
        assert_restores(&$code, &area, $mask, states);
    }};
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn saves_as_the_cpu_does(from in bytes(), bv in subset(), to in bytes(), mask in subset()) {
        let start = state(from, bv, None);
        let area = Area(to.try_into().unwrap());
        check_save!("xsave64", [0x48, 0x0f, 0xae, 0x26], start, area, mask);
        check_save!("xsave", [0x0f, 0xae, 0x26], start, area, mask);
        check_save!("xsaveopt64", [0x48, 0x0f, 0xae, 0x36], start, area, mask);
        check_save!("xsavec64", [0x48, 0x0f, 0xc7, 0x26], start, area, mask);
        check_save!("xsavec", [0x0f, 0xc7, 0x26], start, area, mask);
    }

    #[test]
    fn restores_as_the_cpu_does(
        from in bytes(), bv in subset(), source in bytes(), new in subset(), packed in subset(), mask in subset(),
    ) {
        let start = state(from, bv, None);
        let standard = state(source.clone(), new, None);
        check_restore!("xrstor64", [0x48, 0x0f, 0xae, 0x2e], start, standard, mask);
        check_restore!("xrstor", [0x0f, 0xae, 0x2e], start, standard, mask);
        let compacted = state(source, new & packed, Some(packed));
        check_restore!("xrstor64", [0x48, 0x0f, 0xae, 0x2e], start, compacted, mask);
    }

    /// What `xsaves` stores, `xrstors` brings back; both are for CPL 0 only, so the CPU is no help here.
    #[test]
    fn supervisor_forms_round_trip(from in bytes(), bv in subset(), mask in subset()) {
        let start = state(from, bv, None);
        let mut guest = guest_with(&start, &Area([0; SIZE]), mask);
        let before = guest.cpu.xsave.clone();
        guest.finish(&[0x48, 0x0f, 0xc7, 0x2e]);
        guest.cpu.xsave = XsaveImage::new(before.layout().clone());
        guest.finish(&[0x48, 0x0f, 0xc7, 0x1e]);
        for n in (2..63).filter(|n| (mask & bv) >> n & 1 != 0) {
            assert_eq!(guest.cpu.xsave.component(n), before.component(n));
        }
        if mask & bv & 2 != 0 {
            assert_eq!(guest.cpu.xsave.bytes()[160..416], before.bytes()[160..416]);
        }
    }
}

/// Offset and value of a word in an area.
type Word = (usize, u64);

const XRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x2e];
const XRSTORS: [u8; 4] = [0x48, 0x0f, 0xc7, 0x1e];

#[test]
fn bad_headers_are_protection_faults_and_change_nothing() {
    let blank = Area([0; SIZE]);
    let headers: [(&[u8], &[Word]); 9] = [
        (&XRSTOR, &[(512, 1 << 62)]),                 // XSTATE_BV beyond XCR0
        (&XRSTOR, &[(520, 1)]),                       // XCOMP_BV in the standard format
        (&XRSTOR, &[(528, 1)]),                       // bytes 23:16
        (&XRSTOR, &[(520, COMPACTED | 1 << 62)]),     // XCOMP_BV beyond XCR0
        (&XRSTOR, &[(520, COMPACTED | 1), (512, 2)]), // XSTATE_BV beyond XCOMP_BV
        (&XRSTOR, &[(520, COMPACTED), (568, 1)]),     // last reserved word
        (&XRSTOR, &[(24, 1 << 16)]),                  // MXCSR
        (&XRSTORS, &[(512, 1)]),                      // standard format
        (&XRSTOR, &[(520, COMPACTED | 2), (512, 2), (24, 1 << 31)]), // MXCSR, compacted
    ];
    for (code, words) in headers {
        let mut area = blank.clone();
        words.iter().for_each(|(at, value)| area.set_word(*at, *value));
        let mut guest = guest_with(&blank, &area, u64::MAX);
        let before = guest.cpu.xsave.bytes().to_vec();
        assert_eq!(guest.fault(code), Exception::GeneralProtection, "{words:x?}");
        assert_eq!(guest.cpu.xsave.bytes(), before);
    }
}

#[test]
fn areas_must_be_aligned_and_enabled() {
    let blank = Area([0; SIZE]);
    for code in [
        XRSTOR,
        [0x48, 0x0f, 0xae, 0x26],
        [0x48, 0x0f, 0xc7, 0x26],
        XRSTORS,
    ] {
        let mut guest = guest_with(&blank, &blank, u64::MAX);
        guest.cpu.set_gpr(RSI, DATA + 32);
        assert_eq!(guest.fault(&code), Exception::GeneralProtection);
        guest.cpu.set_gpr(RSI, DATA);
        guest.cpu.mode.cr0 |= control::CR0_TS;
        assert_eq!(guest.fault(&code), Exception::DeviceNotAvailable);
        guest.cpu.mode.cr4 &= !control::CR4_OSXSAVE;
        assert_eq!(guest.fault(&code), Exception::InvalidOpcode);
    }
}

#[test]
fn a_component_that_the_host_keeps_back_is_named() {
    let blank = Area([0; SIZE]);
    let mut guest = guest_with(&blank, &blank, u64::MAX);
    guest.cpu.msrs.insert(0xda0, 1 << 11);
    let error = guest.run(&[0x48, 0x0f, 0xc7, 0x2e]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsupported {
                reason: Unsupported::StateComponent(11),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_x87_pointers_are_as_wide_as_asked_for() {
    let mut blank = Area([0; SIZE]);
    blank.0[8..24].fill(0x77);
    blank.set_word(XSTATE_BV, 1);
    let mut guest = guest_with(&blank, &Area([0; SIZE]), 1);
    guest.finish(&[0x0f, 0xae, 0x26]);
    assert_eq!(guest.load(DATA + 8), *b"wwww\0\0\0\0wwww\0\0\0\0");
    guest.finish(&[0x48, 0x0f, 0xae, 0x26]);
    assert_eq!(guest.load(DATA + 8), [0x77; 16]);
    guest.finish(&[0x0f, 0xae, 0x2e]);
    assert_eq!(guest.cpu.xsave.bytes()[8..24], *b"wwww\0\0\0\0wwww\0\0\0\0");
}

#[test]
fn an_area_across_a_missing_page_faults_there() {
    let blank = Area([0; SIZE]);
    let mut guest = guest_with(&blank, &blank, u64::MAX);
    guest.cpu.set_gpr(RSI, DATA + 4096 - 512);
    guest.set_entry(DATA + 4096, 0);
    for (code, is_write) in [([0x48, 0x0f, 0xae, 0x26], true), (XRSTOR, false)] {
        let Exception::PageFault { address, code } = guest.fault(&code) else {
            panic!("no page fault")
        };
        assert_eq!(
            (address >> 12, code),
            (DATA / 4096 + 1, if is_write { 2 } else { 0 })
        );
    }
}
