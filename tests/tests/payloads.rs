//! What a guest of one page finds when it is entered: registers, boot data and memory.

use posada_tests::guest::TempFile;
use posada_tests::payload::{bzimage, elf, hello};
use posada_tests::script::{DATA, Entry};
use posada_tests::{Guest, Script, payload};

const GIB: u64 = 1 << 30;
/// Where the MMIO hole starts and ends.
const HOLE: u64 = 3 * GIB;
const HOLE_END: u64 = 4 * GIB;

fn run(script: &Script) -> posada_tests::Ended {
    Guest::payload(&script.code()).run()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Checks a memory map of entries (start, size, type): sorted, without overlaps, as much RAM as wanted less what is
/// reserved below 1 MiB, none of it in the hole.
#[track_caller]
fn check_memory_map(map: &[(u64, u64, u32)], memory: u64) {
    const RAM: u32 = 1;
    assert!(!map.is_empty());
    for pair in map.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{map:x?}");
    }
    let ram: Vec<_> = map.iter().filter(|range| range.2 == RAM).collect();
    let total: u64 = ram.iter().map(|range| range.1).sum();
    assert!(
        total <= memory && memory - total < 1 << 20,
        "{total:#x} bytes of RAM in {map:x?}"
    );
    assert!(
        ram.iter()
            .all(|(start, size, _)| start + size <= HOLE || *start >= HOLE_END),
        "{map:x?}"
    );
    let last = ram.last().unwrap();
    let end = if memory > HOLE {
        memory + HOLE_END - HOLE
    } else {
        memory
    };
    assert_eq!(last.0 + last.1, end, "{map:x?}");
}

#[test]
fn says_hello_by_both_protocols() {
    for guest in [Guest::payload(hello()), Guest::pvh_payload(hello())] {
        let ended = guest.run().expect_status(0);
        assert_eq!(
            (ended.console().as_str(), ended.messages().as_str()),
            ("hi\n", "")
        );
    }
}

/// Only where the CPU runs the guest's kernel is a bzImage left to unpack itself; a payload does not mind what does.
#[test]
fn a_bzimage_that_unpacks_itself_is_entered_at_its_64_bit_entry_point() {
    let guest = Guest::image(&bzimage(hello()))
        .arg("--host-kind")
        .arg("hardware")
        .arg("-v");
    let ended = guest.run().expect_status(0);
    assert_eq!(ended.console(), "hi\n");
    let place = "BzImage, entered at 0x100200 by Linux64";
    assert!(ended.messages().contains(place), "{}", ended.messages());
}

/// Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
#[test]
fn registers_by_the_64_bit_protocol() {
    let ended = run(&Script::new().print_entry()).expect_status(0);
    let entry = Entry::from_numbers(&ended.numbers());
    const IF: u64 = 1 << 9;
    let [pe, pg, pae, lme, lma] = [0, 31, 5, 8, 10].map(|bit| 1u64 << bit);
    assert_eq!(entry.cr0 & (pe | pg), pe | pg, "{entry:x?}");
    assert_eq!(entry.cr4 & pae, pae, "{entry:x?}");
    assert_eq!(entry.efer & (lme | lma), lme | lma, "{entry:x?}");
    assert_eq!(entry.rflags & IF, 0, "interrupts are off: {entry:x?}");
    assert_eq!((entry.cs, entry.ds, entry.es, entry.ss), (0x10, 0x18, 0x18, 0x18));
    assert!(
        entry.gdt_limit >= 0x1f,
        "both selectors are within the GDT: {entry:x?}"
    );
    assert!(
        entry.rsp >= 4096 && entry.rsp < 0x9_c000,
        "a stack in low RAM: {entry:x?}"
    );
}

/// Linux, Documentation/arch/x86/zero-page.rst.
#[test]
fn the_zero_page_tells_of_memory_and_command_line() {
    let command_line = "console=ttyS0 one two=3";
    for (size, memory) in [("128M", 128 << 20), ("4G", 4 * GIB)] {
        let script = Script::new().print_zero_page();
        let guest = Guest::payload(&script.code())
            .memory(size)
            .arg("--cmdline")
            .arg(command_line);
        let page = guest.run().expect_status(0).stdout.clone();
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff, "type_of_loader");
        assert_eq!(long(&page, 0x238) as usize, 2047, "cmdline_size");
        let entries = usize::from(page[0x1e8]);
        let map: Vec<_> = page[0x2d0..]
            .chunks(20)
            .take(entries)
            .map(|e| (word(e, 0), word(e, 8), long(e, 16)))
            .collect();
        check_memory_map(&map, memory);

        let pointer = u64::from(long(&page, 0x228));
        let script = Script::new().print(pointer, command_line.len() as u64 + 1);
        let guest = Guest::payload(&script.code())
            .memory(size)
            .arg("--cmdline")
            .arg(command_line);
        assert_eq!(
            guest.run().expect_status(0).console(),
            format!("{command_line}\0")
        );
    }
}

#[test]
fn an_initrd_is_where_the_zero_page_says() {
    let content = b"not really a file system";
    let initrd = TempFile::new("initrd", content);
    let kernel = TempFile::new("kernel", elf(&Script::new().print_zero_page().code(), false));
    let page = Guest::linux(kernel.path(), initrd.path())
        .run()
        .expect_status(0)
        .stdout
        .clone();
    let (address, size) = (long(&page, 0x218), long(&page, 0x21c));
    assert_eq!(size as usize, content.len());
    let script = Script::new().print(address.into(), size.into());
    let kernel = TempFile::new("kernel", elf(&script.code(), false));
    let ended = Guest::linux(kernel.path(), initrd.path()).run().expect_status(0);
    assert_eq!(ended.stdout, content);
}

