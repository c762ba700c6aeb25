//! What a shell completes: scripts that have it ask this program for every word, so that running guests are among the answers.

use std::env;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_complete::{ArgValueCandidates, CompleteEnv, CompletionCandidate};
use vmm::runtime;

use super::output::print_by;
use super::{Cli, Failure};

/// What the commands are called by, and found by in `$PATH`.
const COMMAND: &str = "posada";
/// Names the shell that wants an answer, in posada's environment.
const ASKING: &str = "POSADA_COMPLETE";
/// A zsh that loads a function from its path calls it, and the script has only defined another one.
const ZSH_FIRST_CALL: &str = "\
if [ \"${funcstack[1]}\" = _posada ]; then
    _clap_dynamic_completer_posada \"$@\"
fi
";

pub const EXAMPLES: &str = "\
Examples:
  source <(posada completions bash)      in ~/.bashrc
  source <(posada completions zsh)       in ~/.zshrc, after compinit
  posada completions fish | source       in ~/.config/fish/config.fish";

/// Prints what a shell needs to complete posada's commands.
#[derive(Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    /// Prints the script.
    pub fn execute(self) -> Result<(), Failure> {
        let (shell, more): (&dyn EnvCompleter, _) = match self.shell {
            Shell::Bash => (&Bash, ""),
            Shell::Zsh => (&Zsh, ZSH_FIRST_CALL),
            Shell::Fish => (&Fish, ""),
        };
        print_by(|mut stdout| {
            shell.write_registration(ASKING, COMMAND, COMMAND, COMMAND, &mut stdout)?;
            stdout.write_all(more.as_bytes())
        })
    }
}

/// Whether it is a shell that asks: all that a guest's start has to do with this.
pub fn is_asked() -> bool {
    env::var_os(ASKING).is_some()
}

/// Answers the shell, and ends the process.
pub fn answer() {
    CompleteEnv::with_factory(Cli::command).var(ASKING).complete();
}

/// The guests that run, in place of a name.
pub fn guests() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let names = runtime::names().unwrap_or_default();
        names.into_iter().map(CompletionCandidate::new).collect()
    })
}
