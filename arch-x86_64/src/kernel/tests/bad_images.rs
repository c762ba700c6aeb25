//! Every way in which an image can be unfit, and the sentence that says so.

use super::super::images::{PAYLOAD_OFFSET, Segment};
use super::*;

fn error_with(image: &[u8], unpack: Unpack, protocol: BootProtocol) -> String {
    load_into(&guest(8 * MIB), image, unpack, protocol)
        .unwrap_err()
        .to_string()
}

fn error(image: &[u8]) -> String {
    error_with(image, Unpack::OnHost, BootProtocol::Auto)
}

#[track_caller]
fn assert_says(error: String, part: &str) {
    assert!(error.contains(part), "{error:?} does not say {part:?}");
    assert!(!error.contains('\n') && !error.contains("  "), "{error:?}");
}

#[test]
fn files_that_are_no_kernels() {
    assert_says(error(b""), "the kernel file is empty");
    assert_says(
        error(b"#!/bin/sh\n"),
        "this is not a kernel: none of its 10 bytes",
    );
    assert_says(error(&[0; 100_000]), "none of its 100000 bytes");
    assert_says(
        error(&compress(Codec::Gzip, &Elf::default().build())),
        "compressed with gzip, not a kernel",
    );
    assert_says(
        error(&compress(Codec::Zstd, &Elf::default().build())),
        "compressed with zstd, not a kernel",
    );
}

#[test]
fn elf_files_of_the_wrong_kind() {
    let thirty_two = Elf {
        class: 1,
        machine: 3,
        ..Elf::default()
    };
    assert_says(error(&thirty_two.build()), "this is a 32-bit kernel");
    assert_says(
        error(
            &Elf {
                class: 1,
                ..Elf::default()
            }
            .build(),
        ),
        "this is a 32-bit kernel",
    );
    let arm = Elf {
        machine: 183,
        ..Elf::default()
    };
    assert_says(error(&arm.build()), "another kind of machine (ELF machine 183)");
    let s390 = Elf {
        endian: 2,
        machine: 22u16.swap_bytes(),
        ..Elf::default()
    };
    assert_says(error(&s390.build()), "another kind of machine (ELF machine 22)");
    assert_says(
        error(
            &Elf {
                kind: 1,
                ..Elf::default()
            }
            .build(),
        ),
        "an object file or module",
    );
    assert_says(
        error(
            &Elf {
                kind: 4,
                ..Elf::default()
            }
            .build(),
        ),
        "a core dump",
    );
    assert_says(
        error(
            &Elf {
                kind: 0xfe00,
                ..Elf::default()
            }
            .build(),
        ),
        "of an unknown type",
    );
    let pie = Elf {
        kind: 3,
        ..Elf::default()
    };
    assert!(load_into(&guest(2 * MIB), &pie.build(), Unpack::OnHost, BootProtocol::Auto).is_ok());
}

#[test]
fn elf_files_cut_short() {
    let image = Elf::default().build();
    assert_says(
        error(&image[..4]),
        "its ELF header ends at byte 64, but the file has only 4 bytes",
    );
    assert_says(error(&image[..63]), "its ELF header ends at byte 64");
    assert_says(error(&image[..119]), "its program header table ends at byte 120");
    assert_says(
        error(&image[..183]),
        "its segment ends at byte 184, but the file has only 183 bytes",
    );
    let pvh = Elf::pvh(MIB as u32).build();
    assert_says(error(&pvh[..pvh.len() - 1]), "its note segment ends at byte");
    for length in 0..image.len() {
        let mem = guest(2 * MIB);
        assert!(
            load_into(&mem, &image[..length], Unpack::OnHost, BootProtocol::Auto).is_err(),
            "{length}"
        );
    }
}

