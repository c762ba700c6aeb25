//! The checks of guest-images/checks: what user programs in a guest rely on their CPU for.

use crate::Ended;

/// What a shell is told to run them, where they are a program of this name.
pub fn command(program: &str) -> String {
    // What is typed is echoed, and is not to be taken for what is said at the end.
    format!("{program}; echo end''ed with status $?\n")
}

/// Checks that they have come to their end, and that none has failed.
#[track_caller]
pub fn all_passed(ended: &Ended) {
    let console = ended.console();
    assert!(!console.contains("not ok"), "a check failed");
    let summary = console
        .lines()
        .find(|line| line.starts_with("checks: "))
        .expect("the checks have come to their end");
    assert!(summary.trim_end().ends_with(" passed, 0 failed"), "{summary}");
    assert!(console.contains("ended with status 0"));
}
