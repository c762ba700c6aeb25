//! Memory that changes are put into: what Firecracker's clients make of a full memory file and the diffs that follow it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ranges::{PAGE_SIZE, PageRanges};
use super::{disk_copies, memory_file};

/// Pages that are copied at once.
const STEP: u64 = 256;

/// Makes `merged` of the memory file `before` and those `pages` of the file `changes`, a page that is a hole there being zeros. If there is
/// no `before`, it has the pages and nothing else. It is on the disk when this returns.
///
/// # Errors
/// There is a `before` of another guest's size, or the disk is full or fails.
pub fn merge(before: &Path, changes: &Path, pages: &PageRanges, merged: &Path) -> io::Result<()> {
    let changes = File::open(changes)?;
    let bytes = changes.metadata()?.len();
    let merged = match before.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => memory_file::create(merged, bytes)?,
        Err(error) => return Err(error),
        Ok(found) if found.len() != bytes => {
            let why = format!(
                "'{}' has {} bytes where the guest has {bytes}: it is not this guest's memory",
                before.display(),
                found.len()
            );
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        Ok(_) => {
            disk_copies::copy(before, merged, true)?;
            OpenOptions::new().write(true).open(merged)?
        }
    };
    let mut buffer = vec![0; (STEP * PAGE_SIZE) as usize];
    for run in pages.iter() {
        let end = (run.end * PAGE_SIZE).min(bytes);
        for at in (run.start * PAGE_SIZE..end).step_by(buffer.len()) {
            let piece = &mut buffer[..(end - at).min(STEP * PAGE_SIZE) as usize];
            changes.read_exact_at(piece, at)?;
            merged.write_all_at(piece, at)?;
        }
    }
    memory_file::seal(&merged)?;
    merged.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::snapshot::testing::Directory;

    const PAGE: usize = PAGE_SIZE as usize;

    #[test]
    fn changed_pages_are_put_in_zeros_too_and_the_rest_stays() {
        let directory = Directory::new("merge");
        let [before, changes, first, second] =
            ["before", "changes", "first", "second"].map(|name| directory.file(name));
        let pages = |values: [u8; 4]| values.map(|value| [value; PAGE]).concat();
        fs::write(&changes, pages([0, 2, 0, 2])).unwrap();
        let changed = PageRanges::try_from(vec![(0, 2), (3, 1)]).unwrap();
        merge(&before, &changes, &changed, &first).unwrap();
        assert!(fs::read(&first).unwrap() == pages([0, 2, 0, 2]));

        fs::write(&before, pages([1; 4])).unwrap();
        merge(&before, &changes, &changed, &second).unwrap();
        assert!(fs::read(&second).unwrap() == pages([0, 2, 1, 2]));
        assert!(fs::read(&before).unwrap() == pages([1; 4]));
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let directory = Directory::new("merge-size");
        let [before, changes, merged] = ["before", "changes", "merged"].map(|name| directory.file(name));
        fs::write(&before, [1; PAGE]).unwrap();
        fs::write(&changes, [2; 2 * PAGE]).unwrap();
        let error = merge(&before, &changes, &PageRanges::all(1), &merged).unwrap_err();
        assert!(error.to_string().contains("4096 bytes"), "{error}");
        assert!(!merged.exists());
    }
}