#[test]
fn elf_headers_that_contradict_themselves() {
    assert_says(
        error(
            &Elf {
                segments: vec![],
                ..Elf::default()
            }
            .build(),
        ),
        "no segment to load",
    );
    assert_says(
        error(
            &Elf {
                header_size: 32,
                ..Elf::default()
            }
            .build(),
        ),
        "1 program headers of 32 bytes",
    );
    let many = Elf {
        segments: vec![Elf::default().segments[0].clone(); 129],
        ..Elf::default()
    };
    assert_says(error(&many.build()), "129 program headers");
    let shrunk = Elf::default().with(2 * MIB, vec![1; 20], 19);
    assert_says(
        error(&shrunk.build()),
        "the segment at 0x200000 is larger in the file than in memory",
    );
    let overlapping = Elf::default().with(MIB + 4095, vec![1; 20], 20);
    assert_says(
        error(&overlapping.build()),
        "the segments at 0x100000 and 0x100fff overlap",
    );
    for entry in [MIB - 1, MIB + 4096, u64::MAX] {
        let outside = Elf {
            entry,
            ..Elf::default()
        };
        assert_says(
            error(&outside.build()),
            &format!("the entry point {entry:#x} is in none of its segments"),
        );
    }
    let pvh = Elf::pvh(2 * MIB as u32).build();
    assert_says(error(&pvh), "the entry point 0x200000 is in none of its segments");
    let mut far = Elf::default().build();
    far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_says(
        error(&far),
        "the kernel file is cut short: its program header table",
    );
}

#[test]
fn segments_outside_memory() {
    let at = |address, memory_size| error(&Elf::default().with(address, vec![1], memory_size).build());
    assert_says(
        at(8 * MIB - 1, 2),
        "the kernel needs 9 MiB of memory to be loaded; the guest has 8 MiB",
    );
    assert_says(
        at(4 * MIB, 1 << 30),
        "the kernel needs 1028 MiB of memory to be loaded; the guest has 8 MiB",
    );
    assert_says(at(MIB - 1, 1), "loaded at 0xfffff, below 1 MiB");
    assert_says(at(0, 1), "loaded at 0x0, below 1 MiB");
    assert_says(
        at(0xbfff_ffff, 2),
        "the addresses 0xbfffffff to 0xc0000001, but there is no memory",
    );
    assert_says(at(0xffff_ffff_8100_0000, 1), "there is no memory from 0xc0000000");
    assert_says(at(u64::MAX, u64::MAX), "there is no memory from 0xc0000000");
    // Nothing of a kernel that does not fit is written.
    let mem = guest(2 * MIB);
    let elf = Elf::default().with(2 * MIB, vec![1], 1);
    assert!(load_into(&mem, &elf.build(), Unpack::OnHost, BootProtocol::Auto).is_err());
    assert!(bytes_at(&mem, 0, 2 * MIB as usize).iter().all(|byte| *byte == 0));
}

#[test]
fn pvh_without_an_entry_point() {
    let elf = error_with(&Elf::default().build(), Unpack::OnHost, BootProtocol::Pvh);
    assert_says(elf, "the kernel has no PVH entry point; build it with CONFIG_PVH");
    let bz = BzImage::new(compress(Codec::Lz4, &Elf::default().build())).build();
    assert_says(
        error_with(&bz, Unpack::OnHost, BootProtocol::Pvh),
        "the kernel has no PVH entry point",
    );
    assert_says(
        error_with(&bz, Unpack::InGuest, BootProtocol::Pvh),
        "a bzImage that unpacks itself cannot",
    );
}

