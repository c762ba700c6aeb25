//! Serves one queue of a disk: takes requests, has an engine do them, and gives them back as they are done.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::EXTENT_SECTORS;
use super::counts::Counts;
use super::flushes::Flushes;
use super::request::{self, Extent, ID_BYTES, Limits, Request, Status};
use super::slots::{Allocate, Doing, Slots};
use crate::disk::{Engine, Flush, Image};
use crate::rate_limit::RateLimit;
use crate::virtio::{Chain, Poll, Queue, QueueError, QueueState, Trouble, Worker, forget, watch};

/// What woke the worker.
const DOORBELL: u32 = 0;
const COMPLETION: u32 = 1;
const TIMER: u32 = 2;
const IMAGE: u32 = 3;

/// Bytes that a change of what is allocated leaves to be flushed: the file system's own, a block or so.
const METADATA: u64 = 4096;

/// What a worker is made of beside its queue.
pub(super) struct Setup {
    pub engine: Engine,
    pub image: Arc<Image>,
    pub limit: Arc<RateLimit>,
    pub id: [u8; ID_BYTES],
    /// Writes are to be durable when they are done.
    pub write_through: bool,
    pub counts: Arc<Counts>,
}

pub(super) struct BlockWorker {
    /// The first to be dropped: it waits for what it has under way, in the slots' buffers and the queue's memory.
    engine: Engine,
    slots: Slots,
    queue: Queue,
    chain: Chain,
    image: Arc<Image>,
    /// Of a disk over a base; of others, a flush is one step like any other.
    flushes: Option<Flushes>,
    id: [u8; ID_BYTES],
    write_through: bool,
    limit: Arc<RateLimit>,
    /// Rings when the limit lets the next request through. There is none without a limit.
    timer: Option<TimerFd>,
    /// The limit holds a request back until the timer rings.
    held_back: bool,
    poll: Poll,
    counts: Arc<Counts>,
}

impl BlockWorker {
    pub(super) fn new(queue: Queue, setup: Setup) -> io::Result<Self> {
        let timer = if setup.limit.is_unlimited() {
            None
        } else {
            Some(TimerFd::new()?)
        };
        Ok(Self {
            chain: Chain::new(queue.size()),
            slots: Slots::new(queue.size()),
            flushes: setup.image.overlay().map(|_| Flushes::new(queue.size())),
            queue,
            engine: setup.engine,
            image: setup.image,
            id: setup.id,
            write_through: setup.write_through,
            limit: setup.limit,
            timer,
            held_back: false,
            poll: Poll::default(),
            counts: setup.counts,
        })
    }

    /// Serves until there is nothing left to do, or a queueful was served and it is the turn of others.
    fn serve(&mut self) -> Result<(), QueueError> {
        self.queue.disable_doorbell();
        self.engine.tell(false);
        let mut turns = self.queue.size();
        loop {
            let mut progress = self.give_back()?;
            while turns > 0 && self.take_one()? {
                (turns, progress) = (turns - 1, true);
            }
            let sent = self.engine.submit().is_ok();
            self.queue.signal();
            if turns == 0 || !sent {
                self.queue.ring();
                return Ok(());
            }
            if !progress && !self.look() {
                break;
            }
        }
        self.prepare_to_sleep();
        Ok(())
    }

    /// Whether a new request can be begun.
    fn has_room(&self) -> bool {
        !self.held_back && !self.slots.is_full()
    }

    /// Looks for more to do, as long as that pays.
    fn look(&mut self) -> bool {
        let room = self.has_room();
        let (queue, engine) = (&self.queue, &mut self.engine);
        self.poll
            .wait(|| room && queue.has_available() || engine.has_completed())
    }

    fn prepare_to_sleep(&mut self) {
        self.engine.tell(true);
        // Where there is no room for a request, the timer or a completion makes it.
        let more = self.has_room() && self.queue.enable_doorbell();
        if more || self.engine.has_completed() {
            self.queue.ring();
        }
    }

    /// Gives back what the engine has done; returns whether there was anything.
    fn give_back(&mut self) -> Result<bool, QueueError> {
        let mut any = false;
        while let Some((tag, result)) = self.engine.completed() {
            any = true;
            if let Some(status) = self.went(tag, result) {
                self.end(tag, status)?;
            } else {
                self.go_on(tag)?;
            }
        }
        while let Some(tag) = self.flushes.as_mut().and_then(Flushes::next) {
            any = true;
            self.go_on(tag)?;
        }
        Ok(any)
    }

    /// Takes the next request and begins it; `false` if there is none, or none can be begun now.
    #[inline]
    fn take_one(&mut self) -> Result<bool, QueueError> {
        if !self.has_room() || !self.queue.pop(&mut self.chain)? {
            return Ok(false);
        }
        let limits = Limits {
            sectors: self.image.sectors(),
            readonly: self.image.options().readonly,
            extent_sectors: EXTENT_SECTORS,
        };
        let request = request::parse(&self.chain, &limits)?;
        if !self.is_let_through(&request) {
            self.queue.undo_pop();
            return Ok(false);
        }
        self.begin(request)?;
        Ok(true)
    }

