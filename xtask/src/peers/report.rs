//! What was measured, as text, Markdown and JSON.

use std::fmt;

use serde_json::{Map, Value, json};

use super::bench::{Bound, Takes};
use super::contender::Contender;
use super::figure::Figure;
use super::machine::Probe;

/// Median, extremes and count of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    median: f64,
    min: f64,
    max: f64,
    n: usize,
}

impl Spread {
    /// `None` of nothing.
    pub(super) fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median, min, max, n: sorted.len() })
    }

    fn scaled(self, factor: f64) -> Spread {
        Spread { median: self.median * factor, min: self.min * factor, max: self.max * factor, n: self.n }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "n": self.n })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median >= 100.0 { 0 } else { 2 };
        write!(f, "{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

/// One figure of one contender in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) contender: Contender,
    pub(super) figure: Figure,
    pub(super) value: f64,
    pub(super) takes: Option<Takes>,
}

/// One task of a round: what all contenders did, between two looks at the machine.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) before: Probe,
    pub(super) samples: Vec<Sample>,
    pub(super) after: Probe,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) turns: Vec<Turn>,
}

/// One model's rounds with one number of threads.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) model: String,
    pub(super) model_bytes: u64,
    pub(super) threads: usize,
    pub(super) rounds: Vec<Round>,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    figure: Figure,
    /// By the columns of the figure's table.
    contenders: Vec<(Contender, Option<Spread>)>,
    /// The best of llama.cpp's settings.
    reference: Option<Contender>,
    /// How many times better dunlin is than the reference, round by round.
    ratio: Option<Spread>,
    /// The part that dunlin used of what bounds it, round by round.
    share: Option<(Bound, Spread)>,
}

impl Sample {
    /// The part of what bounds it that was used.
    fn share(&self) -> Option<(Bound, f64)> {
        let takes = self.takes?;
        Some((takes.bound, self.value * takes.per_token / takes.most_per_s))
    }
}

impl Round {
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.turns.iter().flat_map(|turn| &turn.samples)
    }

    fn sample(&self, figure: Figure, contender: Contender) -> Option<f64> {
        let is = |sample: &&Sample| sample.figure == figure && sample.contender == contender;
        self.samples().find(is).map(|sample| sample.value)
    }
}

