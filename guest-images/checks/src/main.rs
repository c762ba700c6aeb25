//! Checks, from inside a Linux guest, what a VMM can get wrong about a CPU: exceptions as signals, FPU state across switches, timers,
//! threads and processes.
//!
//! Prints `ok NAME` or `not ok NAME: why` for each check, `note NAME: text` for what is only worth knowing, and last
//! `checks: N passed, N failed`. The exit status is 0 if none failed. It needs no guest: every check passes on a real machine.

mod exceptions;
mod fpu;
mod processes;
mod threads;
mod time;
mod trap;

/// Why a check failed.
type Outcome = Result<(), String>;

/// A check: the name it is reported by, and what it does.
type Check = (&'static str, fn() -> Outcome);

fn main() {
    if let Err(error) = trap::install() {
        eprintln!("guest-checks: cannot install signal handlers: {error}");
        std::process::exit(2);
    }
    // Processes before threads: a fork of a process with several threads may do little else than exit.
    let checks = exceptions::CHECKS
        .iter()
        .chain(processes::CHECKS)
        .chain(fpu::CHECKS)
        .chain(time::CHECKS);
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in checks.chain(threads::CHECKS) {
        match check() {
            Ok(()) => {
                println!("ok {name}");
                passed += 1;
            }
            Err(why) => {
                println!("not ok {name}: {why}");
                failed += 1;
            }
        }
    }
    exceptions::note_32_bit_system_call();
    println!("checks: {passed} passed, {failed} failed");
    std::process::exit(i32::from(failed != 0));
}

/// The error of the C library call that just failed, as a reason.
fn last_error(what: &str) -> String {
    format!("{what} failed: {}", std::io::Error::last_os_error())
}
