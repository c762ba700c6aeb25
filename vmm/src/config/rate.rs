//! Rates as people write them: a number of bytes in a second, `100M/s`, and the rules that all rates and bursts share.

use std::fmt;
use std::str::FromStr;

use devices::rate_limit::Rate;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ByteSize, words};

/// Bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteRate(pub u64);

/// A text that is no [`ByteRate`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a rate: write a size and '/s', such as 100M/s")]
pub struct ByteRateError(String);

/// What is wrong with a rate and its burst.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RateError {
    /// Nothing would ever pass.
    #[error("{0} of 0 would let nothing pass: leave it out, or give a number above 0")]
    Zero(&'static str),
    /// More than what is not limited.
    #[error("{more} says how much more than {rate} may pass at once: give {rate} too")]
    MoreWithoutRate {
        /// What was given.
        more: &'static str,
        /// What was not.
        rate: &'static str,
    },
}

/// Checks a rate, its burst and what passes once, each with its name.
pub(super) fn check(
    (rate, per_second): (&'static str, Option<u64>),
    (burst, at_once): (&'static str, Option<u64>),
    (once, extra): (&'static str, Option<u64>),
) -> Result<(), RateError> {
    if per_second == Some(0) {
        return Err(RateError::Zero(rate));
    }
    if at_once == Some(0) {
        return Err(RateError::Zero(burst));
    }
    let more = [(burst, at_once), (once, extra)]
        .into_iter()
        .find(|(_, tokens)| tokens.is_some());
    match more {
        Some((more, _)) if per_second.is_none() => Err(RateError::MoreWithoutRate { more, rate }),
        _ => Ok(()),
    }
}

/// A rate as it is written: in a second, at once, and once. Without a burst of its own it lets pass at once what it lets pass in a
/// tenth of a second.
pub(super) fn rate(per_second: Option<u64>, burst: Option<u64>, once: Option<u64>) -> Option<Rate> {
    per_second.map(|per_second| Rate {
        per_second,
        burst: burst.unwrap_or((per_second / 10).max(1)),
        once: once.unwrap_or(0),
    })
}

/// What is written for a rate.
pub(super) fn written(rate: Option<Rate>) -> (Option<u64>, Option<u64>, Option<u64>) {
    let once = rate.map(|rate| rate.once).filter(|once| *once != 0);
    (
        rate.map(|rate| rate.per_second),
        rate.map(|rate| rate.burst),
        once,
    )
}

impl FromStr for ByteRate {
    type Err = ByteRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ByteRateError(text.to_owned());
        let size: ByteSize = text
            .strip_suffix("/s")
            .ok_or_else(error)?
            .parse()
            .map_err(|_| error())?;
        Ok(Self(size.0))
    }
}

words::is_text!(ByteRate, ByteRateError);

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size_and_a_second() {
        assert_eq!("100M/s".parse(), Ok(ByteRate(100 << 20)));
        assert_eq!("512/s".parse(), Ok(ByteRate(512)));
        assert_eq!(ByteRate(100 << 20).to_string(), "100M/s");
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["", "/s", "100M", "100M/min", "fast/s", "-1/s"] {
            assert_eq!(
                text.parse::<ByteRate>(),
                Err(ByteRateError(text.into())),
                "{text}"
            );
        }
    }
}
