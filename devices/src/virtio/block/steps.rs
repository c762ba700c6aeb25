//! The steps that a disk's requests are made of: one system call's worth each, which an engine does.

use std::io;
use std::sync::Arc;

use super::counts::Counts;
use super::flushes::Flushes;
use super::request::{Extent, ID_BYTES, Request, Status};
use super::slots::{Allocate, Doing, Slots};
use super::worker::Setup;
use crate::disk::{Engine, Flush, Image};
use crate::virtio::{Chain, Interrupt, Queue, QueueError, Trouble};

/// Bytes that a change of what is allocated leaves to be flushed: the file system's own, a block or so.
const METADATA: u64 = 4096;

/// A chain to be given back: its head, and how many bytes were written to its buffers.
pub type Done = (u16, u32);

/// The requests of one queue that are under way.
pub struct Steps {
    /// The first to be dropped: it waits for what it has under way, in the slots' buffers and the queue's memory.
    pub engine: Engine,
    slots: Slots,
    image: Arc<Image>,
    /// Of a disk over a base; of others, a flush is one step like any other.
    flushes: Option<Flushes>,
    id: [u8; ID_BYTES],
    write_through: bool,
    interrupt: Arc<dyn Interrupt>,
    counts: Arc<Counts>,
}

impl Steps {
    /// Room for as many requests as `queue` has, which is to be dropped after this.
    pub fn new(queue: &Queue, setup: Setup) -> Self {
        Self {
            engine: setup.engine,
            slots: Slots::new(queue.size()),
            flushes: setup.image.overlay().map(|_| Flushes::new(queue.size())),
            image: setup.image,
            id: setup.id,
            write_through: setup.write_through,
            interrupt: queue.interrupt().clone(),
            counts: setup.counts,
        }
    }

    /// Whether there is room for another request.
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.slots.is_full()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Begins what `chain` asks for, for which there is [room](Self::has_room); returns the chain if that is done already.
    ///
    /// # Errors
    /// The chain has no room for a status.
    #[inline]
    pub fn begin(&mut self, chain: &Chain, request: Request) -> Result<Option<Done>, QueueError> {
        self.counts.begun(&request);
        let nothing = Extent { offset: 0, len: 0 };
        let (doing, extent) = match request {
            Request::Read(extent) => (Doing::Read, extent),
            Request::Write(extent) => {
                // To an overlay a write is not durable before its bits are, which takes a flush.
                let durable = self.write_through && self.flushes.is_none();
                (Doing::Write { durable }, extent)
            }
            Request::Flush => match self.image.durability().flush() {
                Some(flush) => (Doing::Flush(flush), nothing),
                None => return Ok(self.answer(chain, Status::Ok, 1)),
            },
            Request::Discard(extent) => (Doing::Allocate(Allocate::Discard), extent),
            Request::WriteZeroes { extent, unmap: true } => (Doing::Allocate(Allocate::Unmap), extent),
            Request::WriteZeroes { extent, unmap: false } => (Doing::Allocate(Allocate::Zero), extent),
            Request::GetId => {
                let len = self.id.len().min(chain.writable_len() as usize - 1);
                chain.write(0, &self.id[..len]);
                return Ok(self.answer(chain, Status::Ok, len as u32 + 1));
            }
            Request::Refuse(status) => return Ok(self.answer(chain, status, 1)),
        };
        if extent.len == 0 && !matches!(doing, Doing::Flush(_)) {
            return Ok(self.answer(chain, Status::Ok, 1));
        }
        // The caller has looked for room, and `parse` for the status.
        let tag = self.slots.add(chain, doing, extent);
        let tag = tag.ok_or(QueueError::NoRequest)?;
        let needs_flush = matches!(doing, Doing::Allocate(_) | Doing::Write { durable: false });
        self.slots.get(tag).then_flush = self.write_through && needs_flush;
        Ok(self.go_on(tag))
    }

    /// Answers a request that the engine has nothing to do with.
    fn answer(&self, chain: &Chain, status: Status, written: u32) -> Option<Done> {
        self.counts.ended(status);
        chain.write(chain.writable_len() - 1, &[status as u8]);
        Some((chain.head(), written))
    }

    /// Goes on with the next request whose step the engine has done, or whose turn it is to flush; `None` if there is none.
    /// Returns its chain if that was its last step.
    #[inline]
    pub fn next(&mut self) -> Option<Option<Done>> {
        if let Some((tag, result)) = self.engine.completed() {
            return Some(match self.went(tag, result) {
                Some(status) => Some(self.end(tag, status)),
                None => self.go_on(tag),
            });
        }
        let tag = self.flushes.as_mut().and_then(Flushes::next)?;
        Some(self.go_on(tag))
    }

