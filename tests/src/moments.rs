//! Moments that nobody has chosen, and that can be repeated.

use std::env;
use std::time::SystemTime;

use bare_guest::numbers::Random;

use crate::Running;

/// A source of moments.
pub struct Moments(Random);

impl Moments {
    /// Starts from `seed`.
    pub const fn of(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.draw() % limit
    }

    /// Waits for one of the guest's next `most` signs of life on its console.
    #[track_caller]
    pub fn wait(&mut self, guest: &mut Running, sign: &str, most: u64) {
        for _ in 0..=self.below(most) {
            guest.wait_for(sign);
        }
    }

    /// As many numbers below `limit`, in order.
    pub fn points(&mut self, count: usize, limit: usize) -> Vec<usize> {
        let mut points: Vec<_> = (0..count).map(|_| self.below(limit as u64) as usize).collect();
        points.sort_unstable();
        points
    }
}

/// A seed that nobody has chosen: `$POSADA_SEED`, or the time. It is printed, which cargo shows of a test that fails.
///
/// # Panics
/// If the variable is no number.
pub fn seed() -> u64 {
    let seed = match env::var("POSADA_SEED") {
        Ok(seed) => seed.parse().expect("POSADA_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.map_or(0, |now| now.as_secs())
        }
    };
    println!("the same moments once more: POSADA_SEED={seed}");
    seed
}
