//! Where the guest that runs when no kernel is named was built.

use std::env;
use std::path::PathBuf;

use crate::error::Error;

/// A kernel and its initial RAM file system.
pub struct GuestImage {
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// The directory that `guest-images/build` fills: `$POSADA_CACHE`, else `posada` in `$XDG_CACHE_HOME` or
/// `~/.cache`.
fn cache() -> PathBuf {
    let from_env = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user_cache =
        || from_env("XDG_CACHE_HOME").unwrap_or_else(|| from_env("HOME").unwrap_or_default().join(".cache"));
    from_env("POSADA_CACHE").unwrap_or_else(|| user_cache().join("posada"))
}

/// The tiny guest, if it has been built.
pub fn tiny() -> Result<GuestImage, Error> {
    let directory = cache().join("tiny");
    let image = GuestImage {
        kernel: directory.join("vmlinux"),
        initrd: directory.join("initramfs.cpio"),
    };
    if image.kernel.exists() && image.initrd.exists() {
        Ok(image)
    } else {
        Err(Error::NoTinyGuest(directory))
    }
}
