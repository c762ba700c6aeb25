//! The way of a flush through an overlay: first the data reaches the disk, then the bits that say that it is there.
//!
//! A flush is one fdatasync where no bits were set since the last one; else the data's comes first, then the bits that were
//! set before it began are written, and a second one follows. So no bit is on the disk before its sector is. Bits are only
//! ever set: a block of which a power cut lets a part reach the disk is a mix of two that are both right.

use std::io;

use super::Overlay;
use super::bitmap::WORDS;

/// Blocks of the bitmap that are written between two pairs of fdatasyncs, which is room for 1 GiB written in sequence.
const AT_ONCE: usize = 64;

/// One flush after another.
pub struct Commit {
    /// The blocks that are copied, with their counts of changes.
    copied: Vec<(usize, u64)>,
    /// The copies. Those that were never used take up no memory.
    words: Box<[u64]>,
    /// The copies are in the file.
    is_written: bool,
    /// The count of changes at the beginning, if there were any.
    changes: Option<u64>,
    /// The block to go on with.
    next: usize,
}

impl Default for Commit {
    /// A flush that has not begun.
    fn default() -> Self {
        Self {
            copied: Vec::with_capacity(AT_ONCE),
            words: vec![0; AT_ONCE * WORDS].into(),
            is_written: false,
            changes: None,
            next: 0,
        }
    }
}

impl Commit {
    /// Begins a flush, also where another one has failed. An fdatasync of the overlay's file is to follow.
    pub fn begin(&mut self, overlay: &Overlay) {
        (self.changes, self.next) = (overlay.bitmap.changes(), 0);
        self.copy(overlay);
    }

    /// Copies the next blocks that have changed.
    fn copy(&mut self, overlay: &Overlay) {
        self.is_written = false;
        self.copied.clear();
        if self.changes.is_none() {
            return;
        }
        for words in self.words.chunks_mut(WORDS) {
            let Some(block) = overlay.bitmap.next_changed(self.next) else {
                break;
            };
            self.copied.push((block, overlay.bitmap.copy(block, words)));
            self.next = block + 1;
        }
    }

    /// The fdatasync is done; returns whether that was all, or another one is to follow.
    ///
    /// # Errors
    /// The host cannot write the bitmap. The flush has failed.
    pub fn synced(&mut self, overlay: &Overlay) -> io::Result<bool> {
        if !self.is_written {
            for (&(block, _), words) in self.copied.iter().zip(self.words.chunks(WORDS)) {
                overlay.add_to_file(block, words)?;
            }
            self.is_written = true;
            if !self.copied.is_empty() {
                return Ok(false);
            }
        }
        for (block, changed) in self.copied.drain(..) {
            overlay.bitmap.block_durable(block, changed);
        }
        self.copy(overlay);
        if !self.copied.is_empty() {
            return Ok(false);
        }
        if let Some(changes) = self.changes {
            overlay.bitmap.all_durable(changes);
        }
        Ok(true)
    }
}
