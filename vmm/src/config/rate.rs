//! A number of bytes in a second as people write it: `100M/s`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use super::ByteSize;

/// Bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteRate(pub u64);

/// A text that is no [`ByteRate`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a rate: write a size and '/s', such as 100M/s")]
pub struct ByteRateError(String);

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

impl TryFrom<String> for ByteRate {
    type Error = ByteRateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

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
