//! Property tests: whatever the bytes are, loading them ends, does not panic and touches only the memory it reports.

use proptest::prelude::*;

use super::*;

const MEMORY: u64 = 3 * MIB;

fn valid_images() -> Vec<Vec<u8>> {
    let elf = Elf::pvh(MIB as u32).with(2 * MIB, vec![0x90; 3000], 5000).build();
    let mut images = vec![
        elf.clone(),
        Elf::default().build(),
        BzImage::new(vec![1; 3000]).build(),
    ];
    for codec in [Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd] {
        images.push(BzImage::new(compress(codec, &elf)).build());
    }
    images
}

/// Loads `image` and checks the result against guest memory.
fn check(image: &[u8], (unpack, protocol): (Unpack, BootProtocol)) {
    let mem = guest(MEMORY);
    let mut touched = MIB as usize..MIB as usize;
    if let Ok(kernel) = load_into(&mem, image, unpack, protocol) {
        assert!(kernel.start.0 >= MIB && kernel.start < kernel.end && kernel.end.0 <= MEMORY);
        assert!((kernel.start..kernel.end).contains(&kernel.entry));
        touched = kernel.start.0 as usize..kernel.end.0 as usize;
    } else {
        // What fails may have filled some of the kernel's memory, never what is below.
        touched.end = MEMORY as usize;
    }
    let bytes = bytes_at(&mem, 0, MEMORY as usize);
    assert!(is_zero(&bytes[..touched.start]) && is_zero(&bytes[touched.end..]));
}

fn way() -> impl Strategy<Value = (Unpack, BootProtocol)> {
    let unpack = prop_oneof![3 => Just(Unpack::OnHost), 1 => Just(Unpack::InGuest)];
    let protocol = prop_oneof![
        Just(BootProtocol::Auto),
        Just(BootProtocol::Pvh),
        Just(BootProtocol::Linux64)
    ];
    (unpack, protocol)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compares by memcmp: each byte equals its neighbour, and the first is 0.
    bytes
        .first()
        .is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

/// A value that headers break on.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|shift| 1 << shift),
        (0u32..64).prop_map(|shift| u64::MAX >> shift),
        Just(0),
        MIB..MEMORY,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_bytes(mut image in proptest::collection::vec(any::<u8>(), 0..3000), start in 0usize..4, way in way()) {
        // Half of them with a magic number, to get past the first check.
        match start {
            0 if image.len() >= 4 => image[..4].copy_from_slice(elf::MAGIC),
            1 if image.len() >= 0x206 => image[0x202..0x206].copy_from_slice(b"HdrS"),
            _ => {}
        }
        check(&image, way);
    }

    #[test]
    fn images_with_a_header_field_changed(which in 0usize..7, at in 0usize..0x280, width in 1usize..9, value in edge(), way in way()) {
        let mut image = valid_images().swap_remove(which);
        // In ELF images the headers come first, in a bzImage they stand at 0x1f1.
        let at = if which < 2 { at } else { 0x1f1 + at % 0x80 };
        for (byte, new) in image.iter_mut().skip(at).zip(value.to_le_bytes()).take(width) {
            *byte = new;
        }
        check(&image, way);
    }

    #[test]
    fn images_with_bytes_changed(
        which in 0usize..7,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        way in way(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = valid_images().swap_remove(which);
        for (at, value) in changes {
            let at = at.index(image.len());
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        check(&image, way);
    }
}
