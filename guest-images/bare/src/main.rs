//! A guest without an operating system. It is booted by PVH, enters user mode at once with all ports and the low 4 GiB mapped to
//! themselves, runs the program that `program=` on the command line names, and switches the machine off.
//!
//! User mode, because there a guest runs at full speed on every kind of host. It reports on the first serial port; when something
//! goes wrong it prints `FAILED:` with the reason and ends as a crashed guest does.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod buffers;
mod clock;
mod device;
mod failure;
mod hal;
mod hex;
mod interrupts;
#[path = "../../init/src/memory.rs"]
mod memory;
mod pool;
mod ports;
mod power;
mod programs;
mod queue;
mod registers;
mod serial;
mod start_info;
mod tables;
mod traps;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use bare_guest::arguments::Arguments;
use failure::{Failure, Outcome};
use start_info::StartInfo;

/// The first of what runs in user mode.
extern "C" fn main(start_info: &StartInfo) -> ! {
    tables::fill_interrupt_table();
    match run(start_info) {
        Ok(()) => power::off(),
        Err(failure) => {
            println!("FAILED: {failure}");
            power::crash()
        }
    }
}

fn run(start_info: &StartInfo) -> Outcome {
    if !start_info.is_sound() {
        return Err(Failure::new("the boot loader gave no PVH start info"));
    }
    // SAFETY: it is the RAM that nobody uses, and this runs once.
    unsafe { pool::fill(&start_info.free_ram()) };
    let line = start_info
        .command_line()
        .ok_or_else(|| Failure::new("the command line is not UTF-8"))?;
    programs::run(&Arguments::new(line))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    // A panic while the first one is told would be told for ever.
    if !PANICKED.swap(true, Ordering::Relaxed) {
        match info.location() {
            Some(place) => {
                let (file, line) = (place.file(), place.line());
                println!("FAILED: panicked at {file}:{line}: {}", info.message());
            }
            None => println!("FAILED: panicked: {}", info.message()),
        }
    }
    power::crash()
}