impl Comparison {
    fn samples(&self, figure: Figure, contender: Contender) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| round.sample(figure, contender)).collect()
    }

    /// What was measured, in the order of the tasks.
    fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for sample in self.rounds.iter().flat_map(Round::samples) {
            if !figures.contains(&sample.figure) {
                figures.push(sample.figure);
            }
        }
        figures
    }

    fn line(&self, figure: Figure) -> Line {
        let spread = |contender| Spread::of(&self.samples(figure, contender));
        let contenders: Vec<_> =
            figure.columns().iter().map(|&contender| (contender, spread(contender))).collect();
        let reference = contenders
            .iter()
            .filter(|(contender, _)| *contender != Contender::Dunlin)
            .filter_map(|(contender, spread)| Some((*contender, spread.as_ref()?.median)))
            .max_by(|a, b| if figure.more_is_better() { a.1.total_cmp(&b.1) } else { b.1.total_cmp(&a.1) })
            .map(|best| best.0);
        let ratios: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|round| {
                let own = round.sample(figure, Contender::Dunlin)?;
                let peer = round.sample(figure, reference?)?;
                Some(if figure.more_is_better() { own / peer } else { peer / own })
            })
            .collect();
        Line { figure, contenders, reference, ratio: Spread::of(&ratios), share: self.share(figure) }
    }

    fn share(&self, figure: Figure) -> Option<(Bound, Spread)> {
        let samples = self.rounds.iter().flat_map(Round::samples);
        let shares: Vec<_> =
            samples.filter(|sample| sample.figure == figure).filter_map(Sample::share).collect();
        let bound = shares.first()?.0;
        Some((bound, Spread::of(&shares.iter().map(|share| share.1).collect::<Vec<_>>())?))
    }

    /// The lines of each table: those of as many columns.
    fn tables(&self) -> Vec<Vec<Line>> {
        let mut tables: Vec<Vec<Line>> = Vec::new();
        for figure in self.figures() {
            let table = tables.iter_mut().find(|table| table[0].figure.columns() == figure.columns());
            let line = self.line(figure);
            match table {
                Some(table) => table.push(line),
                None => tables.push(vec![line]),
            }
        }
        tables
    }

    fn title(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        format!("{}, {} thread{plural}", self.model, self.threads)
    }

    pub(super) fn markdown(&self) -> String {
        let mut out = String::new();
        for table in self.tables() {
            let names: Vec<_> = table[0].contenders.iter().map(|column| column.0.name()).collect();
            let (title, megabytes) = (self.title(), self.model_bytes as f64 / 1e6);
            out += &format!("| {title} ({megabytes:.0} MB) | {} | ratio |\n", names.join(" | "));
            out += &format!("|{}\n", "---|".repeat(names.len() + 2));
            for line in table {
                out += &format!("| {} |\n", line.cells().join(" | "));
            }
            out.push('\n');
        }
        for line in self.machine_lines() {
            out += &format!("- {line}\n");
        }
        out
    }

    /// Tables with aligned columns, then what the machine did meanwhile.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for table in self.tables() {
            let names = table[0].contenders.iter().map(|column| column.0.name().to_owned());
            let head = [self.title()].into_iter().chain(names).chain(["ratio".to_owned()]);
            let rows: Vec<Vec<String>> =
                std::iter::once(head.collect()).chain(table.iter().map(Line::cells)).collect();
            let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            for row in &rows {
                let cells =
                    row.iter().enumerate().map(|(i, cell)| format!("{cell:width$}", width = width(i)));
                out += cells.collect::<Vec<_>>().join("  ").trim_end();
                out.push('\n');
            }
        }
        for line in self.machine_lines() {
            out += &line;
            out.push('\n');
        }
        out
    }

    /// What the machine could do around the tasks, and which part of what it could do meanwhile dunlin used.
    fn machine_lines(&self) -> Vec<String> {
        let spread = |of: fn(&Probe) -> f64| {
            let turns = self.rounds.iter().flat_map(|round| &round.turns);
            Spread::of(&turns.flat_map(|turn| [of(&turn.before), of(&turn.after)]).collect::<Vec<_>>())
        };
        let (read, macs) = (spread(|probe| probe.read_bytes_per_s), spread(|probe| probe.macs_per_s));
        let mut lines = Vec::new();
        lines.extend(read.map(|read| format!("memory read in GB/s: {}", read.scaled(1e-9))));
        lines.extend(macs.map(|macs| format!("dot products in GMAC/s: {}", macs.scaled(1e-9))));
        for line in self.tables().iter().flatten() {
            if let Some((bound, share)) = line.share {
                let (figure, share) = (line.figure.title(), share.scaled(100.0));
                lines.push(format!("dunlin's % of {} in {figure}: {share}", bound.name()));
            }
        }
        lines
    }

    pub(super) fn json(&self) -> Value {
        let mut figures = Map::new();
        for line in self.tables().iter().flatten() {
            let mut entry = Map::new();
            for (contender, spread) in &line.contenders {
                let samples = self.samples(line.figure, *contender);
                let spread = spread.map(|spread| {
                    let mut value = spread.json();
                    value["samples"] = json!(samples);
                    value
                });
                entry.insert(contender.key().to_owned(), json!(spread));
            }
            entry.insert("reference".to_owned(), json!(line.reference.map(Contender::key)));
            entry.insert("times_better".to_owned(), json!(line.ratio.map(Spread::json)));
            if let Some((bound, share)) = line.share {
                let mut value = share.json();
                value["of"] = json!(bound.keys().1);
                entry.insert("dunlin_share".to_owned(), value);
            }
            figures.insert(line.figure.key(), Value::Object(entry));
        }
        let probes = |round: &Round| {
            let around = |turn: &Turn| json!({ "before": turn.before.json(), "after": turn.after.json() });
            round.turns.iter().map(around).collect::<Value>()
        };
        json!({
            "model": self.model,
            "model_bytes": self.model_bytes,
            "threads": self.threads,
            "rounds": self.rounds.len(),
            "figures": figures,
            "machine_by_round_and_task": self.rounds.iter().map(probes).collect::<Value>(),
        })
    }
}

