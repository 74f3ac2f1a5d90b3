//! What came of one check.

use std::fmt;

use serde_json::{Map, Value, json};

use super::subject::Unknown;

/// One check's file and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    pub(super) group: &'static str,
    /// Relative to the folder that was searched.
    pub(super) file: String,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Pass(Figures),
    Fail { reason: String, figures: Figures },
    Unknown(Unknown),
}

/// What was measured, in the order of printing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures(pub(super) Vec<(&'static str, Figure)>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Figure {
    Error(f64),
    /// So many of so many.
    Share(usize, usize),
}

impl Verdict {
    pub(super) fn fail(reason: impl Into<String>) -> Verdict {
        Verdict::Fail { reason: reason.into(), figures: Figures::default() }
    }

    /// Pass if there is no reason to fail.
    pub(super) fn of(figures: Figures, reason: Option<String>) -> Verdict {
        match reason {
            None => Verdict::Pass(figures),
            Some(reason) => Verdict::Fail { reason, figures },
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Verdict::Pass(_) => "pass",
            Verdict::Fail { .. } => "fail",
            Verdict::Unknown(_) => "unknown",
        }
    }

    fn figures(&self) -> &[(&'static str, Figure)] {
        match self {
            Verdict::Pass(figures) | Verdict::Fail { figures, .. } => &figures.0,
            Verdict::Unknown(_) => &[],
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8}{:12}{:40}", self.verdict.name(), self.group, self.file)?;
        for (name, figure) in self.verdict.figures() {
            match figure {
                Figure::Error(error) => write!(f, "  {name} {error:.2e}")?,
                Figure::Share(part, whole) => write!(f, "  {name} {part}/{whole}")?,
            }
        }
        match &self.verdict {
            Verdict::Pass(_) => Ok(()),
            Verdict::Fail { reason, .. } => write!(f, "  {reason}"),
            Verdict::Unknown(what) => write!(f, "  not yet known: {what}"),
        }
    }
}

impl Report {
    pub(super) fn json(&self) -> Value {
        let mut figures = Map::new();
        for (name, figure) in self.verdict.figures() {
            let value = match *figure {
                // JSON knows neither NaN nor infinity: null.
                Figure::Error(error) => json!(error),
                Figure::Share(part, whole) => json!({ "count": part, "of": whole }),
            };
            figures.insert((*name).to_owned(), value);
        }
        let mut report = json!({ "group": self.group, "file": self.file, "verdict": self.verdict.name() });
        report["figures"] = Value::Object(figures);
        match &self.verdict {
            Verdict::Pass(_) => {}
            Verdict::Fail { reason, .. } => report["reason"] = json!(reason),
            Verdict::Unknown(what) => report["reason"] = json!(what.to_string()),
        }
        report
    }
}
