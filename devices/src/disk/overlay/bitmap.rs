//! Which sectors an overlay has: a bit each, in memory, and which parts of that have yet to be written to its file.
//!
//! Bits are only ever set. Every queue of a disk sets and reads them at any time, without a lock.

use std::alloc::{self, Layout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, ptr};

/// Bytes of the bitmap that are written at once: a page.
pub const BLOCK: usize = 4096;
/// Words of a block.
pub const WORDS: usize = BLOCK / size_of::<u64>();
/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// A bit a sector. Parts that were never used take up no memory.
pub struct Bitmap {
    /// Whole blocks.
    words: Box<[AtomicU64]>,
    /// Of each block, how often bits were set, counted after it was done.
    changed: Box<[AtomicU64]>,
    /// Of each block, the count of which the file has everything.
    durable: Box<[AtomicU64]>,
    /// The same two for all blocks together.
    all_changed: AtomicU64,
    all_durable: AtomicU64,
}

impl Bitmap {
    /// A bitmap for so many sectors, none of which is there.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(sectors: u64) -> io::Result<Self> {
        let blocks = usize::try_from(blocks(sectors)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            words: zeroes(blocks.saturating_mul(WORDS))?,
            changed: zeroes(blocks)?,
            durable: zeroes(blocks)?,
            all_changed: AtomicU64::new(0),
            all_durable: AtomicU64::new(0),
        })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.words.len() * size_of::<u64>()) as u64
    }

    /// Whether sector `first` is there, and of how many sectors, up to `count`, the same is true.
    #[inline]
    pub fn run(&self, first: u64, count: u64) -> (bool, u64) {
        let is_there = self.word(first) >> (first % BITS) & 1 != 0;
        let (mut at, end) = (first, first + count);
        while at < end {
            let word = self.word(at);
            let others = if is_there { !word } else { word } >> (at % BITS);
            if others != 0 {
                at += u64::from(others.trailing_zeros());
                break;
            }
            at += BITS - at % BITS;
        }
        (is_there, at.min(end) - first)
    }

    #[inline]
    fn word(&self, sector: u64) -> u64 {
        self.words[(sector / BITS) as usize].load(Ordering::Acquire)
    }

    /// The sectors from `first` up to `end` are there from now on.
    #[inline]
    pub fn set(&self, first: u64, end: u64) {
        let (mut at, per_block) = (first, BITS * WORDS as u64);
        while at < end {
            let stop = (at - at % per_block + per_block).min(end);
            if self.set_in_block(at, stop) {
                self.changed[(at / per_block) as usize].fetch_add(1, Ordering::Release);
                self.all_changed.fetch_add(1, Ordering::Release);
            }
            at = stop;
        }
    }

    /// Returns whether a bit was not set before. Bits that are, which is the rule, are only looked at.
    #[inline]
    fn set_in_block(&self, first: u64, end: u64) -> bool {
        let (mut at, mut any) = (first, false);
        while at < end {
            let count = (BITS - at % BITS).min(end - at);
            let bits = (u64::MAX >> (BITS - count)) << (at % BITS);
            let word = &self.words[(at / BITS) as usize];
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Release);
                any = true;
            }
            at += count;
        }
        any
    }

    /// How often bits were set, if the file does not have all of them.
    pub fn changes(&self) -> Option<u64> {
        let changed = self.all_changed.load(Ordering::Acquire);
        (changed != self.all_durable.load(Ordering::Acquire)).then_some(changed)
    }

    /// The file has everything up to this [count](Self::changes).
    pub fn all_durable(&self, changes: u64) {
        self.all_durable.fetch_max(changes, Ordering::AcqRel);
    }

    /// The first block from `from` on that the file does not have all of.
    pub fn next_changed(&self, from: usize) -> Option<usize> {
        let counts = self.changed.iter().zip(&self.durable).enumerate().skip(from);
        let mut changed = counts.filter(|(_, (changed, durable))| {
            changed.load(Ordering::Acquire) != durable.load(Ordering::Acquire)
        });
        changed.next().map(|(index, _)| index)
    }

    /// Copies a block as it is now; returns the count of changes of which the copy has at least all.
    pub fn copy(&self, block: usize, words: &mut [u64]) -> u64 {
        let changed = self.changed[block].load(Ordering::Acquire);
        for (copy, word) in words.iter_mut().zip(&self.words[block * WORDS..][..WORDS]) {
            *copy = word.load(Ordering::Acquire);
        }
        changed
    }

    /// The file has a [copy](Self::copy) of the block, taken at this count.
    pub fn block_durable(&self, block: usize, changed: u64) {
        self.durable[block].fetch_max(changed, Ordering::AcqRel);
    }

    /// Takes over a part of the bitmap as the file has it; `offset` in bytes is that of a word.
    pub fn load(&self, offset: u64, bytes: &[u8]) {
        let words = self.words.iter().skip(offset as usize / size_of::<u64>());
        for (word, bytes) in words.zip(bytes.as_chunks().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Release);
        }
    }
}

