//! `ping-pong`: one frame on its way at a time, sent back by the guest or by the host.

use alloc::vec::Vec;

use bare_guest::arguments::Arguments;
use bare_guest::numbers::median;

use super::net::{self, Card, HEADER};
use super::report::Report;
use crate::buffers::Buffers;
use crate::failure::Outcome;
use crate::queue::{Descriptor, Used};
use crate::{clock, interrupts, println};

/// Entries of each queue.
const DEPTH: u16 = 64;
/// Room for a frame of the usual size with its header.
const BUFFER: usize = 2048;

struct Game {
    card: Card,
    buffers: Buffers,
    interrupts: bool,
}

/// Plays `count` rounds; the guest measures its own.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let count = arguments.number("count")?.unwrap_or(1000);
    let size = net::frame_size(arguments, 64)?;
    let guest_starts = arguments.choice("start", &[("host", false), ("guest", true)], "host or guest")?;
    let interrupts = arguments.choice(
        "wait",
        &[("poll", false), ("interrupt", true)],
        "poll or interrupt",
    )?;
    let mut card = Card::start(arguments, DEPTH, interrupts)?;
    if interrupts {
        card.receive.request_interrupt();
    }
    let buffers = card.post_buffers(BUFFER);
    let mut game = Game {
        card,
        buffers,
        interrupts,
    };
    println!("ready to play");
    if guest_starts {
        game.serve(count, size)
    } else {
        game.send_back(count)
    }
    .print();
    Ok(())
}

impl Game {
    fn send_back(&mut self, count: u64) -> Report {
        let (mut bytes, mut start) = (0, 0);
        for _ in 0..count {
            let frame = self.receive();
            if start == 0 {
                start = clock::now();
            }
            let piece = frame.head as usize;
            self.card.turn_around(&self.buffers, piece);
            let descriptor = Descriptor {
                address: self.buffers.address(piece, 0),
                length: frame.length,
                flags: 0,
                next: 0,
            };
            self.send(frame.head as u16, descriptor);
            self.give_back(frame.head as u16);
            bytes += u64::from(frame.length) - HEADER as u64;
        }
        self.report(count, bytes, clock::now() - start, None)
    }

    fn serve(&mut self, count: u64, size: usize) -> Report {
        let frame = Buffers::new(1, HEADER + size);
        self.card.address_frame(&frame, 0);
        let descriptor = Descriptor {
            address: frame.address(0, 0),
            length: (HEADER + size) as u32,
            flags: 0,
            next: 0,
        };
        let mut times = Vec::new();
        let start = clock::now();
        for _ in 0..count {
            let sent = clock::now();
            self.send(0, descriptor);
            let answer = self.receive();
            times.push(clock::now() - sent);
            self.give_back(answer.head as u16);
        }
        let cycles = clock::now() - start;
        self.report(count, count * size as u64, cycles, Some(median(&mut times)))
    }

    /// Waits for a frame of the game; others are let go.
    fn receive(&mut self) -> Used {
        loop {
            let seen = interrupts::seen();
            match self.card.receive.take() {
                Some(used) if net::is_ours(&self.buffers, used.head as usize, used.length) => return used,
                Some(used) => self.give_back(used.head as u16),
                None if self.interrupts => interrupts::wait(seen),
                None => {}
            }
        }
    }

    fn give_back(&mut self, buffer: u16) {
        self.card.receive.offer(buffer);
        self.card.receive.publish();
    }

    /// Sends one frame and waits until the device has read it.
    fn send(&mut self, index: u16, descriptor: Descriptor) {
        self.card.transmit.describe(index, descriptor);
        self.card.transmit.offer(index);
        self.card.transmit.publish();
        while self.card.transmit.take().is_none() {}
    }

    fn report(&self, requests: u64, bytes: u64, cycles: u64, median: Option<u64>) -> Report {
        Report {
            requests,
            bytes,
            cycles,
            kicks: self.card.transmit.kicks() + self.card.receive.kicks(),
            median,
        }
    }
}
