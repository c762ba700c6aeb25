//! The CMOS real-time clock: the host's time in UTC, and 114 bytes of memory that nothing keeps.
//!
//! The registers are those of the Motorola MC146818A data sheet. The clock cannot be set and raises no
//! interrupts: a guest reads it once at boot and then keeps time by kvm-clock or the TSC.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bus::{BusDevice, GuestRequest};

/// The number of ports: index and data.
pub const PORTS: u64 = 2;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
/// The top bit of the index port masks NMIs on a PC and is no part of the index.
const INDEX_MASK: u8 = 0x7f;

/// Registers and memory together, in bytes.
const MEMORY: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where PCs keep the century; also what a FADT without a century field lets Linux assume.
const CENTURY: u8 = 0x32;

/// Status A: the 32.768 kHz time base and a 1.024 kHz rate, no update in progress.
const STATUS_A_RUNNING: u8 = 0x26;
/// Status B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Status B: hours count to 24.
const HOURS_24: u8 = 1 << 1;
/// Hours in the 12-hour mode: the afternoon.
const PM: u8 = 1 << 7;
/// Status D: the battery has held, time and memory are valid.
const VALID: u8 = 1 << 7;

/// The real-time clock of a machine.
pub struct Rtc {
    now: fn() -> u64,
    state: Mutex<State>,
}

struct State {
    index: u8,
    memory: [u8; MEMORY],
}

/// What a guest has written to the clock. The time is the host's, before a snapshot as after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// The register that the data port shows.
    pub index: u8,
    /// All 128 registers, of which those of the time mean nothing.
    pub memory: Vec<u8>,
}

/// The state in a snapshot is of no such clock: it is damaged.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the snapshot has {0} registers of the real-time clock instead of {MEMORY}; it is damaged")]
pub struct RtcStateError(usize);

impl Default for Rtc {
    fn default() -> Self {
        Self::with_clock(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        })
    }
}

impl Rtc {
    /// A clock that asks `now` for the seconds since 1970-01-01 00:00 UTC.
    fn with_clock(now: fn() -> u64) -> Self {
        let mut memory = [0; MEMORY];
        memory[usize::from(STATUS_B)] = HOURS_24;
        Self {
            now,
            state: Mutex::new(State { index: 0, memory }),
        }
    }

    /// What is needed to go on with the clock later.
    pub fn save(&self) -> RtcState {
        let state = self.lock();
        RtcState {
            index: state.index,
            memory: state.memory.to_vec(),
        }
    }

    /// Puts the clock where another one was.
    ///
    /// # Errors
    /// The state is damaged; nothing has changed.
    pub fn restore(&self, saved: &RtcState) -> Result<(), RtcStateError> {
        let memory = saved.memory.as_slice().try_into();
        *self.lock() = State {
            index: saved.index & INDEX_MASK,
            memory: memory.map_err(|_| RtcStateError(saved.memory.len()))?,
        };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, state: &State) -> u8 {
        let stored = |index: u8| state.memory[usize::from(index & INDEX_MASK)];
        let mode = stored(STATUS_B);
        let number = |n: u64| encode(n, mode);
        let time = CivilTime::from_unix((self.now)());
        match state.index {
            SECONDS => number(time.second),
            MINUTES => number(time.minute),
            HOURS if mode & HOURS_24 != 0 => number(time.hour),
            HOURS => number((time.hour + 11) % 12 + 1) | if time.hour >= 12 { PM } else { 0 },
            DAY_OF_WEEK => number(time.weekday + 1),
            DAY => number(time.day),
            MONTH => number(time.month),
            YEAR => number(time.year % 100),
            CENTURY => number(time.year / 100),
            STATUS_A => STATUS_A_RUNNING,
            STATUS_C => 0,
            STATUS_D => VALID,
            index => stored(index),
        }
    }
}

