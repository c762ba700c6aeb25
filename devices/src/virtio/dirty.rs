//! Which pages of guest memory posada itself has written: what KVM's dirty log, which sees vCPUs only, leaves out.
//!
//! vm-memory's own methods mark what they write by the [`Bitmap`] trait. A buffer that a device fills by a system call is
//! marked when its chain is walked ([`Chain`](super::Chain)).

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes that one bit stands for: a page of the host, as in KVM's dirty log.
pub const PAGE_SIZE: usize = 4096;

/// What is known of one region of guest memory beside its bytes: the pages that were written since the last
/// [`take`](Self::take), and where pages come from that are not there.
///
/// Until [`record`](Self::record) switches it on it has no bits, and a write costs one load more.
#[derive(Debug, Default)]
pub struct DirtyMap {
    recording: AtomicBool,
    backed: AtomicBool,
    bytes: usize,
    /// Bit n of word m is page 64 m + n. Made by the first `record(true)`.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyMap {
    /// Switches recording on or off; nothing is marked at first.
    ///
    /// A buffer is marked when a device finds it, which is before the device writes to it: what is recorded is complete only from a
    /// moment on at which no device ran, and up to such a moment.
    pub fn record(&self, on: bool) {
        if on {
            self.words();
        }
        self.take();
        self.recording.store(on, Ordering::Release);
    }

    /// Whether writes are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Acquire)
    }

    /// The pages that were written, a bit each as in KVM's dirty log, which are forgotten here. Empty if it never recorded.
    pub fn take(&self) -> Vec<u64> {
        let words = self.words.get().into_iter().flatten();
        // Most words are zero and stay as they are.
        let take = |word: &AtomicU64| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::Relaxed),
        };
        words.map(take).collect()
    }

    /// Whether a page that is given back to the host comes back as a file has it (memory restored from a snapshot) and not as zeros.
    pub fn is_backed(&self) -> bool {
        self.backed.load(Ordering::Acquire)
    }

    /// Says that the region now is a private mapping of a file.
    pub fn set_backed(&self) {
        self.backed.store(true, Ordering::Release);
    }

    fn words(&self) -> &[AtomicU64] {
        let count = self.bytes.div_ceil(PAGE_SIZE).div_ceil(64);
        self.words
            .get_or_init(|| (0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// The words and bits of the pages that the `len` bytes from `offset` on lie in. What is not in the region has none.
    #[cold]
    fn mark(&self, offset: usize, len: usize) {
        let end = offset.saturating_add(len).min(self.bytes);
        if offset >= end {
            return;
        }
        let pages = offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        let (first, last) = (pages.start / 64, (pages.end - 1) / 64);
        for (index, word) in (first..=last).zip(&self.words()[first..=last]) {
            let bits = bits_of(&pages, index);
            // A page that is marked already is the usual case in a ring: no locked instruction for that.
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        }
    }
}

/// The bits of word `index` that stand for some of `pages`, of which at least one is in that word.
fn bits_of(pages: &Range<usize>, index: usize) -> u64 {
    let from = pages.start.saturating_sub(64 * index);
    let to = (pages.end - 64 * index).min(64);
    (u64::MAX >> (64 - (to - from))) << from
}

impl<'a> WithBitmapSlice<'a> for DirtyMap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.recording.load(Ordering::Relaxed) {
            self.mark(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        let word = self.words.get().and_then(|words| words.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (page % 64) != 0)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyMap {
    fn with_len(len: usize) -> Self {
        Self {
            bytes: len,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: usize = 200;

    #[test]
    fn nothing_is_marked_before_recording() {
        let map = DirtyMap::with_len(PAGES * PAGE_SIZE);
        map.mark_dirty(0, PAGE_SIZE);
        assert!(!map.dirty_at(0));
        assert!(map.take().is_empty());
        map.record(true);
        assert_eq!(map.take(), [0; 4]);
    }

    #[test]
    fn what_was_taken_is_forgotten() {
        let map = DirtyMap::with_len(PAGES * PAGE_SIZE);
        map.record(true);
        map.mark_dirty(64 * PAGE_SIZE + 17, 1);
        assert!(map.dirty_at(64 * PAGE_SIZE));
        assert_eq!(map.take(), [0, 1, 0, 0]);
        assert_eq!(map.take(), [0; 4]);
        map.mark_dirty(0, 1);
        map.record(false);
        map.mark_dirty(0, 1);
        assert_eq!(map.take(), [0; 4]);
    }

    #[test]
    fn a_slice_marks_at_its_offset() {
        let map = DirtyMap::with_len(PAGES * PAGE_SIZE);
        map.record(true);
        map.slice_at(PAGE_SIZE).slice_at(PAGE_SIZE).mark_dirty(4095, 2);
        assert_eq!(map.take(), [0b1100, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn exactly_the_pages_of_a_write_are_marked(
            writes in prop::collection::vec((0..(PAGES + 2) * PAGE_SIZE, 0..100 * PAGE_SIZE), 1..4),
        ) {
            let map = DirtyMap::with_len(PAGES * PAGE_SIZE);
            map.record(true);
            let mut expected = [0u64; PAGES.div_ceil(64)];
            for &(offset, len) in &writes {
                map.mark_dirty(offset, len);
                for page in (0..PAGES).filter(|page| offset < (page + 1) * PAGE_SIZE && page * PAGE_SIZE < offset + len) {
                    expected[page / 64] |= u64::from(len > 0) << (page % 64);
                }
            }
            prop_assert_eq!(map.take(), expected);
        }
    }
}
