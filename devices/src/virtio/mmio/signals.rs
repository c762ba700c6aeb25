//! What a device and its workers tell the driver, and the log: all of it in atomics, so no worker ever waits for a vCPU.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use vmm_sys_util::eventfd::EventFd;

use super::registers as reg;
use crate::counters;
use crate::virtio::{Interrupt, Trouble};

/// What the driver has been told, as a snapshot has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalsState {
    /// InterruptStatus (§4.2.2): what the driver has not acknowledged yet.
    pub interrupt_status: u32,
    /// DEVICE_NEEDS_RESET (§2.1).
    pub needs_reset: bool,
    /// ConfigGeneration (§4.2.2).
    pub generation: u32,
}

counters! {
    /// What went wrong. Any thread counts.
    pub(super) struct Troubles {
        /// Mistakes of the guest's driver.
        guest_errors,
        /// Failures of the host.
        host_errors,
    }
}

pub(super) struct Signals {
    name: String,
    line: EventFd,
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    /// Has the log heard of the guest's doings, of the host's?
    reported: [AtomicBool; 2],
    counts: Troubles,
}

impl Signals {
    pub(super) fn new(name: String, line: EventFd) -> Self {
        Self {
            name,
            line,
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            reported: [const { AtomicBool::new(false) }; 2],
            counts: Troubles::default(),
        }
    }

    pub(super) fn counts(&self) -> &Troubles {
        &self.counts
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn has_needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The part of the status that is the device's to set.
    pub(super) fn status_bits(&self) -> u32 {
        if self.has_needs_reset() {
            reg::DEVICE_NEEDS_RESET
        } else {
            0
        }
    }

    /// The device has been reset. The generation goes on: a driver may be reading it.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    pub(super) fn save(&self) -> SignalsState {
        SignalsState {
            interrupt_status: self.interrupt_status(),
            needs_reset: self.has_needs_reset(),
            generation: self.generation(),
        }
    }

    pub(super) fn restore(&self, state: &SignalsState) {
        self.interrupt_status
            .store(state.interrupt_status, Ordering::SeqCst);
        self.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        self.generation.store(state.generation, Ordering::SeqCst);
    }

    /// Raises the line if the driver has something to acknowledge.
    pub(super) fn raise_again(&self) {
        if self.interrupt_status() != 0 {
            self.raise();
        }
    }

    #[inline]
    fn raise(&self) {
        // Fails only when the counter is full, and then the interrupt is on its way.
        let _ = self.line.write(1);
    }

    #[inline]
    fn interrupt(&self, bit: u32) {
        self.interrupt_status.fetch_or(bit, Ordering::SeqCst);
        self.raise();
    }
}

impl Interrupt for Signals {
    #[inline]
    fn queue_used(&self, _index: u16) {
        self.interrupt(reg::INTERRUPT_QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.interrupt(reg::INTERRUPT_CONFIG);
    }

    fn needs_reset(&self, why: &dyn fmt::Display) {
        self.report(
            Trouble::Guest,
            &format_args!("the device needs a reset by its driver: {why}"),
        );
        self.needs_reset.store(true, Ordering::SeqCst);
        self.interrupt(reg::INTERRUPT_CONFIG);
    }

    fn report(&self, trouble: Trouble, what: &dyn fmt::Display) {
        let (reported, count) = match trouble {
            Trouble::Guest => (&self.reported[0], &self.counts.guest_errors),
            Trouble::Host => (&self.reported[1], &self.counts.host_errors),
        };
        count.add_shared();
        if reported.swap(true, Ordering::Relaxed) {
            debug!("{}: {what}", self.name);
        } else {
            warn!("{}: {what}", self.name);
        }
    }
}
