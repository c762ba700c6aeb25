//! A register by which a guest says that it has booted: a byte of 123, as Firecracker's guests write it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::{BusDevice, GuestRequest};

/// Bytes of guest-physical space that it takes.
pub const MMIO_SIZE: u64 = 0x1000;

/// What says so (Firecracker, src/vmm/src/devices/pseudo/boot_timer.rs).
const BOOTED: u8 = 123;

/// The register. It listens once in the machine's life.
pub struct BootTimer {
    report: Box<dyn Fn() + Send + Sync>,
    has_reported: AtomicBool,
}

impl BootTimer {
    /// A register that has `report` be called when the guest says that it has booted.
    pub fn new(report: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            report: Box::new(report),
            has_reported: AtomicBool::new(false),
        }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        if (offset, data) == (0, &[BOOTED]) && !self.has_reported.swap(true, Ordering::Relaxed) {
            (self.report)();
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_guest_has_booted_once_and_by_one_byte_only() {
        let reports = Arc::new(AtomicUsize::new(0));
        let counted = reports.clone();
        let timer = BootTimer::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        for (offset, data) in [(0, &[1][..]), (1, &[BOOTED]), (0, &[BOOTED, 0])] {
            assert!(timer.write(offset, data).is_continue());
        }
        assert_eq!(reports.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            assert!(timer.write(0, &[BOOTED]).is_continue());
        }
        assert_eq!(reports.load(Ordering::Relaxed), 1);
    }
}
