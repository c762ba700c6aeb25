//! Images that can and cannot be opened, and both engines on one.

use std::fs;
use std::os::unix::net::UnixListener;

use libc::iovec;
use vmm_sys_util::tempdir::TempDir;

use super::*;

fn file(directory: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = directory.as_path().join("disk.img");
    fs::write(&path, bytes).unwrap();
    path
}

fn refusal(path: &Path, options: ImageOptions) -> String {
    Image::open(path, options).err().unwrap().to_string()
}

#[test]
fn an_image_has_its_files_size() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, &[0; 1536]);
    let image = Image::open(&path, ImageOptions::default()).unwrap();
    assert_eq!(image.sectors(), 3);
    assert_eq!(image.blocks().logical, 512);
    assert!(!image.measure().unwrap());
    image.file().set_len(5 * 512 + 100).unwrap();
    assert!(image.measure().unwrap());
    assert_eq!(image.sectors(), 5);
}

#[test]
fn what_is_no_image_is_refused_with_its_kind() {
    let directory = TempDir::new().unwrap();
    let socket = directory.as_path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, named) in [
        (Path::new("/nonexistent/disk"), "cannot find"),
        (directory.as_path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&socket, "a pipe or a socket"),
    ] {
        let error = refusal(path, ImageOptions::default());
        assert!(
            error.contains(named) && error.contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn no_bytes_and_half_sectors_are_refused_unless_the_user_calls_no_bytes_raw() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, b"");
    assert!(refusal(&path, ImageOptions::default()).contains("is empty"));
    let raw = ImageOptions {
        raw: true,
        ..Default::default()
    };
    assert_eq!(Image::open(&path, raw).unwrap().sectors(), 0);
    let overlay = directory.as_path().join("overlay");
    let refused = Image::open_over(&path, &overlay, raw).map(drop).unwrap_err();
    assert!(
        refused.to_string().contains("is empty") && !overlay.exists(),
        "{refused}"
    );
    let path = file(&directory, &[0; 1000]);
    let error = refusal(&path, ImageOptions::default());
    assert!(
        error.contains("1000 bytes") && error.contains("multiple of 512"),
        "{error}"
    );
}

#[test]
fn other_formats_are_named_unless_the_user_calls_them_raw() {
    let directory = TempDir::new().unwrap();
    for (magic, named) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (b"vhdxfile", "VHDX"),
        (b"KDMV", "VMDK"),
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(4096, 0);
        let path = file(&directory, &bytes);
        let error = refusal(&path, ImageOptions::default());
        assert!(error.contains(named) && error.contains("format=raw"), "{error}");
        let raw = ImageOptions {
            raw: true,
            ..Default::default()
        };
        Image::open(&path, raw).unwrap();
    }
}

#[test]
fn direct_io_has_larger_blocks_or_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, &[0; 8192]);
    let direct = ImageOptions {
        direct: true,
        ..Default::default()
    };
    match Image::open(&path, direct) {
        Ok(image) => {
            let blocks = image.blocks();
            assert!(blocks.logical.is_power_of_two() && blocks.logical >= 512);
            assert!(blocks.physical >= blocks.logical);
        }
        Err(error) => assert!(matches!(error, DiskError::NoDirect { .. }), "{error}"),
    }
}

/// Does it, and waits for it if it is under way.
fn perform(engine: &mut Engine, operation: Operation<'_>) -> io::Result<usize> {
    // SAFETY: the tests' buffers live until this returns, and no reference is used meanwhile.
    if let Some(result) = unsafe { engine.begin(7, operation) } {
        return result;
    }
    engine.submit().unwrap();
    loop {
        if let Some((tag, result)) = engine.completed() {
            assert_eq!(tag, 7);
            return result;
        }
        engine.wait().unwrap();
    }
}

const FLUSH: Operation<'_> = Operation::Flush { little: true };

fn buffer(bytes: &mut [u8]) -> [iovec; 1] {
    [iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }]
}

