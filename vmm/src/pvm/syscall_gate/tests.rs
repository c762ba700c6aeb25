//! The stub's code, and where it goes in page tables laid out like Linux's.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};
use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

const PAGE_AT: GuestAddress = GuestAddress(0x9_d000);
const LSTAR: u64 = 0xffff_ffff_8140_0040;
const HANDLER: u64 = 0xffff_ffff_8140_0b20;
const ROOT: u64 = 0x2000;
const IDT: u64 = 0x1_0000;
/// Where the IDT is mapped: as in Linux, in the CPU entry area, which user tables have as well.
const IDT_ADDRESS: u64 = 0xffff_fe00_0000_0000;
const FIXMAP_TABLE: u64 = 0x8000;
const USER_FIXMAP_TABLE: u64 = 0xc000;
const RIGHTS: u64 = entry::PRESENT | entry::WRITE;

struct Guest {
    ram: GuestMemoryMmap<()>,
    mode: Mode,
    idt: DescriptorTable,
}

impl Guest {
    fn new() -> Self {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mode = Mode {
            cr0: control::CR0_PG,
            cr3: ROOT,
            efer: control::EFER_LMA,
            code64: true,
            ..Default::default()
        };
        let guest = Guest {
            ram,
            mode,
            idt: DescriptorTable {
                base: IDT_ADDRESS,
                limit: 0xfff,
            },
        };
        guest.link(ROOT, FIRST_ADDRESS, &[0x4000, 0x5000, FIXMAP_TABLE]);
        guest.link(ROOT, IDT_ADDRESS, &[0x9000, 0xa000, 0xb000]);
        guest.store(0xb000, IDT | 1);
        guest.set_gate(HANDLER, 0x8e);
        guest
    }

    /// Adds a second set of tables, which share the IDT's but have a fixmap of their own.
    fn isolate(&self) {
        let user = ROOT + PAGE;
        self.link(user, FIRST_ADDRESS, &[0xd000, 0xe000, USER_FIXMAP_TABLE]);
        self.link(user, IDT_ADDRESS, &[0x9000, 0xa000, 0xb000]);
    }

    /// Leads `address` through these tables, root first.
    fn link(&self, root: u64, address: u64, tables: &[u64]) {
        let mut table = root;
        for (next, level) in tables.iter().zip((1..=3).rev()) {
            self.store(table + index(address, level), next | RIGHTS);
            table = *next;
        }
    }

    fn store(&self, at: u64, value: u64) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn load(&self, at: u64) -> u64 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    fn set_gate(&self, handler: u64, attributes: u64) {
        self.store(
            IDT + 224,
            handler & 0xffff | 0x10 << 16 | attributes << 40 | (handler >> 16 & 0xffff) << 48,
        );
        self.store(IDT + 232, handler >> 32);
    }

    fn gate(&self) -> u64 {
        Gate::load(&self.ram, GuestAddress(IDT + 224)).unwrap().offset()
    }

    fn install(&self, lstar: u64) -> Result<(), GateError> {
        install(&self.ram, self.mode, self.idt, PAGE_AT, lstar)
    }

    /// All of RAM, to see whether something has changed.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn stub(&self) -> Option<Stub> {
        stub_at(&self.ram, PAGE_AT, FIRST_ADDRESS, self.gate())
    }
}

fn fixmap_entry(table: u64, address: u64) -> u64 {
    table + index(address, 0)
}

