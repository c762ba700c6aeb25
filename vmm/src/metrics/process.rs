//! What the kernel tells of this process.

use std::fs;
use std::io::{self, ErrorKind};

use nix::unistd::{SysconfVar, sysconf};

/// The threads by their names, and how long each has been on a CPU, in nanoseconds; several of one name together.
pub fn threads() -> io::Result<Vec<(String, u64)>> {
    let mut threads = Vec::<(String, u64)>::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let directory = entry?.path();
        let read = |file| fs::read_to_string(directory.join(file));
        // One that has ended in between has no files any more.
        let (name, times) = match (read("comm"), read("schedstat")) {
            (Ok(name), Ok(times)) => (name, times),
            (Err(error), _) | (_, Err(error)) if is_gone(&error) => continue,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        // Linux, Documentation/scheduler/sched-stats.rst: the first of three.
        let time = times
            .split_ascii_whitespace()
            .next()
            .and_then(|time| time.parse().ok());
        let (name, time) = (name.trim_end().to_owned(), time.unwrap_or(0));
        match threads.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += time,
            None => threads.push((name, time)),
        }
    }
    threads.sort_unstable();
    Ok(threads)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Bytes of the host's memory that the process has.
pub fn resident() -> io::Result<u64> {
    // proc_pid_statm(5): the second, in pages.
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| u64::try_from(page).ok());
    Ok(pages.unwrap_or(0_u64) * page.unwrap_or(4096))
}

/// File descriptors that the process has open, but for the one that counts them.
pub fn open_files() -> io::Result<u64> {
    Ok((fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name_with_its_time() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let body = move || {
            let mut sum = 0_u64;
            while threads()
                .unwrap()
                .iter()
                .any(|(name, time)| name == "counted" && *time == 0)
            {
                sum = (0..1000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
            }
            tell.send(()).unwrap();
            let _ = ended.recv();
        };
        let thread = thread::Builder::new()
            .name("counted".to_owned())
            .spawn(body)
            .unwrap();
        told.recv().unwrap();
        let all = threads().unwrap();
        let (_, time) = all.iter().find(|(name, _)| name == "counted").unwrap();
        assert!(*time > 0);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn memory_and_files_are_at_least_what_is_known_of() {
        let before = open_files().unwrap();
        let _files = [File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap()];
        assert!(open_files().unwrap() >= 2);
        assert!(before > 0);
        assert!(resident().unwrap() > 4096);
    }
}
