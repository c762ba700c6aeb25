//! Where the guest that runs when no kernel is named was built.

use std::env;
use std::ffi::OsString;
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
/// `~/.cache`. `None` where none of these is set: what lies in the working directory is not a guest to run unasked.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    path("POSADA_CACHE").or_else(|| {
        let user_cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        Some(user_cache?.join("posada"))
    })
}

/// The tiny guest, if it has been built.
pub fn tiny() -> Result<GuestImage, Error> {
    let directory = cache(|name| env::var_os(name))
        .ok_or(Error::NoCache)?
        .join("tiny");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with(variables: &[(&str, &str)]) -> Option<PathBuf> {
        cache(|name| {
            let set = variables.iter().find(|(variable, _)| *variable == name);
            set.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_the_most_special_variable_says() {
        let all = [("POSADA_CACHE", "/p"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(cache_with(&all), Some("/p".into()));
        assert_eq!(cache_with(&all[1..]), Some("/x/posada".into()));
        assert_eq!(cache_with(&all[2..]), Some("/h/.cache/posada".into()));
    }

    #[test]
    fn without_any_variable_there_is_no_cache() {
        assert_eq!(cache_with(&[]), None);
        assert_eq!(cache_with(&[("POSADA_CACHE", ""), ("HOME", "")]), None);
    }
}