#[test]
fn the_code_is_what_it_says() {
    let stub = Stub {
        lstar: LSTAR,
        handler: HANDLER,
    };
    let code = stub.code(FIRST_ADDRESS).unwrap();
    let mut decoder = Decoder::with_ip(64, &code, FIRST_ADDRESS, DecoderOptions::NONE);
    let listing: Vec<Instruction> = decoder.iter().collect();
    let codes: Vec<Code> = listing.iter().map(Instruction::code).collect();
    let expected = [
        Code::Cmp_rm8_imm8,
        Code::Jne_rel8_64,
        Code::Cmp_rm64_imm32,
        Code::Jne_rel8_64,
        Code::Test_rm8_imm8,
        Code::Jne_rel8_64,
        Code::Mov_r64_rm64,
        Code::Jmp_rel32_64,
        Code::Jmp_rel32_64,
    ];
    assert_eq!(codes, expected);
    for (line, displacement) in [(0, 0), (2, 8), (4, 25), (6, 32)] {
        assert_eq!(listing[line].memory_base(), Register::RSP);
        assert_eq!(listing[line].memory_index(), Register::None);
        assert_eq!(listing[line].memory_displacement64(), displacement);
    }
    assert_eq!(listing[0].immediate(1), 0x15);
    assert_eq!(listing[2].immediate(1), LSTAR);
    assert_eq!(listing[4].immediate(1), 0x32);
    assert_eq!(listing[6].op0_register(), Register::RSP);
    for line in [1, 3, 5] {
        assert_eq!(listing[line].near_branch_target(), listing[8].ip());
    }
    assert_eq!(
        (listing[7].near_branch_target(), listing[8].near_branch_target()),
        (LSTAR, HANDLER)
    );
    assert_eq!(Stub::parse(&code, FIRST_ADDRESS), Some(stub));
}

#[test]
fn installing_redirects_the_gate_and_maps_the_stub() {
    let guest = Guest::new();
    guest.install(LSTAR).unwrap();
    assert_eq!(guest.gate(), FIRST_ADDRESS);
    assert_eq!(
        guest.stub(),
        Some(Stub {
            lstar: LSTAR,
            handler: HANDLER
        })
    );
    assert_eq!(
        guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS)),
        PAGE_AT.0 | 0x161
    );
    // The gate's selector and attributes stay.
    assert_eq!(guest.load(IDT + 224) >> 16 & 0xffff_ffff, 0x8e00_0010);
    // Without page table isolation the page behind the root is not ours to touch.
    assert!(
        guest.bytes()[(ROOT + PAGE) as usize..(ROOT + 2 * PAGE) as usize]
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn a_second_vcpu_finds_everything_done() {
    let guest = Guest::new();
    guest.install(LSTAR).unwrap();
    let before = guest.bytes();
    guest.install(LSTAR).unwrap();
    assert!(guest.bytes() == before);
}

#[test]
fn a_new_lstar_keeps_the_guests_own_handler() {
    let guest = Guest::new();
    guest.install(LSTAR).unwrap();
    guest.install(LSTAR + 0x1000).unwrap();
    assert_eq!(guest.gate(), FIRST_ADDRESS + SLOT as u64);
    assert_eq!(
        guest.stub(),
        Some(Stub {
            lstar: LSTAR + 0x1000,
            handler: HANDLER
        })
    );
    guest.install(LSTAR).unwrap();
    assert_eq!(guest.gate(), FIRST_ADDRESS);
}

#[test]
fn a_new_kernel_with_its_own_idt_is_served() {
    let guest = Guest::new();
    guest.install(LSTAR).unwrap();
    // kexec: new tables and a new IDT, the same reserved page.
    guest.set_gate(HANDLER + 0x40, 0x8e);
    guest.store(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS), 0);
    guest.install(LSTAR).unwrap();
    assert_eq!(
        guest.stub(),
        Some(Stub {
            lstar: LSTAR,
            handler: HANDLER + 0x40
        })
    );
    assert_eq!(
        guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS)) & entry::ADDRESS,
        PAGE_AT.0
    );
}

#[test]
fn a_page_full_of_stubs_is_an_error() {
    let guest = Guest::new();
    for n in 0..64 {
        guest.install(LSTAR + n * 16).unwrap();
    }
    assert_eq!(guest.install(LSTAR + 1), Err(GateError::Full));
    guest.install(LSTAR + 63 * 16).unwrap();
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let guest = Guest::new();
    for n in 0..2 {
        guest.store(
            fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS - n * PAGE),
            0x1_2000 | RIGHTS,
        );
    }
    guest.install(LSTAR).unwrap();
    assert_eq!(guest.gate(), FIRST_ADDRESS - 2 * PAGE);
    assert_eq!(
        guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS)),
        0x1_2000 | RIGHTS
    );
    let guest = Guest::new();
    (0..32).for_each(|n| {
        guest.store(
            fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS - n * PAGE),
            0x1_2000 | RIGHTS,
        )
    });
    assert_eq!(guest.install(LSTAR), Err(GateError::NoPlace));
}

