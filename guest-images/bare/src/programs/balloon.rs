//! `balloon`: hands memory that it has used to the host, and takes it back.

use alloc::format;

use bare_guest::arguments::Arguments;

use crate::buffers::Buffers;
use crate::device::{self, Device, kind};
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, SplitQueue, flag};
use crate::registers::offset;
use crate::{println, serial};

const PAGE: usize = 4096;
/// Page frame numbers in a request, as Linux has it.
const LIST: usize = 256;
/// Bytes of a reported range: a huge page.
const RANGE: usize = 2 << 20;
const QUEUE_SIZE: u16 = 32;

/// Queues and features of the balloon (virtio 1.3 §5.5.2, §5.5.3), and where it is told how many pages it has (§5.5.4).
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTING: u16 = 4;
const F_PAGE_REPORTING: u64 = 1 << 5;
const ACTUAL: usize = offset::CONFIG + 4;

/// Uses `size=` bytes, hands them over `by=` lists of pages or reports of ranges, and takes them back; before each step it
/// waits for a line of input.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let size = arguments.number("size")?.unwrap_or(16 << 20) as usize;
    let by_report = arguments.choice("by", &[("list", false), ("report", true)], "list or report")?;
    let device = Device::negotiate(device::find(arguments, kind::BALLOON)?, F_PAGE_REPORTING)?;
    let mut inflate = device.queue(INFLATE, QUEUE_SIZE)?;
    let mut deflate = device.queue(DEFLATE, QUEUE_SIZE)?;
    let mut reporting = if by_report {
        Some(device.queue(REPORTING, QUEUE_SIZE)?)
    } else {
        None
    };
    device.start();
    serial::listen();

    // First, so that nothing new is touched once the memory is used.
    let list = Buffers::new(1, LIST * size_of::<u32>());
    // As Linux has its free ranges.
    let memory = Buffers::aligned(size / RANGE, RANGE, RANGE);
    each_page(size, |piece, byte| {
        memory.write(piece, byte, !0_u64);
        Ok(())
    })?;
    println!("used: {size} bytes");
    serial::read_line();
    match &mut reporting {
        Some(queue) => report(queue, &memory, size),
        None => send_lists(&mut inflate, &list, &memory, size),
    }
    device.registers.write(ACTUAL, (size / PAGE) as u32);
    println!("handed over: {size} bytes");
    serial::read_line();
    if !by_report {
        send_lists(&mut deflate, &list, &memory, size);
    }
    each_page(size, |piece, byte| match memory.read::<u64>(piece, byte) {
        0 => Ok(()),
        value => Err(Failure::new(format!(
            "{value:#x} is left at byte {byte} of range {piece}"
        ))),
    })?;
    println!("taken back: {size} bytes");
    Ok(())
}

/// Calls `visit` with the range and the byte in it where each page begins.
fn each_page(size: usize, mut visit: impl FnMut(usize, usize) -> Outcome) -> Outcome {
    (0..size / RANGE * RANGE)
        .step_by(PAGE)
        .try_for_each(|at| visit(at / RANGE, at % RANGE))
}

/// Sends the numbers of all pages, the last page first, as Linux often has them.
fn send_lists(queue: &mut SplitQueue, list: &Buffers, memory: &Buffers, size: usize) {
    let pages = size / RANGE * RANGE / PAGE;
    for first in (0..pages).step_by(LIST) {
        let count = LIST.min(pages - first);
        for n in 0..count {
            let at = (pages - 1 - first - n) * PAGE;
            let number = memory.address(at / RANGE, at % RANGE) / PAGE as u64;
            list.write(0, n * size_of::<u32>(), number as u32);
        }
        send(queue, list.address(0, 0), count * size_of::<u32>(), 0);
    }
}

fn report(queue: &mut SplitQueue, memory: &Buffers, size: usize) {
    for range in 0..size / RANGE {
        send(queue, memory.address(range, 0), RANGE, flag::WRITE);
    }
}

/// Sends one buffer and waits until the device has used it.
fn send(queue: &mut SplitQueue, address: u64, length: usize, flags: u16) {
    let descriptor = Descriptor {
        address,
        length: length as u32,
        flags,
        next: 0,
    };
    queue.describe(0, descriptor);
    queue.offer(0);
    queue.publish();
    while queue.take().is_none() {
        core::hint::spin_loop();
    }
}
