//! Processes: fork, wait, exit statuses, copy on write, pipes.

use std::io::{Read, Write};
use std::time::Instant;

use crate::{Check, Outcome, last_error};

/// The checks of this module.
pub const CHECKS: &[Check] = &[
    ("fork-and-wait", fork_and_wait),
    ("copy-on-write", copy_on_write),
    ("pipe", pipe),
];

/// Runs `child` in a new process; returns its number.
pub fn fork(child: impl FnOnce() -> i32) -> Result<libc::pid_t, String> {
    // SAFETY: we have one thread (main.rs runs these checks first), so the child may do whatever we may.
    match unsafe { libc::fork() } {
        -1 => Err(last_error("fork")),
        0 => {
            let status = child();
            // SAFETY: no memory is involved; nothing of the parent's is written out twice.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(pid),
    }
}

/// Waits for a process and returns its exit status.
pub fn wait(pid: libc::pid_t) -> Result<i32, String> {
    let mut status = 0;
    // SAFETY: `status` is ours. The interval timer's handler restarts the call.
    if unsafe { libc::waitpid(pid, &mut status, 0) } != pid {
        return Err(last_error("waitpid"));
    }
    if libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(format!(
            "the child was killed by signal {}",
            libc::WTERMSIG(status)
        ))
    }
}

fn fork_and_wait() -> Outcome {
    const ROUNDS: i32 = 5;
    let start = Instant::now();
    for round in 0..ROUNDS {
        let status = wait(fork(|| 40 + round)?)?;
        if status != 40 + round {
            return Err(format!("the exit status is {status} instead of {}", 40 + round));
        }
    }
    println!(
        "note fork-and-wait: {:.1} ms a round",
        start.elapsed().as_secs_f64() * 1e3 / f64::from(ROUNDS)
    );
    Ok(())
}

fn copy_on_write() -> Outcome {
    let mut page = vec![1_u8; 4096];
    let cell = page.as_mut_ptr();
    let status = wait(fork(|| {
        // SAFETY: the child's own copy of the page, which `page` keeps alive. Volatile, so that it is really written and read.
        unsafe {
            let before = cell.read_volatile();
            cell.write_volatile(2);
            i32::from(before) * 16 + i32::from(cell.read_volatile())
        }
    })?)?;
    // SAFETY: as above, in the parent.
    let ours = unsafe { cell.read_volatile() };
    match (status, ours) {
        (0x12, 1) => Ok(()),
        (0x12, other) => Err(format!("a write in the child changed our byte to {other}")),
        (other, _) => Err(format!("the child saw {other:#x} instead of 0x12")),
    }
}

fn pipe() -> Outcome {
    let error = |error: std::io::Error| format!("pipe: {error}");
    let (mut from_child, mut to_parent) = std::io::pipe().map_err(error)?;
    let (mut from_parent, mut to_child) = std::io::pipe().map_err(error)?;
    let pid = fork(|| {
        let mut byte = [0];
        let answered = from_parent
            .read_exact(&mut byte)
            .and_then(|()| to_parent.write_all(&[byte[0] + 1]));
        i32::from(answered.is_err())
    })?;
    let mut answer = [0];
    to_child
        .write_all(&[41])
        .and_then(|()| from_child.read_exact(&mut answer))
        .map_err(error)?;
    let status = wait(pid)?;
    if (status, answer) == (0, [42]) {
        Ok(())
    } else {
        Err(format!(
            "the child answered {} instead of 42 and exited with status {status}",
            answer[0]
        ))
    }
}
