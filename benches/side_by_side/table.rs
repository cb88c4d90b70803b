//! What was found, as medians and ratios.

use std::fmt;

/// All rows.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    figure: String,
    what: String,
    ours: Sample,
    theirs: Option<(String, Sample)>,
    goal: Goal,
}

/// What several runs have given.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    values: Vec<f64>,
    /// Runs that were disturbed; left out unless they were asked for.
    pub disturbed: usize,
}

/// What ours should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most this, whatever theirs is.
    AtMost(f64),
    /// At most theirs times this.
    Times(f64),
    /// At least theirs times this.
    AtLeastTimes(f64),
    /// At most theirs and this.
    Plus(f64),
    /// Only for comparison.
    None,
}

impl Sample {
    /// No runs.
    pub const fn new() -> Self {
        Self {
            values: Vec::new(),
            disturbed: 0,
        }
    }

    /// One more run.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle one; nothing when there are none.
    pub fn median(&self) -> Option<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            _ if values.is_empty() => None,
            1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }
}

impl Table {
    /// One more row; `theirs` with a name.
    pub fn add(
        &mut self,
        figure: &str,
        what: &str,
        ours: Sample,
        theirs: Option<(&str, Sample)>,
        goal: Goal,
    ) {
        let row = Row {
            figure: figure.to_owned(),
            what: what.to_owned(),
            ours,
            theirs: theirs.map(|(name, sample)| (name.to_owned(), sample)),
            goal,
        };
        eprintln!("  {row}");
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| figure | what | Rowcast | beside | ratio | goal | |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &self.0 {
            writeln!(f, "| {row} |")?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure, what, .. } = self;
        let ours = self.ours.median();
        let theirs = self.theirs.as_ref();
        let beside = theirs.and_then(|(_, sample)| sample.median());
        write!(f, "{figure} | {what} | {} | ", text(ours))?;
        match theirs {
            Some((name, _)) => write!(f, "{name} {} | ", text(beside))?,
            None => write!(f, "| ")?,
        }
        let ratio = ours.zip(beside).map(|(ours, beside)| ours / beside);
        write!(f, "{} | ", text(ratio))?;
        let reached = match self.goal {
            Goal::AtMost(most) => {
                write!(f, "at most {most}")?;
                ours.map(|ours| ours <= most)
            }
            Goal::Times(most) => {
                write!(f, "at most {most} x")?;
                ratio.map(|ratio| ratio <= most)
            }
            Goal::AtLeastTimes(least) => {
                write!(f, "at least {least} x")?;
                ratio.map(|ratio| ratio >= least)
            }
            Goal::Plus(more) => {
                write!(f, "at most {more} more")?;
                ours.zip(beside).map(|(ours, beside)| ours <= beside + more)
            }
            Goal::None => None,
        };
        write!(f, " | ")?;
        match reached {
            Some(true) => write!(f, "reached")?,
            Some(false) => write!(f, "**not reached**")?,
            None => {}
        }
        let disturbed = self.ours.disturbed + theirs.map_or(0, |(_, sample)| sample.disturbed);
        if disturbed > 0 {
            write!(f, " ({disturbed} disturbed)")?;
        }
        Ok(())
    }
}

fn text(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() < 10.0 => format!("{value:.2}"),
        Some(value) if value.abs() < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}
