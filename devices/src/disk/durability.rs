//! How much of what was written to an image has reached the disk: a flush with nothing to do is done at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// What may not have reached the disk when nobody has counted it: more than a [`little`](Flush::is_little).
const UNKNOWN: u64 = 1 << 30;
/// Bytes that a flush may have to write and still be done in a moment: disks take them as they take one block.
const LITTLE: u64 = 256 << 10;

/// Counts the bytes that are written. Shared by all queues of a disk.
///
/// A write is counted when it has ended and before anybody is told so: whoever asks for a flush then, on whichever queue, finds
/// it counted. One that ends while a flush is under way is left for the next.
#[derive(Debug)]
pub struct Durability {
    written: AtomicU64,
    /// Of the bytes counted so far, those that a flush has covered.
    durable: AtomicU64,
}

/// A flush that is needed, and what it will cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    written: u64,
    dirty: u64,
}

impl Flush {
    /// Whether so few bytes are to be written that it can be waited for.
    #[inline]
    pub fn is_little(self) -> bool {
        self.dirty <= LITTLE
    }
}

impl Default for Durability {
    /// What was written before, by whomever, may not have reached the disk.
    fn default() -> Self {
        Self {
            written: AtomicU64::new(UNKNOWN),
            durable: AtomicU64::new(0),
        }
    }
}

impl Durability {
    /// So many bytes have been written, or may have been.
    #[inline]
    pub fn written(&self, bytes: u64) {
        // A write of nothing can have failed after it had changed something.
        self.written.fetch_add(bytes.max(1), Ordering::SeqCst);
    }

    /// Somebody has written, or may have, who does not say how much.
    pub fn written_by_others(&self) {
        self.written(UNKNOWN);
    }

    /// The flush to be made now; `None` if all that was written is durable.
    #[inline]
    pub fn flush(&self) -> Option<Flush> {
        let written = self.written.load(Ordering::SeqCst);
        let dirty = written.saturating_sub(self.durable.load(Ordering::SeqCst));
        (dirty > 0).then_some(Flush { written, dirty })
    }

    /// A flush that was begun after it was asked for here has succeeded.
    #[inline]
    pub fn flushed(&self, flush: Flush) {
        self.durable.fetch_max(flush.written, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flush that succeeds.
    fn flush(durability: &Durability) -> bool {
        let flush = durability.flush();
        flush.inspect(|flush| durability.flushed(*flush)).is_some()
    }

    #[test]
    fn the_first_flush_is_made_and_the_next_waits_for_a_write() {
        let durability = Durability::default();
        assert_eq!([(); 3].map(|()| flush(&durability)), [true, false, false]);
        durability.written(1);
        assert_eq!([(); 3].map(|()| flush(&durability)), [true, false, false]);
    }

    #[test]
    fn a_flush_has_as_much_to_do_as_was_written_since_the_last() {
        let durability = Durability::default();
        let is_little = || durability.flush().map(Flush::is_little);
        assert_eq!(is_little(), Some(false), "who knows what is dirty in a file");
        assert!(flush(&durability));
        durability.written(LITTLE - 1);
        durability.written(0);
        assert_eq!(is_little(), Some(true));
        durability.written(1);
        assert_eq!(is_little(), Some(false));
        assert!(flush(&durability));
        durability.written(LITTLE);
        assert_eq!(is_little(), Some(true));
        durability.written_by_others();
        assert_eq!(is_little(), Some(false));
    }

    #[test]
    fn a_flush_that_fails_is_made_again() {
        let durability = Durability::default();
        assert!(durability.flush().is_some());
        assert!(flush(&durability));
    }

    #[test]
    fn a_write_during_a_flush_is_left_for_the_next() {
        let durability = Durability::default();
        let under_way = durability.flush().unwrap();
        durability.written(1);
        durability.flushed(under_way);
        assert!(flush(&durability));
    }

    #[test]
    fn a_flush_that_ends_late_takes_nothing_back() {
        let durability = Durability::default();
        let late = durability.flush().unwrap();
        durability.written(1);
        assert!(flush(&durability));
        durability.flushed(late);
        assert_eq!(durability.flush(), None);
    }
}
