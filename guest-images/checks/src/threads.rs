//! Threads: locks, thread-local storage, and every CPU of the guest.

use std::cell::Cell;
use std::sync::Mutex;

use crate::{Check, Outcome, last_error};

/// The checks of this module.
pub const CHECKS: &[Check] = &[("threads", threads), ("every-cpu", every_cpu)];

thread_local! {
    static OWN: Cell<u32> = const { Cell::new(0) };
}

fn threads() -> Outcome {
    let shared = Mutex::new(0);
    let work = || {
        for round in 0..100 {
            *shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
            OWN.set(OWN.get() + 1);
            if round % 20 == 0 {
                std::thread::yield_now();
            }
        }
        OWN.get()
    };
    let own: Vec<u32> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    let shared = shared
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if shared == 300 && own == [100, 100, 100] {
        Ok(())
    } else {
        Err(format!(
            "three threads counted {shared} together instead of 300, and {own:?} alone instead of 100 each"
        ))
    }
}

/// A thread can move to each CPU that it may use, and runs there.
fn every_cpu() -> Outcome {
    // SAFETY: zeros are an empty set; the kernel writes a set of the size that it is told.
    let allowed = unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed) != 0 {
            return Err(last_error("sched_getaffinity"));
        }
        allowed
    };
    // SAFETY: the index is within the set.
    let cpus = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) });
    let mut count = 0;
    for cpu in cpus {
        std::thread::spawn(move || run_on(cpu))
            .join()
            .map_err(|_| "the thread panicked")??;
        count += 1;
    }
    println!("note every-cpu: {count}");
    Ok(())
}

fn run_on(cpu: usize) -> Outcome {
    // SAFETY: zeros are an empty set, the index is within it, and the kernel only reads it.
    let (moved, now_on) = unsafe {
        let mut only: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut only);
        (
            libc::sched_setaffinity(0, size_of_val(&only), &only),
            libc::sched_getcpu(),
        )
    };
    if moved != 0 {
        return Err(last_error("sched_setaffinity"));
    }
    if usize::try_from(now_on) == Ok(cpu) {
        Ok(())
    } else {
        Err(format!("on CPU {now_on} instead of {cpu}"))
    }
}
