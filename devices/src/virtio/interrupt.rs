//! What a device can tell its driver.

/// The way from a device to its driver, made by the transport. Every call is lock-free and may come from any thread.
pub trait Interrupt: Send + Sync {
    /// Queue `index` has used buffers that the driver wants to hear of.
    fn queue_used(&self, index: u16);

    /// The configuration space has changed. The new values are in place already.
    fn config_changed(&self);

    /// The device cannot go on (§2.1.2, DEVICE_NEEDS_RESET), because of `why`. Goes to the log once in the device's life.
    fn needs_reset(&self, why: &dyn std::fmt::Display);

    /// Something went wrong that the guest sees as an error of its request and the device survives: `what` is for the
    /// user. Goes to the log once in the device's life for each `kind`, so that neither guest nor host can flood it.
    fn report(&self, kind: Trouble, what: &dyn std::fmt::Display);
}

/// Whose doing it is that something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The guest asked for what it must not ask for.
    Guest,
    /// The host failed: a full disk, a broken cable.
    Host,
}
