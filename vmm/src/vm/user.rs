//! What a machine's user has it do, beside running: rest until he says else, and hear that it is to shut down. Who listens is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch_x86_64::layout;

use super::RunningVm;
use crate::error::{Doing, Error};
use crate::events::{Events, What};
use crate::machine;
use crate::vcpu::RequestError;

impl RunningVm {
    /// Pauses the machine until it is [released](Self::release): what else needs it at rest leaves it so.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub fn hold(&self) -> Result<(), RequestError> {
        self.pause()?;
        if !self.parts.held.swap(true, Ordering::Relaxed) {
            self.tell(What::Paused);
        }
        Ok(())
    }

    /// Lets a machine that is held go on.
    pub fn release(&self) {
        if self.parts.held.swap(false, Ordering::Relaxed) {
            self.resume();
            self.tell(What::Resumed);
        }
    }

    /// Presses the power button: ACPI tells the guest, which is to shut down by itself. One that rests is told when it goes on; one that
    /// does not listen is not disturbed.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn press_power_button(&self) -> Result<(), Error> {
        machine::pulse(&self.parts.machine.fd, layout::POWER_BUTTON_IRQ).doing("press the power button")?;
        self.tell(What::Stopping);
        Ok(())
    }

    /// Has what is done to it told from now on, and that it was started.
    pub(crate) fn tell_events_to(&self, events: &Arc<Events>) {
        if self.parts.events.set(events.clone()).is_ok() {
            events.tell_of_start(self.age());
        }
    }

    /// Tells who listens that something has happened to it.
    pub(crate) fn tell(&self, what: What) {
        if let Some(events) = self.parts.events.get() {
            events.tell(what);
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.parts.held.load(Ordering::Relaxed)
    }
}
