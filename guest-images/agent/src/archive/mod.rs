//! A file or a tree of them as a stream: a tar archive of regular files, directories and symbolic links.
//!
//! All that is in it is called `copy`, or is in that. A directory comes after what is in it, so that nothing needs to be remembered for
//! its mode and its time. Modes are permissions alone, times whole seconds, owners those who copy.

mod error;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

pub use error::CopyError;
pub use pack::{LeftOut, pack};
pub use unpack::unpack;

pub(crate) use error::cannot;

/// What is copied is called so on its way.
pub const ROOT: &str = "copy";
/// The longest path that Linux takes, in bytes (PATH_MAX in linux/limits.h, without its NUL).
const MAX_PATH: usize = 4095;
/// How many names a path may have. Whoever removes or merges a tree has files open for each of its levels.
const MAX_DEPTH: usize = 200;
/// What a header has room for in a name (POSIX.1-2017, pax, "ustar Interchange Format").
const MAX_SHORT: usize = 100;
/// The name of an entry that carries the name of the next one (GNU tar's manual, "Basic Tar Format").
const LONG_LINK: &[u8] = b"././@LongLink";
/// Permissions. Set-user-ID, set-group-ID and sticky bits are not copied: they mean something else where other users are.
const PERMISSIONS: u32 = 0o777;
