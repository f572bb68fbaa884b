//! What was measured: a table for people, Markdown for the README, JSON for comparing.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

/// One line of the table.
pub(super) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Goal,
    moonshot: Option<f64>,
}

/// What a value must be.
#[derive(Clone, Copy)]
enum Goal {
    /// Told, and held to nothing.
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// How a value stands to its goals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    NoGoal,
    Missed,
    Met,
    Moonshot,
}

impl Row {
    /// A value that is held to nothing.
    pub(super) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: Goal::None,
            moonshot: None,
        }
    }

    /// The value must be this or more.
    pub(super) fn at_least(mut self, must: f64) -> Self {
        self.goal = Goal::AtLeast(must);
        self
    }

    /// The value must be this or less.
    pub(super) fn at_most(mut self, must: f64) -> Self {
        self.goal = Goal::AtMost(must);
        self
    }

    /// What would be more than anybody asks for.
    pub(super) fn moonshot(mut self, value: f64) -> Self {
        self.moonshot = Some(value);
        self
    }

    fn reaches(&self, bound: f64) -> bool {
        match self.goal {
            Goal::None => false,
            Goal::AtLeast(_) => self.value >= bound,
            Goal::AtMost(_) => self.value <= bound,
        }
    }

    fn standing(&self) -> Standing {
        match self.goal {
            Goal::None => Standing::NoGoal,
            Goal::AtLeast(must) | Goal::AtMost(must) if !self.reaches(must) => Standing::Missed,
            _ if self.moonshot.is_some_and(|bound| self.reaches(bound)) => Standing::Moonshot,
            _ => Standing::Met,
        }
    }

    /// `≥ 0.6`, or nothing.
    fn must(&self) -> String {
        match self.goal {
            Goal::None => String::new(),
            Goal::AtLeast(must) => format!("≥ {}", thousands(must)),
            Goal::AtMost(must) => format!("≤ {}", thousands(must)),
        }
    }
}

/// Print the table and write `bench.json` and `table.md`.
pub(super) fn report(folder: &Path, rows: &[Row]) -> Result<()> {
    println!(
        "\n{:<66} {:>10} {:<10} {:>9} {:>9}",
        "what", "measured", "", "must", "moonshot"
    );
    let mut json = Vec::new();
    for row in rows {
        let standing = row.standing();
        let mark = match standing {
            Standing::Missed => "MISSED",
            Standing::Moonshot => "★",
            Standing::NoGoal | Standing::Met => "",
        };
        let moonshot = row.moonshot.map(thousands).unwrap_or_default();
        let line = format!(
            "{:<66} {:>10} {:<10} {:>9} {moonshot:>9} {mark}",
            row.name,
            readable(row.value),
            row.unit,
            row.must(),
        );
        println!("{}", line.trim_end());
        json.push(json!({
            "name": row.name.trim(),
            "value": row.value,
            "unit": row.unit,
            "met": standing != Standing::Missed,
            "moonshot": standing == Standing::Moonshot,
        }));
    }
    std::fs::write(
        folder.join("bench.json"),
        serde_json::to_string_pretty(&json)? + "\n",
    )?;
    std::fs::write(folder.join("table.md"), markdown(rows))?;
    println!("\nwritten to {}", folder.display());
    Ok(())
}

/// The table as the README has it.
fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| what | measured | must | moonshot |\n|---|---|---|---|\n");
    for row in rows {
        let mark = match row.standing() {
            Standing::Missed => " **missed**",
            Standing::Moonshot => " ★",
            Standing::NoGoal | Standing::Met => "",
        };
        let moonshot = row.moonshot.map(thousands).unwrap_or_default();
        let unit = if row.unit == "×" {
            "×".to_owned()
        } else {
            format!(" {}", row.unit)
        };
        let _ = writeln!(
            text,
            "| {} | {}{unit}{mark} | {} | {moonshot} |",
            row.name.replace("  ", "… "),
            readable(row.value),
            row.must(),
        );
    }
    text
}

/// Three digits, or all before the point.
fn readable(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => thousands(value.round()),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// `12,345`; what is behind the point stays as it is.
pub(super) fn thousands(value: f64) -> String {
    let text = value.to_string();
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stands_to_its_goals() {
        let ratio = |value| Row::new("r", value, "×").at_least(0.6).moonshot(1.0);
        let time = |value| Row::new("t", value, "ms").at_most(0.5).moonshot(0.25);
        for (row, standing) in [
            (ratio(0.5), Standing::Missed),
            (ratio(0.6), Standing::Met),
            (ratio(1.0), Standing::Moonshot),
            (time(0.6), Standing::Missed),
            (time(0.5), Standing::Met),
            (time(0.2), Standing::Moonshot),
            (Row::new("told", 1.0, "/s"), Standing::NoGoal),
        ] {
            assert_eq!(row.standing(), standing, "{} {}", row.name, row.value);
        }
    }

    #[test]
    fn numbers_are_for_people() {
        for (value, text) in [
            (1_234_567.8, "1,234,568"),
            (97.24, "97.2"),
            (1.005, "1.00"),
            (0.0513, "0.051"),
        ] {
            assert_eq!(readable(value), text);
        }
        assert_eq!(thousands(5_000.5), "5,000.5");
    }
}
