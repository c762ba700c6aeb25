//! The page walk: sizes, rights, flags, faults.

use vm_memory::GuestAddress;

use super::super::cpu::rflags;
use super::super::paging::{Access, LinearMemory};
use super::super::{Error, Stop};
use super::*;

const NX: u64 = entry::NO_EXECUTE;
const A: u64 = entry::ACCESSED;
const D: u64 = entry::DIRTY;

fn translate(guest: &Guest, address: u64, access: Access) -> Result<u64, Stop> {
    let memory = LinearMemory::new(&guest.ram, guest.cpu.mode, guest.cpu.rflags);
    memory
        .translate(address, access)
        .map(|GuestAddress(physical)| physical)
}

/// The error code of the page fault that an access to the page at `DATA` gets, if it gets one.
fn fault_code(guest: &Guest, access: Access) -> Option<u32> {
    match translate(guest, DATA + 5, access) {
        Ok(physical) => {
            assert_eq!(physical, DATA + 5);
            None
        }
        Err(Stop::Exception(Exception::PageFault { address, code })) => {
            assert_eq!(address, DATA + 5);
            Some(code)
        }
        Err(stop) => panic!("{stop:?}"),
    }
}

#[test]
fn pages_of_all_sizes() {
    let guest = Guest::new();
    for (address, physical) in [
        (DATA + 0xabc, DATA + 0xabc),
        (LARGE + 0x12_3456, LARGE + 0x12_3456),
        (HUGE + 0x2b_cdef, 0x2b_cdef),
    ] {
        assert_eq!(translate(&guest, address, Access::Write).unwrap(), physical);
    }
}

#[test]
fn accessed_and_dirty_flags_are_set_as_needed() {
    let guest = Guest::new();
    assert_eq!(guest.entry(DATA), DATA | 3);
    translate(&guest, DATA, Access::Read).unwrap();
    assert_eq!(guest.entry(DATA), DATA | 3 | A);
    translate(&guest, DATA, Access::Write).unwrap();
    assert_eq!(guest.entry(DATA), DATA | 3 | A | D);
    assert_eq!(u64::from_le_bytes(guest.load(PML4)), PDPT | 7 | A);
    assert_eq!(u64::from_le_bytes(guest.load(DIRECTORY)), TABLE | 7 | A);
    assert_eq!(u64::from_le_bytes(guest.load(DIRECTORY + 8)), LARGE | 0x83);
    // A fault leaves them alone.
    guest.set_entry(DATA, DATA | 1);
    assert_eq!(fault_code(&guest, Access::Write), Some(3));
    assert_eq!(guest.entry(DATA), DATA | 1);
}

#[test]
fn rights_of_the_supervisor() {
    let mut guest = Guest::new();
    let cases: [(u64, [Option<u32>; 3]); 5] = [
        (0, [Some(0), Some(2), Some(0x10)]),
        (DATA | 1, [None, Some(3), None]),
        (DATA | 3, [None, None, None]),
        (DATA | 3 | NX, [None, None, Some(0x11)]),
        (DATA | 7, [None, None, None]),
    ];
    for (value, codes) in cases {
        guest.set_entry(DATA, value);
        let got = [Access::Read, Access::Write, Access::Fetch].map(|access| fault_code(&guest, access));
        assert_eq!(got, codes, "{value:#x}");
    }
    guest.set_entry(DATA, DATA | 1);
    guest.cpu.mode.cr0 &= !control::CR0_WP;
    assert_eq!(fault_code(&guest, Access::Write), None);
}

#[test]
fn rights_of_the_user() {
    let mut guest = Guest::new();
    guest.cpu.mode.cpl = 3;
    guest.cpu.mode.cr0 &= !control::CR0_WP;
    for (value, codes) in [
        (0, [Some(4), Some(6), Some(0x14)]),
        (DATA | 3, [Some(5), Some(7), Some(0x15)]),
        (DATA | 5, [None, Some(7), None]),
        (DATA | 7 | NX, [None, None, Some(0x15)]),
    ] {
        guest.set_entry(DATA, value);
        let got = [Access::Read, Access::Write, Access::Fetch].map(|access| fault_code(&guest, access));
        assert_eq!(got, codes, "{value:#x}");
    }
    // A table above that is not for users takes the right from all below.
    guest.set_entry(DATA, DATA | 7);
    guest.store(DIRECTORY, &(TABLE | 3).to_le_bytes());
    assert_eq!(fault_code(&guest, Access::Read), Some(5));
}

