//! Sockets: the host has a program at one port, which takes calls and never reads, and refuses calls to the others.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};

use devices::virtio::VirtioDevice;
use devices::virtio::vsock::{SocketFile, Vsock};
use vmm_sys_util::tempdir::TempDir;

const GUEST_CID: u32 = 3;
const PORT: u32 = 1;

struct Host {
    device: Arc<Vsock>,
    _program: UnixListener,
    _name: SocketFile,
    _directory: TempDir,
}

/// One device for all inputs: each begins with a reset, which ends all streams.
pub fn device() -> Arc<dyn VirtioDevice> {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(host).device.clone()
}

fn host() -> Host {
    let directory = TempDir::new().expect("a directory for temporary files");
    let path = directory.as_path().join("socket");
    let program = directory.as_path().join(format!("socket_{PORT}"));
    let (device, name) = Vsock::bind(&path, GUEST_CID).expect("a name that is free");
    Host {
        device: Arc::new(device),
        _program: UnixListener::bind(program).expect("a name that is free"),
        _name: name,
        _directory: directory,
    }
}
