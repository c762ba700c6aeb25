//! The beginning of a stream: the agent says what it is, and is asked for one thing.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The port of the guest's at which the agent listens. Below 1024, so that only root can listen there (vsock(7)).
pub const PORT: u32 = 1005;
/// The version of all that is said. The two ends must have the same.
pub const VERSION: u16 = 1;
/// What the agent says first, before its version as two bytes, little-endian.
const NAME: &[u8; 14] = b"posada-agent/\n";

/// What the agent is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// To run a command.
    Exec(Command),
    /// To send a file, or a tree of them.
    Get {
        /// Which, in the guest.
        path: String,
        /// The bytes of a file, instead of an archive.
        plain: bool,
    },
    /// To take a file, or a tree of them.
    Put {
        /// Where to, in the guest.
        path: String,
        /// What it is called where it comes from, if it has a name there.
        name: Option<String>,
        /// The bytes of a file, instead of an archive.
        plain: bool,
    },
}

/// A command to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables, besides those that the agent has.
    pub env: Vec<(String, String)>,
    /// The directory that it runs in, instead of the agent's.
    pub cwd: Option<String>,
    /// The size of the terminal that it runs on, if it is to have one.
    pub tty: Option<Size>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Letters in a line.
    pub cols: u16,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Failed {
    /// What the exit status is to be.
    pub status: u8,
    /// A sentence.
    pub message: String,
}

/// Says what this is: the agent's first words.
///
/// # Errors
/// The stream takes nothing.
pub fn greet(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[&NAME[..], &VERSION.to_le_bytes()].concat())
}

/// Reads the agent's first words; returns its version, or `None` if whoever speaks is no agent.
///
/// # Errors
/// The stream ends before.
pub fn read_greeting(from: &mut impl Read) -> io::Result<Option<u16>> {
    let mut name = [0; NAME.len()];
    from.read_exact(&mut name)?;
    if name != *NAME {
        return Ok(None);
    }
    let mut version = [0; 2];
    from.read_exact(&mut version)?;
    Ok(Some(u16::from_le_bytes(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_known_by_its_first_words() {
        let mut said = Vec::new();
        greet(&mut said).unwrap();
        assert_eq!(read_greeting(&mut &said[..]).unwrap(), Some(VERSION));
        assert_eq!(read_greeting(&mut &b"SSH-2.0-OpenSSH_9.2\r\n"[..]).unwrap(), None);
        assert!(read_greeting(&mut &said[..said.len() - 1]).is_err());
    }

    #[test]
    fn requests_are_json_as_documented() {
        let command = Command {
            argv: vec!["stty".into(), "size".into()],
            env: vec![("TERM".into(), "xterm".into())],
            cwd: None,
            tty: Some(Size { rows: 24, cols: 80 }),
        };
        let text = r#"{"exec":{"argv":["stty","size"],"env":[["TERM","xterm"]],"cwd":null,"tty":{"rows":24,"cols":80}}}"#;
        assert_eq!(
            serde_json::to_string(&Request::Exec(command.clone())).unwrap(),
            text
        );
        assert_eq!(
            serde_json::from_str::<Request>(text).unwrap(),
            Request::Exec(command)
        );
    }
}