/// Blocks of the bitmap of a disk with so many sectors.
fn blocks(sectors: u64) -> u64 {
    sectors.div_ceil(BITS * WORDS as u64).max(1)
}

/// Words of zeros, at least one, from memory that the kernel gives when it is used.
fn zeroes(count: usize) -> io::Result<Box<[AtomicU64]>> {
    let layout = Layout::array::<AtomicU64>(count).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // SAFETY: the callers ask for a word at least, so the layout is not empty.
    let words = unsafe { alloc::alloc_zeroed(layout) }.cast::<AtomicU64>();
    if words.is_null() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // SAFETY: the global allocator gave this memory for exactly such an array, and zeros are values of its elements.
    Ok(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(words, count)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sectors of a block.
    const PER_BLOCK: u64 = BLOCK as u64 * 8;

    #[test]
    fn runs_end_where_the_bits_change() {
        let bitmap = Bitmap::new(1000).unwrap();
        assert_eq!(bitmap.run(0, 1000), (false, 1000));
        bitmap.set(10, 200);
        bitmap.set(300, 301);
        assert_eq!(bitmap.run(0, 1000), (false, 10));
        assert_eq!(bitmap.run(10, 1000), (true, 190));
        assert_eq!(bitmap.run(63, 2), (true, 2));
        assert_eq!(bitmap.run(199, 1), (true, 1));
        assert_eq!(bitmap.run(200, 300), (false, 100));
        assert_eq!(bitmap.run(300, 300), (true, 1));
        assert_eq!(bitmap.run(301, 64), (false, 64));
    }

    #[test]
    fn a_block_is_changed_until_a_copy_with_all_of_it_is_durable() {
        let bitmap = Bitmap::new(3 * PER_BLOCK).unwrap();
        assert_eq!((bitmap.changes(), bitmap.next_changed(0)), (None, None));
        bitmap.set(PER_BLOCK + 1, 2 * PER_BLOCK + 1);
        assert_eq!(bitmap.next_changed(0), Some(1));
        assert_eq!(bitmap.next_changed(2), Some(2));
        let all = bitmap.changes().unwrap();
        let mut words = [0; WORDS];
        let copied = bitmap.copy(1, &mut words);
        assert_eq!((words[0], words[1]), (u64::MAX - 1, u64::MAX));
        bitmap.set(PER_BLOCK, PER_BLOCK + 1);
        bitmap.block_durable(1, copied);
        assert_eq!(bitmap.next_changed(0), Some(1), "it has changed since");
        bitmap.block_durable(1, bitmap.copy(1, &mut words));
        bitmap.block_durable(2, bitmap.copy(2, &mut words));
        assert_eq!(bitmap.next_changed(0), None);
        bitmap.all_durable(all);
        assert!(bitmap.changes().is_some(), "it has changed since");
    }

    #[test]
    fn a_disk_beyond_all_memory_has_none() {
        for sectors in [u64::MAX, i64::MAX as u64 / 512] {
            let error = Bitmap::new(sectors).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
    }

    #[test]
    fn what_is_there_already_is_no_change() {
        let bitmap = Bitmap::new(PER_BLOCK).unwrap();
        bitmap.load(8, &[0xff; 16]);
        assert_eq!(bitmap.run(0, 1000), (false, 64));
        assert_eq!(bitmap.run(64, 1000), (true, 128));
        bitmap.set(64, 192);
        assert_eq!(bitmap.changes(), None);
    }
}
