//! Timers fire, and clocks run forwards.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::trap::TICKS;
use crate::{Check, Outcome, last_error};

/// The checks of this module.
pub const CHECKS: &[Check] = &[
    ("sleep", sleep),
    ("interval-timer", interval_timer),
    ("monotonic-clock", monotonic_clock),
    ("wall-clock", wall_clock),
];

/// A timer that never fires hangs the checks, which whoever runs them notices; how late one fires is the host's doing.
fn sleep() -> Outcome {
    let asked = Duration::from_millis(10);
    let start = Instant::now();
    std::thread::sleep(asked);
    let took = start.elapsed();
    println!("note sleep: 10 ms took {:.3} ms", took.as_secs_f64() * 1e3);
    match took < asked {
        true => Err(format!("10 ms took {took:?}")),
        false => Ok(()),
    }
}

/// A busy loop without system calls is interrupted by the timer all the same. A host that is busy elsewhere merges ticks.
fn interval_timer() -> Outcome {
    const ENOUGH: u64 = 10;
    TICKS.store(0, Ordering::SeqCst);
    set_interval(20_000)?;
    let start = Instant::now();
    while TICKS.load(Ordering::SeqCst) < ENOUGH && start.elapsed() < Duration::from_secs(60) {}
    set_interval(0)?;
    let (ticks, most) = (TICKS.load(Ordering::SeqCst), start.elapsed().as_millis() / 20 + 1);
    println!("note interval-timer: {ticks} ticks of at most {most}");
    if u128::from(ticks) > most || ticks < ENOUGH {
        return Err(format!("{ticks} ticks instead of up to {most}"));
    }
    Ok(())
}

fn set_interval(microseconds: i64) -> Outcome {
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: the call only reads `timer`.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_error("setitimer")),
    }
}

fn monotonic_clock() -> Outcome {
    // Not `Instant`, which hides a clock that runs backwards.
    let mut last = read_monotonic()?;
    for _ in 0..100_000 {
        let now = read_monotonic()?;
        if now < last {
            return Err(format!("the clock went back from {last:?} to {now:?}"));
        }
        last = now;
    }
    Ok(())
}

fn read_monotonic() -> Result<(i64, i64), String> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call only writes `time`.
    match unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) } {
        0 => Ok((time.tv_sec, time.tv_nsec)),
        _ => Err(last_error("clock_gettime")),
    }
}

/// The guest got the time of day from somewhere: its clock does not start at the epoch.
fn wall_clock() -> Outcome {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|error| error.to_string())?;
    // 2025-01-01; this program is younger.
    if since < Duration::from_secs(1_735_689_600) {
        return Err(format!("it is {} seconds after 1970", since.as_secs()));
    }
    Ok(())
}
