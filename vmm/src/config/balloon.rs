//! A memory balloon as its user describes it: `--balloon size=64M,free-page-reporting` or a `[balloon]` table.

use std::str::FromStr;
use std::time::Duration;

use devices::virtio::balloon::{self, BalloonOptions};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::words::{self, WordError};
use super::{ByteSize, PAGE_SIZE};

/// For the help text.
pub const SYNTAX: &str = "[size=SIZE,][deflate-on-oom,][free-page-reporting,][stats=SECONDS]";
const WORDS: &str = "size, deflate-on-oom, free-page-reporting and stats";
/// Longest interval between two lines of statistics: a day, in seconds.
const MAX_STATS: u64 = 24 * 60 * 60;

/// A memory balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BalloonConfig {
    /// How much the guest is to hand over.
    pub size: Option<ByteSize>,
    /// Whether a guest that runs out of memory may take some back by itself.
    pub deflate_on_oom: bool,
    /// Whether the guest reports memory that it has free, which goes back to the host until it is used again.
    pub free_page_reporting: bool,
    /// Seconds between two lines in the log of what the guest does with its memory.
    pub stats: Option<u64>,
}

/// What is wrong with a balloon's description.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BalloonConfigError {
    /// A part of a page.
    #[error("a size of {0}: it must be a multiple of the page size, {PAGE_SIZE} bytes")]
    NotPages(ByteSize),
    /// Nothing would be left.
    #[error("a size of {size} leaves nothing of the guest's memory of {memory}: give a smaller one")]
    Everything {
        /// What was asked for.
        size: ByteSize,
        /// The guest's memory.
        memory: ByteSize,
    },
    /// More than a balloon's 2^32 pages.
    #[error("a size of {0} is more than a balloon can have: give less than 16T")]
    TooLarge(ByteSize),
    /// No interval.
    #[error("stats every {0} seconds: give 1 to {MAX_STATS}")]
    Stats(u64),
}

impl FromStr for BalloonConfig {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut balloon = Self::default();
        for word in words::list(text)? {
            match word.key() {
                "size" => balloon.size = Some(word.value()?),
                "deflate-on-oom" => balloon.deflate_on_oom = word.flag()?,
                "free-page-reporting" => balloon.free_page_reporting = word.flag()?,
                "stats" => balloon.stats = Some(word.value()?),
                _ => return Err(word.unknown(WORDS)),
            }
        }
        Ok(balloon)
    }
}

impl BalloonConfig {
    /// Checks it, for a guest with this much memory.
    pub fn check(&self, memory: ByteSize) -> Result<(), BalloonConfigError> {
        let size = self.size();
        if !size.0.is_multiple_of(PAGE_SIZE) {
            return Err(BalloonConfigError::NotPages(size));
        }
        if size >= memory {
            return Err(BalloonConfigError::Everything { size, memory });
        }
        if self.pages().is_none() {
            return Err(BalloonConfigError::TooLarge(size));
        }
        match self.stats {
            Some(seconds) if !(1..=MAX_STATS).contains(&seconds) => Err(BalloonConfigError::Stats(seconds)),
            _ => Ok(()),
        }
    }

    fn size(&self) -> ByteSize {
        self.size.unwrap_or(ByteSize(0))
    }

    fn pages(&self) -> Option<u32> {
        u32::try_from(self.size().0 / balloon::PAGE_SIZE).ok()
    }

    /// What the device is asked for. A size that does not pass [`check`](Self::check) is none.
    pub fn options(&self) -> BalloonOptions {
        BalloonOptions {
            pages: self.pages().unwrap_or(0),
            deflate_on_oom: self.deflate_on_oom,
            free_page_reporting: self.free_page_reporting,
            stats: self.stats.map(Duration::from_secs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: ByteSize = ByteSize(128 << 20);

    #[test]
    fn flag_and_table_say_the_same_things() {
        let balloon: BalloonConfig = "size=64M,deflate-on-oom,free-page-reporting,stats=5"
            .parse()
            .unwrap();
        let table = "size = '64M'\ndeflate-on-oom = true\nfree-page-reporting = true\nstats = 5\n";
        assert_eq!(toml::from_str::<BalloonConfig>(table).unwrap(), balloon);
        balloon.check(MEMORY).unwrap();
        let options = BalloonOptions {
            pages: 16384,
            deflate_on_oom: true,
            free_page_reporting: true,
            stats: Some(Duration::from_secs(5)),
        };
        assert_eq!(balloon.options(), options);
    }

    #[test]
    fn one_word_is_enough() {
        let balloon: BalloonConfig = "free-page-reporting".parse().unwrap();
        balloon.check(MEMORY).unwrap();
        assert_eq!((balloon.options().pages, balloon.options().stats), (0, None));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            ("", "there is no ''"),
            ("64M", "there is no '64M'"),
            ("size=lots", "'lots' is not a size"),
            ("size=1M,size=2M", "'size' is there twice"),
            ("deflate-on-oom=yes", "takes no value"),
            ("stats", "stats=..."),
            ("stats=-1", "stats: "),
        ] {
            let error = text.parse::<BalloonConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for (text, named) in [
            ("size=1000", "multiple of the page size"),
            ("size=128M", "leaves nothing"),
            ("stats=0", "1 to 86400"),
            ("stats=86401", "1 to 86400"),
        ] {
            let balloon: BalloonConfig = text.parse().unwrap();
            let error = balloon.check(MEMORY).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        let balloon: BalloonConfig = "size=16T".parse().unwrap();
        let error = balloon.check(ByteSize(32 << 40)).unwrap_err();
        assert!(error.to_string().contains("less than 16T"), "{error}");
    }
}
