//! Serves one queue of a disk: takes requests, has an engine do them, and gives them back as they are done.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::EXTENT_SECTORS;
use super::counts::Counts;
use super::request::{self, ID_BYTES, Limits};
use super::steps::{Done, Steps};
use super::throttle::Throttle;
use crate::disk::{Engine, Image};
use crate::rate_limit::RateLimit;
use crate::virtio::{Chain, Poll, Queue, QueueError, QueueState, Trouble, Worker, forget, watch};

/// What woke the worker.
const DOORBELL: u32 = 0;
const COMPLETION: u32 = 1;
const TIMER: u32 = 2;
const IMAGE: u32 = 3;

/// Bytes read and written in one turn, which ends with the request that reaches them: copying these takes about a
/// millisecond, and other devices wait on the same thread.
const BYTES_A_TURN: u64 = 4 << 20;

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
    /// Dropped before the queue, which keeps the memory mapped that requests under way read and write.
    steps: Steps,
    queue: Queue,
    chain: Chain,
    image: Arc<Image>,
    throttle: Throttle,
    poll: Poll,
}

impl BlockWorker {
    pub(super) fn new(queue: Queue, setup: Setup) -> io::Result<Self> {
        Ok(Self {
            throttle: Throttle::new(setup.limit.clone(), setup.counts.clone())?,
            image: setup.image.clone(),
            steps: Steps::new(&queue, setup),
            chain: Chain::new(queue.size()),
            queue,
            poll: Poll::default(),
        })
    }

    /// Serves until there is nothing left to do, or a queueful or [many bytes](BYTES_A_TURN) were served and it is the turn of
    /// others.
    fn serve(&mut self) -> Result<(), QueueError> {
        self.queue.disable_doorbell();
        self.steps.engine.tell(false);
        let (mut requests, mut bytes) = (self.queue.size(), BYTES_A_TURN);
        loop {
            let mut progress = self.give_back()?;
            while requests > 0
                && bytes > 0
                && let Some(copied) = self.take_one()?
            {
                (requests, bytes) = (requests - 1, bytes.saturating_sub(copied));
                progress = true;
            }
            let sent = self.steps.engine.submit().is_ok();
            self.queue.signal();
            if requests == 0 || bytes == 0 || !sent {
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
        !self.throttle.holds_back() && self.steps.has_room()
    }

    /// Looks for more to do, as long as that pays.
    fn look(&mut self) -> bool {
        let room = self.has_room();
        let (queue, engine) = (&self.queue, &mut self.steps.engine);
        self.poll
            .wait(|| room && queue.has_available() || engine.has_completed())
    }

    fn prepare_to_sleep(&mut self) {
        self.steps.engine.tell(true);
        // Where there is no room for a request, the timer or a completion makes it.
        let more = self.has_room() && self.queue.enable_doorbell();
        if more || self.steps.engine.has_completed() {
            self.queue.ring();
        }
    }

    /// Gives back what the engine has done; returns whether there was anything.
    fn give_back(&mut self) -> Result<bool, QueueError> {
        let mut any = false;
        while let Some(done) = self.steps.next() {
            any = true;
            self.complete(done)?;
        }
        Ok(any)
    }

    #[inline]
    fn complete(&mut self, done: Option<Done>) -> Result<(), QueueError> {
        match done {
            Some((head, written)) => self.queue.complete(head, written),
            None => Ok(()),
        }
    }

    /// Takes the next request and begins it; returns its bytes. `None` if there is none, or none can be begun now.
    #[inline]
    fn take_one(&mut self) -> Result<Option<u64>, QueueError> {
        if !self.has_room() || !self.queue.pop(&mut self.chain)? {
            return Ok(None);
        }
        let limits = Limits {
            sectors: self.image.sectors(),
            readonly: self.image.options().readonly,
            extent_sectors: EXTENT_SECTORS,
        };
        let request = request::parse(&self.chain, &limits)?;
        if !self.throttle.lets_through(&request, &self.queue) {
            self.queue.undo_pop();
            return Ok(None);
        }
        let done = self.steps.begin(&self.chain, request)?;
        self.complete(done)?;
        Ok(Some(request.bytes()))
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
        while !self.steps.is_empty() {
            let ended = match self.give_back() {
                Ok(true) => continue,
                Ok(false) => self.steps.engine.wait(),
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
            (self.steps.engine.event(), COMPLETION),
            (self.throttle.timer(), TIMER),
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
            COMPLETION => self.steps.engine.clear_event(),
            IMAGE => self.measure(),
            TIMER => self.throttle.go_on(),
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
