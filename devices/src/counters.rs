//! Counters of what happens in a machine, cheap enough for its hot paths: a plain load and store to memory of one's own.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, on the one thread that does: others would lose what they add at the same time, but can read.
    #[inline(always)]
    pub fn add(&self, amount: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(amount);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Adds one, on any thread. Not for hot paths: a locked instruction.
    pub fn add_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What is counted: lower case, with underscores.
    pub name: &'static str,
    /// The same in a sentence.
    pub help: &'static str,
    /// How much there was.
    pub value: u64,
}

/// Counters that belong together.
pub trait Counters: Default {
    /// Reads them, always in the same order.
    fn read(&self) -> Vec<Sample>;

    /// Reads several that count the same, added up.
    fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Vec<Sample>
    where
        Self: 'a,
    {
        all.into_iter()
            .map(Self::read)
            .reduce(|mut sum, next| {
                for (sum, next) in sum.iter_mut().zip(next) {
                    sum.value = sum.value.wrapping_add(next.value);
                }
                sum
            })
            .unwrap_or_else(|| Self::default().read())
    }
}

/// Makes a struct of [`Counter`]s, which have their documentation in common with who reads them.
#[macro_export]
macro_rules! counters {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $group:ident {
            $(#[doc = $help:literal] $name:ident,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Default)]
        $visibility struct $group {
            $(#[doc = $help] pub $name: $crate::counters::Counter,)+
        }

        impl $crate::counters::Counters for $group {
            fn read(&self) -> Vec<$crate::counters::Sample> {
                vec![$($crate::counters::Sample {
                    name: stringify!($name),
                    help: $help.trim_ascii(),
                    value: self.$name.get(),
                },)+]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        struct Stays {
            /// Guests that came.
            arrivals,
            /// Nights that they stayed.
            nights,
        }
    }

    #[test]
    fn what_is_added_is_read_by_its_name() {
        let stays = Stays::default();
        stays.arrivals.add(2);
        stays.arrivals.add_shared();
        stays.nights.add(7);
        let [arrivals, nights] = stays.read().try_into().unwrap();
        assert_eq!((arrivals.name, arrivals.value), ("arrivals", 3));
        assert_eq!((nights.help, nights.value), ("Nights that they stayed.", 7));
    }

    #[test]
    fn those_that_count_the_same_are_added_up() {
        let rooms = [Stays::default(), Stays::default()];
        rooms[0].nights.add(3);
        rooms[1].nights.add(4);
        let values = |samples: Vec<Sample>| samples.iter().map(|sample| sample.value).collect::<Vec<_>>();
        assert_eq!(values(Counters::sum(&rooms)), [0, 7]);
        assert_eq!(values(Stays::sum(&[])), [0, 0]);
    }
}