    /// Asks the limit, and sets the timer if it is not the request's time yet.
    #[inline]
    fn is_let_through(&mut self, request: &Request) -> bool {
        let Some(timer) = &mut self.timer else { return true };
        let bytes = match request {
            Request::Read(extent) | Request::Write(extent) => extent.len,
            _ => 0,
        };
        let Err(wait) = self.limit.take(bytes) else {
            return true;
        };
        self.counts.stalls.add(1);
        match timer.reset(wait, None) {
            Ok(()) => self.held_back = true,
            // Without a timer the doorbell is what comes next.
            Err(_) => self.queue.ring(),
        }
        false
    }

    #[inline]
    fn begin(&mut self, request: Request) -> Result<(), QueueError> {
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
                None => return self.answer(Status::Ok, 1),
            },
            Request::Discard(extent) => (Doing::Allocate(Allocate::Discard), extent),
            Request::WriteZeroes { extent, unmap: true } => (Doing::Allocate(Allocate::Unmap), extent),
            Request::WriteZeroes { extent, unmap: false } => (Doing::Allocate(Allocate::Zero), extent),
            Request::GetId => {
                let len = self.id.len().min(self.chain.writable_len() as usize - 1);
                self.chain.write(0, &self.id[..len]);
                return self.answer(Status::Ok, len as u32 + 1);
            }
            Request::Refuse(status) => return self.answer(status, 1),
        };
        if extent.len == 0 && !matches!(doing, Doing::Flush(_)) {
            return self.answer(Status::Ok, 1);
        }
        // `take_one` has looked for room, and `parse` for the status.
        let tag = self.slots.add(&self.chain, doing, extent);
        let tag = tag.ok_or(QueueError::NoRequest)?;
        let needs_flush = matches!(doing, Doing::Allocate(_) | Doing::Write { durable: false });
        self.slots.get(tag).then_flush = self.write_through && needs_flush;
        self.go_on(tag)
    }

    /// Answers a request that the engine has nothing to do with.
    fn answer(&mut self, status: Status, written: u32) -> Result<(), QueueError> {
        self.counts.ended(status);
        self.chain.write(self.chain.writable_len() - 1, &[status as u8]);
        self.queue.complete(self.chain.head(), written)
    }

    /// Takes the steps of a request that is begun, until it is under way in the engine or has ended.
    #[inline]
    fn go_on(&mut self, tag: u16) -> Result<(), QueueError> {
        loop {
            if self.waits_for_its_turn(tag) {
                return Ok(());
            }
            let operation = self.slots.operation(tag, &self.image);
            // SAFETY: the slot's iovecs stay in place until the request goes on or ends, which it does only with the
            // operation's result; and so does the guest memory that they name, which the queue keeps mapped. The engine
            // is dropped before both.
            let Some(result) = (unsafe { self.engine.begin(tag, operation) }) else {
                return Ok(());
            };
            if let Some(status) = self.went(tag, result) {
                return self.end(tag, status);
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
    fn end(&mut self, tag: u16, status: Status) -> Result<(), QueueError> {
        if let Some(flushes) = &mut self.flushes {
            flushes.ended(tag);
        }
        self.counts.ended(status);
        let (head, written) = self.slots.end(tag, status);
        self.queue.complete(head, written)
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
        self.queue.interrupt().report(Trouble::Host, &report);
    }

    /// The image may have got another size.
    fn measure(&self) {
        self.image.clear_changes();
        match self.image.measure() {
            Ok(true) => {
                tracing::info!(
                    "the disk image '{}' has {} sectors now",
                    self.image.path().display(),
                    self.image.sectors()
                );
                self.queue.interrupt().config_changed();
            }
            Ok(false) => {}
            Err(error) => {
                let report = format_args!("cannot find out the size of the image: {error}");
                self.queue.interrupt().report(Trouble::Host, &report);
            }
        }
    }

    /// Ends what is under way.
    fn finish(&mut self) {
        while !self.slots.is_empty() {
            let ended = match self.give_back() {
                Ok(true) => continue,
                Ok(false) => self.engine.wait(),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = ended {
                // What is still under way ends before the engine goes.
                return self.queue.interrupt().needs_reset(&error);
            }
        }
    }

    /// Everything that the worker waits for.
    fn events(&self) -> impl Iterator<Item = (RawFd, u32)> + '_ {
        // One worker looks after the image.
        let image = self.image.changes().filter(|_| self.queue.index() == 0);
        let others = [
            (self.engine.event(), COMPLETION),
            (self.timer.as_ref().map(AsRawFd::as_raw_fd), TIMER),
            (image.map(|changes| changes.as_raw_fd()), IMAGE),
        ];
        let doorbell = (self.queue.doorbell().as_raw_fd(), DOORBELL);
        let others = others.into_iter().filter_map(|(fd, token)| Some((fd?, token)));
        std::iter::once(doorbell).chain(others)
    }
}

impl MutEventSubscriber for BlockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for (fd, token) in self.events() {
            watch(ops, &fd, EventSet::IN, token);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.poll.woken();
        match events.data() {
            COMPLETION => self.engine.clear_event(),
            IMAGE => self.measure(),
            TIMER => {
                self.held_back = false;
                if let Some(timer) = &mut self.timer {
                    // It has rung, so this does not wait.
                    let _ = timer.wait();
                }
            }
            _ => self.queue.clear_doorbell(),
        }
        if let Err(error) = self.serve() {
            self.queue.interrupt().needs_reset(&error);
            for (fd, _) in self.events() {
                forget(ops, &fd);
            }
        }
    }
}

impl Worker for BlockWorker {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        self.finish();
        self.queue.signal();
        vec![(self.queue.index(), self.queue.state())]
    }
}