    /// Takes the steps of a request that is begun, until it is under way in the engine or has ended.
    #[inline]
    fn go_on(&mut self, tag: u16) -> Option<Done> {
        loop {
            if self.waits_for_its_turn(tag) {
                return None;
            }
            let operation = self.slots.operation(tag, &self.image);
            // SAFETY: the slot's iovecs stay in place until the request goes on or ends, which it does only with the
            // operation's result; and so does the guest memory that they name, which the queue keeps mapped. The engine
            // is dropped before both.
            let result = unsafe { self.engine.begin(tag, operation) }?;
            if let Some(status) = self.went(tag, result) {
                return Some(self.end(tag, status));
            }
        }
    }

    /// Whether another request's flush comes first.
    #[inline]
    fn waits_for_its_turn(&mut self, tag: u16) -> bool {
        match (&mut self.flushes, self.image.overlay()) {
            (Some(flushes), Some(overlay)) if matches!(self.slots.get(tag).doing, Doing::Flush(_)) => {
                !flushes.is_turn_of(tag, overlay)
            }
            _ => false,
        }
    }

    #[inline]
    fn end(&mut self, tag: u16, status: Status) -> Done {
        if let Some(flushes) = &mut self.flushes {
            flushes.ended(tag);
        }
        self.counts.ended(status);
        self.slots.end(tag, status)
    }

    /// Learns how a step of a request went; returns its status if that was the last one.
    #[inline]
    fn went(&mut self, tag: u16, result: io::Result<usize>) -> Option<Status> {
        let doing = self.slots.get(tag).doing;
        self.count(tag, doing, &result);
        match (doing, result) {
            (Doing::Read | Doing::Write { .. } | Doing::Zero, Ok(done)) if done > 0 => {
                if !self.slots.advance(tag, done) {
                    return None;
                }
                self.flush_or_end(tag)
            }
            (Doing::Allocate(_), Ok(_)) => self.flush_or_end(tag),
            (Doing::Flush(flush), Ok(_)) => self.flushed(flush),
            // The ring gives these back where a system call would have been made again.
            (_, Err(error)) if error.kind() == io::ErrorKind::Interrupted => None,
            (Doing::Allocate(how), Err(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.allocate_else(tag, how)
            }
            (_, result) => {
                // No bytes: the file has become shorter than it was when the request was looked at.
                let error = result
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                self.report(doing, &error);
                Some(Status::IoError)
            }
        }
    }

    /// Notes what a step has written. An overlay has it before it is counted: a flush that covers the one covers the other.
    #[inline]
    fn count(&mut self, tag: u16, doing: Doing, result: &io::Result<usize>) {
        let Extent { offset, len } = self.slots.get(tag).extent();
        let bytes = match (doing, result) {
            (Doing::Read | Doing::Flush(_), _) => return,
            (Doing::Write { .. } | Doing::Zero, Ok(done)) => {
                self.image.wrote(offset, *done as u64);
                *done as u64
            }
            (Doing::Allocate(_), Ok(_)) => {
                self.image.wrote(offset, len);
                METADATA
            }
            // Who knows how far it came; but what came far is told as done.
            (_, Err(_)) => 0,
        };
        self.image.durability().written(bytes);
    }

    #[inline]
    fn flush_or_end(&mut self, tag: u16) -> Option<Status> {
        let slot = self.slots.get(tag);
        if !slot.then_flush {
            return Some(Status::Ok);
        }
        slot.then_flush = false;
        let Some(flush) = self.image.durability().flush() else {
            return Some(Status::Ok);
        };
        slot.doing = Doing::Flush(flush);
        None
    }

    /// An fdatasync is done.
    #[inline]
    fn flushed(&mut self, flush: Flush) -> Option<Status> {
        let synced = match (&mut self.flushes, self.image.overlay()) {
            (Some(flushes), Some(overlay)) => flushes.synced(overlay),
            _ => Ok(true),
        };
        match synced {
            Ok(true) => {
                self.image.durability().flushed(flush);
                Some(Status::Ok)
            }
            Ok(false) => None,
            Err(error) => {
                self.report(Doing::Flush(flush), &error);
                Some(Status::IoError)
            }
        }
    }

    /// The file system has no such allocation: a hole is zeros as well, and zeros can be written. To discard is to hint.
    fn allocate_else(&mut self, tag: u16, how: Allocate) -> Option<Status> {
        self.slots.get(tag).doing = match how {
            Allocate::Discard => return Some(Status::Ok),
            Allocate::Zero => Doing::Allocate(Allocate::Unmap),
            Allocate::Unmap => Doing::Zero,
        };
        None
    }

    #[cold]
    fn report(&self, doing: Doing, error: &io::Error) {
        let what = match doing {
            Doing::Read => "read from",
            Doing::Write { .. } | Doing::Zero => "write to",
            Doing::Flush(_) => "flush",
            Doing::Allocate(_) => "discard or zero a part of",
        };
        let image = &self.image;
        let report = format_args!("cannot {what} {image}: {error}; the guest sees I/O errors");
        self.interrupt.report(Trouble::Host, &report);
    }
}
