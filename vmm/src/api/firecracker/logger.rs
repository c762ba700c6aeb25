//! `/logger`: where posada's messages go, and which.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// What a user wants of the log; what is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// A file or a named pipe, instead of standard error.
    pub log_path: Option<PathBuf>,
    /// From which level on.
    #[serde(default, deserialize_with = "level")]
    pub level: Option<LevelFilter>,
    /// Each message with its level.
    pub show_level: Option<bool>,
    /// Each message with where in posada it comes from.
    pub show_log_origin: Option<bool>,
    /// Only messages from there.
    pub module: Option<String>,
}

/// Has the log be what a user wants.
pub type SetLog = dyn Fn(&Logger) -> Result<(), String> + Send + Sync;

/// The level of this name.
///
/// # Errors
/// There is none.
pub fn level_of(name: &str) -> Result<LevelFilter, String> {
    match name.to_ascii_lowercase().as_str() {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!(
            "there is no level '{name}': the levels are Off, Error, Warning, Info, Debug and Trace"
        )),
    }
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LevelFilter>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| level_of(&name))
        .transpose()
        .map_err(serde::de::Error::custom)
}
