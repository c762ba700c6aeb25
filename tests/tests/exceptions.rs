//! What user programs in a guest rely on their CPU for: the checks of guest-images/checks, run as the guest's only program.

use posada_tests::{Guest, images};

#[track_caller]
fn passes_with(cpus: u32) {
    let ended = Guest::tiny_with(&images::checks())
        .append("posada.init=/checks")
        .cpus(cpus)
        .run()
        .expect_status(0);
    let console = ended.console();
    assert!(!console.contains("not ok"), "a check failed");
    let summary = console
        .lines()
        .find(|line| line.starts_with("checks: "))
        .expect("the checks have come to their end");
    assert!(summary.trim_end().ends_with(" passed, 0 failed"), "{summary}");
    assert!(console.contains("init: /checks exited with status 0"));
}

#[test]
fn exceptions_and_cpu_state_are_right_with_one_cpu() {
    passes_with(1);
}

#[test]
fn exceptions_and_cpu_state_are_right_with_two_cpus() {
    passes_with(2);
}
