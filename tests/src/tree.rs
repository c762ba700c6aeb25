//! Files for tests that copy them: a place for them, trees, and what there is in one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use vmm_sys_util::tempdir::TempDir;

/// Bytes of which no two pages are alike.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = move || {
        // The linear congruential generator of Numerical Recipes.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(len / 4 + 1).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// A directory for a test, and paths in it.
pub struct Place(TempDir);

impl Place {
    /// One in which nothing is.
    ///
    /// # Panics
    /// If there cannot be one.
    pub fn empty() -> Self {
        Self(TempDir::new().expect("a directory for temporary files"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    /// A path in it, for a command line.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What is in a directory of it, in order.
    ///
    /// # Panics
    /// If it is none.
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a plain name")
            })
            .collect();
        names.sort();
        names
    }
}

/// Makes a tree with all that is copied.
///
/// # Panics
/// If it cannot be made.
pub fn plant(root: &Path) {
    fs::create_dir_all(root.join("deep/empty")).expect("a directory");
    fs::write(root.join("deep/noise"), noise(5000)).expect("a file");
    fs::write(root.join("script"), "#!/bin/sh\nexit 9\n").expect("a file");
    fs::set_permissions(root.join("script"), Permissions::from_mode(0o751)).expect("a mode");
    fs::set_permissions(root.join("deep/empty"), Permissions::from_mode(0o710)).expect("a mode");
    symlink("deep/noise", root.join("link")).expect("a link");
    symlink("/nowhere", root.join("dangling")).expect("a link");
}

/// What there is: names, modes, times, links and contents.
///
/// # Panics
/// If it cannot be read.
pub fn described(root: &Path) -> Vec<String> {
    let (mut all, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).expect("it is there");
        let what = if found.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
            String::new()
        } else if found.is_symlink() {
            fs::read_link(&path).expect("a link").display().to_string()
        } else {
            format!("{:?}", fs::read(&path).expect("a file"))
        };
        let name = path.strip_prefix(root).expect("it is below").display();
        all.push(format!("{name} {:o} {} {what}", found.mode(), found.mtime()));
    }
    all.sort();
    all
}
