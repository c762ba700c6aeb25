//! `devices`: what each device says of itself.

use bare_guest::arguments::Arguments;

use crate::failure::Outcome;
use crate::registers::offset;
use crate::{device, println};

/// More queues than any device here has; ends the search on a device that answers nonsense.
const MOST_QUEUES: u16 = 64;

/// Prints a line for each device and one for each of its queues.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    for device in device::all(arguments)? {
        let place = device.place();
        println!(
            "device at {:#x} irq {}: id {}, vendor {:#x}, features {:#x}, config generation {}",
            place.base,
            place.irq,
            device.read(offset::DEVICE_ID),
            device.read(offset::VENDOR_ID),
            device.features(),
            device.read(offset::CONFIG_GENERATION)
        );
        for queue in 0..MOST_QUEUES {
            let max = device.queue_size_max(queue);
            if max == 0 {
                break;
            }
            println!("  queue {queue}: up to {max} entries");
        }
    }
    Ok(())
}
