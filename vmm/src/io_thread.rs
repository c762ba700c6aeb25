//! The I/O threads: an event loop each, on which the virtio devices' workers live.
//!
//! A thread starts when the first worker comes, so a guest that does not use its devices does not pay for it, and sleeps
//! while nothing happens.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use devices::virtio::{IoThreads, Worker, WorkerId};
use event_manager::{EventManager, RemoteEndpoint, SubscriberOps};
use tracing::{debug, error};

type Workers = EventManager<Box<dyn Worker>>;

/// How a device's workers share threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All on one.
    One,
    /// Each on its own.
    Own,
}

/// Some threads for workers. Dropping it ends them.
pub struct IoThreadPool {
    name: String,
    sharing: Sharing,
    threads: Mutex<Vec<IoThread>>,
}

struct IoThread {
    endpoint: RemoteEndpoint<Box<dyn Worker>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    workers: usize,
}

impl IoThreadPool {
    /// A pool whose threads, called `name`, start when they are needed. (Linux shows 15 bytes of a thread's name.)
    pub fn new(name: &str, sharing: Sharing) -> Self {
        Self {
            name: name.to_owned(),
            sharing,
            threads: Mutex::default(),
        }
    }

    /// The index of a thread for one more worker.
    fn choose(&self, threads: &mut Vec<IoThread>) -> io::Result<usize> {
        let free = match self.sharing {
            Sharing::One => (!threads.is_empty()).then_some(0),
            Sharing::Own => threads.iter().position(|thread| thread.workers == 0),
        };
        if let Some(index) = free {
            return Ok(index);
        }
        threads.push(IoThread::spawn(self.name.clone())?);
        Ok(threads.len() - 1)
    }
}

impl IoThreads for IoThreadPool {
    fn run(&self, worker: Box<dyn Worker>) -> io::Result<WorkerId> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.choose(&mut threads)?;
        let add = |ops: &mut dyn SubscriberOps<Subscriber = _>| Ok(ops.add_subscriber(worker));
        let added: Result<_, event_manager::Error> = threads[index].endpoint.call_blocking(add);
        let subscriber =
            added.map_err(|error| io::Error::other(format!("an I/O thread has ended: {error}")))?;
        threads[index].workers += 1;
        Ok(WorkerId {
            thread: index,
            subscriber,
        })
    }

    fn take_back(&self, id: WorkerId) -> Option<Box<dyn Worker>> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = threads.get_mut(id.thread)?;
        let remove = move |ops: &mut dyn SubscriberOps<Subscriber = _>| ops.remove_subscriber(id.subscriber);
        let worker = thread.endpoint.call_blocking(remove);
        thread.workers -= 1;
        worker
            .inspect_err(|error| debug!("an I/O thread's worker: {error}"))
            .ok()
    }
}

impl IoThread {
    fn spawn(name: String) -> io::Result<Self> {
        let failed = |error| io::Error::other(format!("cannot make an event loop: {error}"));
        let mut workers = Workers::new().map_err(failed)?;
        let endpoint = workers.remote_endpoint();
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || live(&mut workers, &told))?;
        Ok(Self {
            endpoint,
            ends,
            thread: Some(thread),
            workers: 0,
        })
    }
}

fn live(workers: &mut Workers, ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) {
        // -1: until something happens.
        if let Err(error) = workers.run_with_timeout(-1) {
            return error!("an I/O thread ends, and the devices on it stand still: {error}");
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Err(error) = self.endpoint.kick() {
            return debug!("an I/O thread cannot be told to end: {error}");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            debug!("an I/O thread had panicked");
        }
    }
}