payload! {
    /// Prints the registers that PVH speaks of, then the GDT, the start info, the memory map and 32 bytes of the
    /// command line.
    pvh_report,
    ".code32",
    "mov [0x40000], ebx",
    "pushfd",
    "pop eax",
    "mov [0x40004], eax",
    "mov eax, cr0",
    "mov [0x40008], eax",
    "mov eax, cr4",
    "mov [0x4000c], eax",
    "mov ecx, 0xc0000080", // IA32_EFER
    "rdmsr",
    "mov [0x40010], eax",
    "xor eax, eax",
    "mov ax, cs",
    "mov [0x40014], eax",
    "mov ax, ds",
    "mov [0x40018], eax",
    "mov ax, es",
    "mov [0x4001c], eax",
    "mov ax, ss",
    "mov [0x40020], eax",
    "str ax",
    "mov [0x40024], eax",
    "sgdt [0x40030]",
    "cld",
    "mov edx, 0x3f8",
    "mov esi, 0x40000",
    "mov ecx, 0x28",
    "rep outsb",
    "mov esi, [0x40032]",
    "mov ecx, 32",
    "rep outsb",
    "mov esi, ebx",
    "mov ecx, 56",
    "rep outsb",
    "mov esi, [ebx + 24]",
    "mov ecx, 32",
    "rep outsb",
    "mov esi, [ebx + 40]",
    "imul ecx, [ebx + 48], 24",
    "rep outsb",
    "power_off",
    ".code64",
}

/// Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
#[test]
fn registers_and_start_info_by_pvh() {
    let command_line = "console=ttyS0 and more than that";
    for (size, memory) in [("64M", 64 << 20), ("4G", 4 * GIB)] {
        let guest = Guest::pvh_payload(pvh_report())
            .memory(size)
            .arg("--cmdline")
            .arg(command_line);
        let printed = guest.run().expect_status(0).stdout.clone();
        let (registers, rest) = printed.split_at(0x28);
        let (gdt, rest) = rest.split_at(32);
        let (start_info, rest) = rest.split_at(56);
        let (cmdline, map) = rest.split_at(32);

        let register = |n: usize| long(registers, 4 * n);
        assert_eq!(
            register(1) & (1 << 9 | 1 << 8 | 1 << 17),
            0,
            "interrupts, single steps and virtual-8086 are off"
        );
        assert_eq!(
            register(2) & (1 << 31 | 1),
            1,
            "CR0: protected mode without paging"
        );
        assert_eq!(register(3), 0, "CR4");
        assert_eq!(register(4) & (1 << 10), 0, "EFER: long mode is off");
        for n in 5..=8 {
            let selector = register(n) as usize;
            let descriptor = word(gdt, selector & !7);
            // Base 0, limit 0xfffff pages, 32 bits, present (Intel SDM Vol 3 § 3.4.5); code 0xb, data 0x3.
            let kind = if n == 5 { 0xb } else { 0x3 };
            assert_eq!(
                descriptor,
                0x00cf_9000_0000_ffff | kind << 40,
                "selector {selector:#x}"
            );
        }
        assert_eq!(long(start_info, 0), 0x336e_c578, "magic");
        assert_eq!(long(start_info, 4), 1, "version");
        assert_ne!(word(start_info, 32), 0, "RSDP");
        assert_eq!(cmdline, command_line.as_bytes());
        let map: Vec<_> = map
            .chunks(24)
            .map(|entry| (word(entry, 0), word(entry, 8), long(entry, 16)))
            .collect();
        assert_eq!(map.len(), long(start_info, 48) as usize);
        check_memory_map(&map, memory);
    }
}

#[test]
fn the_first_and_the_last_byte_of_memory_are_ram_and_the_next_is_nothing() {
    const END: u64 = 128 << 20;
    let script = Script::new()
        .store(1, 0, 0xa1)
        .store(1, END - 1, 0xa2)
        .store(1, END, 0xa3)
        .load(1, 0)
        .load(1, END - 1)
        .load(1, END)
        .load(8, END);
    assert_eq!(
        run(&script).expect_status(0).numbers(),
        [0xa1, 0xa2, 0xff, u64::MAX]
    );
}

#[test]
fn four_gibibytes_lie_on_both_sides_of_the_hole() {
    const END: u64 = 5 * GIB;
    let ram = [DATA, GIB, 2 * GIB, HOLE - 8, HOLE_END, HOLE_END + 8, END - 8];
    let numbered = || ram.iter().zip(1u64..);
    let mut script = numbered().fold(Script::new(), |script, (&address, n)| script.store(8, address, n));
    script = script.store(8, HOLE, 77).store(8, END, 78);
    script = ram
        .iter()
        .fold(script, |script, &address| script.load(8, address));
    script = script.load(8, HOLE).load(1, HOLE_END - GIB / 2).load(8, END);
    let ended = Guest::payload(&script.code()).memory("4G").run().expect_status(0);
    let expected: Vec<u64> = numbered()
        .map(|(_, n)| n)
        .chain([u64::MAX, 0xff, u64::MAX])
        .collect();
    assert_eq!(ended.numbers(), expected);
}

#[test]
fn an_access_across_the_edge_of_memory_is_half_ram_and_half_nothing() {
    const END: u64 = 16 << 20;
    let script = Script::new()
        .store(8, END - 4, 0x1122_3344_5566_7788)
        .load(8, END - 4)
        .load(4, END - 4);
    let ended = Guest::payload(&script.code())
        .memory("16M")
        .run()
        .expect_status(0);
    assert_eq!(ended.numbers(), [0xffff_ffff_5566_7788, 0x5566_7788]);
}
