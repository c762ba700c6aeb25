//! Copies of a guest's disks in its snapshot: made while the guest rests, and put back in place of what was written later.
//!
//! Where the file system can, a copy shares the disk's data until one of the two is written (FICLONE), and is there at once. Else
//! it has to be read and written, for which only a guest rests that does not go on.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use devices::disk;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::SnapshotError;
use super::manifest::DiskRecord;

/// The user that takes the snapshot is who may read the disk.
const PRIVATE: u32 = 0o600;
/// A copy that is complete is not written any more.
const SEALED: u32 = 0o400;
/// Bytes that are copied at a time.
const BLOCK: u64 = 1 << 20;

/// Makes a copy of each disk of `records` where `place` has its name, and notes it. To be called while the guest rests.
/// [`seal`] brings it to the disk.
///
/// # Errors
/// A disk is no file; or its data cannot be shared, and the guest `goes_on`.
pub fn make(
    records: &mut [DiskRecord],
    place: impl Fn(&str) -> PathBuf,
    goes_on: bool,
) -> Result<(), SnapshotError> {
    for (number, record) in records.iter_mut().enumerate() {
        let name = format!("disk-{number}");
        copy(&record.path, &place(&name), !goes_on).map_err(|source| SnapshotError::CopyDisk {
            path: record.path.clone(),
            source,
            remedy: match goes_on {
                true => "; keep both on one btrfs or XFS, or end the guest with its snapshot (--stop)",
                false => "",
            },
        })?;
        record.copy = Some(name);
    }
    Ok(())
}

/// Copies a file to one that is not there yet. Unless it is to be copied `anyhow`, the two share their data.
///
/// # Errors
/// They cannot, or the host does not do it.
pub fn copy(from: &Path, to: &Path, anyhow: bool) -> io::Result<()> {
    let from = File::open(from)?;
    if !from.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is no regular file",
        ));
    }
    let mut options = OpenOptions::new();
    let to = options.write(true).create_new(true).mode(PRIVATE).open(to)?;
    match disk::share_data(&from, &to) {
        Err(_) if anyhow => copy_data(&from, &to),
        result => result,
    }
}

/// Has the copies, of which `place` knows where they are, on the disk, and takes the right to write them away.
///
/// # Errors
/// The disk is full or fails.
pub fn seal(records: &[DiskRecord], place: impl Fn(&str) -> PathBuf) -> io::Result<()> {
    for name in records.iter().filter_map(|record| record.copy.as_deref()) {
        let copy = File::open(place(name))?;
        copy.set_permissions(Permissions::from_mode(SEALED))?;
        copy.sync_all()?;
    }
    Ok(())
}

/// A disk that is to be what it was.
pub struct Return<'a> {
    record: &'a DiskRecord,
    copy_path: PathBuf,
    copy: File,
    disk: File,
}

impl<'a> Return<'a> {
    /// Opens the disk of `record`, to be [put back](Self::put_back), if it has changed; makes it if it is gone. Nobody may have it
    /// open, or, if it is `ours`, the guest of this process, which rests.
    ///
    /// # Errors
    /// There is no copy in `directory`, the disk is in use, or the host does not open them.
    pub fn of(record: &'a DiskRecord, directory: &Path, ours: bool) -> Result<Option<Self>, SnapshotError> {
        if record.check().is_ok() {
            return Ok(None);
        }
        let Some(name) = &record.copy else {
            return Err(SnapshotError::NoCopy(record.path.clone()));
        };
        let copy_path = directory.join(name);
        let failed = |source| SnapshotError::PutBack {
            path: record.path.clone(),
            copy: copy_path.clone(),
            source,
        };
        let copy = File::open(&copy_path).map_err(failed)?;
        if copy.metadata().map_err(failed)?.len() != record.size {
            let short = format!("the copy does not have {} bytes", record.size);
            return Err(failed(io::Error::other(short)));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(!ours).mode(PRIVATE);
        let file = options.open(&record.path).map_err(failed)?;
        if ours {
            if !is_open_here(&file).map_err(failed)? {
                return Err(SnapshotError::OtherDisk(record.path.clone()));
            }
        } else {
            disk::lock_alone(&file, &record.path)?;
        }
        Ok(Some(Self {
            record,
            copy_path,
            copy,
            disk: file,
        }))
    }

    /// Gives the disk the content of its copy, and the time at which that was written: it is as the snapshot knows it.
    ///
    /// # Errors
    /// The host does not do it; the disk may be anything then.
    pub fn put_back(self) -> Result<(), SnapshotError> {
        self.fill().map_err(|source| SnapshotError::PutBack {
            path: self.record.path.clone(),
            copy: self.copy_path,
            source,
        })
    }

    fn fill(&self) -> io::Result<()> {
        self.disk.set_len(self.record.size)?;
        disk::share_data(&self.copy, &self.disk).or_else(|_| copy_data(&self.copy, &self.disk))?;
        self.disk.sync_all()?;
        if let Some((seconds, nanoseconds)) = self.record.modified {
            let since = Duration::new(
                seconds.try_into().unwrap_or(0),
                nanoseconds.try_into().unwrap_or(0),
            );
            self.disk.set_modified(UNIX_EPOCH + since)?;
        }
        Ok(())
    }
}

/// Whether this process has the file open otherwise: the name may be another file's by now.
fn is_open_here(file: &File) -> io::Result<bool> {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let wanted = id(file.metadata()?);
    let open = fs::read_dir("/proc/self/fd")?.flatten();
    let same = open.filter(|entry| fs::metadata(entry.path()).is_ok_and(|found| id(found) == wanted));
    // This one is open too.
    Ok(same.count() > 1)
}

/// Makes `to` what `from` is by reading and writing; what is a hole there is one here.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    to.set_len(0)?;
    to.set_len(len)?;
    let mut buffer = vec![0; BLOCK as usize];
    let mut at = 0;
    while let Some(data) = seek(from, at, Whence::SeekData)?.filter(|data| *data < len) {
        let end = seek(from, data, Whence::SeekHole)?.unwrap_or(len).min(len);
        at = data;
        while at < end {
            let block = &mut buffer[..(end - at).min(BLOCK) as usize];
            from.read_exact_at(block, at)?;
            to.write_all_at(block, at)?;
            at += block.len() as u64;
        }
    }
    Ok(())
}

