//! `posada serve`: a guest that is described, started and looked after by the HTTP API, with Firecracker's flags.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tracing::level_filters::LevelFilter;
use vmm::api::{API_VERSION, Api, Instance, Logger, MAX_BODY, Metrics, level_of};
use vmm::config::VmConfig;
use vmm::console::{self, End};
use vmm::lifecycle::Stop;
use vmm::mmds::Metadata;

use super::api_socket::ApiSocket;
use super::guest::Hosted;
use super::output::print;
use super::{Failure, finish, log};

pub const EXAMPLES: &str = "\
Examples:
  posada serve --api-sock /tmp/web.sock --id web
  posada serve --api-sock /tmp/web.sock --config-file web.json
  posada serve --no-api --config-file web.json

  curl --unix-socket /tmp/web.sock -X PUT http://localhost/boot-source \\
      -d '{\"kernel_image_path\": \"vmlinux\", \"boot_args\": \"console=ttyS0\"}'
  curl --unix-socket /tmp/web.sock -X PUT http://localhost/actions -d '{\"action_type\": \"InstanceStart\"}'
";

/// What Firecracker's clients find a guest called that has no id.
const DEFAULT_ID: &str = "anonymous-instance";
/// Where they look for the socket of one that was not told.
const DEFAULT_SOCKET: &str = "/run/firecracker.socket";
/// Far more than a guest's description takes, or its metadata by default.
const MAX_FILE: u64 = 1 << 20;

#[derive(Args)]
pub struct Serve {
    /// Unix socket that the API is served at
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    api_sock: PathBuf,

    /// Name of the guest
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Start the guest that a file describes, in Firecracker's JSON
    #[arg(long, value_name = "FILE.json")]
    config_file: Option<PathBuf>,

    /// Have the metadata service tell the guest what a file says
    #[arg(long, value_name = "FILE.json")]
    metadata: Option<PathBuf>,

    /// Serve no API; the guest can still be asked by its name
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    no_api: bool,

    /// File or named pipe that messages go to [default: standard error]
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,

    /// Which messages: Error, Warning, Info, Debug, Trace or Off [default: Warning]
    #[arg(long, value_name = "LEVEL", value_parser = level_of)]
    level: Option<LevelFilter>,

    /// Put its level before each message
    #[arg(long)]
    show_level: bool,

    /// Put where in posada it comes from before each message
    #[arg(long)]
    show_log_origin: bool,

    /// File or named pipe that lines of metrics go to, once a minute [default: none]
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,

    /// Say when the guest writes 123 to the byte at 0xc0000000, as Firecracker's guests do when they have booted
    #[arg(long)]
    boot_timer: bool,

    /// Bytes that a request's body may have
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BODY)]
    http_api_max_payload_size: usize,

    /// Bytes that the guest's metadata may have [default: those of a request's body]
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,

    /// There is no seccomp filter that could be left out.
    #[arg(long, hide = true)]
    no_seccomp: bool,

    /// Print the versions of posada and of the API
    #[arg(long)]
    version: bool,

    #[command(flatten)]
    _times: JailerTimes,
}

/// What Firecracker's jailer tells of itself: microseconds.
#[derive(Args)]
struct JailerTimes {
    /// When it was started.
    #[arg(long, hide = true)]
    start_time_us: Option<u64>,

    /// The same in its CPU's time.
    #[arg(long, hide = true)]
    start_time_cpu_us: Option<u64>,

    /// CPU time that its parent had used.
    #[arg(long, hide = true)]
    parent_cpu_time_us: Option<u64>,
}

impl Serve {
    /// Serves the API until the guest ends, and the process with it.
    pub fn execute(self) -> Result<(), Failure> {
        if self.version {
            let posada = env!("CARGO_PKG_VERSION");
            // Clients read a version from the first line, and refuse one that is too old.
            return print(&format!(
                "Firecracker v{API_VERSION}\n\nposada {posada}, with that API\n"
            ));
        }
        let set_log = log::start();
        set_log(&self.logger()).map_err(Failure::Other)?;
        console::block_signals()?;
        let mut base = VmConfig {
            name: self.id.clone(),
            boot_timer: self.boot_timer,
            ..Default::default()
        };
        let mut hosted = Hosted::begin(&mut base)?;
        let socket = match self.no_api {
            true => None,
            false => Some(ApiSocket::bind(&self.api_sock)?),
        };
        let id = self.id.unwrap_or_else(|| DEFAULT_ID.to_owned());
        let instance = Arc::new(Instance::to_be(id, base, Box::new(set_log))?);
        if let Some(path) = self.metrics_path {
            instance.set_metrics(&Metrics::to(path)).map_err(Failure::Other)?;
        }
        let limit = self.mmds_size_limit.unwrap_or(self.http_api_max_payload_size);
        instance.with_metadata(|metadata| metadata.set_limit(limit));
        if let Some(path) = &self.metadata {
            instance.with_metadata(|metadata| put_metadata(metadata, path))?;
        }
        if let Some(path) = &self.config_file {
            start_from(&instance, path)?;
        }
        let mut listeners = Vec::from_iter(hosted.take_listener());
        if let Some(socket) = &socket {
            listeners.push(socket.listener().map_err(unserved)?);
        }
        let api =
            Api::serve(instance.clone(), listeners, self.http_api_max_payload_size).map_err(unserved)?;
        let end = match (console::wait_for(instance.started())?, instance.vm()) {
            (None, Some(vm)) => hosted.see_through(&vm, Some(api))?,
            (signal, _) => {
                let end = signal.map_or(End::Stopped(Stop::Ended), End::Signal);
                api.finish(&end);
                // One that was being built meanwhile.
                if let Some(vm) = instance.vm() {
                    vm.close_files();
                }
                end
            }
        };
        drop((hosted, socket));
        finish(&end)
    }

    fn logger(&self) -> Logger {
        Logger {
            log_path: self.log_path.clone(),
            level: self.level,
            show_level: Some(self.show_level),
            show_log_origin: Some(self.show_log_origin),
            module: None,
        }
    }
}

fn start_from(instance: &Instance, path: &Path) -> Result<(), Failure> {
    let failed = |why: String| Failure::Other(format!("the config file '{}': {why}", path.display()));
    let text = read(path, MAX_FILE).map_err(failed)?;
    instance.compose_from(&text).map_err(failed)?;
    instance.begin_composed().map_err(Failure::Other)
}

/// Has the guest be told what a file of JSON says.
pub fn put_metadata(metadata: &Metadata, path: &Path) -> Result<(), Failure> {
    let failed = |why: String| Failure::Other(format!("the metadata '{}': {why}", path.display()));
    let most = metadata.limit();
    let text = read(path, MAX_FILE.max(most as u64)).map_err(failed)?;
    let document = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let put = metadata.put(document);
    put.map_err(|_| {
        failed(format!(
            "it is longer than {most} bytes: give less, or a larger --mmds-size-limit"
        ))
    })
}

/// The whole of a file of at most so many bytes.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut text));
    read.map_err(|error| error.to_string())?;
    match text.len() as u64 > most {
        true => Err(format!("it is longer than {} KiB", most >> 10)),
        false => Ok(text),
    }
}

fn unserved(error: io::Error) -> Failure {
    Failure::Other(format!("cannot serve the API: {error}"))
}
