use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use super::*;
use crate::archive::{self, ROOT};
use crate::data::{self, Meaning, Reader};
use crate::frame::{Standard, WINDOW};
use crate::request::{Command, Size, VERSION, read_greeting};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A stream to an agent of this process's.
struct Caller {
    stream: UnixStream,
    incoming: Incoming,
    agent: JoinHandle<io::Result<()>>,
}

impl Caller {
    fn new() -> Self {
        let (mut stream, other) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let other = File::from(OwnedFd::from(other));
        let agent = thread::spawn(move || serve(&other));
        assert_eq!(read_greeting(&mut stream).unwrap(), Some(VERSION));
        Self {
            stream,
            incoming: Incoming::default(),
            agent,
        }
    }

    fn ask(request: &Request) -> Self {
        let mut caller = Self::new();
        send_json(&mut caller.stream, request, |json| Frame::Request(json)).unwrap();
        caller
    }

    fn run(command: Command) -> Self {
        Self::ask(&Request::Exec(command))
    }

    fn shell(script: &str) -> Self {
        Self::run(command(script))
    }

    fn say(&mut self, frame: Frame<'_>) {
        frame.send(&mut self.stream).unwrap();
    }

    /// All that comes until the end: standard output and error, and the exit status.
    fn outcome(mut self) -> (String, String, u8) {
        let (mut output, mut error) = (Vec::new(), Vec::new());
        loop {
            match self.incoming.wait(&mut self.stream).unwrap().unwrap() {
                Frame::Output(bytes) => output.extend_from_slice(bytes),
                Frame::Error(bytes) => error.extend_from_slice(bytes),
                Frame::Taken(_) | Frame::Closed(Standard::Input) => {}
                Frame::Failed(json) => {
                    let failed: Failed = serde_json::from_slice(json).unwrap();
                    return (String::new(), failed.message, failed.status);
                }
                Frame::Exit(status) => {
                    assert!(self.agent.join().unwrap().is_ok());
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(output), text(error), status);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for this text on standard output. Returns what has come until then.
    fn expect(&mut self, text: &str) -> String {
        let mut output = String::new();
        while !output.contains(text) {
            match self.incoming.wait(&mut self.stream).unwrap().unwrap() {
                Frame::Output(bytes) => output.push_str(&String::from_utf8_lossy(bytes)),
                other => panic!("{other:?}"),
            }
        }
        output
    }

    /// Waits for the stream's end, and drops what comes before it.
    fn expect_end(mut self) {
        while self.incoming.wait(&mut self.stream).unwrap().is_some() {}
        assert!(self.agent.join().unwrap().is_err());
    }
}

fn command(script: &str) -> Command {
    Command {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Command::default()
    }
}

/// Waits until the process that has printed its number has ended, of whatever.
fn expect_death(number: &str) {
    let start = Instant::now();
    // Who has ended has no arguments any more, though nobody may have waited for it (proc_pid_cmdline(5)).
    let runs = || fs::read(format!("/proc/{number}/cmdline")).is_ok_and(|line| !line.is_empty());
    while runs() {
        assert!(start.elapsed() < DEADLINE, "process {number} goes on");
        thread::sleep(Duration::from_millis(10));
    }
}

fn told(output: &str, error: &str, status: u8) -> (String, String, u8) {
    (output.to_owned(), error.to_owned(), status)
}

#[test]
fn a_command_has_its_status_and_its_two_outputs() {
    let script = "echo out; echo err >&2; exit 7";
    assert_eq!(Caller::shell(script).outcome(), told("out\n", "err\n", 7));
    assert_eq!(Caller::shell("kill -9 $$").outcome(), told("", "", 137));
}

#[test]
fn a_command_runs_where_and_with_what_it_is_told() {
    let mut command = command("pwd; echo $WORD");
    command.cwd = Some("/usr".to_owned());
    command.env = vec![("WORD".to_owned(), "a b".to_owned())];
    assert_eq!(Caller::run(command).outcome(), told("/usr\na b\n", "", 0));
}

#[test]
fn what_cannot_be_run_has_a_shells_status() {
    for (argv, cwd, status, named) in [
        (&["/nonexistent"][..], None, 127, "/nonexistent"),
        (&["/etc/passwd"], None, 126, "/etc/passwd"),
        (&["/usr"], None, 126, "/usr"),
        (&["true"], Some("/nonexistent"), 126, "in '/nonexistent'"),
        (&[], None, 126, "no command"),
        (&["with\0nul"], None, 126, "cannot run"),
    ] {
        let command = Command {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            cwd: cwd.map(str::to_owned),
            ..Command::default()
        };
        let (_, message, told) = Caller::run(command).outcome();
        assert_eq!(told, status, "{argv:?}: {message}");
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn input_comes_out_again_and_ends_when_it_is_told() {
    let mut caller = Caller::shell("cat");
    caller.say(Frame::Input(b"one\n"));
    caller.say(Frame::Input(b"two\n"));
    caller.say(Frame::InputEnd);
    assert_eq!(caller.outcome(), told("one\ntwo\n", "", 0));
}

#[test]
fn a_signal_passes_input_that_nobody_reads_and_is_heeded_though_the_agent_ignores_it() {
    // As one does that a shell has started in the background.
    // SAFETY: no handler is installed, and no other test is ended by this signal.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap();
    let mut caller = Caller::shell("trap 'exit 3' INT; echo ready; while :; do sleep 0.01; done");
    caller.expect("ready\n");
    let window = vec![b'x'; WINDOW / 2];
    caller.say(Frame::Input(&window));
    caller.say(Frame::Input(&window));
    caller.say(Frame::Signal(libc::SIGINT as u8));
    assert_eq!(caller.outcome().2, 3);
}

#[test]
fn who_sends_more_than_may_be_under_way_is_hung_up_on() {
    let mut caller = Caller::shell("exec sleep 1000");
    caller.say(Frame::Input(&vec![b'x'; WINDOW]));
    caller.say(Frame::Input(&vec![b'x'; WINDOW]));
    assert!(caller.agent.join().unwrap().is_err());
}

#[test]
fn what_a_command_has_left_behind_does_not_keep_it() {
    let (output, _, status) = Caller::shell("sleep 1000 & echo $!").outcome();
    assert_eq!(status, 0);
    // It is of the command's group no more than any other process: ended by its number.
    let sleeper = output.trim().parse().unwrap();
    kill(Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
}

#[test]
fn a_command_whose_caller_is_gone_is_hung_up_with_all_of_its_group() {
    let mut caller = Caller::shell("sleep 1000 & echo $!; wait");
    let sleeper = caller.expect("\n");
    drop(caller.stream);
    assert!(caller.agent.join().unwrap().is_err());
    // It would wait for a thousand seconds.
    expect_death(sleeper.trim());
}

#[test]
fn a_caller_that_is_hung_up_on_does_not_wait_for_a_command_that_ignores_it() {
    let mut caller = Caller::shell("trap '' HUP; echo $$; exec sleep 1000");
    let command = caller.expect("\n");
    // Nobody says that to an agent.
    caller.say(Frame::Exit(0));
    caller.expect_end();
    let number = Pid::from_raw(command.trim().parse().unwrap());
    kill(number, None).expect("it goes on");
    kill(number, Signal::SIGKILL).unwrap();
}

#[test]
fn a_command_that_is_hung_up_does_not_print_for_ever() {
    let mut caller = Caller::shell("trap '' HUP; echo $$; exec yes");
    let command = caller.expect("\n");
    drop(caller.stream);
    assert!(caller.agent.join().unwrap().is_err());
    expect_death(command.lines().next().unwrap());
}

#[test]
fn a_stream_that_one_side_has_closed_is_closed_for_the_other() {
    let mut caller = Caller::shell("exec 0<&-; echo ready; read nothing; exec sleep 1000");
    caller.expect("ready\n");
    caller.say(Frame::Input(b"x"));
    let frame = caller.incoming.wait(&mut caller.stream).unwrap();
    assert_eq!(frame, Some(Frame::Closed(Standard::Input)));
    drop(caller);

    let mut caller = Caller::shell("while echo more; do :; done 2>/dev/null; exit 9");
    caller.expect("more\n");
    caller.say(Frame::Closed(Standard::Output));
    let status = loop {
        match caller.incoming.wait(&mut caller.stream).unwrap().unwrap() {
            Frame::Exit(status) => break status,
            Frame::Output(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!([9, 141].contains(&status), "{status}");
}

#[test]
fn a_terminal_has_a_size_that_changes_and_an_end_of_file() {
    let mut command = command("stty size; read line; stty size; cat; tty >/dev/null && exit 5");
    command.tty = Some(Size { rows: 33, cols: 101 });
    let mut caller = Caller::run(command);
    caller.expect("33 101\r\n");
    caller.say(Frame::Window(Size { rows: 20, cols: 40 }));
    caller.say(Frame::Input(b"\n"));
    caller.expect("20 40\r\n");
    caller.say(Frame::InputEnd);
    assert_eq!(caller.outcome().2, 5);
}

#[test]
fn a_terminals_input_ends_behind_a_line_that_is_none() {
    for (input, output) in [
        ("", ""),
        ("one\n", "one\n"),
        ("one", "one"),
        ("one\ntwo", "one\ntwo"),
        // Its own end of file has sent the line on.
        ("one\x04", "one"),
    ] {
        let mut command = command("stty -echo -onlcr; echo ready; cat");
        command.tty = Some(Size { rows: 24, cols: 80 });
        let mut caller = Caller::run(command);
        caller.expect("ready\n");
        if !input.is_empty() {
            caller.say(Frame::Input(input.as_bytes()));
        }
        caller.say(Frame::InputEnd);
        assert_eq!(caller.outcome(), told(output, "", 0), "{input:?}");
    }
}

#[test]
fn a_terminal_that_nobody_looks_at_is_hung_up_and_its_command_may_still_end_well() {
    let mut command = command("trap 'exit 6' HUP; echo ready; while :; do sleep 0.01; done");
    command.tty = Some(Size { rows: 24, cols: 80 });
    let mut caller = Caller::run(command);
    caller.expect("ready");
    caller.say(Frame::Closed(Standard::Output));
    // What is sent to it meanwhile does no harm.
    caller.say(Frame::Input(b"x"));
    caller.say(Frame::Window(Size { rows: 20, cols: 40 }));
    assert_eq!(caller.outcome().2, 6);
}

#[test]
fn what_is_no_request_is_answered_with_a_sentence_and_what_is_no_frame_with_the_end() {
    let mut caller = Caller::new();
    caller.say(Frame::Request(b"{\"fly\":{}}"));
    let (_, message, status) = caller.outcome();
    assert_eq!(status, 1);
    assert!(message.contains("fly"), "{message}");
    let mut caller = Caller::new();
    caller.say(Frame::Exit(0));
    assert!(caller.agent.join().unwrap().is_err());
}

fn for_caller(frame: Frame<'_>) -> io::Result<Meaning<'_>> {
    match frame {
        Frame::Output(bytes) => Ok(Meaning::Bytes(bytes)),
        Frame::Exit(0) => Ok(Meaning::End),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_go_and_come() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    fs::write(path("a"), vec![7; 100_000]).unwrap();

    let mut caller = Caller::ask(&Request::Put {
        path: home.path().display().to_string(),
        name: Some("b".to_owned()),
        plain: false,
    });
    let to = data::writer(&caller.stream, |bytes| Frame::Input(bytes));
    archive::pack(path("a").as_ref(), to).unwrap();
    caller.say(Frame::InputEnd);
    assert_eq!(caller.outcome(), told("", "", 0));
    assert_eq!(fs::read(path("b")).unwrap(), vec![7; 100_000]);

    let mut caller = Caller::ask(&Request::Get {
        path: path("b"),
        plain: false,
    });
    let into = tempfile::tempdir().unwrap();
    let mut from = Reader::new(&caller.stream, &mut caller.incoming, for_caller);
    let directory = File::open(into.path()).unwrap();
    archive::unpack(&mut from, std::os::fd::AsFd::as_fd(&directory)).unwrap();
    assert_eq!(from.finish().unwrap(), None);
    assert_eq!(fs::read(into.path().join(ROOT)).unwrap(), vec![7; 100_000]);
}

#[test]
fn bytes_are_those_of_files_and_of_nothing_that_may_have_no_end() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let get = |path: &str| {
        let (path, plain) = (path.to_owned(), true);
        Caller::ask(&Request::Get { path, plain }).outcome()
    };
    for path in [pipe.to_str().unwrap(), "/dev/zero", "/dev/ptmx"] {
        let (_, message, status) = get(path);
        assert_eq!(status, 1, "{path}");
        assert!(message.contains("may have no end"), "{path}: {message}");
    }
    // It says of itself that it is empty.
    let (version, _, status) = get("/proc/version");
    assert_eq!((status, version.starts_with("Linux")), (0, true), "{version}");
    let (_, message, _) = get("/usr");
    assert!(message.contains("directory"), "{message}");
}

#[test]
fn half_a_file_is_none() {
    let home = tempfile::tempdir().unwrap();
    let mut caller = Caller::ask(&Request::Put {
        path: home.path().join("new").display().to_string(),
        name: None,
        plain: true,
    });
    caller.say(Frame::Input(b"half"));
    drop(caller.stream);
    assert!(caller.agent.join().unwrap().is_err());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}
