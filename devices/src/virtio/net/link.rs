//! Whether the network is there, as the guest sees it (§5.1.4, VIRTIO_NET_S_LINK_UP).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use crate::virtio::{Interrupt, Trouble};

/// The link: up until the host's end of it is gone for good.
pub struct Link(AtomicBool);

impl Link {
    pub fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The `status` field of the configuration space.
    pub fn status(&self) -> u16 {
        if self.is_up() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        }
    }

    /// The host's end is gone, because of `why`. Tells the guest and the log, once.
    pub fn set_down(&self, interrupt: &dyn Interrupt, why: &dyn fmt::Display) {
        if self.0.swap(false, Ordering::AcqRel) {
            interrupt.report(
                Trouble::Host,
                &format_args!("{why}; the guest sees its link down"),
            );
            interrupt.config_changed();
        }
    }
}