#[test]
fn page_table_isolation_gets_a_second_mapping() {
    let guest = Guest::new();
    guest.isolate();
    guest.install(LSTAR).unwrap();
    for table in [FIXMAP_TABLE, USER_FIXMAP_TABLE] {
        assert_eq!(guest.load(fixmap_entry(table, FIRST_ADDRESS)), PAGE_AT.0 | 0x161);
    }
    // User tables without a table for the fixmap: nothing is changed, and the sentence says what to do.
    let guest = Guest::new();
    guest.isolate();
    guest.store(0xe000 + index(FIRST_ADDRESS, 1), 0);
    let error = guest.install(LSTAR).unwrap_err();
    assert!(error.to_string().ends_with("boot it with nopti"), "{error}");
    assert_eq!(
        (
            guest.gate(),
            guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS))
        ),
        (HANDLER, 0)
    );
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let check = |edit: fn(&mut Guest), lstar, expected: GateError| {
        let mut guest = Guest::new();
        edit(&mut guest);
        let before = (
            guest.load(IDT + 224),
            guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS)),
        );
        assert_eq!(guest.install(lstar), Err(expected));
        assert_eq!(
            (
                guest.load(IDT + 224),
                guest.load(fixmap_entry(FIXMAP_TABLE, FIRST_ADDRESS))
            ),
            before
        );
    };
    check(|g| g.idt.limit = 238, LSTAR, GateError::NoIdt);
    check(|g| g.idt.base = 0x1234_5000, LSTAR, GateError::NoIdt);
    check(
        |g| g.set_gate(HANDLER, 0x8f),
        LSTAR,
        GateError::NotAnInterruptGate,
    );
    check(
        |g| g.set_gate(HANDLER, 0x0e),
        LSTAR,
        GateError::NotAnInterruptGate,
    );
    check(|_| {}, 0x40_0000, GateError::OutOfReach(0x40_0000));
    check(
        |_| {},
        0xffff_8000_0000_0000,
        GateError::OutOfReach(0xffff_8000_0000_0000),
    );
    check(
        |g| g.set_gate(1 << 32, 0x8e),
        LSTAR,
        GateError::OutOfReach(1 << 32),
    );
    let no_table = GateError::NoTable {
        address: FIRST_ADDRESS,
        hint: "",
    };
    check(|g| g.store(0x5000 + index(FIRST_ADDRESS, 1), 0), LSTAR, no_table);
    let no_table = GateError::NoTable {
        address: FIRST_ADDRESS,
        hint: "",
    };
    check(
        |g| g.store(0x5000 + index(FIRST_ADDRESS, 1), 0x87),
        LSTAR,
        no_table,
    );
}

#[test]
fn a_stub_page_outside_ram_is_refused() {
    let guest = Guest::new();
    let result = install(&guest.ram, guest.mode, guest.idt, GuestAddress(1 << 30), LSTAR);
    assert_eq!(result, Err(GateError::NoStubPage(1 << 30)));
    assert_eq!(guest.gate(), HANDLER);
}

proptest! {
    /// Hostile tables and IDTs: whatever comes of it comes without a panic.
    #[test]
    fn any_guest(
        words in prop::collection::vec((0u64..0x1_1000 / 8, any::<u64>()), 1..100), pages in prop::collection::vec((0u64..0xf000 / 8, 0u64..0x100), 1..100),
        base in any::<u64>(), near: bool, limit in any::<u32>(), cr3 in any::<u64>(), cr4 in any::<u64>(), lstar in any::<u64>(),
    ) {
        let mut guest = Guest::new();
        words.into_iter().for_each(|(at, value)| guest.store(at * 8, value));
        pages.into_iter().for_each(|(at, page)| guest.store(at * 8, page << 12 | 7));
        guest.idt = DescriptorTable { base: if near { IDT_ADDRESS } else { base }, limit };
        guest.mode.cr4 = cr4;
        if cr4 & 1 != 0 {
            guest.mode.cr3 = cr3;
        }
        let _ = guest.install(lstar | 0xffff_ffff_8000_0000);
        let _ = guest.install(lstar);
    }
}
