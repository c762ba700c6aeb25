//! What a disk has done.

use super::request::{Request, Status};
use crate::counters;

counters! {
    /// Of one queue, whose worker counts.
    pub(super) struct Counts {
        /// Reads that were begun.
        reads,
        /// Bytes that were to be read.
        read_bytes,
        /// Writes that were begun.
        writes,
        /// Bytes that were to be written.
        written_bytes,
        /// Flushes that were begun.
        flushes,
        /// Discards and writes of zeros that were begun.
        discards,
        /// Requests that failed, or that the disk does not do.
        errors,
        /// Times that the rate limit held requests back.
        stalls,
    }
}

impl Counts {
    /// A request is begun.
    #[inline]
    pub(super) fn begun(&self, request: &Request) {
        match request {
            Request::Read(extent) => {
                self.reads.add(1);
                self.read_bytes.add(extent.len);
            }
            Request::Write(extent) => {
                self.writes.add(1);
                self.written_bytes.add(extent.len);
            }
            Request::Flush => self.flushes.add(1),
            Request::Discard(_) | Request::WriteZeroes { .. } => self.discards.add(1),
            Request::GetId | Request::Refuse(_) => {}
        }
    }

    /// A request has ended.
    #[inline]
    pub(super) fn ended(&self, status: Status) {
        if status != Status::Ok {
            self.errors.add(1);
        }
    }
}
