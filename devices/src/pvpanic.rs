//! pvpanic: a port by which a guest's kernel tells that it has panicked (QEMU docs/specs/pvpanic).

use std::ops::ControlFlow;

use tracing::info;

use crate::bus::{BusDevice, GuestRequest};

/// The number of ports.
pub const PORTS: u64 = 1;

/// The kernel has panicked and nothing in the guest will handle it.
const PANICKED: u8 = 1 << 0;
/// The kernel has panicked and a crash kernel is about to take over: the guest goes on.
const CRASH_LOADED: u8 = 1 << 1;

/// The pvpanic port.
pub struct Pvpanic;

impl BusDevice for Pvpanic {
    /// Says which events it understands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        match data.first() {
            Some(event) if event & PANICKED != 0 => ControlFlow::Break(GuestRequest::Panicked),
            Some(event) if event & CRASH_LOADED != 0 => {
                info!("the guest's kernel has panicked and starts its crash kernel");
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_run_and_a_crash_kernel_does_not() {
        assert_eq!(Pvpanic.write(0, &[1]), ControlFlow::Break(GuestRequest::Panicked));
        assert_eq!(Pvpanic.write(0, &[2]), ControlFlow::Continue(()));
        assert_eq!(Pvpanic.write(0, &[0x80]), ControlFlow::Continue(()));
    }

    #[test]
    fn says_which_events_it_understands() {
        let mut data = [0];
        Pvpanic.read(0, &mut data);
        assert_eq!(data, [3]);
    }
}
