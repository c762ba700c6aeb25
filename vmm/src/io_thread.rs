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
        let worker = worker.inspect_err(|error| debug!("an I/O thread's worker: {error}"));
        thread.workers -= usize::from(worker.is_ok());
        worker.ok()
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use devices::virtio::{QueueState, watch};
    use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// Tells on which thread it hears its bell.
    struct Listener {
        bell: EventFd,
        heard: Sender<thread::ThreadId>,
    }

    impl MutEventSubscriber for Listener {
        fn init(&mut self, ops: &mut EventOps) {
            watch(ops, &self.bell, EventSet::IN, 0);
        }

        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.bell.read().unwrap();
            self.heard.send(thread::current().id()).unwrap();
        }
    }

    impl Worker for Listener {
        fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
            vec![(7, QueueState::default())]
        }
    }

    fn listener() -> (Box<Listener>, EventFd, Receiver<thread::ThreadId>) {
        let (heard, hears) = channel();
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let listener = Box::new(Listener {
            bell: bell.try_clone().unwrap(),
            heard,
        });
        (listener, bell, hears)
    }

    /// The thread on which a listener hears its bell.
    fn thread_of(bell: &EventFd, hears: &Receiver<thread::ThreadId>) -> thread::ThreadId {
        const DEADLINE: Duration = Duration::from_secs(60);
        bell.write(1).unwrap();
        hears.recv_timeout(DEADLINE).unwrap()
    }

    #[test]
    fn workers_share_one_thread_or_have_each_their_own() {
        for (sharing, same) in [(Sharing::One, true), (Sharing::Own, false)] {
            let pool = IoThreadPool::new("test", sharing);
            let (first, first_bell, first_hears) = listener();
            let (second, second_bell, second_hears) = listener();
            pool.run(first).unwrap();
            pool.run(second).unwrap();
            let threads = (
                thread_of(&first_bell, &first_hears),
                thread_of(&second_bell, &second_hears),
            );
            assert_eq!(threads.0 == threads.1, same);
            assert_ne!(threads.0, thread::current().id());
        }
    }

    #[test]
    fn a_worker_taken_back_hears_no_more_and_its_thread_takes_another() {
        let pool = IoThreadPool::new("test", Sharing::Own);
        let (first, bell, hears) = listener();
        let id = pool.run(first).unwrap();
        let first_thread = thread_of(&bell, &hears);
        assert_eq!(pool.take_back(id).unwrap().quiesce().len(), 1);
        assert!(pool.take_back(id).is_none());
        bell.write(1).unwrap();
        let (second, second_bell, second_hears) = listener();
        pool.run(second).unwrap();
        assert_eq!(thread_of(&second_bell, &second_hears), first_thread);
        assert!(hears.try_recv().is_err());
    }
}
