//! The host's CPUs, of which a Linux guest has as many to itself as it has of its own. Where a guest's kernel is interpreted, one that
//! gets less of them has its timer's ticks take all its time, and boots for ever.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Condvar, LazyLock, Mutex};
use std::thread::{self, ThreadId};

static TAKEN: LazyLock<Mutex<HashMap<ThreadId, usize>>> = LazyLock::new(Mutex::default);
static CHANGED: Condvar = Condvar::new();

/// CPUs that are a guest's until this is dropped.
pub(crate) struct Cores {
    by: ThreadId,
    count: usize,
}

impl Cores {
    /// Waits until so many are free, or all if the host has fewer. A test that has some already does not wait, as another could
    /// wait for it.
    pub(crate) fn take(count: usize) -> Self {
        let all = thread::available_parallelism().map_or(1, NonZero::get);
        let (by, count) = (thread::current().id(), count.min(all));
        let taken = TAKEN.lock().expect("nobody panics with it");
        let mut taken = CHANGED
            .wait_while(taken, |taken| {
                !taken.contains_key(&by) && taken.values().sum::<usize>() + count > all
            })
            .expect("nobody panics with it");
        *taken.entry(by).or_default() += count;
        Self { by, count }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().expect("nobody panics with it");
        if let Some(count) = taken.get_mut(&self.by) {
            *count -= self.count;
        }
        taken.retain(|_, count| *count > 0);
        CHANGED.notify_all();
    }
}
