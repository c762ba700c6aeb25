//! A receive and a transmit queue on one end of the host's: what serves them, and what it waits for.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::warn;

use super::HEADER;
use super::counts::Counts;
use super::frames::Frames;
use super::link::Link;
use super::meter::Meter;
use super::rx::Receiver;
use super::switch::Switch;
use super::tx::{Sender, Sent};
use crate::rate_limit::RateLimit;
use crate::virtio::{Poll, Queue, QueueError, QueueState, Trouble, Worker, forget, watch};

const RX_DOORBELL: u32 = 0;
const TX_DOORBELL: u32 = 1;
const FRAMES: u32 = 2;
const SWITCH: u32 = 3;
const RX_TIMER: u32 = 4;
const TX_TIMER: u32 = 5;
/// Most frames that go one way before it is the turn of those that go the other.
const BATCH: usize = 64;
/// Most batches each way before others on the thread have a turn.
const TURNS: usize = 4;

/// Of so many looks for more to do, one is at the host's end too: it is a system call, and the end was just seen to have nothing.
const FRAMES_LOOK: u32 = 16;

/// Serves a pair of queues.
pub struct Pair<F: Frames> {
    rx: Receiver,
    rx_meter: Meter,
    tx: Sender,
    tx_meter: Meter,
    frames: F,
    largest: usize,
    link: Arc<Link>,
    switch: Arc<Switch>,
    poll: Poll,
    /// The driver has to post buffers before more can be received: the host's end is left alone until it has rung.
    starved: bool,
    /// The host's end takes no more frames for now.
    full: bool,
    /// What the host's end is watched for, if it is.
    watched: Option<EventSet>,
    counts: Arc<Counts>,
}

/// What a pair is made of beside its queues and the host's end.
pub struct Setup {
    /// Whether a frame may be received into several chains.
    pub mergeable: bool,
    /// Bytes of the largest frame that may come, with its header.
    pub largest: usize,
    /// The limits on what is received and sent.
    pub limits: [Arc<RateLimit>; 2],
    /// Of the device.
    pub link: Arc<Link>,
    /// Of this pair.
    pub switch: Arc<Switch>,
    /// Of this pair.
    pub counts: Arc<Counts>,
}

impl<F: Frames> Pair<F> {
    /// # Errors
    /// The host has no descriptor left.
    pub fn new([rx, tx]: [Queue; 2], frames: F, setup: Setup) -> io::Result<Self> {
        let [rx_limit, tx_limit] = &setup.limits;
        Ok(Self {
            rx: Receiver::new(rx, setup.mergeable),
            rx_meter: Meter::new(rx_limit)?,
            tx: Sender::new(tx, setup.counts.clone()),
            tx_meter: Meter::new(tx_limit)?,
            frames,
            largest: setup.largest,
            link: setup.link,
            switch: setup.switch,
            poll: Poll::default(),
            starved: false,
            full: false,
            watched: None,
            counts: setup.counts,
        })
    }

    fn is_live(&self) -> bool {
        self.link.is_up() && self.switch.is_on()
    }

    /// Serves both ways until there is nothing left to do, or it is the turn of others.
    fn serve(&mut self) -> Result<(), QueueError> {
        self.rx.queue.disable_doorbell();
        self.tx.queue.disable_doorbell();
        for _ in 0..TURNS {
            let received = self.receive()?;
            let sent = self.transmit()?;
            if !received && !sent && !self.look() {
                self.prepare_to_sleep();
                return Ok(());
            }
        }
        self.tx.queue.ring();
        Ok(())
    }

    /// Looks for more to do, as long as that pays.
    fn look(&mut self) -> bool {
        let can_receive = self.is_live() && !self.starved && !self.rx_meter.holds_back();
        let can_send = !self.full && !self.tx_meter.holds_back();
        let (tx, frames) = (&self.tx.queue, &self.frames);
        let mut looks = 0;
        self.poll.wait(|| {
            looks += 1;
            let at_frames = can_receive && looks % FRAMES_LOOK == 0;
            can_send && tx.has_available() || at_frames && frames.is_readable()
        })
    }

    /// Has the driver ring for what is of use. What comes in between, for which it may not have rung, is served at once.
    fn prepare_to_sleep(&mut self) {
        let buffers = self.starved && self.rx.queue.enable_doorbell();
        let frames = !self.full && !self.tx_meter.holds_back() && self.tx.queue.enable_doorbell();
        if buffers || frames {
            self.tx.queue.ring();
        }
    }

    /// Receives a batch; returns whether anything came.
    fn receive(&mut self) -> Result<bool, QueueError> {
        let mut any = false;
        self.starved = false;
        if !self.is_live() {
            return Ok(any);
        }
        for _ in 0..BATCH {
            if !self.rx_meter.lets_pass(&self.counts.rx_stalls) {
                break;
            }
            match self.receive_one() {
                Ok(true) => any = true,
                Ok(false) => {
                    self.counts.rx_starved.add(1);
                    self.starved = true;
                    break;
                }
                Err(Trap::Queue(error)) => return Err(error),
                Err(Trap::Host(error)) => {
                    self.lost(&error);
                    break;
                }
            }
        }
        if any {
            self.rx.queue.signal();
        }
        Ok(any)
    }

    /// Receives a frame; `false`, if there is no room for it.
    #[inline]
    fn receive_one(&mut self) -> Result<bool, Trap> {
        let len = self.frames.next_len(self.largest)?;
        if !self.rx.gather(len)? {
            return Ok(false);
        }
        let room = self.rx.room_len();
        // SAFETY: the buffers were checked to be guest memory when their chains were walked, and are mapped as long as the
        // queue lives; the receiver keeps no chain without room for a header, and has gathered at least one.
        let received = unsafe { self.frames.receive(self.rx.room()) }?;
        self.rx_meter.passed(received);
        if received >= room && room < len {
            let what =
                format_args!("a frame did not fit the {room} bytes of its receive buffers and was dropped");
            self.rx.queue.interrupt().report(Trouble::Guest, &what);
            self.counts.rx_dropped.add(1);
        } else {
            self.rx.deliver(received)?;
            self.counts.rx_frames.add(1);
            self.counts.rx_bytes.add(received.saturating_sub(HEADER) as u64);
        }
        Ok(true)
    }

