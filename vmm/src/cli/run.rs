//! `posada run`: a guest of a configuration.

use std::env;
use std::path::PathBuf;

use clap::{ArgAction, Args};
use vmm::config::VmConfig;
use vmm::console;
use vmm::foundation::Foundation;
use vmm::vm::Vm;

use super::background::Starting;
use super::guest::{Hosted, Leaves, Place};
use super::output::print;
use super::serve::put_metadata;
use super::{Failure, background, start_log};

pub const EXAMPLES: &str = "\
Examples:
  posada run
  posada run --cpus 2 --memory 1G --append quiet
  posada run --kernel vmlinuz --initrd initrd.img --append root=/dev/ram0
  posada run --disk disk.img --net user,forward=tcp:8080:80
  posada run --config guest.toml --memory 2G
  posada run -d --name web --disk disk.img
  echo 'uname -a; poweroff' | posada run

On the console: Ctrl-A x ends the guest, Ctrl-A h shows the keys.
";

#[derive(Args)]
pub struct Run {
    /// Read settings from a TOML file; flags win over it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    #[command(flatten)]
    vm: VmConfig,

    /// Have the metadata service tell the guest what a file says; see --mmds
    #[arg(long, value_name = "FILE.json")]
    metadata: Option<PathBuf>,

    /// Run the guest in the background and print its name; what its console prints is kept for 'posada logs', until 'posada rm'
    #[arg(short, long)]
    detach: bool,

    /// In the background: leave nothing when the guest ends, neither what its console printed nor how it ended
    #[arg(long, requires = "detach")]
    rm: bool,

    /// Say on standard output how far the guest is, and wait to be let go; its console goes to a file in its directory
    #[arg(long, hide = true)]
    background: bool,

    /// Say on standard error what is being done; twice for more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

impl Run {
    /// Runs the guest until it ends, and the process with it; or has another process do so.
    pub fn execute(self) -> Result<(), Failure> {
        if self.detach && !self.background {
            return detach();
        }
        start_log(self.verbose);
        let mut config = match &self.config {
            Some(path) => self.vm.or(VmConfig::from_file(path)?),
            None => self.vm,
        };
        if self.metadata.is_some() && config.mmds.is_none() {
            let why = "--metadata is for the metadata service, and there is none: give --mmds net=ID too";
            return Err(Failure::Other(why.to_owned()));
        }
        console::block_signals()?;
        let foundation = Foundation::lay(&config)?;
        let hosted = Hosted::begin(&mut config)?;
        hosted.add_way_to_agent(&mut config);
        let place = match (self.background, self.rm) {
            (false, _) => Place::Foreground,
            (true, false) => Place::Background(Leaves::Logs),
            (true, true) => Place::Background(Leaves::Nothing),
        };
        let vm = Vm::build(foundation, &config, hosted.console(place)?)?;
        if let Some(path) = &self.metadata {
            put_metadata(vm.metadata(), path)?;
        }
        if self.background {
            background::wait_to_go()?;
        }
        hosted.attend(vm.start(), place)
    }
}

/// Starts this same command once more, in the background.
fn detach() -> Result<(), Failure> {
    let same = env::args_os().skip(1);
    let mut guest = Starting::begin(same.chain(["--background".into()]))?.wait_until_ready()?;
    guest.go();
    let name = guest.wait_until_it_runs()?.name;
    print(&format!("{name}\n"))
        .map_err(|failure| Failure::Other(format!("{failure}; the guest '{name}' runs")))
}
