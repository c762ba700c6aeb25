//! Tests of the kernel loaders: what is loaded where, each thing that can be wrong, and hostile images.

mod bad_images;
mod hostile;

use std::io::Cursor;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::tempfile::TempFile;

use super::images::{BzImage, Elf, MIB, PT_NOTE, bytes_at, compress, guest, note};
use super::*;

fn load_into(
    mem: &GuestMemoryMmap<()>,
    image: &[u8],
    unpack: Unpack,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError> {
    load(mem, &mut Cursor::new(image), unpack, protocol)
}

fn load_auto(mem: &GuestMemoryMmap<()>, image: &[u8]) -> LoadedKernel {
    load_into(mem, image, Unpack::OnHost, BootProtocol::Auto).unwrap()
}

fn code() -> Vec<u8> {
    (1..=64).collect()
}

#[test]
fn elf_segments_lie_at_their_physical_addresses() {
    let mem = guest(8 * MIB);
    let elf = Elf::default()
        .with(3 * MIB + 7, vec![9; 5000], 6000)
        .with(2 * MIB, vec![], 4096);
    let kernel = load_auto(&mem, &elf.build());
    assert_eq!(bytes_at(&mem, MIB, 65), [code(), vec![0]].concat());
    assert_eq!(
        bytes_at(&mem, 3 * MIB + 6, 5002),
        [vec![0], vec![9; 5000], vec![0]].concat()
    );
    assert_eq!((kernel.start.0, kernel.end.0), (MIB, 3 * MIB + 7 + 6000));
    assert_eq!(kernel.entry.0, MIB);
    assert_eq!(
        (kernel.protocol, kernel.format),
        (EntryProtocol::Linux64, ImageFormat::Elf)
    );
    assert_eq!((kernel.cmdline_max, kernel.initrd_max), (2047, 0xbfff_ffff));
    assert!(kernel.setup_header.is_none());
}

#[test]
fn a_file_is_read_like_bytes_are() {
    use std::io::Write;
    let mut file = TempFile::new().unwrap().into_file();
    file.write_all(&Elf::default().build()).unwrap();
    let mem = guest(2 * MIB);
    let kernel = load(&mem, &mut file, Unpack::OnHost, BootProtocol::Auto).unwrap();
    assert_eq!(kernel.entry.0, MIB);
    assert_eq!(bytes_at(&mem, MIB, 64), code());
}

#[test]
fn program_headers_may_lie_far_into_the_file() {
    let mem = guest(2 * MIB);
    let mut image = Elf::default().build();
    let headers = image[64..64 + 56].to_vec();
    image[32..40].copy_from_slice(&10_000u64.to_le_bytes());
    image.resize(10_000, 0);
    image.extend_from_slice(&headers);
    load_auto(&mem, &image);
    assert_eq!(bytes_at(&mem, MIB, 64), code());
}

#[test]
fn pvh_is_chosen_when_the_kernel_has_it() {
    let mem = guest(2 * MIB);
    let image = Elf::pvh(MIB as u32 + 0x20).build();
    let kernel = load_auto(&mem, &image);
    assert_eq!(
        (kernel.protocol, kernel.entry.0),
        (EntryProtocol::Pvh, MIB + 0x20)
    );
    let asked = load_into(&mem, &image, Unpack::OnHost, BootProtocol::Pvh).unwrap();
    assert_eq!((asked.protocol, asked.entry.0), (EntryProtocol::Pvh, MIB + 0x20));
    let other = load_into(&mem, &image, Unpack::OnHost, BootProtocol::Linux64).unwrap();
    assert_eq!((other.protocol, other.entry.0), (EntryProtocol::Linux64, MIB));
}

#[test]
fn the_pvh_note_is_found_among_others() {
    let entry = (MIB as u32 + 0x30).to_le_bytes();
    let mut wide = entry.to_vec();
    wide.extend_from_slice(&[0; 4]);
    let cases = [
        (
            4,
            [note(b"Linux\0", 1, &[1; 3], 4), note(b"Xen\0", 18, &entry, 4)],
        ),
        (4, [note(b"Xen\0", 17, &[7; 4], 4), note(b"Xen\0", 18, &wide, 4)]),
        (4, [note(b"Zen\0", 18, &[7; 4], 4), note(b"Xen\0", 18, &entry, 4)]),
        (8, [note(b"GNU\0", 5, &[1; 12], 8), note(b"Xen\0", 18, &entry, 8)]),
    ];
    for (align, notes) in cases {
        let mem = guest(2 * MIB);
        let kernel = load_auto(&mem, &Elf::default().with_note(notes.concat(), align).build());
        assert_eq!(
            (kernel.protocol, kernel.entry.0),
            (EntryProtocol::Pvh, MIB + 0x30)
        );
    }
    // A segment of notes without it does not end the search.
    let elf = Elf::default().with_note(note(b"GNU\0", 3, &[1; 20], 4), 4);
    let elf = elf.with_note(note(b"Xen\0", 18, &entry, 4), 4);
    assert_eq!(
        load_auto(&guest(2 * MIB), &elf.build()).protocol,
        EntryProtocol::Pvh
    );
}

#[test]
fn a_damaged_note_is_no_pvh_note() {
    let whole = note(b"Xen\0", 18, &(MIB as u32).to_le_bytes(), 4);
    for length in 0..whole.len() {
        let elf = Elf::default().with_note(whole[..length].to_vec(), 4);
        assert_eq!(
            load_auto(&guest(2 * MIB), &elf.build()).protocol,
            EntryProtocol::Linux64
        );
    }
    let short = Elf::default().with_note(note(b"Xen\0", 18, &[1, 2, 3], 4), 4);
    assert_eq!(
        load_auto(&guest(2 * MIB), &short.build()).protocol,
        EntryProtocol::Linux64
    );
    let mut huge = Elf::pvh(MIB as u32);
    let notes = huge.segments.iter_mut().find(|s| s.kind == PT_NOTE).unwrap();
    notes.data[..8].copy_from_slice(&[0xff; 8]);
    assert_eq!(
        load_auto(&guest(2 * MIB), &huge.build()).protocol,
        EntryProtocol::Linux64
    );
}

#[test]
fn a_bzimage_is_loaded_whole_to_unpack_itself() {
    for setup_sects in [0, 1, 30] {
        let mem = guest(8 * MIB);
        let bz = BzImage {
            setup_sects,
            ..BzImage::new(vec![0x5a; 3001])
        };
        let kernel = load_into(&mem, &bz.build(), Unpack::InGuest, BootProtocol::Auto).unwrap();
        let part = bz.protected_mode();
        assert_eq!(bytes_at(&mem, 2 * MIB, part.len() + 1), [part, vec![0]].concat());
        assert_eq!(kernel.entry.0, 2 * MIB + 0x200);
        assert_eq!((kernel.start.0, kernel.end.0), (2 * MIB, 3 * MIB));
        assert_eq!(
            (kernel.protocol, kernel.format),
            (EntryProtocol::Linux64, ImageFormat::BzImage)
        );
        assert_eq!((kernel.cmdline_max, kernel.initrd_max), (2000, 0x7fff_ffff));
        assert_eq!({ kernel.setup_header.unwrap().init_size }, MIB as u32);
    }
}

#[test]
fn every_codec_is_unpacked_on_the_host() {
    // Enough data for several decoder rounds, with calls for the x86 filter to rewrite.
    let data: Vec<u8> = (0..200_000u32)
        .flat_map(|i| [0xe8, i as u8, (i >> 7) as u8, 0, 0])
        .collect();
    let elf = Elf::default().with(2 * MIB, data.clone(), MIB + 1).build();
    for codec in [Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd] {
        let mem = guest(8 * MIB);
        let kernel = load_auto(&mem, &BzImage::new(compress(codec, &elf)).build());
        assert_eq!(kernel.format, ImageFormat::Unpacked(codec));
        assert_eq!(kernel.entry.0, MIB);
        assert_eq!(bytes_at(&mem, 2 * MIB, data.len()), data);
        // Command line and initrd limits are the bzImage's, and its header goes into the zero page.
        assert_eq!((kernel.cmdline_max, kernel.initrd_max), (2000, 0x7fff_ffff));
        assert!(kernel.setup_header.is_some());
    }
}

#[test]
fn an_unpacked_kernel_is_entered_by_pvh() {
    let bz = BzImage::new(compress(Codec::Zstd, &Elf::pvh(MIB as u32 + 8).build()));
    let kernel = load_into(&guest(4 * MIB), &bz.build(), Unpack::OnHost, BootProtocol::Pvh).unwrap();
    assert_eq!((kernel.protocol, kernel.entry.0), (EntryProtocol::Pvh, MIB + 8));
}

#[test]
fn an_unknown_compression_is_left_to_the_guest() {
    let bz = BzImage::new(b"BZh9 is bzip2, which nobody uses".to_vec());
    let kernel = load_into(&guest(4 * MIB), &bz.build(), Unpack::OnHost, BootProtocol::Auto).unwrap();
    assert_eq!(kernel.format, ImageFormat::BzImage);
}
