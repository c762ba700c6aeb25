//! What a guest can touch: the buses and the PC devices on them.
//!
//! A device here knows neither KVM nor the vCPUs: it is given eventfds for its interrupts and writers for
//! its output, and is called through [`BusDevice`] with offsets into the range that it was placed at. What a
//! guest writes is hostile: no access, of whatever width or value, may panic or grow the process.

pub mod boot_timer;
pub mod bus;
pub mod counters;
pub mod disk;
pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod rate_limit;
pub mod rtc;
pub mod serial;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError, GuestRequest};
