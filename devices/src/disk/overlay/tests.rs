//! Overlays that are made, found again and refused; and what of them is in the file when.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::disk::{DiskError, Image, ImageOptions};

const SECTORS: u64 = 64;

struct Files {
    directory: TempDir,
    base: PathBuf,
    overlay: PathBuf,
}

impl Files {
    fn new() -> Self {
        Self::sparse(SECTORS * 512)
    }

    fn sparse(size: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let [base, overlay] = ["base.img", "overlay"].map(|name| directory.as_path().join(name));
        File::create(&base).unwrap().set_len(size).unwrap();
        Self {
            directory,
            base,
            overlay,
        }
    }

    fn open(&self) -> Result<Image, DiskError> {
        Image::open_over(&self.base, &self.overlay, ImageOptions::default())
    }

    #[track_caller]
    fn expect_refusal(&self, named: &[&str]) {
        let error = self.open().err().expect("it is refused").to_string();
        for named in named {
            assert!(error.contains(named), "{error}");
        }
    }

    /// The bits that the file has of a block of the bitmap.
    fn bits(&self, block: u64) -> u32 {
        let mut bytes = [0; BLOCK];
        let at = BITMAP + block * BLOCK as u64;
        File::open(&self.overlay)
            .unwrap()
            .read_exact_at(&mut bytes, at)
            .unwrap();
        bytes.iter().map(|byte| byte.count_ones()).sum()
    }
}

fn is_there(image: &Image, sector: u64) -> bool {
    image.find(sector * 512, 512).layer == Layer::Top
}

#[test]
fn a_disk_begins_as_its_base_and_keeps_what_was_flushed() {
    let files = Files::new();
    let image = files.open().unwrap();
    assert_eq!(image.sectors(), SECTORS);
    let all = Place {
        layer: Layer::Base,
        offset: 0,
        len: SECTORS * 512,
    };
    assert_eq!(image.find(0, SECTORS * 512), all);
    image.wrote(3 * 512, 1024);
    let own = Place {
        layer: Layer::Top,
        offset: DATA_ALIGNMENT + 3 * 512 + 7,
        len: 1017,
    };
    assert_eq!(image.find(3 * 512 + 7, 4096), own);
    image.flush().unwrap();
    image.wrote(9 * 512, 512);
    drop(image);
    let image = files.open().unwrap();
    assert!(is_there(&image, 3) && is_there(&image, 4));
    assert!(!is_there(&image, 2) && !is_there(&image, 5) && !is_there(&image, 9));
}

#[test]
fn half_a_sector_is_not_there_before_the_other_half() {
    let files = Files::new();
    let image = files.open().unwrap();
    image.wrote(512, 700);
    assert!(is_there(&image, 1) && !is_there(&image, 2));
    image.wrote(512 + 700, 324);
    assert!(is_there(&image, 2) && !is_there(&image, 3));
}

#[test]
fn an_overlay_is_sparse_and_its_users_own() {
    use std::os::unix::fs::MetadataExt;
    let files = Files::sparse(8 << 30);
    let image = files.open().unwrap();
    let metadata = image.file().metadata().unwrap();
    assert!(metadata.len() > 8 << 30);
    assert!(metadata.blocks() * 512 < 64 << 10, "{} blocks", metadata.blocks());
    assert_eq!(metadata.mode() & 0o777, 0o600);
}

#[test]
fn bits_are_in_the_file_after_the_first_fdatasync_and_not_before() {
    let files = Files::new();
    let image = files.open().unwrap();
    let overlay = image.overlay().unwrap();
    let mut commit = Commit::default();
    overlay.wrote(0, 512);
    commit.begin(overlay);
    overlay.wrote(512, 512);
    assert_eq!(files.bits(0), 0);
    assert!(!commit.synced(overlay).unwrap());
    assert_eq!(
        files.bits(0),
        1,
        "the second sector's data may not be on the disk"
    );
    assert!(commit.synced(overlay).unwrap());
    commit.begin(overlay);
    assert!(!commit.synced(overlay).unwrap());
    assert_eq!(files.bits(0), 2);
    assert!(commit.synced(overlay).unwrap());
    commit.begin(overlay);
    assert!(commit.synced(overlay).unwrap(), "there is nothing more to write");
}

#[test]
fn a_flush_that_is_overtaken_by_anothers_takes_nothing_back() {
    let files = Files::new();
    let image = files.open().unwrap();
    let overlay = image.overlay().unwrap();
    let (mut slow, mut quick) = (Commit::default(), Commit::default());
    overlay.wrote(0, 512);
    slow.begin(overlay);
    overlay.wrote(512, 512);
    quick.begin(overlay);
    assert!(!quick.synced(overlay).unwrap());
    assert!(quick.synced(overlay).unwrap());
    assert!(!slow.synced(overlay).unwrap());
    assert_eq!(files.bits(0), 2);
    assert!(slow.synced(overlay).unwrap());
}

