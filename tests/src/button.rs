//! A bare guest that counts how often its power button is pressed, and tells at each line.

use crate::Running;

/// The power button's pin (docs/machine.md), whose interrupts this program of the bare guest counts.
pub const COUNTS: &str = "generation pin=13";
/// What it prints when it counts.
pub const READY: &str = "ready to tell the generation\n";

/// How often the button has been pressed, as the guest knows it.
pub fn pressed(guest: &mut Running) -> String {
    guest.send("\n");
    guest.wait_for("notified ");
    guest.wait_for("\n").trim_end().to_owned()
}

/// The same, as soon as it is not `before` any more: what is typed may be there before the interrupt is.
#[track_caller]
pub fn pressed_since(guest: &mut Running, before: &str) -> String {
    const TRIES: usize = 10_000;
    let mut told = (0..TRIES).map(|_| pressed(guest));
    told.find(|told| told != before).expect("the interrupt comes")
}
