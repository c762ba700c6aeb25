//! Private copies of disk images by reflink, on the file systems that have them, made for the test; needs root.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use devices::disk::{self, Image, ImageOptions, ReflinkError};
use posada_tests::file_system::mount;
use posada_tests::guest::TempFile;

const MIB: u64 = 1 << 20;

/// Makes an image, a copy and an overlay's copy there.
fn copies_are_private(kind: &str) {
    let (medium, place) = (TempFile::new("medium", ""), TempFile::new("here", ""));
    let place = place.directory();
    if !mount(kind, &medium, place) {
        return eprintln!("not tested: there is no {kind} here");
    }
    let [image, copy, overlay, second] = ["image", "copy", "overlay", "second"].map(|name| place.join(name));
    fs::write(&image, vec![5; 64 * MIB as usize]).unwrap();
    disk::reflink(&image, &copy).unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[6; 4096], MIB).unwrap();
    let copied = fs::read(&copy).unwrap();
    assert!(copied.iter().all(|byte| *byte == 5) && copied.len() as u64 == 64 * MIB);
    let (a, b) = (image.metadata().unwrap(), copy.metadata().unwrap());
    assert_eq!(a.mode(), b.mode());
    assert!(matches!(
        disk::reflink(&image, &copy),
        Err(ReflinkError::Exists { .. })
    ));
    drop(file);

    let disk = Image::open_over(&image, &overlay, ImageOptions::default()).unwrap();
    disk.file().write_all_at(&[7; 512], disk.position(512)).unwrap();
    disk.wrote(512, 512);
    disk.reflink(&second).unwrap();
    let clone = Image::open_over(&image, &second, ImageOptions::default()).unwrap();
    let own = clone.find(512, 512);
    assert_eq!(own, disk.find(512, 512));
    let mut bytes = [0; 512];
    clone.file().read_exact_at(&mut bytes, own.offset).unwrap();
    assert_eq!(bytes, [7; 512]);
    clone.wrote(0, 512);
    assert_ne!(clone.find(0, 512), disk.find(0, 512));

    let elsewhere = TempFile::new("elsewhere", "");
    let copy = elsewhere.directory().join("copy");
    let error = disk::reflink(&image, &copy).unwrap_err();
    assert!(matches!(error, ReflinkError::Unsupported { .. }), "{error}");
    assert!(!copy.exists());
}

#[test]
fn as_root_on_btrfs_a_copy_is_private() {
    copies_are_private("btrfs");
}

#[test]
fn as_root_on_xfs_a_copy_is_private() {
    copies_are_private("xfs");
}