/// A number below 100 as status B has it: binary or two BCD digits.
fn encode(n: u64, mode: u8) -> u8 {
    let n = (n % 100) as u8;
    if mode & BINARY != 0 {
        n
    } else {
        n / 10 * 16 + n % 10
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (DATA_PORT, Some(value)) = (offset, data.first_mut()) {
            *value = self.register(&self.lock());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        if let Some(&value) = data.first() {
            let mut state = self.lock();
            if offset == INDEX_PORT {
                state.index = value & INDEX_MASK;
            } else {
                let index = usize::from(state.index & INDEX_MASK);
                state.memory[index] = value;
            }
        }
        ControlFlow::Continue(())
    }
}

/// A date and time of day in UTC.
struct CivilTime {
    year: u64,
    month: u64,
    day: u64,
    /// 0 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

const DAY_SECONDS: u64 = 24 * 60 * 60;
/// Days in 400 years: the Gregorian calendar's period.
const ERA_DAYS: u64 = 146_097;

impl CivilTime {
    /// From the seconds since 1970-01-01 00:00 UTC.
    ///
    /// Years are counted from March, so that the leap day is the last of its year, and in eras of 400 years
    /// from 0000-03-01.
    fn from_unix(seconds: u64) -> Self {
        const DAYS_FROM_ERA_TO_UNIX: u64 = 719_468;
        let (unix_days, rest) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
        let days = unix_days + DAYS_FROM_ERA_TO_UNIX;
        let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
        let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / (ERA_DAYS - 1);
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (unix_days + 4) % 7,
            hour: rest / 3_600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tuesday 2024-12-31 23:59:58 UTC.
    const NEW_YEARS_EVE: fn() -> u64 = || 1_735_689_598;

    fn get(rtc: &Rtc, index: u8) -> u8 {
        let mut data = [0];
        assert_eq!(rtc.write(0, &[index]), ControlFlow::Continue(()));
        rtc.read(1, &mut data);
        data[0]
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        assert_eq!(rtc.write(0, &[index]), ControlFlow::Continue(()));
        assert_eq!(rtc.write(1, &[value]), ControlFlow::Continue(()));
    }

    fn date(rtc: &Rtc) -> Vec<u8> {
        [CENTURY, YEAR, MONTH, DAY, DAY_OF_WEEK, HOURS, MINUTES, SECONDS]
            .map(|index| get(rtc, index))
            .to_vec()
    }

    #[test]
    fn tells_the_time_in_every_format() {
        let rtc = Rtc::with_clock(NEW_YEARS_EVE);
        assert_eq!(
            date(&rtc),
            [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x58],
            "BCD, 24 hours"
        );
        set(&rtc, STATUS_B, BINARY | HOURS_24);
        assert_eq!(date(&rtc), [20, 24, 12, 31, 3, 23, 59, 58], "binary, 24 hours");
        set(&rtc, STATUS_B, BINARY);
        assert_eq!(get(&rtc, HOURS), PM | 11, "binary, 12 hours");
    }

    #[test]
    fn midnight_and_noon_are_twelve_in_the_12_hour_mode() {
        let midnight = Rtc::with_clock(|| 0);
        set(&midnight, STATUS_B, BINARY);
        assert_eq!(get(&midnight, HOURS), 12);
        let noon = Rtc::with_clock(|| DAY_SECONDS / 2);
        set(&noon, STATUS_B, BINARY);
        assert_eq!(get(&noon, HOURS), PM | 12);
    }

    #[test]
    fn leap_days_follow_the_gregorian_calendar() {
        let day = |seconds| {
            let t = CivilTime::from_unix(seconds);
            (t.year, t.month, t.day, t.weekday)
        };
        assert_eq!(day(0), (1970, 1, 1, 4));
        assert_eq!(day(951_782_400), (2000, 2, 29, 2));
        assert_eq!(day(951_868_800), (2000, 3, 1, 3));
        assert_eq!(day(4_107_456_000), (2100, 2, 28, 0));
        assert_eq!(day(4_107_542_400), (2100, 3, 1, 1));
    }

    #[test]
    fn keeps_memory_and_refuses_to_be_set() {
        let rtc = Rtc::with_clock(NEW_YEARS_EVE);
        set(&rtc, 0x40, 0x5a);
        assert_eq!(get(&rtc, 0x40), 0x5a);
        set(&rtc, SECONDS, 0);
        assert_eq!(get(&rtc, SECONDS), 0x58);
        assert_eq!(
            get(&rtc, 0x80 | STATUS_D),
            VALID,
            "the NMI mask is no part of the index"
        );
    }

    #[test]
    fn another_clock_goes_on_with_what_the_guest_has_written() {
        let rtc = Rtc::with_clock(NEW_YEARS_EVE);
        set(&rtc, STATUS_B, BINARY | HOURS_24);
        set(&rtc, 0x40, 0x5a);
        let saved = rtc.save();
        let other = Rtc::with_clock(NEW_YEARS_EVE);
        other.restore(&saved).unwrap();
        let mut data = [0];
        other.read(1, &mut data);
        assert_eq!(data, [0x5a], "the index is still the last one");
        assert_eq!(get(&other, SECONDS), 58, "the clock is still a binary one");
    }

    #[test]
    fn a_damaged_state_is_refused_and_changes_nothing() {
        let rtc = Rtc::default();
        set(&rtc, 0x40, 0x5a);
        let damaged = RtcState {
            index: 0,
            memory: vec![0; 127],
        };
        assert_eq!(rtc.restore(&damaged), Err(RtcStateError(127)));
        assert_eq!(get(&rtc, 0x40), 0x5a);
    }

    #[test]
    fn no_access_panics() {
        let rtc = Rtc::default();
        for offset in 0..2 {
            for index in 0..=255 {
                for width in 0..=8 {
                    assert_eq!(rtc.write(offset, &vec![index; width]), ControlFlow::Continue(()));
                    rtc.read(offset, &mut vec![0; width]);
                }
            }
        }
    }
}
