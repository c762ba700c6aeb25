//! Where a device's workers are: made when its driver starts it, put on threads, and taken back.

use std::io;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{MmioTransport, State};
use crate::virtio::{Activation, Queue, QueueParts, QueueState, Worker, WorkerId};

pub(super) enum Workers {
    /// There are none: the device does not run.
    None,
    /// On threads.
    Running(Vec<WorkerId>),
    /// Quiet, until the device goes on.
    Paused(Vec<Box<dyn Worker>>),
    /// Those of a device whose state was restored: to be made when it goes on, if it was `running`.
    Restored { running: bool },
}

impl MmioTransport {
    /// Starts the device with the queues as they are set up, or as far as they have come.
    pub(super) fn start(&self, state: &mut State) -> io::Result<()> {
        let features = state.driver_features;
        let queues = (0..).zip(&state.queues).map(|(index, queue)| {
            let wanted = queue.ready.then(|| self.queue(index, *queue, features));
            wanted.transpose()
        });
        let workers = self.device.start(Activation {
            features,
            queues: queues.collect::<io::Result<_>>()?,
            interrupt: self.signals.clone(),
        })?;
        self.run(state, workers)
    }

    /// Puts workers on threads: all, or if the host has no room for one of them, none.
    pub(super) fn run(&self, state: &mut State, workers: Vec<Box<dyn Worker>>) -> io::Result<()> {
        let mut running = Vec::with_capacity(workers.len());
        let run = workers
            .into_iter()
            .try_for_each(|worker| self.threads.run(worker).map(|id| running.push(id)));
        state.workers = Workers::Running(running);
        run.inspect_err(|_| self.stop(state))
    }

    fn queue(&self, index: u16, state: QueueState, features: u64) -> io::Result<Queue> {
        let has = |bit: u32| features & 1 << bit != 0;
        let parts = QueueParts {
            index,
            memory: self.memory.clone(),
            doorbell: self.doorbells[usize::from(index)].try_clone()?,
            interrupt: self.signals.clone(),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            counts: self.counts[usize::from(index)].clone(),
        };
        let state = QueueState {
            event_idx_enabled: has(VIRTIO_RING_F_EVENT_IDX),
            ..state
        };
        let invalid = |error| {
            let why = format!("queue {index} is malformed: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        Queue::new(state, parts).map_err(invalid)
    }

    /// Stops the workers; the queues stay where they have come to.
    pub(super) fn stop(&self, state: &mut State) {
        self.take_workers(state);
    }

    /// Takes the workers back from where they are, quiet; the queues stay where they have come to.
    pub(super) fn take_workers(&self, state: &mut State) -> Vec<Box<dyn Worker>> {
        let mut workers: Vec<_> = match std::mem::replace(&mut state.workers, Workers::None) {
            Workers::Running(ids) => ids
                .into_iter()
                .filter_map(|id| self.threads.take_back(id))
                .collect(),
            Workers::Paused(workers) => return workers,
            Workers::None | Workers::Restored { .. } => return Vec::new(),
        };
        for (index, queue) in workers.iter_mut().flat_map(|worker| worker.quiesce()) {
            if let Some(place) = state.queues.get_mut(usize::from(index)) {
                *place = queue;
            }
        }
        workers
    }
}
