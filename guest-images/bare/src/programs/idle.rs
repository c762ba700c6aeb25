//! `idle`, `echo` and `count`: a halted CPU that waits for input.

use alloc::vec::Vec;

use bare_guest::arguments::Arguments;

use crate::buffers::Buffers;
use crate::device::{self, Device, feature};
use crate::failure::{Failure, Outcome};
use crate::queue::SplitQueue;
use crate::{println, serial};

/// Queues are this long at most: nothing is put into them.
const QUEUE_SIZE: u16 = 64;
const PAGE: usize = 4096;

/// Starts every device with empty queues, lets it interrupt, and does nothing until there is a line of input.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let mut queues: Vec<SplitQueue> = Vec::new();
    let devices = device::all(arguments)?;
    for registers in &devices {
        let device = Device::negotiate(*registers, feature::EVENT_IDX)?;
        for index in 0.. {
            if registers.queue_size_max(index) == 0 {
                break;
            }
            let mut queue = device.queue(index, QUEUE_SIZE)?;
            queue.request_interrupt();
            queues.push(queue);
        }
        device.enable_interrupts();
        device.start();
    }
    serial::listen();
    println!("idle: {} devices, {} queues", devices.len(), queues.len());
    println!("woken by: {}", serial::read_line());
    Ok(())
}

/// Prints back a line of input.
pub fn echo(_: &Arguments<'_>) -> Outcome {
    serial::listen();
    println!("listening");
    println!("input: {}", serial::read_line());
    Ok(())
}

/// Counts lines of input, for ever: what it prints tells where in its life it is. It has used `touch=` bytes of memory by then, and
/// writes to `dirty=` bytes of them for each line.
pub fn count(arguments: &Arguments<'_>) -> Outcome {
    let touched = arguments.number("touch")?.unwrap_or(0) as usize / PAGE;
    let dirty = arguments.number("dirty")?.unwrap_or(0) as usize / PAGE;
    if dirty > touched {
        return Err(Failure::new("dirty= is more than touch="));
    }
    let memory = Buffers::new(touched, PAGE);
    serial::listen();
    for number in 1_u64.. {
        (0..if number == 1 { touched } else { dirty }).for_each(|page| memory.write(page, 0, number));
        println!("count {number}");
        serial::read_line();
    }
    Ok(())
}
