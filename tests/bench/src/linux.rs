//! The tiny Linux guest: how long it takes to boot, where the time goes, and what posada itself takes up.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use posada_tests::usage::Usage;

use crate::posada;
use crate::table::Table;

/// Seconds.
const RUN_INIT_LIMIT: f64 = 7.5;
const USER_SPACE_LIMIT: f64 = 8.5;
/// MiB.
const OWN_MEMORY_LIMIT: f64 = 2.5;
const GUEST_MEMORY: u64 = 128 << 20;
/// The kernel's last word before user space.
const RUN_INIT: &str = "Run /init as init process";
/// What the shell is asked to print, and how it prints it: so its echo is not taken for the answer.
const QUESTION: &[u8] = b"echo at-the-$((1))-shell\n";
const ANSWER: &str = "at-the-1-shell";
/// How many of the longest gaps between two lines are shown.
const GAPS: usize = 8;

struct Line {
    at: f64,
    text: String,
}

/// Boots the guest once; a boot takes seconds, so the scatter of one is small beside it.
pub fn measure(table: &mut Table) {
    let start = Instant::now();
    let mut child = Command::new(posada())
        .arg("run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("posada starts");
    let mut stdin = child.stdin.take().expect("its input is piped");
    stdin.write_all(QUESTION).expect("posada takes input");

    let output = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut lines = Vec::new();
    for text in output.lines() {
        let text = text.expect("the guest prints text").trim().to_owned();
        let answered = text == ANSWER;
        lines.push(Line {
            at: start.elapsed().as_secs_f64(),
            text,
        });
        if answered {
            table.absolute(
                "posada's own memory at the shell (PSS)",
                Usage::of(child.id(), GUEST_MEMORY).own_memory as f64 / 1024.0,
                "MiB",
                OWN_MEMORY_LIMIT,
            );
            stdin.write_all(b"poweroff\n").expect("posada takes input");
        }
    }
    assert!(
        child.wait().expect("posada ends").success(),
        "the guest did not end well"
    );

    let run_init = lines
        .iter()
        .position(|line| line.text.contains(RUN_INIT))
        .expect("the kernel runs /init");
    table.absolute(
        "tiny Linux: start → \"Run /init\"",
        lines[run_init].at,
        "s",
        RUN_INIT_LIMIT,
    );
    let user_space = lines.get(run_init + 1).expect("user space says something");
    table.absolute(
        "tiny Linux: start → user space's first line",
        user_space.at,
        "s",
        USER_SPACE_LIMIT,
    );
    table.remark(gaps(&lines[..=run_init + 1]));
}

/// The longest gaps between two lines: the time that passed before the line that is shown.
fn gaps(lines: &[Line]) -> String {
    let mut gaps: Vec<_> = lines
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at, &pair[1].text))
        .collect();
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rows = gaps
        .iter()
        .take(GAPS)
        .map(|(gap, text)| format!("\n  {gap:>7.3} s  {text}"));
    let first = format!("\n  {:>7.3} s  {} (the first line)", lines[0].at, lines[0].text);
    format!(
        "where the boot's time goes, by what was printed after it:{first}{}",
        rows.collect::<String>()
    )
}
