//! A disk on a small image in memory.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use devices::disk::{EngineKind, Image, ImageOptions};
use devices::rate_limit::Rates;
use devices::virtio::VirtioDevice;
use devices::virtio::block::{Block, BlockOptions};
use vmm_sys_util::tempfile::TempFile;

const IMAGE_SIZE: u64 = 64 << 10;

/// A writable disk of two queues, whose engine has done a request when it has begun it: an input always does the same.
/// It is one disk for all inputs, since to let go of an image takes milliseconds; what is on it has no influence.
pub fn device() -> Arc<dyn VirtioDevice> {
    static DEVICE: OnceLock<Arc<Block>> = OnceLock::new();
    DEVICE.get_or_init(|| Arc::new(new())).clone()
}

fn new() -> Block {
    let file = TempFile::new_in(Path::new("/dev/shm")).expect("a file in memory");
    file.as_file().set_len(IMAGE_SIZE).expect("a file in memory");
    let path = format!("/proc/self/fd/{}", file.as_file().as_raw_fd());
    let image = Image::open(Path::new(&path), ImageOptions::default()).expect("it is an image");
    let options = BlockOptions {
        id: "fuzz".into(),
        engine: Some(EngineKind::Sync),
        queues: 2,
        limit: Rates::default(),
    };
    Block::new(image, options)
}