impl Line {
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.figure.title()];
        let spread = |spread: &Option<Spread>, scale: f64| {
            spread.map_or_else(|| "-".to_owned(), |spread| spread.scaled(scale).to_string())
        };
        for (contender, own) in &self.contenders {
            let mark = if self.reference == Some(*contender) { " *" } else { "" };
            cells.push(spread(own, self.figure.scale()) + mark);
        }
        cells.push(spread(&self.ratio, 1.0));
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::super::figure::Depth;
    use super::*;
    use engine::KvFormat;

    const READ: Takes = Takes { bound: Bound::Read, per_token: 1e9, most_per_s: 40e9 };

    fn round(figure: Figure, takes: Option<Takes>, values: &[f64]) -> Round {
        let contenders = figure.columns().iter().zip(values);
        let samples = contenders.map(|(&contender, &value)| {
            let takes = takes.filter(|_| contender == Contender::Dunlin);
            Sample { contender, figure, value, takes }
        });
        let probe = |read_bytes_per_s| Probe { read_bytes_per_s, macs_per_s: 100e9 };
        Round { turns: vec![Turn { before: probe(30e9), samples: samples.collect(), after: probe(50e9) }] }
    }

    fn comparison(figure: Figure, takes: Option<Takes>, rounds: &[&[f64]]) -> Comparison {
        let rounds = rounds.iter().map(|values| round(figure, takes, values)).collect();
        Comparison { model: "m".into(), model_bytes: 1_000_000, threads: 2, rounds }
    }

    #[test]
    fn medians_and_extremes() {
        assert_eq!(Spread::of(&[]), None);
        let check = |samples: &[f64], median, min, max| {
            let expected = Spread { median, min, max, n: samples.len() };
            assert_eq!(Spread::of(samples), Some(expected), "{samples:?}");
        };
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[4.0, 1.0], 2.5, 1.0, 4.0);
        check(&[9.0, 1.0, 2.0], 2.0, 1.0, 9.0);
    }

    #[test]
    fn the_better_setting_is_the_reference_and_pairs_make_the_ratio() {
        let rounds: [&[f64]; 3] = [&[20.0, 8.0, 10.0], &[30.0, 9.0, 10.0], &[20.0, 8.0, 20.0]];
        let line = comparison(Figure::Decode, None, &rounds).line(Figure::Decode);
        assert_eq!(line.reference, Some(Contender::USUAL[2]));
        assert_eq!(line.ratio, Some(Spread { median: 2.0, min: 1.0, max: 3.0, n: 3 }));

        let sooner = comparison(Figure::FirstToken, None, &[&[0.5, 4.0, 2.0]]);
        let line = sooner.line(Figure::FirstToken);
        assert_eq!(line.reference, Some(Contender::USUAL[2]));
        assert_eq!(line.ratio.map(|ratio| ratio.median), Some(4.0));
    }

    #[test]
    fn at_depth_the_best_of_four_settings_is_the_reference() {
        let figure = Figure::DecodeAt(Depth { tokens: 4096, kv: KvFormat::F16 });
        let line = comparison(figure, None, &[&[20.0, 8.0, 9.0, 16.0, 10.0]]).line(figure);
        assert_eq!(line.reference.map(Contender::name), Some("llama.cpp repack 1, fa off"));
        assert_eq!(line.ratio.map(|ratio| ratio.median), Some(1.25));
    }

    #[test]
    fn a_share_is_of_what_was_probed_in_turns_with_it() {
        let share = |takes| comparison(Figure::Decode, takes, &[&[20.0, 8.0, 10.0]]).share(Figure::Decode);
        let of = |bound, median| Some((bound, Spread { median, min: median, max: median, n: 1 }));
        assert_eq!(share(Some(READ)), of(Bound::Read, 0.5));
        let macs = Takes { bound: Bound::Macs, per_token: 1e9, most_per_s: 100e9 };
        assert_eq!(share(Some(macs)), of(Bound::Macs, 0.2));
        assert_eq!(share(None), None);
    }

    #[test]
    fn a_table_has_what_was_measured_and_a_dash_for_the_rest() {
        let text = comparison(Figure::Decode, Some(READ), &[&[20.0, 8.0]]).text();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "m, 2 threads dunlin llama.cpp repack 1 llama.cpp repack 0 ratio",
            "decode 64, tokens/s 20.00 (20.00-20.00) 8.00 (8.00-8.00) * - 2.50 (2.50-2.50)",
            "memory read in GB/s: 40.00 (30.00-50.00)",
            "dot products in GMAC/s: 100 (100-100)",
            "dunlin's % of the memory read in decode 64, tokens/s: 50.00 (50.00-50.00)",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_has_other_columns_is_in_another_table() {
        let mut both = comparison(Figure::Decode, None, &[&[20.0, 8.0, 10.0]]);
        let figure = Figure::DecodeAt(Depth { tokens: 4096, kv: KvFormat::F16 });
        both.rounds[0].turns.extend(round(figure, None, &[9.0, 8.0, 7.0, 6.0, 5.0]).turns);
        assert_eq!(both.tables().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(both.markdown().matches("| ratio |").count(), 2);
        let json = both.json();
        assert_eq!(
            json["figures"]["decode_depth_4096_kv_f16_tokens_per_s"]["dunlin"]["samples"],
            json!([9.0])
        );
        assert_eq!(json["figures"]["decode_tokens_per_s"]["times_better"]["median"], json!(2.0));
    }
}