/// Where what is sought begins at or behind `offset`, if there is any.
fn seek(file: &File, offset: u64, what: Whence) -> io::Result<Option<u64>> {
    match lseek(file, offset.try_into().map_err(io::Error::other)?, what) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const SIZE: u64 = 8 << 20;

    /// A disk with data between holes, and what is known of it, with a copy in the same directory.
    fn copied() -> (TempDir, DiskRecord) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let disk = File::create(&path).unwrap();
        disk.set_len(SIZE).unwrap();
        for at in [0, 3 << 20, SIZE - 4096] {
            disk.write_all_at(&[7; 4096], at).unwrap();
        }
        let mut record = DiskRecord::of(path).unwrap();
        let place = |name: &str| directory.path().join(name);
        make(std::slice::from_mut(&mut record), place, false).unwrap();
        seal(std::slice::from_ref(&record), place).unwrap();
        (directory, record)
    }

    fn put_back(record: &DiskRecord, directory: &TempDir, ours: bool) -> Result<(), SnapshotError> {
        let changed = Return::of(record, directory.path(), ours)?;
        changed.map_or(Ok(()), Return::put_back)
    }

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let (directory, record) = copied();
        let copy = directory.path().join(record.copy.as_ref().unwrap());
        assert!(fs::read(&copy).unwrap() == fs::read(&record.path).unwrap());
        let metadata = copy.metadata().unwrap();
        assert!(metadata.blocks() * 512 < SIZE / 2, "{} blocks", metadata.blocks());
        assert_eq!(metadata.mode() & 0o777, SEALED);
    }

    #[test]
    fn a_disk_that_was_written_shortened_or_removed_is_put_back() {
        let (directory, record) = copied();
        let before = fs::read(&record.path).unwrap();
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(&record.path, vec![9; SIZE as usize]).unwrap(),
            &|| fs::write(&record.path, "short").unwrap(),
            &|| fs::write(&record.path, vec![9; SIZE as usize + 512]).unwrap(),
            &|| fs::remove_file(&record.path).unwrap(),
        ];
        for change in changes {
            change();
            assert!(record.check().is_err());
            put_back(&record, &directory, false).unwrap();
            assert!(fs::read(&record.path).unwrap() == before);
            record.check().unwrap();
        }
    }

    #[test]
    fn a_disk_is_not_put_back_under_another_guest_or_in_place_of_another_file() {
        let (directory, record) = copied();
        let other = vec![9; SIZE as usize];
        fs::write(&record.path, &other).unwrap();
        // Nobody here has it open.
        let error = put_back(&record, &directory, true).unwrap_err();
        assert!(matches!(error, SnapshotError::OtherDisk(_)), "{error}");
        let guest = File::open(&record.path).unwrap();
        guest.lock().unwrap();
        let error = put_back(&record, &directory, false).unwrap_err();
        assert!(matches!(error, SnapshotError::DiskInUse(_)), "{error}");
        assert!(fs::read(&record.path).unwrap() == other);
        put_back(&record, &directory, true).unwrap();
        record.check().unwrap();
    }

    #[test]
    fn a_copy_that_is_missing_or_cut_short_is_not_used() {
        let (directory, mut record) = copied();
        let other = vec![9; SIZE as usize];
        fs::write(&record.path, &other).unwrap();
        let copy = directory.path().join(record.copy.as_ref().unwrap());
        fs::remove_file(&copy).unwrap();
        fs::write(&copy, "short").unwrap();
        for _ in 0..2 {
            let error = put_back(&record, &directory, false).unwrap_err();
            assert!(matches!(error, SnapshotError::PutBack { .. }), "{error}");
            let _ = fs::remove_file(&copy);
        }
        record.copy = None;
        let error = put_back(&record, &directory, false).unwrap_err();
        assert!(matches!(error, SnapshotError::NoCopy(_)), "{error}");
        assert!(fs::read(&record.path).unwrap() == other);
    }
}
