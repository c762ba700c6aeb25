//! The posada command.

mod cli;
mod no_name_service;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(panic = "unwind")]
    abort_on_panic();
    cli::main()
}

/// What other profiles have from the compiler: no thread goes on without one that has panicked.
#[cfg(panic = "unwind")]
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
