//! `posada systemd`: a unit by which systemd starts a guest when the machine starts, or its user logs in.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::unistd::geteuid;
use vmm::config::VmConfig;
use vmm::control::ControlError;
use vmm::{images, runtime};

use super::guests::inspect;
use super::output::print;
use super::snapshot::absolute;
use super::{Failure, completions};

pub const EXAMPLES: &str = "\
Examples:
  posada systemd web                          the guest web, which runs, as it was started
  posada systemd web --config web.toml        one that does not run
  posada systemd web --print

As root the unit is the system's, else the user's own. The two commands that are printed have systemd know it and start it.
";

/// The command that ends a guest in order; systemd waits for the process then.
const END: &str = "stop";

/// Writes a unit.
#[derive(Args)]
pub struct Unit {
    /// The guest: one that runs, or with --config one that need not
    #[arg(add = completions::guests())]
    name: String,
    /// Start it as this config file says, instead of as the running guest was started
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Make it a unit of the user's own systemd, also as root
    #[arg(long)]
    user: bool,
    /// Print the files instead of writing them
    #[arg(long)]
    print: bool,
    /// Replace the files that are there
    #[arg(long)]
    force: bool,
}

/// A systemd, which has its files in places of its own.
struct Manager {
    is_users: bool,
    /// Where config files are: `~/.config` or `/etc`.
    configs: PathBuf,
}

/// A file that is to be written.
struct Wanted {
    path: PathBuf,
    text: String,
}

impl Unit {
    /// Writes the unit, and the config file of a running guest, and says what to do next.
    pub fn execute(self) -> Result<(), Failure> {
        let manager = Manager::of(self.user || !geteuid().is_root())?;
        let (config, given) = match &self.config {
            Some(path) => (absolute(path)?, self.check_given(path)?),
            None => (manager.config_of(&self.name), Some(self.config_of_running()?)),
        };
        let unit = Wanted {
            path: manager.unit_of(&self.name),
            text: manager.unit(&self.name, &program()?, &config)?,
        };
        let text = given.map(|text| Wanted { path: config, text });
        let files: Vec<_> = text.into_iter().chain([unit]).collect();
        if self.print {
            let texts = files
                .iter()
                .map(|file| format!("# {}\n{}\n", file.path.display(), file.text));
            return print(&texts.collect::<String>());
        }
        self.write(&files)?;
        let now = if self.config.is_some() { "--now " } else { "" };
        let (user, name) = (manager.flag(), &self.name);
        print(&format!(
            "systemctl {user}daemon-reload\nsystemctl {user}enable {now}posada-{name}.service\n"
        ))
    }

    /// A config file that is the user's own stays as it is, if there can be a guest of it.
    fn check_given(&self, path: &Path) -> Result<Option<String>, Failure> {
        let mut config = VmConfig::from_file(path)?;
        config.name = Some(self.name.clone());
        Ok(config.check().map(|()| None)?)
    }

    /// The text of a config file that starts a guest as this one was started.
    fn config_of_running(&self) -> Result<String, Failure> {
        let mut config = inspect(&self.name)?.config;
        if config.kernel.is_none() {
            // What is in a user's cache is not found by the system's services.
            let tiny = images::tiny()?;
            config.kernel = Some(tiny.kernel);
            config.initrd.get_or_insert(tiny.initrd);
        }
        let own = runtime::directory_of(&self.name).map_err(ControlError::from)?;
        if let Some(disk) = config
            .disks
            .iter_mut()
            .find_map(|disk| disk.paths().find(|path| path.starts_with(&own)))
        {
            return Err(Failure::Other(format!(
                "the disk '{}' goes when this guest ends, as it is a clone's: make a config file for it, and give --config",
                disk.display()
            )));
        }
        config
            .to_toml()
            .map_err(|error| Failure::Other(format!("cannot write what '{}' is as TOML: {error}", self.name)))
    }

    fn write(&self, files: &[Wanted]) -> Result<(), Failure> {
        if let Some(there) = files.iter().find(|file| file.path.exists() && !self.force) {
            return Err(Failure::Other(format!(
                "there is a '{}': give --force to replace it",
                there.path.display()
            )));
        }
        files.iter().try_for_each(|file| {
            file.write()
                .map_err(|error| Failure::Other(format!("cannot write '{}': {error}", file.path.display())))
        })
    }
}

impl Wanted {
    fn write(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&self.path, &self.text)
    }
}

