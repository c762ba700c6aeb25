//! Pause and resume, save and restore: what a snapshot is made of, and what goes on from one.
//!
//! ```text
//!            pause              save ─▶ TransportState ─▶ restore           resume
//!   running ───────▶ at rest ─────────────────────────────────────▶ at rest ───────▶ running
//!                       └───────────────────── resume ─────────────────────────────────┘
//! ```

use std::io;

use serde::{Deserialize, Serialize};

use super::{MmioTransport, State, Workers, reg};
use crate::virtio::{DeviceState, Difference, Interrupt, QueueState, StateError};

pub use super::signals::SignalsState;

/// What a guest can see of a device and its transport, but for guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device type (§5).
    pub device_id: u32,
    /// Status (§2.1), but for what the device sets of it.
    pub status: u32,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// What the driver has written to DriverFeatures: agreed on once the status has FEATURES_OK.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_select: u32,
    /// By queue index.
    pub queues: Vec<QueueState>,
    /// Whether the device serves its queues: the driver has started it and not stopped it again.
    pub running: bool,
    /// Interrupts and faults.
    pub signals: SignalsState,
    /// Of the device itself.
    pub device: DeviceState,
}

impl MmioTransport {
    /// Brings the device to rest: its requests in flight are finished, and until [`resume`](Self::resume) it touches
    /// neither guest memory nor the host's files. To be called while no vCPU runs. Does nothing to a device that rests.
    pub fn pause(&self) {
        let mut state = self.lock();
        if let Workers::Running(_) = state.workers {
            state.workers = Workers::Paused(self.take_workers(&mut state));
        }
    }

    /// Lets the device go on: with the workers that [`pause`](Self::pause) took off their threads, so with all that they
    /// have on the host; or after [`restore`](Self::restore) with new ones. To be called while no vCPU runs. Does nothing
    /// to a device that runs, or did not before.
    ///
    /// # Errors
    /// The host has no thread, descriptor or memory for it, or the snapshot's queues do not lie in memory. The device
    /// has told its driver then that it needs a reset.
    pub fn resume(&self) -> io::Result<()> {
        let mut state = self.lock();
        let resumed = match std::mem::replace(&mut state.workers, Workers::None) {
            running @ Workers::Running(_) => {
                state.workers = running;
                return Ok(());
            }
            Workers::None => return Ok(()),
            // It does nothing more until its driver resets it (§2.1.2).
            Workers::Paused(_) if self.signals.has_needs_reset() => return Ok(()),
            Workers::Paused(workers) => self.run(&mut state, workers),
            Workers::Restored { running } => {
                // What was injected last may not have got as far as the interrupt controller when that was saved.
                self.signals.raise_again();
                if !running || self.signals.has_needs_reset() {
                    return Ok(());
                }
                self.start(&mut state)
            }
        };
        if let Err(error) = &resumed {
            self.signals.needs_reset(error);
        }
        // A doorbell may have rung for a worker that was not there, and what has rung is in no state.
        (0..).zip(&self.doorbells).for_each(|(index, _)| self.ring(index));
        resumed
    }

    /// What is needed to go on later, in another process or in this one. To be called while the device is
    /// [paused](Self::pause): only then do the queues' positions agree with guest memory.
    pub fn save(&self) -> TransportState {
        let state = self.lock();
        let running = match state.workers {
            Workers::None => false,
            Workers::Running(_) | Workers::Paused(_) => true,
            Workers::Restored { running } => running,
        };
        TransportState {
            device_id: self.device.id(),
            status: state.status,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queue_select: state.queue_select,
            queues: state.queues.clone(),
            running,
            signals: self.signals.save(),
            device: self.device.save(),
        }
    }

    /// Puts the device where another one was, whose guest memory is this guest's memory now. It rests until
    /// [`resume`](Self::resume). To be called before any vCPU runs, on a device that has not run or is
    /// [paused](Self::pause); what the latter had under way on the host is given up.
    ///
    /// # Errors
    /// The device is not one like that, in a way that the guest would notice. It is of no use then.
    pub fn restore(&self, saved: TransportState) -> Result<(), StateError> {
        self.check(&saved).map_err(|difference| StateError {
            device: self.device.name().to_owned(),
            difference,
        })?;
        let mut state = self.lock();
        self.take_workers(&mut state);
        self.signals.restore(&saved.signals);
        *state = State {
            status: saved.status & reg::DRIVER_STATUS,
            device_features_select: saved.device_features_select,
            driver_features_select: saved.driver_features_select,
            driver_features: saved.driver_features,
            queue_select: saved.queue_select,
            queues: saved.queues,
            workers: Workers::Restored {
                running: saved.running,
            },
        };
        Ok(())
    }

    /// Whether the guest finds everything as it has left it; the device's own words for what it does not come first.
    fn check(&self, saved: &TransportState) -> Result<(), Difference> {
        if saved.device_id != self.device.id() {
            return Err(Difference::Type {
                snapshot: saved.device_id,
                here: self.device.id(),
            });
        }
        let sizes: Vec<_> = saved.queues.iter().map(|queue| queue.max_size).collect();
        if sizes != self.device.queue_sizes() {
            return Err(Difference::Queues {
                snapshot: sizes,
                here: self.device.queue_sizes().to_owned(),
            });
        }
        self.device.restore(&saved.device)?;
        let missing = saved.driver_features & !self.features();
        if saved.status & reg::FEATURES_OK != 0 && missing != 0 {
            return Err(Difference::Features(missing));
        }
        Ok(())
    }
}
