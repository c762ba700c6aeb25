//! The checks pass on a real machine: what fails in a guest is then the guest's, or its VMM's, doing.

use std::process::Command;

#[test]
fn every_check_passes_on_this_machine() {
    let output = Command::new(env!("CARGO_BIN_EXE_guest-checks"))
        .output()
        .expect("guest-checks starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.lines()
            .last()
            .is_some_and(|line| line.ends_with(" passed, 0 failed")),
        "{text}"
    );
}
