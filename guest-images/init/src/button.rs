//! The power button: an input device of the kernel's, which sends init a signal when there is something to read.

use core::ffi::CStr;

use crate::syscall::{self, Access, Fd, Result, call};

/// Where the kernel puts its input devices. Few have as many.
const DEVICES: [&CStr; 4] = [
    c"/dev/input/event0",
    c"/dev/input/event1",
    c"/dev/input/event2",
    c"/dev/input/event3",
];

/// Event type and code of a power key (linux/input-event-codes.h), and the value of one that goes down.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// `struct input_event` (linux/input.h).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct InputEvent {
    time: [u64; 2],
    /// What it is: a key, or the end of what belongs together.
    kind: u16,
    /// Which key.
    code: u16,
    /// What of it.
    value: i32,
}

/// The input devices that there are.
pub struct Buttons([Option<Fd>; DEVICES.len()]);

impl Buttons {
    /// Has each of them send [`syscall::signal::IO`] from now on.
    pub fn watch() -> Self {
        Self(DEVICES.map(|path| {
            let device = syscall::open(path, Access::Poll).ok()?;
            signal_input(device).ok().map(|()| device)
        }))
    }

    /// Whether the power button has been pressed since the last time.
    pub fn is_pressed(&self) -> bool {
        // All are read to their ends: what is left would be told with the next signal only.
        let devices = self.0.iter().flatten();
        devices.fold(false, |pressed, device| pressed | is_pressed(*device))
    }
}

fn is_pressed(device: Fd) -> bool {
    let mut pressed = false;
    let mut events = [InputEvent::default(); 16];
    while let Ok(count @ 1..) = read_events(device, &mut events) {
        let new = events.iter().take(count);
        pressed |= new
            .into_iter()
            .any(|event| (event.kind, event.code, event.value) == (EV_KEY, KEY_POWER, PRESSED));
    }
    pressed
}

/// Has an input device that was opened with [`Access::Poll`] send this process [`syscall::signal::IO`] when there is something to read:
/// fcntl(2) with `F_SETOWN` and `F_SETFL`.
fn signal_input(device: Fd) -> Result<()> {
    const O_NONBLOCK: usize = 0o4000;
    const FASYNC: usize = 0o20000;
    // SAFETY: no memory is involved. Init is process 1.
    unsafe {
        call(72, [device.0 as usize, 8, 1, 0, 0])?;
        call(72, [device.0 as usize, 4, O_NONBLOCK | FASYNC, 0, 0]).map(drop)
    }
}

/// read(2) of an input device; returns how many events there were.
fn read_events(device: Fd, events: &mut [InputEvent]) -> Result<usize> {
    let room = size_of_val(events);
    // SAFETY: the kernel writes at most `room` bytes into `events`, which is ours alone, and any bytes are events.
    let read = unsafe {
        call(
            0,
            [
                device.0 as usize,
                events.as_mut_ptr().expose_provenance(),
                room,
                0,
                0,
            ],
        )
    };
    Ok(read? / size_of::<InputEvent>())
}
