//! `net-bench`: frames out, or frames in, as fast as they go.

use alloc::format;

use bare_guest::arguments::Arguments;

use super::net::{self, Card, HEADER, NUM_BUFFERS};
use super::report::Report;
use crate::buffers::Buffers;
use crate::failure::{Failure, Outcome};
use crate::queue::Descriptor;
use crate::{clock, println};

/// Runs it and prints the report.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let transmits = arguments.choice("direction", &[("tx", true), ("rx", false)], "tx or rx")?;
    let size = net::frame_size(arguments, 1514)?;
    let count = arguments.number("count")?.unwrap_or(1000);
    let depth = arguments.number("depth")?.unwrap_or(256);
    if !(1..=1 << 15).contains(&depth) || !depth.is_power_of_two() {
        return Err(Failure::new(format!(
            "depth={depth}: a queue has a power of two of entries"
        )));
    }
    let card = Card::start(arguments, depth as u16, false)?;
    let report = if transmits {
        transmit(card, size, count)
    } else {
        let buffer = arguments.number("buffer")?.unwrap_or(2048) as usize;
        if !(HEADER + net::FRAME_HEADER..=1 << 17).contains(&buffer) {
            return Err(Failure::new(format!("buffer={buffer}: give 26 to 128K")));
        }
        receive(card, buffer, count)?
    };
    report.print();
    Ok(())
}

/// Every entry of the queue has a frame of its own, written once; sending is to offer the entry again.
fn transmit(mut card: Card, size: usize, count: u64) -> Report {
    let entries = card.transmit.size();
    let frames = Buffers::new(entries.into(), HEADER + size);
    for index in 0..entries {
        card.address_frame(&frames, index.into());
        let descriptor = Descriptor {
            address: frames.address(index.into(), 0),
            length: (HEADER + size) as u32,
            flags: 0,
            next: 0,
        };
        card.transmit.describe(index, descriptor);
    }
    let start = clock::now();
    let (mut offered, mut done) = (0, 0);
    while offered < count.min(entries.into()) {
        card.transmit.offer(offered as u16);
        offered += 1;
    }
    card.transmit.publish();
    while done < count {
        let before = offered;
        while let Some(used) = card.transmit.take() {
            done += 1;
            if offered < count {
                card.transmit.offer(used.head as u16);
                offered += 1;
            }
        }
        if offered > before {
            card.transmit.publish();
        }
    }
    Report {
        requests: done,
        bytes: done * size as u64,
        cycles: clock::now() - start,
        kicks: card.transmit.kicks(),
        median: None,
    }
}

/// Counts frames from the first that comes to the last. A frame may take several buffers (virtio 1.3 §5.1.6.4).
fn receive(mut card: Card, size: usize, count: u64) -> Outcome<Report> {
    let buffers = card.post_buffers(size);
    println!("ready to receive");
    let (mut frames, mut bytes, mut start) = (0, 0, 0);
    // Buffers that the current frame still has.
    let mut missing = 0_u16;
    while frames < count || missing > 0 {
        let mut taken = false;
        while let Some(used) = card.receive.take() {
            if start == 0 {
                start = clock::now();
            }
            bytes += u64::from(used.length);
            if missing == 0 {
                missing = buffers.read(used.head as usize, NUM_BUFFERS);
                if missing == 0 {
                    return Err(Failure::new("a frame says that it has no buffers"));
                }
                bytes -= HEADER as u64;
                frames += 1;
            }
            missing -= 1;
            card.receive.offer(used.head as u16);
            taken = true;
        }
        if taken {
            card.receive.publish();
        }
    }
    Ok(Report {
        requests: frames,
        bytes,
        cycles: clock::now() - start,
        kicks: card.receive.kicks(),
        median: None,
    })
}
