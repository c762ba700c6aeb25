//! The console: the first serial port, a 16550A (16550D data sheet, table II).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::{interrupts, ports, traps};

/// Data to send, and data that has come.
pub const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO_CONTROL: u16 = DATA + 2;
const MODEM_CONTROL: u16 = DATA + 4;
/// What the port is ready for.
pub const LINE_STATUS: u16 = DATA + 5;

const RECEIVE_INTERRUPT: u8 = 1 << 0;
const ENABLE_FIFO: u8 = 1 << 0;
/// Data terminal ready, request to send, and OUT2, which lets the interrupt out of a PC's port.
const LISTEN: u8 = 1 << 0 | 1 << 1 | 1 << 3;
const DATA_READY: u8 = 1 << 0;
/// The bit of the line status that says that all is sent.
pub const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// What an empty transmitter takes at once when its FIFO is on.
const FIFO: usize = 16;
/// The port's interrupt.
const PIN: u32 = 4;

/// Collects a line, so that it goes out in bursts.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn send(&mut self) {
        for burst in self.bytes[..self.length].chunks(FIFO) {
            traps::send(burst);
        }
        self.length = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.length == self.bytes.len() {
                self.send();
            }
            self.bytes[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Prints a line; [`println`](crate::println) is for use.
pub fn print_line(text: fmt::Arguments<'_>) {
    static FIFO_IS_ON: AtomicBool = AtomicBool::new(false);
    if !FIFO_IS_ON.swap(true, Ordering::Relaxed) {
        // SAFETY: the port does not touch memory.
        unsafe { ports::write(FIFO_CONTROL, ENABLE_FIFO) };
    }
    let mut line = Line {
        bytes: [0; 256],
        length: 0,
    };
    // It fails only if a value's own formatting does; what it has written is printed all the same.
    let _ = line.write_fmt(text);
    let _ = line.write_char('\n');
    line.send();
}

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print_line(format_args!($($argument)*))
    };
}

/// Lets input in: the host keeps it until then.
pub fn listen() {
    interrupts::enable(PIN, 0);
    // SAFETY: the port does not touch memory.
    unsafe {
        ports::write(MODEM_CONTROL, LISTEN);
        ports::write(INTERRUPT_ENABLE, RECEIVE_INTERRUPT);
    }
}

/// Whether input has come that nobody has read.
pub fn has_input() -> bool {
    ports::read(LINE_STATUS) & DATA_READY != 0
}

/// Waits for a byte of input, halted.
fn read() -> u8 {
    loop {
        let seen = interrupts::seen();
        if has_input() {
            return ports::read(DATA);
        }
        interrupts::wait(seen);
    }
}

/// Waits for a line of input, halted.
pub fn read_line() -> String {
    let mut line = Vec::new();
    loop {
        match read() {
            b'\n' | b'\r' => return String::from_utf8_lossy(&line).into_owned(),
            byte => line.push(byte),
        }
    }
}
