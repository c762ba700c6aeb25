//! `posada run`: a guest of a configuration.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use vmm::config::VmConfig;
use vmm::console;
use vmm::foundation::Foundation;
use vmm::vm::Vm;

use super::guest::Hosted;
use super::{Failure, start_log};

pub const EXAMPLES: &str = "\
Examples:
  posada run
  posada run --cpus 2 --memory 1G --append quiet
  posada run --kernel vmlinuz --initrd initrd.img --append root=/dev/ram0
  posada run --disk disk.img --net user,forward=tcp:8080:80
  posada run --config guest.toml --memory 2G
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

    /// Say on standard error what is being done; twice for more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

impl Run {
    /// Runs the guest until it ends, and the process with it.
    pub fn execute(self) -> Result<(), Failure> {
        start_log(self.verbose);
        let mut config = match &self.config {
            Some(path) => self.vm.or(VmConfig::from_file(path)?),
            None => self.vm,
        };
        console::block_signals()?;
        let foundation = Foundation::lay(&config)?;
        let hosted = Hosted::begin(&mut config)?;
        let vm = Vm::build(foundation, &config, Box::new(console::output()?))?.start();
        hosted.attend(vm, false)
    }
}
