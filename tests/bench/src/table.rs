//! The table of results, and the statistics in it.

use std::fmt;

/// The middle one of some measurements.
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    /// The floor's value, and the ratio to it.
    floor: Option<(f64, f64)>,
    limit: f64,
}

impl Row {
    /// The limit is for the ratio to the floor, or where there is none for the value itself.
    fn kept(&self) -> bool {
        self.floor.map_or(self.value, |(_, ratio)| ratio) <= self.limit
    }
}

/// Results, each with the limit that it should keep.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
    remarks: Vec<String>,
}

impl Table {
    /// A result that is judged by its ratio to the floor's. Each pair is posada's and the floor's measurement, one
    /// right after the other: the machine's speed drifts, and the middle one of the pairs' ratios drifts least.
    pub fn ratio(&mut self, what: &str, pairs: &[(f64, f64)], unit: &'static str, limit: f64) {
        let middle = |of: fn(&(f64, f64)) -> f64| median(pairs.iter().map(of).collect());
        let (value, floor, ratio) = (
            middle(|pair| pair.0),
            middle(|pair| pair.1),
            middle(|pair| pair.0 / pair.1),
        );
        self.add(Row {
            what: what.to_owned(),
            value,
            unit,
            floor: Some((floor, ratio)),
            limit,
        });
    }

    /// A result that is judged by itself.
    pub fn absolute(&mut self, what: &str, value: f64, unit: &'static str, limit: f64) {
        self.add(Row {
            what: what.to_owned(),
            value,
            unit,
            floor: None,
            limit,
        });
    }

    /// A table takes minutes: each row is told as it comes.
    fn add(&mut self, row: Row) {
        match row.floor {
            Some((_, ratio)) => eprintln!("  {}: {:.3} {}, {ratio:.3} ×", row.what, row.value, row.unit),
            None => eprintln!("  {}: {:.3} {}", row.what, row.value, row.unit),
        }
        self.rows.push(row);
    }

    /// Whether every result keeps its limit.
    pub fn kept(&self) -> bool {
        self.rows.iter().all(Row::kept)
    }

    /// A line below the table.
    pub fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<44} {:>12} {:>12} {:>8} {:>10}",
            "", "posada", "floor", "ratio", "limit"
        )?;
        for row in &self.rows {
            let value = format!("{:.3} {}", row.value, row.unit);
            let (floor, ratio, limit) = match row.floor {
                Some((floor, ratio)) => (
                    format!("{floor:.3} {}", row.unit),
                    format!("{ratio:.3}"),
                    format!("{} ×", row.limit),
                ),
                None => (
                    String::new(),
                    String::new(),
                    format!("{} {}", row.limit, row.unit),
                ),
            };
            let mark = if row.kept() { "" } else { "  MISSED" };
            let what = &row.what;
            writeln!(
                f,
                "{what:<44} {value:>12} {floor:>12} {ratio:>8} {limit:>10}{mark}"
            )?;
        }
        self.remarks
            .iter()
            .try_for_each(|remark| writeln!(f, "\n{remark}"))
    }
}