impl Manager {
    fn of(is_users: bool) -> Result<Self, Failure> {
        let configs = match is_users {
            true => users_configs().ok_or_else(|| {
                Failure::Other(
                    "there is no telling where your units are: set HOME or XDG_CONFIG_HOME".to_owned(),
                )
            })?,
            false => "/etc".into(),
        };
        Ok(Self { is_users, configs })
    }

    fn config_of(&self, name: &str) -> PathBuf {
        self.configs.join("posada").join(format!("{name}.toml"))
    }

    fn unit_of(&self, name: &str) -> PathBuf {
        let units = if self.is_users {
            "systemd/user"
        } else {
            "systemd/system"
        };
        self.configs.join(units).join(format!("posada-{name}.service"))
    }

    /// What systemctl is told.
    fn flag(&self) -> &str {
        if self.is_users { "--user " } else { "" }
    }

    /// A unit by which `program` runs the guest of a config file. See systemd.unit(5) and systemd.service(5).
    fn unit(&self, name: &str, program: &Path, config: &Path) -> Result<String, Failure> {
        let (program, config) = (word(program)?, word(config)?);
        // Only the system's own systemd has such targets.
        let (after, wanted_by) = match self.is_users {
            true => ("", "default.target"),
            false => ("After=network.target\n", "multi-user.target"),
        };
        Ok(format!(
            "\
[Unit]
Description=posada guest {name}
Documentation=man:posada-run(1)
{after}
[Service]
Type=exec
ExecStart={program} run --name {name} --config {config}
ExecStop=-{program} {END} {name}
# A signal ends the guest as it should be: 128 and SIGHUP, SIGINT or SIGTERM.
SuccessExitStatus=129 130 143
# What crashed is started again; what is configured wrongly would fail again.
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=1

[Install]
WantedBy={wanted_by}
"
        ))
    }
}

/// As the XDG Base Directory Specification has it.
fn users_configs() -> Option<PathBuf> {
    let directory = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")))
}

fn program() -> Result<PathBuf, Failure> {
    env::current_exe()
        .map_err(|error| Failure::Other(format!("there is no telling where posada is: {error}")))
}

/// A path as one word of a unit's command line: systemd.service(5), "Command lines", and systemd.syntax(7), "Quoting".
fn word(path: &Path) -> Result<String, Failure> {
    let Some(text) = path.to_str() else {
        return Err(Failure::Other(format!(
            "a unit cannot have the path '{}', which is no UTF-8",
            path.display()
        )));
    };
    if text
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b"/._-+,:=@".contains(&c))
    {
        return Ok(text.to_owned());
    }
    let mut word = String::from("\"");
    for letter in text.chars() {
        match letter {
            '%' | '$' => word.extend([letter, letter]),
            '"' | '\\' => word.extend(['\\', letter]),
            _ if letter.is_ascii_control() => {
                // Writing to a String does not fail.
                let _ = write!(word, "\\x{:02x}", u32::from(letter));
            }
            _ => word.push(letter),
        }
    }
    word.push('"');
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        for (path, expected) in [
            ("/usr/bin/posada", "/usr/bin/posada"),
            ("/a b/c", "\"/a b/c\""),
            ("/100%/$HOME", "\"/100%%/$$HOME\""),
            ("/\"x\"\\y\n", "\"/\\\"x\\\"\\\\y\\x0a\""),
            ("/ä", "\"/ä\""),
        ] {
            assert_eq!(word(Path::new(path)).unwrap(), expected);
        }
    }

    #[test]
    fn the_systems_units_and_a_users_are_in_their_own_places() {
        let system = Manager::of(false).unwrap();
        assert_eq!(
            system.unit_of("web"),
            Path::new("/etc/systemd/system/posada-web.service")
        );
        assert_eq!(system.config_of("web"), Path::new("/etc/posada/web.toml"));
        let user = Manager {
            is_users: true,
            configs: "/home/u/.config".into(),
        };
        assert_eq!(
            user.unit_of("web"),
            Path::new("/home/u/.config/systemd/user/posada-web.service")
        );
        let units =
            [system, user].map(|manager| manager.unit("web", Path::new("/p"), Path::new("/c")).unwrap());
        assert!(units[0].contains("WantedBy=multi-user.target") && units[0].contains("After="));
        assert!(units[1].contains("WantedBy=default.target") && !units[1].contains("After="));
    }
}
