//! How much of what was written to an image has reached the disk: a flush with nothing to do is done at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts writes. Shared by all queues of a disk.
///
/// A write is counted when it has ended and before anybody is told so: whoever asks for a flush then, on whichever queue, finds
/// it counted. One that ends while a flush is under way is left for the next.
#[derive(Debug)]
pub struct Durability {
    written: AtomicU64,
    /// Of the writes counted so far, those that a flush has covered.
    durable: AtomicU64,
}

/// A flush that is needed, and what it will cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush(u64);

impl Default for Durability {
    /// What was written before, by whomever, may not have reached the disk.
    fn default() -> Self {
        Self {
            written: AtomicU64::new(1),
            durable: AtomicU64::new(0),
        }
    }
}

impl Durability {
    /// Something has been written, or may have been.
    #[inline]
    pub fn written(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    /// The flush to be made now; `None` if all that was written is durable.
    #[inline]
    pub fn flush(&self) -> Option<Flush> {
        let written = self.written.load(Ordering::SeqCst);
        (self.durable.load(Ordering::SeqCst) < written).then_some(Flush(written))
    }

    /// A flush that was begun after it was asked for here has succeeded.
    #[inline]
    pub fn flushed(&self, flush: Flush) {
        self.durable.fetch_max(flush.0, Ordering::SeqCst);
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
        durability.written();
        assert_eq!([(); 3].map(|()| flush(&durability)), [true, false, false]);
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
        durability.written();
        durability.flushed(under_way);
        assert!(flush(&durability));
    }

    #[test]
    fn a_flush_that_ends_late_takes_nothing_back() {
        let durability = Durability::default();
        let late = durability.flush().unwrap();
        durability.written();
        assert!(flush(&durability));
        durability.flushed(late);
        assert_eq!(durability.flush(), None);
    }
}
