use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::{TempDir, tempdir};

use super::*;

fn unpack_into(directory: &Path, archive: impl Read) -> Result<(), CopyError> {
    unpack(archive, File::open(directory).unwrap().as_fd())
}

fn packed(path: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    assert!(!pack(path, &mut archive).unwrap().is_any());
    archive
}

/// What there is, with modes, times, links and contents.
fn described(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let what = if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else if found.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{:?}", fs::read(&path).unwrap())
        };
        all.push(format!("{name}: {:o} {} {what}", found.mode(), found.mtime()));
    }
    all.sort();
    all
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let from = tempdir().unwrap();
    let root = from.path().join("tree");
    let deep = root.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(deep.join("file"), "x".repeat(1000)).unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::set_permissions(root.join("script"), Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o750)).unwrap();
    symlink("script", root.join("link")).unwrap();
    symlink(format!("/{}", "far/".repeat(60)), root.join("dangling")).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::open(root.join("empty")).unwrap().set_modified(old).unwrap();

    let to = tempdir().unwrap();
    unpack_into(to.path(), &packed(&root)[..]).unwrap();
    assert_eq!(described(&to.path().join(ROOT)), described(&root));
}

#[test]
fn a_link_that_is_named_is_followed_and_what_is_no_file_is_left_out() {
    let from = tempdir().unwrap();
    fs::create_dir(from.path().join("tree")).unwrap();
    let socket = from.path().join("tree/socket");
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    symlink("tree", from.path().join("link")).unwrap();
    let mut archive = Vec::new();
    let left_out = pack(&from.path().join("link"), &mut archive).unwrap();
    assert!(
        left_out.to_string().contains("link/socket' was left out"),
        "{left_out}"
    );
    let to = tempdir().unwrap();
    unpack_into(to.path(), &archive[..]).unwrap();
    assert!(fs::symlink_metadata(to.path().join(ROOT)).unwrap().is_dir());
    assert!(pack(&socket, &mut archive).is_err());
}

/// An archive that no [`pack`] makes.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn with(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        Builder::new(&mut self.0).append(&header, content).unwrap();
        // Of each builder the two blocks that end an archive.
        self.0.truncate(self.0.len() - 1024);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    fn file(self, name: &str) -> Self {
        self.with(EntryType::Regular, name, "", b"from the guest")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.with(EntryType::Symlink, name, target, b"")
    }
}

/// A directory to unpack into, and beside it one that nothing may come to.
fn beside() -> (TempDir, std::path::PathBuf, std::path::PathBuf) {
    let home = tempdir().unwrap();
    let (into, other) = (home.path().join("into"), home.path().join("other"));
    fs::create_dir(&into).unwrap();
    fs::create_dir(&other).unwrap();
    (home, into, other)
}

#[test]
fn nothing_is_made_outside() {
    let (home, into, other) = beside();
    let absolute = other.join("file").display().to_string();
    let outside = other.display().to_string();
    for forged in [
        Forged::default().file("../other/file"),
        Forged::default().file("copy/../../other/file"),
        Forged::default().file(&absolute),
        Forged::default().file("file"),
        Forged::default().file(""),
        Forged::default().file("."),
        Forged::default().file("copy/.."),
        Forged::default().link("copy", "../other").file("copy/file"),
        Forged::default().link("copy/a", &outside).file("copy/a/file"),
        Forged::default()
            .link("copy/file", &format!("{outside}/file"))
            .file("copy/file"),
        Forged::default()
            .link("copy/a", &outside)
            .with(EntryType::Directory, "copy/a", "", b""),
        Forged::default().with(EntryType::Link, "copy/a", "/etc/passwd", b""),
        Forged::default().with(EntryType::Char, "copy/a", "", b""),
        Forged::default().with(EntryType::Block, "copy/a", "", b""),
        Forged::default().with(EntryType::Fifo, "copy/a", "", b""),
        Forged::default().with(EntryType::XHeader, "copy/a", "", b"22 path=../other/file\n"),
        Forged::default().with(EntryType::GNUSparse, "copy/a", "", b""),
        Forged::default()
            .with(EntryType::GNULongName, "x", "", b"../other/file\0")
            .file("copy"),
        Forged::default().with(EntryType::GNULongName, "x", "", &[b'x'; 5000]),
        Forged::default().file("copy/a").file("copy/a"),
    ] {
        let archive = forged.end();
        let name = String::from_utf8_lossy(&archive[..100]).into_owned();
        assert!(unpack_into(&into, &archive[..]).is_err(), "{name}");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0, "{name}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "{name}");
        fs::remove_dir_all(&into).unwrap();
        fs::create_dir(&into).unwrap();
    }
}

#[test]
fn a_tree_that_is_too_deep_to_be_removed_again_is_refused() {
    for (levels, fits) in [
        (MAX_DEPTH, true),
        (MAX_DEPTH + 1, false),
        (MAX_PATH / 2 - 2, false),
    ] {
        let (_home, into, _) = beside();
        let name = format!("copy{}", "/d".repeat(levels - 1));
        let forged = Forged::default().with(EntryType::GNULongName, "x", "", name.as_bytes());
        let unpacked = unpack_into(&into, &forged.file("copy").end()[..]);
        assert_eq!(unpacked.is_ok(), fits, "{levels} levels: {unpacked:?}");
        assert_eq!(into.join(ROOT).exists(), fits, "{levels} levels");
    }
}

#[test]
fn modes_that_mean_more_than_permissions_are_not_taken() {
    let (_home, into, _) = beside();
    let mut header = Header::new_gnu();
    header.set_mode(0o7755);
    header.set_mtime(0);
    header.set_size(0);
    header.as_old_mut().name[..4].copy_from_slice(b"copy");
    header.set_cksum();
    let archive = [&header.as_bytes()[..], &[0; 1024]].concat();
    unpack_into(&into, &archive[..]).unwrap();
    let mode = fs::metadata(into.join(ROOT)).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn an_archive_that_is_cut_off_is_an_error() {
    let from = tempdir().unwrap();
    fs::write(from.path().join("file"), [1; 3000]).unwrap();
    let archive = packed(&from.path().join("file"));
    for len in [0, 1, 511, 513, 600, 3000, 3584, 4096, archive.len() - 1] {
        let (_home, into, _) = beside();
        assert!(unpack_into(&into, &archive[..len]).is_err(), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_archive_is_nothing_is_made_outside(bytes: Vec<u8>, at in 0_usize..2000, name in "[a-z./]{1,40}") {
        let (home, into, other) = beside();
        let mut forged = Forged::default().file("copy/a").link("copy/b", "..").file(&name);
        let len = forged.0.len();
        for (n, byte) in bytes.iter().enumerate() {
            forged.0[(at + n * 7) % len] ^= byte;
        }
        let _ = unpack_into(&into, &forged.0[..]);
        prop_assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        prop_assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }
}