#[test]
fn smap_and_smep_keep_the_supervisor_from_user_pages() {
    let mut guest = Guest::new();
    guest.cpu.mode.cr4 |= control::CR4_SMAP | control::CR4_SMEP;
    guest.set_entry(DATA, DATA | 7);
    assert_eq!(fault_code(&guest, Access::Read), Some(1));
    assert_eq!(fault_code(&guest, Access::Write), Some(3));
    assert_eq!(fault_code(&guest, Access::Fetch), Some(0x11));
    guest.cpu.rflags |= rflags::AC;
    assert_eq!(fault_code(&guest, Access::Read), None);
    assert_eq!(fault_code(&guest, Access::Fetch), Some(0x11));
}

#[test]
fn reserved_bits_are_faults_of_their_own() {
    let mut guest = Guest::new();
    guest.store(DIRECTORY + 8, &(LARGE | 3 | entry::LARGE | 1 << 13).to_le_bytes());
    let Err(Stop::Exception(Exception::PageFault { code: 9, .. })) = translate(&guest, LARGE, Access::Read)
    else {
        panic!("no fault")
    };
    // Bit 12 of a large page is PAT.
    guest.store(DIRECTORY + 8, &(LARGE | 3 | entry::LARGE | 1 << 12).to_le_bytes());
    assert_eq!(translate(&guest, LARGE, Access::Read).unwrap(), LARGE);
    guest.store(PML4, &(PDPT | 7 | entry::LARGE).to_le_bytes());
    assert_eq!(fault_code(&guest, Access::Read), Some(9));
    guest.store(PML4, &(PDPT | 7).to_le_bytes());
    guest.set_entry(DATA, DATA | 3 | NX);
    guest.cpu.mode.efer &= !control::EFER_NXE;
    assert_eq!(fault_code(&guest, Access::Read), Some(9));
}

#[test]
fn accesses_cross_pages() {
    let guest = Guest::new();
    guest.set_entry(DATA + 4096, 0x9_0000 | 3);
    let memory = LinearMemory::new(&guest.ram, guest.cpu.mode, 2);
    memory.write(DATA + 4093, b"abcdefg").unwrap();
    assert_eq!(guest.load(DATA + 4093), *b"abc");
    assert_eq!(guest.load(0x9_0000), *b"defg");
    let mut bytes = [0; 7];
    memory.read(DATA + 4093, &mut bytes, Access::Read).unwrap();
    assert_eq!(bytes, *b"abcdefg");
    // Nothing is written where the second page faults, and CR2 is in it.
    guest.set_entry(DATA + 4096, 0x9_0000 | 1);
    let stop = LinearMemory::new(&guest.ram, guest.cpu.mode, 2)
        .write(DATA + 4093, b"1234567")
        .unwrap_err();
    let expected = Exception::PageFault {
        address: DATA + 4096,
        code: 3,
    };
    assert!(matches!(stop, Stop::Exception(exception) if exception == expected));
    assert_eq!(guest.load(DATA + 4093), *b"abc");
}

#[test]
fn what_is_not_ram_is_an_error_with_its_address() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(6, DATA);
    guest.set_entry(DATA, 0xfee0_0000 | 3);
    let error = guest.run(&[0xf3, 0x0f, 0xb8, 0x06]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OutsideRam {
                address: 0xfee0_0000,
                rip: CODE,
                ..
            }
        ),
        "{error}"
    );
    guest.store(DIRECTORY, &((1u64 << 40) | 7).to_le_bytes());
    assert!(
        matches!(translate(&guest, DATA, Access::Read), Err(Stop::OutsideRam(at)) if at >> 12 == 1 << 28)
    );
}
