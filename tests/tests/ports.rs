//! What a guest of one page finds at its I/O ports, and where no device is.

use std::time::{SystemTime, UNIX_EPOCH};

use posada_tests::script::{DATA, Width};
use posada_tests::{Guest, Script};

const SERIAL: u16 = 0x3f8;
const CMOS: u16 = 0x70;
const I8042_DATA: u16 = 0x60;
const I8042_COMMAND: u16 = 0x64;
const PVPANIC: u16 = 0x505;
const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
/// A port where no device is.
const NO_PORT: u16 = 0x1234;
/// A place in the MMIO hole where no device is.
const NOWHERE: u64 = 0xd000_0000;

fn run(script: &Script) -> posada_tests::Ended {
    Guest::payload(&script.code()).run()
}

#[test]
fn ports_and_memory_that_nobody_answers_at_read_as_ones_and_swallow_writes() {
    let mut script = Script::new();
    for width in Width::ALL {
        for port in [NO_PORT, 0x2f8, 0x604, 0xfffe, 0xffff] {
            script = script.port_write(width, port, 0x1234_5678).port_read(width, port);
        }
    }
    for bytes in [1, 2, 4, 8] {
        script = script.store(bytes, NOWHERE, 0).load(bytes, NOWHERE);
    }
    let expected: Vec<u64> = [0xff, 0xffff, 0xffff_ffff]
        .into_iter()
        .flat_map(|ones| [ones; 5])
        .chain([0xff, 0xffff, 0xffff_ffff, u64::MAX])
        .collect();
    assert_eq!(run(&script).expect_status(0).numbers(), expected);
}

#[test]
fn a_port_of_eight_bits_answers_accesses_of_every_width() {
    const LINE_STATUS: u16 = SERIAL + 5;
    const IDLE: u8 = 0x60;
    for width in Width::ALL {
        let script = Script::new().port_write(width, SERIAL, 0x4443_4241);
        assert_eq!(run(&script).expect_status(0).console(), "A", "{width:?}");
    }
    let script = Script::new()
        .port_read(Width::Byte, LINE_STATUS)
        .port_read(Width::Word, LINE_STATUS);
    let status: Vec<u8> = run(&script)
        .expect_status(0)
        .numbers()
        .iter()
        .map(|number| *number as u8)
        .collect();
    assert_eq!(status, [IDLE, IDLE]);
}

#[test]
fn an_access_that_reaches_past_a_devices_last_port_is_nobodys() {
    const SCRATCH: u16 = SERIAL + 7;
    let script = Script::new()
        .port_write(Width::Byte, SCRATCH, 0x5a)
        .port_write(Width::Word, SCRATCH, 0x5b5b)
        .port_write(Width::Long, SCRATCH, 0x5c5c_5c5c)
        .port_read(Width::Byte, SCRATCH)
        .port_read(Width::Word, SCRATCH)
        .port_read(Width::Long, SCRATCH);
    assert_eq!(
        run(&script).expect_status(0).numbers(),
        [0x5a, 0xffff, 0xffff_ffff]
    );
}

#[test]
fn string_output_prints_every_byte_in_order() {
    let text: Vec<u8> = (0..10_000u32).map(|n| b'!' + (n % 93) as u8).collect();
    let script = Script::new().print(DATA, text.len() as u64);
    let ended = Guest::payload(&script.code_and(&text)).run().expect_status(0);
    assert_eq!(ended.stdout, text);
}

#[test]
fn string_output_of_words_reaches_the_port_once_a_word() {
    let text = b"1.2.3.4.";
    let script = Script::new().print_words(DATA, text.len() as u64 / 2);
    let ended = Guest::payload(&script.code_and(text)).run().expect_status(0);
    assert_eq!(ended.console(), "1234");
}

#[test]
fn string_input_reads_the_port_every_time() {
    const INDEX: u8 = 0x40;
    let script = Script::new()
        .port_write(Width::Byte, CMOS, INDEX.into())
        .port_write(Width::Byte, CMOS + 1, 0x2a)
        .port_read_string(CMOS + 1, 3000);
    assert_eq!(run(&script).expect_status(0).stdout, [0x2a; 3000]);
}

/// Seconds since 1970 of a date (Howard Hinnant's days_from_civil).
fn unix_time(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> i64 {
    let years = if month > 2 { year } else { year - 1 };
    let months = if month > 2 { month - 3 } else { month + 9 };
    let days =
        365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    ((days * 24 + hour) * 60 + minute) * 60 + second
}

#[test]
fn the_cmos_clock_has_the_hosts_date() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    // Century, year, month, day, hours, minutes, seconds (MC146818A data sheet; the century as ACPI's FADT has it).
    let script = [0x32, 9, 8, 7, 4, 2, 0]
        .into_iter()
        .fold(Script::new(), |script, register| {
            script
                .port_write(Width::Byte, CMOS, register)
                .port_read(Width::Byte, CMOS + 1)
        });
    let earliest = now();
    let ended = run(&script).expect_status(0);
    let latest = now();
    let from_bcd = |digits: u64| (digits / 16 * 10 + digits % 16) as i64;
    let fields: Vec<i64> = ended.numbers().into_iter().map(from_bcd).collect();
    let [century, year, month, day, hour, minute, second] = fields[..] else {
        panic!("{fields:?}")
    };
    let guest = unix_time(century * 100 + year, month, day, hour, minute, second);
    // The registers are read one after the other: a minute may end in between.
    assert!(
        (earliest - 60..=latest).contains(&guest),
        "{fields:?}: {earliest} <= {guest} <= {latest}"
    );
}

/// Whether a guest may write this without being told to end.
fn is_harmless(port: u16, value: u8) -> bool {
    match port {
        I8042_COMMAND => value != 0xfe,
        PVPANIC => value & 1 == 0,
        SLEEP_CONTROL => value & 0x3c != 0x34,
        RESET => value != 1,
        _ => true,
    }
}

#[test]
fn every_value_in_every_width_at_every_port_leaves_the_machine_well() {
    let ports: Vec<u16> = (SERIAL..SERIAL + 8)
        .chain([
            CMOS,
            CMOS + 1,
            I8042_DATA,
            I8042_COMMAND,
            PVPANIC,
            SLEEP_CONTROL,
            SLEEP_CONTROL + 1,
            RESET,
        ])
        .collect();
    let mut script = Script::new();
    for &port in &ports {
        for width in Width::ALL {
            for value in (0..=u8::MAX).filter(|&value| is_harmless(port, value)) {
                script = script.port_write(width, port, u32::from(value) * 0x0101_0101);
            }
            script = script.port_read(width, port);
        }
    }
    // Back to eight data bits without divisor latch, then without loopback: what is said is printed again.
    script = script
        .port_write(Width::Byte, SERIAL + 3, 3)
        .port_write(Width::Byte, SERIAL + 4, 3)
        .say("alive");
    let ended = run(&script).expect_status(0);
    assert!(ended.stdout.ends_with(b"alive"));
    assert_eq!(ended.messages(), "");
}
