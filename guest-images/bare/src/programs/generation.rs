//! `generation`: the machine's generation id, and how often the host has said that it is another one.
//!
//! Nothing here reads ACPI's tables, which name both places: these are those of docs/machine.md, or what the command line says.

use core::ptr;
use core::sync::atomic::Ordering;

use bare_guest::arguments::Arguments;

use crate::failure::{Failure, Outcome};
use crate::hex::Hex;
use crate::{interrupts, println, serial};

const ADDRESS: u64 = 0x9_c000;
const PIN: u64 = 9;
/// 128 bits.
const SIZE: usize = 16;

/// Prints them for each line of input, until one says `end`.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let address = arguments.number("address")?.unwrap_or(ADDRESS) as usize;
    let pin = arguments.number("pin")?.unwrap_or(PIN) as u32;
    if pin as usize >= interrupts::PINS {
        return Err(Failure::new("pin: the I/O APIC has pins 0 to 23"));
    }
    interrupts::enable(pin, 0);
    serial::listen();
    println!("ready to tell the generation");
    while serial::read_line() != "end" {
        let notified = interrupts::COUNTS[pin as usize].load(Ordering::Acquire);
        println!("generation {} notified {notified}", Hex(&read(address)));
    }
    Ok(())
}

/// The id as it is now: the host changes it while this CPU does not run.
fn read(address: usize) -> [u8; SIZE] {
    // SAFETY: these bytes are memory that the host keeps for itself; the program has nothing there.
    unsafe { ptr::with_exposed_provenance::<[u8; SIZE]>(address).read_volatile() }
}