#[test]
fn both_engines_read_write_flush_and_allocate() {
    for kind in [EngineKind::Sync, EngineKind::Uring] {
        let directory = TempDir::new().unwrap();
        let path = file(&directory, &[1; 16384]);
        let image = Image::open(&path, ImageOptions::default()).unwrap();
        let mut engine = Engine::new(kind, &image, 4).unwrap();
        for durable in [false, true] {
            let mut data = [2; 4096];
            let write = Operation::Write {
                buffers: &buffer(&mut data),
                offset: 4096,
                durable,
            };
            assert_eq!(perform(&mut engine, write).unwrap(), 4096);
        }
        assert_eq!(perform(&mut engine, FLUSH).unwrap(), 0);
        let hole = Operation::Allocate {
            mode: libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
            offset: 8192,
            len: 4096,
        };
        assert_eq!(perform(&mut engine, hole).unwrap(), 0);
        let mut all = [9; 16384];
        let read = Operation::Read {
            layer: Layer::Top,
            buffers: &buffer(&mut all),
            offset: 0,
        };
        assert_eq!(perform(&mut engine, read).unwrap(), 16384);
        let expected = [[1; 4096], [2; 4096], [0; 4096], [1; 4096]].concat();
        assert_eq!(all[..], expected[..]);
    }
}

#[test]
fn both_engines_tell_of_errors_and_of_the_end() {
    for kind in [EngineKind::Sync, EngineKind::Uring] {
        let directory = TempDir::new().unwrap();
        let path = file(&directory, &[1; 4096]);
        let readonly = ImageOptions {
            readonly: true,
            ..Default::default()
        };
        let image = Image::open(&path, readonly).unwrap();
        let mut engine = Engine::new(kind, &image, 4).unwrap();
        let mut data = [0; 512];
        let write = Operation::Write {
            buffers: &buffer(&mut data),
            offset: 0,
            durable: false,
        };
        let error = perform(&mut engine, write).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let beyond = Operation::Read {
            layer: Layer::Top,
            buffers: &buffer(&mut data),
            offset: 4096,
        };
        assert_eq!(perform(&mut engine, beyond).unwrap(), 0);
    }
}

#[test]
fn an_engine_that_goes_waits_for_what_it_has_begun() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, &[1; 4096]);
    let image = Image::open(&path, ImageOptions::default()).unwrap();
    let mut engine = Engine::new(EngineKind::Uring, &image, 4).unwrap();
    let mut data = [2; 4096];
    let write = Operation::Write {
        buffers: &buffer(&mut data),
        offset: 0,
        durable: true,
    };
    // SAFETY: `data` lives until the engine has been dropped.
    let begun = unsafe { engine.begin(0, write) };
    assert!(begun.is_none(), "a durable write is never done at once");
    drop(engine);
    assert_eq!(fs::read(&path).unwrap(), [2; 4096]);
}

/// How long the host takes for it shows too late, when it already has the thread that serves other devices.
#[test]
fn a_flush_of_much_is_never_waited_for_however_quick_the_last_ones_were() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, &[1; 4096]);
    let image = Image::open(&path, ImageOptions::default()).unwrap();
    let mut engine = Engine::new(EngineKind::Uring, &image, 4).unwrap();
    for _ in 0..4 {
        assert_eq!(perform(&mut engine, FLUSH).unwrap(), 0);
        let much = Operation::Flush { little: false };
        // SAFETY: a flush has no buffers.
        assert!(unsafe { engine.begin(0, much) }.is_none());
        engine.submit().unwrap();
        while engine.completed().is_none() {
            engine.wait().unwrap();
        }
    }
}

#[test]
fn an_image_is_free_as_soon_as_its_engine_is_gone() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, &[1; 4096]);
    for kind in [EngineKind::Sync, EngineKind::Uring].repeat(20) {
        let image = Image::open(&path, ImageOptions::default()).expect("nobody has it any more");
        let mut engine = Engine::new(kind, &image, 4).unwrap();
        assert_eq!(perform(&mut engine, FLUSH).unwrap(), 0);
    }
}
