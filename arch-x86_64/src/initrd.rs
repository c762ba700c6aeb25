//! Places an initial RAM disk in guest memory.

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::kernel::{LoadedKernel, low_ram_end};

/// Where the initrd lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitrdRange {
    /// First byte, page-aligned.
    pub addr: GuestAddress,
    /// Size in bytes, not 0.
    pub size: u64,
}

/// Why an initrd was not loaded. The texts start in lower case: "`PATH`: " goes before them.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// A file of no bytes.
    #[error("the initrd file is empty; name a cpio archive, or give no initrd")]
    Empty,
    /// No room between the kernel and the highest address allowed.
    #[error(
        "the initrd has {} KiB, but only {} KiB of memory are free for it above the kernel; \
         give the guest more memory or a smaller initrd",
        size.div_ceil(1024), room >> 10
    )]
    DoesNotFit {
        /// Its size in bytes.
        size: u64,
        /// Bytes that are free for it.
        room: u64,
    },
    /// The host could not read the file.
    #[error("the initrd cannot be read: {0}")]
    Read(io::Error),
}

const PAGE: u64 = 4096;

/// Loads the initrd in `image` as high as the kernel and the RAM below the MMIO hole allow, straight from the file.
///
/// High, because the kernel frees it piecemeal after use: at the top it splits no memory that is used as a whole.
///
/// # Errors
/// [`InitrdError`], in which sizes are in KiB.
pub fn load<M, F>(mem: &M, image: &mut F, kernel: &LoadedKernel) -> Result<InitrdRange, InitrdError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    let size = image.seek(SeekFrom::End(0)).map_err(InitrdError::Read)?;
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let bottom = kernel.end.0.next_multiple_of(PAGE);
    let top = low_ram_end(mem).min(kernel.initrd_max.saturating_add(1));
    let room = (top & !(PAGE - 1)).saturating_sub(bottom);
    if size
        .checked_next_multiple_of(PAGE)
        .is_none_or(|pages| pages > room)
    {
        return Err(InitrdError::DoesNotFit { size, room });
    }
    let addr = GuestAddress((top - size) & !(PAGE - 1));
    image.rewind().map_err(InitrdError::Read)?;
    mem.read_exact_volatile_from(addr, image, size as usize)
        .map_err(|source| InitrdError::Read(io::Error::other(source)))?;
    Ok(InitrdRange { addr, size })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::kernel::images::{MIB, bytes_at, guest, loaded};

    #[test]
    fn lies_at_the_top_of_memory() {
        let mem = guest(16 * MIB);
        let content = vec![0xa5u8; 5000];
        let range = load(&mem, &mut Cursor::new(&content), &loaded(MIB, 2 * MIB)).unwrap();
        assert_eq!(
            range,
            InitrdRange {
                addr: GuestAddress(16 * MIB - 8192),
                size: 5000
            }
        );
        let mut found = vec![0; 5001];
        mem.read_slice(&mut found, range.addr).unwrap();
        assert_eq!(found[..5000], content);
        assert_eq!(found[5000], 0);
    }

    #[test]
    fn lies_below_what_the_kernel_allows() {
        let mem = guest(16 * MIB);
        let kernel = LoadedKernel {
            initrd_max: 8 * MIB - 1,
            ..loaded(MIB, 2 * MIB)
        };
        let range = load(&mem, &mut Cursor::new([1u8; 4096]), &kernel).unwrap();
        assert_eq!(range.addr, GuestAddress(8 * MIB - 4096));
        let unaligned = LoadedKernel {
            initrd_max: 8 * MIB - 2,
            ..kernel
        };
        let range = load(&mem, &mut Cursor::new([1u8; 4096]), &unaligned).unwrap();
        assert_eq!(range.addr, GuestAddress(8 * MIB - 8192));
    }

    #[test]
    fn takes_all_the_room_and_no_more() {
        let mem = guest(4 * MIB);
        let kernel = loaded(MIB, 3 * MIB - 5);
        let range = load(&mem, &mut Cursor::new(vec![1u8; MIB as usize]), &kernel).unwrap();
        assert_eq!(range.addr, GuestAddress(3 * MIB));
        let error = load(&mem, &mut Cursor::new(vec![1u8; MIB as usize + 1]), &kernel).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the initrd has 1025 KiB, but only 1024 KiB of memory are free for it above the kernel; \
             give the guest more memory or a smaller initrd"
        );
    }

    #[test]
    fn empty_or_without_room_is_an_error() {
        let mem = guest(4 * MIB);
        let empty = load(&mem, &mut Cursor::new([]), &loaded(MIB, 2 * MIB)).unwrap_err();
        assert!(matches!(empty, InitrdError::Empty));
        let full = load(&mem, &mut Cursor::new([1u8]), &loaded(MIB, 4 * MIB)).unwrap_err();
        assert!(matches!(full, InitrdError::DoesNotFit { size: 1, room: 0 }));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn never_overlaps_the_kernel_or_leaves_what_is_allowed(
            end in MIB..5 * MIB,
            limit in 0..6 * MIB,
            size in 1..3 * MIB,
        ) {
            let mem = guest(4 * MIB);
            let kernel = LoadedKernel { initrd_max: limit, ..loaded(MIB, end) };
            let content = vec![0x11; size as usize];
            match load(&mem, &mut Cursor::new(&content), &kernel) {
                Ok(range) => {
                    assert_eq!((range.addr.0 % PAGE, range.size), (0, size));
                    assert!(range.addr.0 >= end && range.addr.0 + size - 1 <= limit.min(4 * MIB - 1));
                    assert_eq!(bytes_at(&mem, range.addr.0, size as usize), content);
                }
                // Refused only where whole pages would not fit.
                Err(InitrdError::DoesNotFit { .. }) => assert!(end + size + 2 * PAGE > limit.min(4 * MIB)),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