#[test]
fn a_flush_that_failed_is_made_up_for_by_the_next() {
    let files = Files::new();
    let image = files.open().unwrap();
    let overlay = image.overlay().unwrap();
    let mut commit = Commit::default();
    overlay.wrote(0, 512);
    commit.begin(overlay);
    commit.begin(overlay);
    assert!(!commit.synced(overlay).unwrap());
    commit.begin(overlay);
    assert!(
        !commit.synced(overlay).unwrap(),
        "what was written was not durable"
    );
    assert!(commit.synced(overlay).unwrap());
}

#[test]
fn more_than_fits_in_one_go_is_flushed_all_the_same() {
    const BLOCKS: u64 = 150;
    const PER_BLOCK: u64 = 16 << 20;
    let files = Files::sparse(BLOCKS * PER_BLOCK);
    let image = files.open().unwrap();
    for block in 0..BLOCKS {
        image.wrote(block * PER_BLOCK + 512, 512);
    }
    image.flush().unwrap();
    drop(image);
    assert!((0..BLOCKS).all(|block| files.bits(block) == 1));
    let image = files.open().unwrap();
    assert!((0..BLOCKS).all(|block| is_there(&image, block * PER_BLOCK / 512 + 1)));
}

#[test]
fn a_base_that_was_changed_is_refused() {
    let files = Files::new();
    drop(files.open().unwrap());
    let base = File::options().write(true).open(&files.base).unwrap();
    let modified = base.metadata().unwrap().modified().unwrap();
    base.set_len(SECTORS * 512 + 512).unwrap();
    files.expect_refusal(&["base.img' has changed", "it had 32768 bytes", "has 33280 bytes"]);
    base.set_len(SECTORS * 512).unwrap();
    base.set_modified(modified).unwrap();
    files.open().unwrap();
    base.set_modified(modified + Duration::from_nanos(1)).unwrap();
    files.expect_refusal(&["has changed"]);
}

#[test]
fn another_base_is_refused_but_not_one_that_was_moved() {
    let mut files = Files::new();
    drop(files.open().unwrap());
    let first = files.base.clone();
    let time = fs::metadata(&first).unwrap().modified().unwrap();
    files.base = files.directory.as_path().join("other.img");
    fs::copy(&first, &files.base).unwrap();
    File::options()
        .write(true)
        .open(&files.base)
        .unwrap()
        .set_modified(time)
        .unwrap();
    files.expect_refusal(&["belongs to", "base.img' and not to", "other.img'"]);
    fs::rename(&first, &files.base).unwrap();
    files.open().unwrap();
    File::options()
        .write(true)
        .open(&files.base)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    files.expect_refusal(&["belongs to"]);
}

#[test]
fn an_overlay_is_one_disks() {
    let files = Files::new();
    let _first = files.open().unwrap();
    files.expect_refusal(&["overlay' is in use by another disk of this guest", "of its own"]);
}

#[test]
fn a_base_is_shared_by_overlays_and_by_nobody_who_writes() {
    let mut files = Files::new();
    let _first = files.open().unwrap();
    files.overlay = files.directory.as_path().join("second");
    let _second = files.open().unwrap();
    let error = Image::open(&files.base, ImageOptions::default()).err().unwrap();
    assert!(error.to_string().contains(",overlay=FILE"), "{error}");
}

#[test]
fn what_is_no_overlay_is_left_alone() {
    let mut files = Files::new();
    for bytes in [&b""[..], b"a file of somebody's", &[0; 10_000]] {
        fs::write(&files.overlay, bytes).unwrap();
        files.expect_refusal(&["is no overlay"]);
        assert_eq!(fs::read(&files.overlay).unwrap(), bytes);
    }
    files.overlay = files.base.clone();
    files.expect_refusal(&["base.img'", "is no overlay"]);
    files.overlay = files.directory.as_path().to_owned();
    files.expect_refusal(&["is no overlay"]);
    files.overlay = files.directory.as_path().join("socket");
    let _listener = UnixListener::bind(&files.overlay).unwrap();
    files.expect_refusal(&["is no overlay"]);
    files.overlay = "/nonexistent/overlay".into();
    files.expect_refusal(&["cannot make the overlay", "No such file"]);
}

#[test]
fn a_damaged_overlay_is_refused() {
    let files = Files::new();
    drop(files.open().unwrap());
    let file = File::options()
        .read(true)
        .write(true)
        .open(&files.overlay)
        .unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 1).unwrap();
    files.expect_refusal(&["damaged (it is shorter or longer"]);
    file.set_len(len).unwrap();
    files.open().unwrap();
    file.write_all_at(&[2], 8).unwrap();
    files.expect_refusal(&["format version 2", "knows version 1"]);
    file.write_all_at(&[1], 8).unwrap();
    file.write_all_at(&[1], 5000).unwrap();
    files.expect_refusal(&["damaged (its header"]);
}

#[test]
fn an_overlay_is_not_taken_for_a_disk() {
    let files = Files::new();
    drop(files.open().unwrap());
    let error = Image::open(&files.overlay, ImageOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("is an overlay"), "{error}");
}
