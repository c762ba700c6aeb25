//! The ways in which a guest of one page can end, and posada's exit status for each.

use std::time::Duration;

use nix::sys::signal::Signal;
use posada_tests::script::{DATA, Width};
use posada_tests::{Guest, Script, payload};

const GUEST_CRASHED: i32 = 3;
const I8042_COMMAND: u16 = 0x64;
const PVPANIC: u16 = 0x505;
const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
/// A place in the MMIO hole where no device is.
const NOWHERE: u64 = 0xd000_0000;
/// Enough for a signal on a busy machine, and far below what a person would wait.
const QUICKLY: Duration = Duration::from_secs(5);

fn run(script: &Script) -> posada_tests::Ended {
    Guest::payload(&script.code()).run()
}

#[test]
fn power_off_and_every_orderly_reset_end_with_status_0() {
    let spin = |script: Script| script.say("still here").spin();
    for script in [
        Script::new(),
        spin(Script::new().port_write(Width::Byte, SLEEP_CONTROL, 0x34)),
        spin(Script::new().port_write(Width::Byte, I8042_COMMAND, 0xfe)),
        spin(Script::new().port_write(Width::Byte, RESET, 1)),
    ] {
        let ended = run(&script).expect_status(0);
        assert_eq!((ended.console().as_str(), ended.messages().as_str()), ("", ""));
    }
}

#[track_caller]
fn crashes(script: &Script, named: &[&str]) {
    let guest = Guest::payload(&script.code()).arg("--name").arg("victim");
    let ended = guest.run().expect_status(GUEST_CRASHED);
    let message = ended.messages();
    assert!(message.starts_with("posada: victim crashed: "), "{message}");
    assert_eq!(message.matches('\n').count(), 1, "one line says it: {message}");
    for name in named {
        assert!(message.contains(name), "'{name}' is not in: {message}");
    }
    ended.expect_no_panic();
}

#[test]
fn a_panic_told_by_pvpanic_is_a_crash() {
    crashes(
        &Script::new().port_write(Width::Byte, PVPANIC, 1).spin(),
        &["panicked"],
    );
}

#[test]
fn a_crash_kernel_told_by_pvpanic_goes_on() {
    let ended = run(&Script::new().port_write(Width::Byte, PVPANIC, 2).say("goes on")).expect_status(0);
    assert_eq!(ended.console(), "goes on");
}

#[test]
fn a_triple_fault_is_a_crash_that_is_named() {
    crashes(&Script::new().triple_fault(), &["triple fault", "vCPU 0"]);
}

#[test]
fn running_where_there_is_no_memory_is_a_crash() {
    crashes(&Script::new().jump(NOWHERE), &["vCPU 0", "rip 0xd0000000"]);
}

payload! {
    /// An AVX instruction without leave (CR4.OSXSAVE is clear), without a handler for the fault.
    unknown_instruction,
    "vpaddd ymm0, ymm1, ymm2",
}

#[test]
fn an_instruction_that_nobody_can_carry_out_is_a_crash() {
    let script = Script::new().jump(DATA).code_and(unknown_instruction());
    let ended = Guest::payload(&script).run().expect_status(GUEST_CRASHED);
    assert!(
        ended.messages().starts_with("posada: guest crashed: vCPU 0: "),
        "{}",
        ended.messages()
    );
    ended.expect_no_panic();
}

#[test]
fn signals_end_it_at_once_even_while_the_guest_spins_or_sleeps() {
    let busy = Script::new().say("ready").spin();
    let asleep = Script::new().say("ready").halt();
    for (script, signal) in [
        (&busy, Signal::SIGTERM),
        (&busy, Signal::SIGINT),
        (&busy, Signal::SIGHUP),
        (&asleep, Signal::SIGTERM),
        (&asleep, Signal::SIGQUIT),
    ] {
        let mut guest = Guest::payload(&script.code()).start();
        guest.wait_for("ready");
        guest.signal(signal);
        let ended = guest.wait_within(QUICKLY).expect_status(128 + signal as i32);
        assert_eq!(ended.messages(), "", "{signal}");
    }
}