    /// Sends a batch; returns whether anything went.
    fn transmit(&mut self) -> Result<bool, QueueError> {
        let mut any = false;
        self.full = false;
        for _ in 0..BATCH {
            if !self.is_live() {
                if !self.tx.discard()? {
                    break;
                }
            } else if !self.tx_meter.lets_pass(&self.counts.tx_stalls) {
                break;
            } else {
                match self.tx.send(&mut self.frames)? {
                    Sent::Frame(bytes) => self.tx_meter.passed(bytes),
                    Sent::Nothing => break,
                    Sent::Refused(error) => {
                        self.full = is_temporary(&error);
                        self.counts.tx_full.add(self.full.into());
                        self.lost(&error);
                        break;
                    }
                }
            }
            any = true;
        }
        if any {
            self.tx.queue.signal();
        }
        Ok(any)
    }

    /// The host's end is gone, unless it has only nothing to say, or was turned off.
    #[cold]
    fn lost(&self, error: &io::Error) {
        if is_temporary(error) || !self.switch.is_on() {
            return;
        }
        let closed = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe)
            || matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ECONNRESET));
        let interrupt = self.rx.queue.interrupt();
        if closed {
            self.link.set_down(&**interrupt, &F::GONE);
        } else {
            self.link.set_down(&**interrupt, error);
        }
    }

    /// What has happened is heard.
    fn hear(&mut self, events: Events) {
        match events.data() {
            RX_DOORBELL => self.rx.queue.clear_doorbell(),
            TX_DOORBELL => self.tx.queue.clear_doorbell(),
            RX_TIMER => self.rx_meter.rung(),
            TX_TIMER => self.tx_meter.rung(),
            // Fails only when it was not turned.
            SWITCH => drop(self.switch.changed().read()),
            _ => self.hear_frames(events.event_set()),
        }
    }

    fn hear_frames(&mut self, events: EventSet) {
        let flushed = if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            Err(ErrorKind::UnexpectedEof.into())
        } else if events.contains(EventSet::OUT) {
            self.frames.flush()
        } else {
            Ok(())
        };
        if let Err(error) = flushed {
            self.lost(&error);
        }
    }

    /// Watches the host's end for what is of use now, and while it lives for its end. Nothing that comes there is urgent; but who waits
    /// for nothing at all is not told when a tap is deleted (Linux, fs/eventpoll.c, ep_poll_callback).
    fn watch_frames(&mut self, ops: &mut EventOps) {
        let wanted = self.is_live().then(|| {
            let mut wanted = EventSet::PRIORITY;
            wanted.set(EventSet::IN, !self.starved && !self.rx_meter.holds_back());
            wanted.set(EventSet::OUT, self.full || self.frames.has_backlog());
            wanted
        });
        let watched = mem::replace(&mut self.watched, wanted);
        match (watched, wanted) {
            (None, Some(wanted)) => watch(ops, &self.frames, wanted, FRAMES),
            (Some(_), None) => forget(ops, &self.frames),
            (Some(watched), Some(wanted)) if watched != wanted => {
                if let Err(error) = ops.modify(Events::with_data(&self.frames, FRAMES, wanted)) {
                    warn!("an I/O thread cannot wait for an event: {error}");
                }
            }
            _ => {}
        }
    }

    /// A queue is malformed: nothing is served until the driver resets the device.
    fn give_up(&mut self, error: QueueError, ops: &mut EventOps) {
        self.rx.queue.interrupt().needs_reset(&error);
        if self.watched.is_some() {
            forget(ops, &self.frames);
        }
        for (fd, _) in self.always_watched() {
            forget(ops, &fd);
        }
    }

    /// What a pair waits for whatever its state is.
    fn always_watched(&self) -> impl Iterator<Item = (RawFd, u32)> {
        let timer = |meter: &Meter| meter.timer().map(AsRawFd::as_raw_fd);
        [
            (Some(self.rx.queue.doorbell().as_raw_fd()), RX_DOORBELL),
            (Some(self.tx.queue.doorbell().as_raw_fd()), TX_DOORBELL),
            (Some(self.switch.changed().as_raw_fd()), SWITCH),
            (timer(&self.rx_meter), RX_TIMER),
            (timer(&self.tx_meter), TX_TIMER),
        ]
        .into_iter()
        .filter_map(|(fd, token)| Some((fd?, token)))
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Why no frame was received.
enum Trap {
    Queue(QueueError),
    Host(io::Error),
}

impl From<QueueError> for Trap {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<io::Error> for Trap {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl<F: Frames> MutEventSubscriber for Pair<F> {
    fn init(&mut self, ops: &mut EventOps) {
        for (fd, token) in self.always_watched() {
            watch(ops, &fd, EventSet::IN, token);
        }
        // The driver may have rung before there was a worker to hear it.
        self.tx.queue.ring();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.poll.woken();
        self.hear(events);
        match self.serve() {
            Ok(()) => self.watch_frames(ops),
            Err(error) => self.give_up(error, ops),
        }
    }
}

impl<F: Frames> Worker for Pair<F> {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        self.rx.put_back();
        self.watched = None;
        let queues = [&self.rx.queue, &self.tx.queue];
        queues.map(|queue| (queue.index(), queue.state())).into()
    }
}
