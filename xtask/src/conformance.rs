//! `conformance`: holds the engine to reference data: logits, token ids, rendered templates, quantized blocks.
//!
//! What dunlin does not know yet is counted apart and is no failure; a reference that lies unused is one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::ensure;
use engine::Isa;
use serde_json::{Value, json};

mod check;
mod compare;
mod discover;
mod subject;
mod verdict;

use discover::{Check, discover};
use subject::{Engine, Subject, Unknown};
use verdict::{Report, Verdict};

/// Hold the engine to reference data
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of reference data [default: conformance/ in $DUNLIN_SHARED]
    dir: Option<PathBuf>,
    /// One JSON object instead of a line per file
    #[arg(long)]
    json: bool,
    /// Instruction set that logits are computed on [default: the fastest that this processor has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
}

/// Exit code 1 if anything fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let isa = args.isa.unwrap_or_else(Isa::detect);
    let reports = check_all(&dir, isa, !args.json)?;
    let count = Count::of(&reports);
    if args.json {
        let files: Vec<Value> = reports.iter().map(Report::json).collect();
        println!("{:#}", json!({ "isa": isa.name(), "files": files, "count": count.json() }));
    } else {
        println!("{count}");
    }
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything in `dir`, with logits on `isa`, a line per file: how much passed, failed and is not yet known.
pub(crate) fn check_folder(dir: &Path, isa: Isa) -> anyhow::Result<(usize, usize, usize)> {
    let count = Count::of(&check_all(dir, isa, true)?);
    println!("{count}");
    Ok((count.passed, count.failed, count.unknown))
}

fn check_all(dir: &Path, isa: Isa, talk: bool) -> anyhow::Result<Vec<Report>> {
    let checks = discover(dir)?;
    ensure!(!checks.is_empty(), "no reference data in {}", dir.display());
    ensure!(isa.is_supported(), "this processor has no {isa}");
    let engine = Engine { isa };
    if talk {
        println!("logits on {isa}");
    }
    let mut reports = Vec::with_capacity(checks.len());
    for check in &checks {
        let report = report(dir, check, &engine);
        if talk {
            println!("{report}");
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Where reference data lies unless told otherwise.
pub(crate) fn default_dir() -> PathBuf {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    std::env::var_os("DUNLIN_SHARED").map_or(beside, PathBuf::from).join("conformance")
}

fn report(dir: &Path, check: &Check, subject: &dyn Subject) -> Report {
    let file = check.file().strip_prefix(dir).unwrap_or(check.file()).display().to_string();
    Report { group: check.group(), file, verdict: check::run(check, subject) }
}

/// The closing count.
#[derive(Debug, Default, PartialEq)]
struct Count {
    passed: usize,
    failed: usize,
    unknown: usize,
    /// What is not known, each once.
    missing: BTreeSet<Unknown>,
}

impl Count {
    fn of(reports: &[Report]) -> Count {
        let mut count = Count::default();
        for report in reports {
            match &report.verdict {
                Verdict::Pass(_) => count.passed += 1,
                Verdict::Fail { .. } => count.failed += 1,
                Verdict::Unknown(what) => {
                    count.unknown += 1;
                    count.missing.insert(what.clone());
                }
            }
        }
        count
    }

    fn json(&self) -> Value {
        let names =
            |pick: fn(&Unknown) -> Option<&str>| self.missing.iter().filter_map(pick).collect::<Vec<_>>();
        json!({
            "pass": self.passed,
            "fail": self.failed,
            "unknown": self.unknown,
            "unknown_families": names(|what| if let Unknown::Family(name) = what { Some(name) } else { None }),
            "unknown_types": names(|what| if let Unknown::Type(name) = what { Some(name) } else { None }),
            "unknown_parts": names(|what| if let Unknown::Part(name) = what { Some(name) } else { None }),
        })
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pass, {} fail, {} not yet known", self.passed, self.failed, self.unknown)?;
        if self.missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = self.missing.iter().map(Unknown::to_string).collect();
        write!(f, " ({})", missing.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::verdict::Figures;
    use super::*;

    #[test]
    fn the_count_names_each_unknown_once() {
        let verdicts = [
            Verdict::Pass(Figures::default()),
            Verdict::fail("wrong"),
            Verdict::Unknown(Unknown::Part("tokenizer".into())),
            Verdict::Unknown(Unknown::Family("mamba2".into())),
            Verdict::Unknown(Unknown::Type("IQ4_XS".into())),
            Verdict::Unknown(Unknown::Family("mamba2".into())),
        ];
        let reports = verdicts.map(|verdict| Report { group: "logits", file: "m.gguf".into(), verdict });
        let count = Count::of(&reports);
        assert_eq!(
            count.to_string(),
            "1 pass, 1 fail, 4 not yet known (family mamba2, type IQ4_XS, tokenizer)"
        );
        assert_eq!(count.json()["unknown_families"], json!(["mamba2"]));
        assert_eq!(reports[1].json()["reason"], json!("wrong"));
    }
}