#[test]
fn bzimages_of_the_wrong_kind() {
    let valid = BzImage::new(vec![1; 5000]);
    let old = BzImage {
        version: 0x204,
        ..valid.clone()
    };
    assert_says(
        error(&old.build()),
        "version 2.04 of the Linux boot protocol; 2.12 (Linux 3.8) or later",
    );
    let thirty_two = BzImage {
        xloadflags: 2,
        ..valid.clone()
    };
    assert_says(error(&thirty_two.build()), "this is a 32-bit kernel");
    for unpack in [Unpack::OnHost, Unpack::InGuest] {
        let large = BzImage {
            init_size: 100 << 20,
            ..valid.clone()
        };
        let text = error_with(&large.build(), unpack, BootProtocol::Auto);
        assert_says(
            text,
            "the kernel needs 102 MiB of memory to be loaded; the guest has 8 MiB",
        );
    }
    let low = BzImage {
        pref_address: 0x10000,
        ..valid.clone()
    };
    assert_says(error(&low.build()), "loaded at 0x10000, below 1 MiB");
    let high = BzImage {
        pref_address: u64::MAX,
        ..valid.clone()
    };
    assert_says(error(&high.build()), "there is no memory from 0xc0000000");
    let tight = BzImage {
        init_size: 5000,
        ..valid.clone()
    };
    assert_says(
        error(&tight.build()),
        "it says that 5000 bytes hold a kernel of 6024 bytes",
    );
}

#[test]
fn bzimages_cut_short() {
    let image = BzImage::new(vec![1; 5000]).build();
    assert_says(error(&image[..0x26b]), "its setup header ends at byte 620");
    assert_says(
        error(&image[..image.len() - 1]),
        "its compressed kernel ends at byte 7048",
    );
    let in_guest = |length| error_with(&image[..length], Unpack::InGuest, BootProtocol::Auto);
    assert_says(in_guest(image.len() - 20), "its kernel ends at byte");
    assert_says(in_guest(1024), "its kernel ends at byte");
    assert_says(in_guest(700), "its kernel ends at byte");
    let mut tiny = image[..1024 + 0x200].to_vec();
    tiny[0x1f4..0x1f8].copy_from_slice(&0x20u32.to_le_bytes());
    let text = error_with(&tiny, Unpack::InGuest, BootProtocol::Auto);
    assert_says(text, "a kernel of 512 bytes ends before its entry point");
}

#[test]
fn payloads_that_do_not_unpack() {
    let payload = compress(Codec::Xz, &Elf::default().build());
    let short = BzImage {
        payload_length: 10,
        ..BzImage::new(payload.clone())
    };
    assert_says(
        error(&short.build()),
        "it says that 10 bytes hold the compressed kernel",
    );
    let mut damaged = BzImage::new(payload.clone()).build();
    damaged[1024 + PAYLOAD_OFFSET + 50] ^= 0x80;
    assert_says(error(&damaged), "the bzImage's xz payload cannot be unpacked");
    let other = BzImage::new(compress(Codec::Gzip, &[b'#'; 1000]));
    assert_says(
        error(&other.build()),
        "unpacks to something that is not an ELF kernel",
    );
    let nested = Elf {
        machine: 183,
        ..Elf::default()
    };
    let foreign = BzImage::new(compress(Codec::Zstd, &nested.build()));
    assert_says(error(&foreign.build()), "ELF machine 183");
}

#[test]
fn a_decompression_bomb_is_refused() {
    for codec in [Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd] {
        let mut payload = compress(codec, &vec![0; 9 << 20]);
        let honest = BzImage::new(payload.clone());
        assert_says(
            error(&honest.build()),
            "the kernel needs 9 MiB of memory to be loaded; the guest has 8 MiB",
        );
        // One that understates itself ends where it said it would.
        let size = payload.len() - 4;
        payload[size..].copy_from_slice(&4096u32.to_le_bytes());
        let text = error(&BzImage::new(payload).build());
        assert_says(text, &format!("the bzImage's {codec} payload cannot be unpacked"));
    }
}

#[test]
fn segments_without_bytes_need_none_in_the_file() {
    let mut elf = Elf::default();
    elf.segments.push(Segment {
        kind: 1,
        address: 2 * MIB,
        data: vec![],
        memory_size: 4096,
        align: 4096,
    });
    let mut image = elf.build();
    image[64 + 56 + 8..64 + 56 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(load_auto(&guest(4 * MIB), &image).end.0, 2 * MIB + 4096);
}
