//! What of a snapshot's configuration is another one for a machine that is made from it: files and networks of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{ConfigError, DiskConfig, VmConfig, WordError, words};

/// What is different for one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Overrides {
    /// Another image for the disk with this id, or this number counted from 0, and its overlay if it is to have one; as
    /// often as needed
    #[arg(long = "disk", value_name = "ID=PATH[,overlay=FILE]")]
    pub disks: Vec<Replacement>,

    /// Another tap for the network on this tap, or of this number counted from 0; as often as needed
    #[arg(long = "net", value_name = "TAP=TAP")]
    pub nets: Vec<Replacement>,

    /// Another Unix socket for streams to and from the guest
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<PathBuf>,
}

/// `WHICH=NEW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    which: String,
    new: String,
}

impl FromStr for Replacement {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((which, new)) if !which.is_empty() && !new.is_empty() => Ok(Self {
                which: which.to_owned(),
                new: new.to_owned(),
            }),
            _ => Err(WordError::NoValue(text.trim_end_matches('=').to_owned())),
        }
    }
}

impl Replacement {
    /// The same for one of several: with its number in place of each `{}`.
    pub fn numbered(&self, number: u32) -> Self {
        Self {
            which: self.which.clone(),
            new: self.new.replace("{}", &number.to_string()),
        }
    }
}

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.which, self.new)
    }
}

impl Overrides {
    /// The configuration with what is different in it.
    ///
    /// # Errors
    /// Something is replaced that there is not.
    pub fn apply(&self, mut config: VmConfig) -> Result<VmConfig, ConfigError> {
        for Replacement { which, new } in &self.disks {
            let index = disk_named(&config, which).ok_or_else(|| ConfigError::NothingToReplace {
                what: "disk",
                which: which.clone(),
            })?;
            replace(&mut config.disks[index], new).map_err(|source| ConfigError::Replacement {
                which: which.clone(),
                source,
            })?;
        }
        for Replacement { which, new } in &self.nets {
            let taps = config.nets.iter().map(|net| net.tap.as_deref());
            let index = position(taps, which)
                .filter(|index| config.nets[*index].tap.is_some())
                .ok_or_else(|| ConfigError::NothingToReplace {
                    what: "network on a tap",
                    which: which.clone(),
                })?;
            config.nets[index].tap = Some(new.clone());
        }
        if let Some(path) = &self.vsock {
            let vsock = config
                .vsock
                .as_mut()
                .ok_or_else(|| ConfigError::NothingToReplace {
                    what: "vsock",
                    which: path.display().to_string(),
                })?;
            vsock.path = Some(path.clone());
        }
        Ok(config)
    }

    /// Whether the disk of this index is replaced.
    pub fn replaces_disk(&self, config: &VmConfig, index: usize) -> bool {
        let mut replaced = self.disks.iter();
        replaced.any(|disk| disk_named(config, &disk.which) == Some(index))
    }
}

/// Gives the disk the image and the overlay, or no overlay, that `new` names.
fn replace(disk: &mut DiskConfig, new: &str) -> Result<(), WordError> {
    let (path, words) = words::split(new, "the path of a disk image")?;
    (disk.path, disk.overlay) = (path.into(), None);
    for word in words {
        match word.key() {
            "overlay" => disk.overlay = Some(word.value()?),
            _ => return Err(word.unknown("overlay alone; all else is as it was")),
        }
    }
    Ok(())
}

fn disk_named(config: &VmConfig, which: &str) -> Option<usize> {
    position(config.disks.iter().map(|disk| disk.id.as_deref()), which)
}

/// The index of what is called `which`, or has that number.
fn position<'a>(mut names: impl ExactSizeIterator<Item = Option<&'a str>>, which: &str) -> Option<usize> {
    let count = names.len();
    names
        .position(|name| name == Some(which))
        .or_else(|| which.parse().ok().filter(|index| *index < count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        let text = "
            vsock = { path = 'v' }
            [[disk]]
            path = 'a.img'
            id = 'root'
            [[disk]]
            path = 'b.img'
            [[net]]
            tap = 'tap0'
            [[net]]
            user = true
        ";
        toml::from_str(text).unwrap()
    }

    fn overrides(disk: &str, net: &str) -> Overrides {
        let replacement = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Overrides {
            disks: replacement(disk).into_iter().collect(),
            nets: replacement(net).into_iter().collect(),
            vsock: None,
        }
    }

    #[test]
    fn disks_and_taps_are_replaced_by_name_or_number() {
        for (disk, index) in [("root=c.img", 0), ("0=c.img", 0), ("1=c.img", 1)] {
            let config = overrides(disk, "").apply(config()).unwrap();
            assert_eq!(config.disks[index].path, PathBuf::from("c.img"), "{disk}");
        }
        for net in ["tap0=tap9", "0=tap9"] {
            let config = overrides("", net).apply(config()).unwrap();
            assert_eq!(config.nets[0].tap.as_deref(), Some("tap9"), "{net}");
        }
    }

    #[test]
    fn a_disk_is_replaced_with_its_overlay() {
        let mut config = config();
        config.disks[0].overlay = Some("mine".into());
        for (disk, overlay) in [("0=c.img", None), ("root=c.img,overlay=o{}", Some("o{}"))] {
            let overrides = overrides(disk, "");
            let config = overrides.apply(config.clone()).unwrap();
            assert_eq!(config.disks[0].path, PathBuf::from("c.img"), "{disk}");
            assert_eq!(config.disks[0].overlay, overlay.map(PathBuf::from), "{disk}");
            assert_eq!(
                [0, 1].map(|index| overrides.replaces_disk(&config, index)),
                [true, false]
            );
        }
        let error = overrides("root=c.img,readonly", "").apply(config).unwrap_err();
        assert!(error.to_string().contains("'readonly'"), "{error}");
    }

    #[test]
    fn what_is_not_there_cannot_be_replaced() {
        for (disk, net, named) in [
            ("swap=c.img", "", "'swap'"),
            ("2=c.img", "", "'2'"),
            ("", "tap1=tap9", "'tap1'"),
            ("", "1=tap9", "'1'"),
        ] {
            let error = overrides(disk, net).apply(config()).unwrap_err().to_string();
            assert!(error.contains(named), "{disk}{net}: {error}");
        }
        for text in ["", "root", "root=", "=c.img"] {
            assert!(text.parse::<Replacement>().is_err(), "{text}");
        }
    }
}
