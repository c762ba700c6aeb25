//! Guests are asked to shut down by their power button, and ended when they do not.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::thread;

use posada_tests::button::{COUNTS, READY, pressed, pressed_since};
use posada_tests::served::Served;
use posada_tests::stand_in::{StandIn, answer};
use posada_tests::{Guest, Running, guest, http, posada};

/// A name that no other test's guest has.
fn name(test: &str) -> String {
    format!("stop-{test}-{}", process::id())
}

fn socket(name: &str) -> PathBuf {
    let directory = guest::runtime_directory().join("posada").join(name);
    directory.join("control.sock")
}

/// A guest that runs, and counts how often its button is pressed.
fn listening(name: &str) -> Running {
    let mut guest = Guest::bare(&format!("program={COUNTS}")).named(name).start();
    guest.wait_for(READY);
    guest
}

#[test]
fn the_button_is_an_interrupt_that_a_paused_guest_gets_when_it_goes_on() {
    let name = name("pressed");
    let mut guest = listening(&name);
    let press = || http::request(&socket(&name), "PUT", "/posada/v1/power-button", "").expect(204);
    assert_eq!(pressed(&mut guest), "0");
    press();
    assert_eq!(pressed_since(&mut guest, "0"), "1");
    posada(&["pause", &name]).expect_status(0);
    press();
    posada(&["resume", &name]).expect_status(0);
    assert_eq!(pressed_since(&mut guest, "1"), "2");
    guest.send("end\n");
    guest.wait().expect_status(0);
}

#[test]
fn ctrl_alt_del_presses_the_button() {
    let mut served = Served::start("ctrl-alt-del", &[]);
    served.begin(COUNTS);
    served.running.wait_for(READY);
    served
        .put("/actions", r#"{"action_type": "SendCtrlAltDel"}"#)
        .expect(204);
    assert_eq!(pressed_since(&mut served.running, "0"), "1");
    served.running.send("end\n");
    served.running.wait().expect_status(0);
}

#[test]
fn guests_that_do_not_listen_are_ended_all_at_the_same_time() {
    let names = [name("deaf-1"), name("deaf-2")];
    let guests = names.each_ref().map(|name| listening(name));
    let [first, second] = &names;
    let stopped = posada(&["stop", first, second, "--timeout", "1"]).expect_status(0);
    for name in &names {
        let told = format!("posada: {name} has not shut down within 1 s, and is ended\n");
        assert!(stopped.messages().contains(&told), "{}", stopped.messages());
        assert!(!socket(name).exists(), "its process is gone when stop returns");
    }
    for guest in guests {
        guest.wait().expect_status(0);
    }
}

#[test]
fn nobody_is_asked_when_one_of_them_is_not_there() {
    let name = name("lonely");
    let mut guest = listening(&name);
    posada(&["stop", &name, "nobody"]).expect_refusal(1, &["there is no running guest named 'nobody'"]);
    assert_eq!(pressed(&mut guest), "0");
    guest.send("end\n");
    guest.wait().expect_status(0);
}

/// What a guest answers that cannot tell of its button before something else is done, and is ended or, when that is done, shuts down.
struct Busy {
    stand_in: StandIn,
    info: String,
    /// Who has pressed the button, and waits.
    waits: Option<UnixStream>,
}

impl Busy {
    /// In the place of the guest `name`, with what `other`, which runs, tells of itself.
    fn new(name: &str, other: &str) -> Self {
        Self {
            stand_in: StandIn::new(name),
            info: http::request(&socket(other), "GET", "/posada/v1/info", "")
                .expect(200)
                .body,
            waits: None,
        }
    }

    /// Answers what is asked until `last` is, and ends.
    fn answer_until(mut self, last: &str) {
        loop {
            let (stream, asked) = self.stand_in.accept();
            match asked.split(' ').nth(1).and_then(|path| path.rsplit('/').next()) {
                Some("info") => answer(&stream, 200, &self.info),
                Some("power-button") => self.waits = Some(stream),
                Some("done") => self.waits.iter().for_each(|waits| answer(waits, 204, "")),
                _ if asked.contains(last) => return answer(&stream, 204, ""),
                _ => panic!("{asked}"),
            }
        }
    }
}

#[test]
fn the_time_is_kept_while_a_guest_is_busy() {
    let [name, other] = [name("busy"), name("busy-like")];
    let guest = listening(&other);
    let busy = Busy::new(&name, &other);
    let busy = thread::spawn(|| busy.answer_until("/kill "));
    let stopped = posada(&["stop", &name, "--timeout", "1"]).expect_status(0);
    busy.join().unwrap();
    let told = format!("posada: {name} has not shut down within 1 s, and is ended\n");
    assert_eq!(stopped.messages(), told);
    posada(&["kill", &other]).expect_status(0);
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_that_is_busy_keeps_the_others_from_nothing() {
    let [name, other] = [name("first"), name("second")];
    let mut guest = listening(&other);
    let busy = Busy::new(&name, &other);
    let busy = thread::spawn(|| busy.answer_until("/resume "));
    let stop = Running::of(guest::command(&["stop", &name, &other, "--timeout", "600"]));
    assert_eq!(pressed_since(&mut guest, "0"), "1");
    guest.send("end\n");
    guest.wait().expect_status(0);
    UnixStream::connect(socket(&name))
        .and_then(|mut done| done.write_all(http::text("PUT", "/done", "").as_bytes()))
        .unwrap();
    assert_eq!(stop.wait().expect_status(0).messages(), "");
    busy.join().unwrap();
}

#[test]
fn linux_shuts_down_in_order_even_if_it_was_paused() {
    let name = name("linux");
    let mut guest = Guest::booted().named(&name).start();
    let program = "trap 'echo a program is told > /dev/console; exit' TERM; echo it lis''tens; while :; do sleep 1; done";
    guest.send(format!("({program}) &\n"));
    guest.wait_for("it listens");
    posada(&["pause", &name]).expect_status(0);
    let stopped = posada(&["stop", &name, "--timeout", "600"]).expect_status(0);
    assert_eq!(stopped.messages(), "");
    let ended = guest.wait().expect_status(0);
    assert!(
        ended.console().contains("a program is told"),
        "{}",
        ended.console()
    );
}
