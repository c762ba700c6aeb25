//! Metrics in Prometheus's text format (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).

use std::fmt::{self, Write};

use super::{Group, Kind, Metric};

/// How HTTP calls the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// All of a guest's metrics, each labelled with its name. Those of one name stand together, as the format wants it.
pub fn text(guest: &str, groups: &[Group]) -> String {
    let mut text = String::new();
    for (at, group) in groups.iter().enumerate() {
        let is_of_part = |other: &&Group| other.part == group.part;
        if groups[..at].iter().any(|other| is_of_part(&other)) {
            continue;
        }
        for metric in &group.metrics {
            let same = groups[at..].iter().filter(is_of_part);
            // Writing to a String does not fail.
            let _ = family(&mut text, guest, metric, same);
        }
    }
    text
}

/// What there is of one name.
fn family<'a>(
    text: &mut String,
    guest: &str,
    metric: &Metric,
    groups: impl Iterator<Item = &'a Group>,
) -> fmt::Result {
    let mut groups = groups.peekable();
    let part = groups.peek().map_or("", |group| group.part);
    let (kind, suffix) = match metric.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
    };
    let name = format!("posada_{part}_{}{suffix}", metric.name);
    writeln!(text, "# HELP {name} {}", metric.help)?;
    writeln!(text, "# TYPE {name} {kind}")?;
    for group in groups {
        let Some(metric) = group.metrics.iter().find(|other| other.name == metric.name) else {
            continue;
        };
        write!(text, "{name}{{guest=\"{}\"", Escaped(guest))?;
        for (label, value) in &group.labels {
            write!(text, ",{label}=\"{}\"", Escaped(value))?;
        }
        writeln!(text, "}} {}", metric.value)?;
    }
    Ok(())
}

/// A label's value, in which backslashes, quotes and ends of lines are told apart from the format's own.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            other => f.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(label: &str, reads: u64) -> Group {
        let reads = Metric::counter("reads", "Reads.", reads);
        Group::new("block", vec![("device", label.to_owned())], [reads])
    }

    #[test]
    fn metrics_of_one_name_stand_together_under_one_heading() {
        let up = Group::new("guest", vec![], [Metric::gauge("cpus", "CPUs.", 2)]);
        let text = text("web", &[disk("root", 7), up, disk("data", 8)]);
        assert_eq!(
            text,
            "# HELP posada_block_reads_total Reads.\n\
             # TYPE posada_block_reads_total counter\n\
             posada_block_reads_total{guest=\"web\",device=\"root\"} 7\n\
             posada_block_reads_total{guest=\"web\",device=\"data\"} 8\n\
             # HELP posada_guest_cpus CPUs.\n\
             # TYPE posada_guest_cpus gauge\n\
             posada_guest_cpus{guest=\"web\"} 2\n"
        );
    }

    #[test]
    fn a_label_cannot_end_itself() {
        let text = text("web", &[disk("a\"b\\c\nd", 1)]);
        assert!(text.contains(r#"device="a\"b\\c\nd"} 1"#), "{text}");
    }
}
