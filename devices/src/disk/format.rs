//! Which other formats an image may be in: told by their first bytes, so that none is taken for a raw disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{DiskError, overlay};

/// The first bytes of the formats that people have (QEMU's docs/interop/qcow2.txt; VMDK, VHDX, VDI and VHD specifications).
const FORMATS: [(&[u8], &str); 7] = [
    (b"QFI\xfb", "a qcow2 image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMDK image"),
    (b"COWD", "a VMDK image"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
    (b"<<< ", "a VDI image"),
];
/// Direct I/O wants a block's worth of memory, aligned like a block.
const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Refuses what is not raw. A guest owns every byte of a raw disk, the first ones too: so the user can overrule this.
pub(super) fn refuse_foreign(file: &File, path: &Path) -> Result<(), DiskError> {
    let mut block = Block([0; BLOCK]);
    let read = read(file, &mut block.0).map_err(|source| DiskError::Open {
        path: path.to_owned(),
        source,
    })?;
    if block.0[..read].starts_with(overlay::MAGIC) {
        return Err(DiskError::IsOverlay {
            path: path.to_owned(),
        });
    }
    let begins = |(magic, _): &&(&[u8], &str)| block.0[..read].starts_with(magic);
    match FORMATS.iter().find(begins) {
        None => Ok(()),
        Some((_, format)) => Err(DiskError::Foreign {
            path: path.to_owned(),
            format,
        }),
    }
}

fn read(file: &File, block: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read_at(block, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
