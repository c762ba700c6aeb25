//! Tables for people: columns as wide as what is in them.

/// The lines of a table with this head.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let lines: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What is in a cell, or a dash if nothing is known.
pub fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Bytes in the unit that leaves up to four digits, rounded: an amount that was measured.
pub fn bytes(amount: u64) -> String {
    scaled(amount, 1024, &["", "K", "M", "G", "T", "P", "E"])
}

/// A number in the unit that leaves up to four digits, rounded.
pub fn number(amount: u64) -> String {
    scaled(amount, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(amount: u64, step: u64, units: &[&str]) -> String {
    let (mut amount, mut units) = (amount as f64, units.iter());
    let mut unit = units.next().unwrap_or(&"");
    // What would be printed with five digits has a larger unit.
    while amount >= 9999.5
        && let Some(next) = units.next()
    {
        amount /= step as f64;
        unit = next;
    }
    match amount < 10.0 && !unit.is_empty() {
        true => format!("{amount:.1}{unit}"),
        false => format!("{amount:.0}{unit}"),
    }
}

/// A number of seconds in its largest unit.
pub fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_what_is_in_it() {
        let row = |name: &str, state: Option<&str>| [name.to_owned(), cell(state), "1".to_owned()];
        let rows = [row("longer-name", Some("running")), row("mute", None)];
        let table = table(["NAME", "STATE", "CPUS"], rows);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "NAME         STATE    CPUS");
        assert_eq!(lines[1], "longer-name  running  1");
        assert_eq!(lines[2], "mute         -        1");
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        assert_eq!(
            [59, 60, 3599, 3600, 86_400].map(time),
            ["59s", "1m", "59m", "1h", "1d"]
        );
    }

    #[test]
    fn amounts_have_four_digits_at_most() {
        assert_eq!(
            [0, 9999, 10_000, 15 << 20, u64::MAX].map(bytes),
            ["0", "9999", "9.8K", "15M", "16E"]
        );
        assert_eq!([9999, 10_000, 1_234_567].map(number), ["9999", "10k", "1235k"]);
    }
}
