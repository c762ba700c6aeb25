//! `hostile`: does to a device what the specification forbids a driver to do, and checks that it lives on: that it is as good as new
//! after a reset, and that the devices beside it do not notice.

mod balloon;
mod beside;
mod block;
mod chains;
mod control;
mod entropy;
mod live;
mod negotiation;
mod network;
mod placement;
mod random;
mod receive;
mod registers;
mod requests;
mod rings;
mod socket;
mod victim;

use alloc::format;
use alloc::vec::Vec;

use bare_guest::arguments::Arguments;

use crate::failure::{Failure, Outcome};
use crate::registers::offset;
use crate::{device, println, serial};
use live::Live;
use victim::Victim;

/// What a driver must not do, or a device must stand. Without a failure the device has answered as it should.
struct Case {
    name: &'static str,
    deed: fn(&Victim) -> Outcome,
}

/// What all devices get; then come those of the device's own.
const CASES: [&[Case]; 8] = [
    &negotiation::CASES,
    &registers::CASES,
    &placement::CASES,
    &rings::CASES,
    &chains::CASES,
    &requests::CASES,
    &beside::CASES,
    &random::CASES,
];

/// Runs the cases of `case=` (a name, or the start of some) on the device that `device=` names, `repeat=` times. With `hold=yes` it
/// also waits for a line of input after the first round.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let wanted = arguments.text("case").unwrap_or("all");
    let name = arguments.text("device").unwrap_or("rng");
    let rounds = arguments.number("repeat")?.unwrap_or(1);
    let holds = arguments.text("hold") == Some("yes");
    let (victim, others) = find(arguments, name)?;
    let others = others.iter().map(Live::start).collect::<Outcome<Vec<_>>>()?;
    let mut hostility = Hostility {
        victim: &victim,
        others,
        survived: 0,
    };
    let own = CASES.into_iter().chain([victim.kind.cases]).flatten();
    let cases: Vec<&Case> = own
        .filter(|case| wanted == "all" || case.name.starts_with(wanted))
        .collect();
    for round in 0..rounds {
        for case in &cases {
            if round == 0 {
                println!("{name}: {}", case.name);
            }
            hostility.commit(case)?;
        }
        if round == 0 && holds {
            serial::listen();
            println!("first round over");
            serial::read_line();
        }
    }
    let (count, survived) = (cases.len(), hostility.survived);
    println!("cases={count} repeat={rounds} survived={survived}");
    Ok(())
}

/// The device called `name`, and those beside it that the program can use.
fn find(arguments: &Arguments<'_>, name: &str) -> Outcome<(Victim, Vec<Victim>)> {
    let mut known = Vec::new();
    for registers in device::all(arguments)? {
        let id = registers.read(offset::DEVICE_ID);
        let mut kinds = victim::KINDS.iter().filter(|kind| kind.id == id);
        let named = kinds.clone().find(|kind| kind.name == name);
        if let Some(kind) = named.or_else(|| kinds.next()) {
            known.push(Victim::new(registers, kind));
        }
    }
    let place = known.iter().position(|victim| victim.kind.name == name);
    let place = place.ok_or_else(|| Failure::new(format!("there is no device {name}")))?;
    Ok((known.swap_remove(place), known))
}

struct Hostility<'a> {
    victim: &'a Victim,
    /// The devices beside it, which work all the time.
    others: Vec<Live<'a>>,
    survived: u64,
}

impl Hostility<'_> {
    fn commit(&mut self, case: &Case) -> Outcome {
        let named = |failure: Failure| Failure::new(format!("{}: {failure}", case.name));
        (case.deed)(self.victim).map_err(named)?;
        let after = |who, failure| Failure::new(format!("after {}: {who}: {failure}", case.name));
        let again = Live::start(self.victim).and_then(|mut live| live.must_serve());
        again.map_err(|failure| after(self.victim.kind.name, failure))?;
        for other in &mut self.others {
            other
                .must_serve()
                .map_err(|failure| after(other.victim.kind.name, failure))?;
        }
        self.survived += 1;
        Ok(())
    }
}
