//! What a guest sees of a disk before it asks anything: features and configuration space (§5.2.3, §5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{EXTENT_SECTORS, QUEUE_SIZE};
use crate::disk::{Image, SECTOR};

/// Buffers of data in a request: a chain has as many descriptors as the queue, one for the header and one for the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Heads and sectors of the geometry that PCs give disks which have none; cylinders fill the rest, as far as they go.
const HEADS: u8 = 16;
const SECTORS_PER_TRACK: u8 = 63;

/// Bytes of the configuration space (§5.2.4), up to the fields of features that are not offered.
const SIZE: usize = 60;

/// The feature bits of a disk.
pub(super) fn features(image: &Image, queues: u16) -> u64 {
    let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_GEOMETRY
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH;
    if image.options().readonly {
        features |= 1 << VIRTIO_BLK_F_RO;
    } else {
        features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    }
    if queues > 1 {
        features |= 1 << VIRTIO_BLK_F_MQ;
    }
    features
}

/// The configuration space as it is now.
pub(super) fn space(image: &Image, queues: u16) -> [u8; SIZE] {
    let sectors = image.sectors();
    let blocks = image.blocks();
    let cylinders = sectors / (u64::from(HEADS) * u64::from(SECTORS_PER_TRACK));
    let per_block = blocks.logical / SECTOR;
    let per_physical = (blocks.physical / blocks.logical).max(1);

    let mut space = [0; SIZE];
    let mut put = |offset: usize, field: &[u8]| space[offset..offset + field.len()].copy_from_slice(field);
    put(0, &sectors.to_le_bytes()); // capacity
    put(12, &SEG_MAX.to_le_bytes()); // seg_max
    put(16, &u16::try_from(cylinders).unwrap_or(u16::MAX).to_le_bytes());
    put(18, &[HEADS, SECTORS_PER_TRACK]);
    put(20, &blocks.logical.to_le_bytes()); // blk_size
    put(24, &[per_physical.ilog2() as u8, 0]); // physical_block_exp, alignment_offset
    put(26, &u16::try_from(per_physical).unwrap_or(1).to_le_bytes()); // min_io_size, in blocks
    put(34, &queues.to_le_bytes()); // num_queues
    put(36, &EXTENT_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &1u32.to_le_bytes()); // max_discard_seg
    // What is smaller than a physical block frees nothing.
    put(44, &(per_block * per_physical).to_le_bytes()); // discard_sector_alignment
    put(48, &EXTENT_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &1u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    space
}
