//! Where `make guest` and `make test` put the guests that tests boot.

use std::env;
use std::path::PathBuf;

/// `$POSADA_CACHE`, else `posada` in `$XDG_CACHE_HOME` or `~/.cache`: where posada itself looks.
pub(crate) fn cache() -> PathBuf {
    let from_env = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user_cache =
        || from_env("XDG_CACHE_HOME").unwrap_or_else(|| from_env("HOME").unwrap_or_default().join(".cache"));
    from_env("POSADA_CACHE").unwrap_or_else(|| user_cache().join("posada"))
}

fn file(name: &str) -> PathBuf {
    let path = cache().join(name);
    assert!(
        path.exists(),
        "there is no '{}': run 'make guest'",
        path.display()
    );
    path
}

/// The tiny guest's kernel, an ELF file.
///
/// # Panics
/// If it has not been built; likewise those below.
pub fn tiny_vmlinux() -> PathBuf {
    file("tiny/vmlinux")
}

/// The tiny guest's kernel as a bzImage.
pub fn tiny_bzimage() -> PathBuf {
    file("tiny/bzImage")
}

/// The tiny guest's initramfs.
pub fn tiny_initramfs() -> PathBuf {
    file("tiny/initramfs.cpio")
}

/// A cpio archive with the program that checks exceptions and CPU state from inside the guest.
pub fn checks() -> PathBuf {
    file("checks/checks.cpio")
}

/// A cpio archive with the program that uses a guest's disk, network and socket device at once.
pub fn worker() -> PathBuf {
    file("worker/worker.cpio")
}

/// The guest without an operating system, an ELF file.
pub fn bare() -> PathBuf {
    file("bare/bare-guest")
}
