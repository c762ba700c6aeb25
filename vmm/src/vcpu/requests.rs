//! What other threads ask of a vCPU: to stay out of the guest, and what can be done to it meanwhile.
//!
//! A request lies in a channel that the vCPU looks into when it is kicked: the run loop knows nothing of it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::debug;

use super::state::{self, CpuRestore, VcpuState};
use super::{ExitCounts, Vcpu, kick};
use crate::error::{Doing, Error};
use crate::lifecycle::Stop;

/// How long a vCPU may take to come out of the guest. It only takes long when it waits for somebody to read what it prints.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a vCPU is asked for. All but the first are for a vCPU that rests.
pub enum Request {
    /// Stay out of the guest; answered when it is out.
    Pause(Sender<()>),
    /// Tell what the vCPU is.
    Save(Sender<Result<VcpuState, Error>>),
    /// Become what the states say of this one.
    Load(Arc<CpuRestore>, Sender<Result<(), Error>>),
    /// Go on.
    Resume,
}

/// Why the vCPUs do not do what they are asked for.
#[derive(Debug, Error)]
pub enum RequestError {
    /// There is nobody to ask any more.
    #[error("the guest has ended")]
    Ended,
    /// A vCPU does not come out of the guest.
    #[error("vCPU {0} does not stop: it may wait for somebody to read its console's output")]
    Stuck(usize),
    /// KVM refuses to tell or set the state.
    #[error(transparent)]
    Kvm(#[from] Error),
}

impl Vcpu {
    /// Does what has been asked for since it last looked.
    pub(super) fn heed(&mut self) -> ControlFlow<Option<Stop>> {
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Pause(answer) = request {
                // Fails when who asked has given up; the request to go on is on its way then.
                let _ = answer.send(());
                self.rest()?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Stays out of the guest until it is to go on. A machine that is given up meanwhile ends the run.
    pub(super) fn rest(&mut self) -> ControlFlow<Option<Stop>> {
        loop {
            match self.requests.recv() {
                Ok(Request::Pause(answer)) => drop(answer.send(())),
                Ok(Request::Save(answer)) => drop(answer.send(self.save())),
                Ok(Request::Load(states, answer)) => drop(answer.send(self.load(&states))),
                Ok(Request::Resume) => {
                    self.tell_of_pause();
                    return ControlFlow::Continue(());
                }
                Err(_) => return ControlFlow::Break(None),
            }
            if self.lifecycle.is_stopped() {
                return ControlFlow::Break(None);
            }
        }
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        VcpuState::save(&mut self.fd, &self.buses, self.host.state_format()?)
    }

    fn load(&mut self, states: &CpuRestore) -> Result<(), Error> {
        if let Some(state) = states.state(self.index) {
            // KVM takes the same CPUID again from a vCPU that has run, and no other (KVM API, KVM_SET_CPUID2).
            self.fd.set_cpuid2(&state.cpuid()?).doing("set a vCPU's CPUID")?;
        }
        states.restore(self.index, &self.fd, self.host.state_format()?)
    }

    /// A guest that is not told takes the pause for a hang of its own; that is all.
    fn tell_of_pause(&self) {
        if let Err(error) = state::tell_of_pause(&self.fd) {
            debug!("{error}");
        }
    }
}

/// A vCPU's thread that has been started, and the way to it.
pub struct RunningVcpu {
    pub(super) thread: JoinHandle<()>,
    pub(super) requests: Sender<Request>,
    pub(super) counts: Arc<ExitCounts>,
}

/// All vCPUs of a machine. Dropping them ends their threads, once the machine has been stopped.
pub struct Vcpus(Vec<RunningVcpu>);

impl Vcpus {
    /// These are all.
    pub fn new(vcpus: Vec<RunningVcpu>) -> Self {
        Self(vcpus)
    }

    /// Takes all of them out of the guest.
    ///
    /// # Errors
    /// The guest has ended, or one of them is stuck: then all go on.
    pub fn pause(&self) -> Result<(), RequestError> {
        let paused = self.ask(Request::Pause).and_then(|answers| {
            self.0.iter().for_each(RunningVcpu::kick);
            let deadline = Instant::now() + PATIENCE;
            for (index, answer) in answers.iter().enumerate() {
                let left = deadline.saturating_duration_since(Instant::now());
                answer.recv_timeout(left).map_err(|error| match error {
                    RecvTimeoutError::Timeout => RequestError::Stuck(index),
                    RecvTimeoutError::Disconnected => RequestError::Ended,
                })?;
            }
            Ok(())
        });
        if paused.is_err() {
            self.resume();
        }
        paused
    }

    /// Tells what they are; each does so on its own thread. They rest.
    pub fn save(&self) -> Result<Vec<VcpuState>, RequestError> {
        let answers = self.ask(Request::Save)?;
        answers.iter().map(receive).collect()
    }

    /// Makes them what `states` says, each on its own thread. They rest.
    pub fn load(&self, states: &Arc<CpuRestore>) -> Result<(), RequestError> {
        let answers = self.ask(|answer| Request::Load(states.clone(), answer))?;
        answers.iter().try_for_each(receive)
    }

    /// What each has come out of the guest for.
    pub fn exit_counts(&self) -> impl Iterator<Item = &ExitCounts> {
        self.0.iter().map(|vcpu| &*vcpu.counts)
    }

    /// Lets them go on.
    pub fn resume(&self) {
        for vcpu in &self.0 {
            if vcpu.send(Request::Resume).is_err() {
                debug!("a vCPU that is to go on has ended");
            }
        }
    }

    fn ask<T>(&self, request: impl Fn(Sender<T>) -> Request) -> Result<Vec<Receiver<T>>, RequestError> {
        let ask = |vcpu: &RunningVcpu| {
            let (answer, answered) = mpsc::channel();
            vcpu.send(request(answer)).map(|()| answered)
        };
        self.0.iter().map(ask).collect()
    }
}

fn receive<T>(answer: &Receiver<Result<T, Error>>) -> Result<T, RequestError> {
    Ok(answer.recv().map_err(|_| RequestError::Ended)??)
}

impl RunningVcpu {
    fn send(&self, request: Request) -> Result<(), RequestError> {
        self.requests.send(request).map_err(|_| RequestError::Ended)
    }

    fn kick(&self) {
        // Fails only for a thread that has ended.
        let _ = kick(&self.thread);
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.0.iter().for_each(RunningVcpu::kick);
        for RunningVcpu { thread, requests, .. } in self.0.drain(..) {
            drop(requests);
            if thread.join().is_err() {
                debug!("a vCPU's thread had panicked");
            }
        }
    }
}
