//! What runs on an I/O thread, and how it gets there and back.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{debug, warn};

use super::QueueState;

/// Serves some of a device's queues on an I/O thread.
///
/// `init` registers what it waits for, `process` is called with what has happened; the thread serves others too, so
/// neither waits. A worker whose queue is faulty tells [`Interrupt::needs_reset`](super::Interrupt::needs_reset)
/// and unregisters everything; it stays where it is until it is stopped.
pub trait Worker: MutEventSubscriber + Send {
    /// Brings the work to rest: called off the I/O thread, after everything has been unregistered. When it returns, nothing
    /// of the worker's touches guest memory any more: requests in flight are finished, their completions are in the used
    /// ring, and the driver has been told of those that it wants to hear of; what was only popped is put back, and what
    /// the driver has made available since is not touched. So nothing is lost, and nothing will be done twice.
    ///
    /// Returns exactly what is needed to start the same queues again, by queue index. Afterwards the worker is put on a
    /// thread again, where `init` registers everything that it waits for anew and all that it had on the host lives on;
    /// or it is dropped.
    fn quiesce(&mut self) -> Vec<(u16, QueueState)>;
}

/// A worker on an I/O thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId {
    /// Which of the threads.
    pub thread: usize,
    /// Which of its workers.
    pub subscriber: event_manager::SubscriberId,
}

/// The threads that workers run on. Which worker goes to which is theirs to decide.
pub trait IoThreads: Send + Sync {
    /// Lets `worker` run.
    ///
    /// # Errors
    /// The host has no thread, descriptor or memory for it.
    fn run(&self, worker: Box<dyn Worker>) -> io::Result<WorkerId>;

    /// Takes a worker back: waits until it does nothing, and unregisters what it waits for. `None` if the
    /// thread has ended.
    fn take_back(&self, id: WorkerId) -> Option<Box<dyn Worker>>;
}

/// Has `process` called when `fd` is ready for `what`, with `token` to tell it by.
pub fn watch(ops: &mut EventOps, fd: &impl AsRawFd, what: EventSet, token: u32) {
    if let Err(error) = ops.add(Events::with_data(fd, token, what)) {
        // The descriptor is open and not registered yet: only a host out of memory gets here.
        warn!("an I/O thread cannot wait for an event: {error}");
    }
}

/// Ends what [`watch`] began.
pub fn forget(ops: &mut EventOps, fd: &impl AsRawFd) {
    if let Err(error) = ops.remove(Events::empty(fd)) {
        debug!("an I/O thread did not wait for the event: {error}");
    }
}
