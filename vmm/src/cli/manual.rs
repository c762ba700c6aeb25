//! `posada man`: the manual, a page for posada and one for each of its commands, made of the same texts as `--help`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::output::print_by;
use super::{Cli, Failure};

pub const EXAMPLES: &str = "\
Examples:
  posada man | man -l -
  posada man ~/.local/share/man/man1";

/// Prints or writes the manual.
#[derive(Args)]
pub struct Manual {
    /// Directory for a page of posada and one of each command; without it, posada's goes to standard output
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Manual {
    /// Prints one page, or writes all.
    pub fn execute(self) -> Result<(), Failure> {
        let mut posada = Cli::command().disable_help_subcommand(true);
        posada.build();
        let Some(directory) = &self.directory else {
            return print_by(|stdout| stdout.write_all(&page(posada)?.1));
        };
        write(posada, directory).map_err(|error| {
            Failure::Other(format!(
                "cannot write the manual to '{}': {error}",
                directory.display()
            ))
        })
    }
}

fn write(posada: Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let commands = posada.get_subcommands().filter(|command| !command.is_hide_set());
    for command in commands.chain([&posada]) {
        let (name, page) = page(command.clone())?;
        fs::write(directory.join(name), page)?;
    }
    Ok(())
}

/// A command's page, and what its file is called.
fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let more = command.get_after_help().map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let man = Man::new(command)
        .source(concat!("posada ", env!("CARGO_PKG_VERSION")))
        .manual("posada");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    sections(&more.unwrap_or_default()).to_writer(&mut page)?;
    Ok((man.get_filename(), page))
}

/// What follows the options in a help text: under `Heading:`, lines that are as they are.
fn sections(help: &str) -> Roff {
    const NOTHING: [&str; 0] = [];
    let mut roff = Roff::new();
    let mut as_it_is = false;
    for line in help.lines().filter(|line| !line.is_empty()) {
        let is_indented = line.starts_with(' ');
        if is_indented != as_it_is {
            roff.control(if is_indented { "nf" } else { "fi" }, NOTHING);
            as_it_is = is_indented;
        }
        match line.strip_suffix(':').filter(|_| !is_indented) {
            Some(heading) => roff.control("SH", [heading.to_uppercase().as_str()]),
            None if is_indented => roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]),
            None => roff.control("PP", NOTHING).text([roman(line)]),
        };
    }
    if as_it_is {
        roff.control("fi", NOTHING);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_and_statuses_are_sections_with_their_lines() {
        let page = sections("Examples:\n  posada run\n  posada ps\n\nThe end.\n\nExit status:\n  0    good")
            .to_roff();
        let expected = ".SH EXAMPLES\n.nf\nposada run\nposada ps\n.fi\n.PP\nThe end.\n.SH \"EXIT STATUS\"\n.nf\n0    good\n.fi\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let mut posada = Cli::command().disable_help_subcommand(true);
        posada.build();
        let shown = posada.get_subcommands().filter(|command| !command.is_hide_set());
        let mut expected: Vec<_> = shown
            .map(|command| format!("posada-{}.1", command.get_name()))
            .collect();
        expected.push("posada.1".to_owned());
        expected.sort();
        let directory = tempfile::tempdir().unwrap();
        write(posada, directory.path()).unwrap();
        let written = fs::read_dir(directory.path()).unwrap();
        let mut written: Vec<_> = written
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        written.sort();
        assert_eq!(written, expected);
    }
}
