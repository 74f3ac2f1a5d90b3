//! What was measured, as text, Markdown and JSON.

use std::fmt;

use serde_json::{Map, Value, json};

use super::contender::Contender;

/// Something measured of every contender in every round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Prefill,
    Decode,
    FirstToken,
    AnonymousMemory,
    FileMemory,
    PrivateMemory,
}

impl Figure {
    pub(super) const ALL: [Figure; 6] = [
        Figure::Prefill,
        Figure::Decode,
        Figure::FirstToken,
        Figure::AnonymousMemory,
        Figure::FileMemory,
        Figure::PrivateMemory,
    ];

    pub(super) fn key(self) -> &'static str {
        match self {
            Figure::Prefill => "prefill_tokens_per_s",
            Figure::Decode => "decode_tokens_per_s",
            Figure::FirstToken => "first_token_s",
            Figure::AnonymousMemory => "rss_anon_bytes",
            Figure::FileMemory => "rss_file_bytes",
            Figure::PrivateMemory => "private_bytes",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Figure::Prefill => "prefill 512, tokens/s",
            Figure::Decode => "decode 64, tokens/s",
            Figure::FirstToken => "start to first token, s",
            Figure::AnonymousMemory => "private memory (RssAnon), MiB",
            Figure::FileMemory => "mapped files (RssFile), MiB",
            Figure::PrivateMemory => "Private_Clean + Private_Dirty, MiB",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Figure::Prefill | Figure::Decode)
    }

    /// For printing.
    fn scale(self) -> f64 {
        match self {
            Figure::Prefill | Figure::Decode | Figure::FirstToken => 1.0,
            Figure::AnonymousMemory | Figure::FileMemory | Figure::PrivateMemory => 1.0 / (1 << 20) as f64,
        }
    }
}

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

/// One round: the samples of each contender, in the order of [`Contender::ALL`].
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) samples: [Vec<(Figure, f64)>; Contender::ALL.len()],
    pub(super) bandwidth_before: f64,
    pub(super) bandwidth_after: f64,
}

/// One model's rounds.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) model: String,
    pub(super) model_bytes: u64,
    /// Bytes of weights that dunlin reads for each decoded token.
    pub(super) bytes_per_token: Option<u64>,
    pub(super) rounds: Vec<Round>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    figure: Figure,
    contenders: [Option<Spread>; Contender::ALL.len()],
    /// The better of llama.cpp's settings.
    reference: Option<Contender>,
    /// How many times better dunlin is than the reference, round by round.
    ratio: Option<Spread>,
}

impl Comparison {
    fn samples(&self, figure: Figure, contender: Contender) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| round.sample(figure, contender)).collect()
    }

    fn line(&self, figure: Figure) -> Line {
        let spread = |contender| Spread::of(&self.samples(figure, contender));
        let reference = [Contender::LlamaRepacked, Contender::LlamaPlain]
            .into_iter()
            .filter_map(|contender| Some((contender, spread(contender)?.median)))
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
        Line { figure, contenders: Contender::ALL.map(spread), reference, ratio: Spread::of(&ratios) }
    }

    fn lines(&self) -> Vec<Line> {
        Figure::ALL.into_iter().map(|figure| self.line(figure)).collect()
    }

    /// The part of the bandwidth around each round that dunlin's decoding used.
    fn bandwidth_share(&self) -> Option<Spread> {
        let bytes = self.bytes_per_token? as f64;
        let share = |round: &Round| {
            let speed = round.sample(Figure::Decode, Contender::Dunlin)?;
            Some(speed * bytes / f64::midpoint(round.bandwidth_before, round.bandwidth_after))
        };
        Spread::of(&self.rounds.iter().filter_map(share).collect::<Vec<_>>())
    }

    fn bandwidth(&self) -> Option<Spread> {
        let all = self.rounds.iter().flat_map(|round| [round.bandwidth_before, round.bandwidth_after]);
        Spread::of(&all.collect::<Vec<_>>())
    }

    pub(super) fn markdown(&self) -> String {
        let mut out = format!(
            "| {} ({:.0} MB) | {} | ratio |\n|---|---|---|---|---|\n",
            self.model,
            self.model_bytes as f64 / 1e6,
            Contender::ALL.map(Contender::name).join(" | ")
        );
        for line in self.lines() {
            out += &format!("| {} |\n", line.cells().join(" | "));
        }
        out
    }

    /// The rows of the table with aligned columns, then what memory did meanwhile.
    pub(super) fn text(&self) -> String {
        let head =
            [self.model.as_str()].into_iter().chain(Contender::ALL.map(Contender::name)).chain(["ratio"]);
        let rows: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).collect())
            .chain(self.lines().iter().map(Line::cells))
            .collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for row in &rows {
            let cells = row.iter().enumerate().map(|(i, cell)| format!("{cell:width$}", width = width(i)));
            out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        if let Some(bandwidth) = self.bandwidth() {
            out += &format!("memory read in GB/s, around each round: {}", bandwidth.scaled(1e-9));
        }
        if let Some(share) = self.bandwidth_share() {
            out += &format!("; dunlin's decode uses, in percent: {}", share.scaled(100.0));
        }
        out.push('\n');
        out
    }

    pub(super) fn json(&self) -> Value {
        let mut figures = Map::new();
        for line in self.lines() {
            let mut entry = Map::new();
            for (contender, spread) in Contender::ALL.into_iter().zip(line.contenders) {
                let samples = self.samples(line.figure, contender);
                let spread = spread.map(|spread| {
                    let mut value = spread.json();
                    value["samples"] = json!(samples);
                    value
                });
                entry.insert(contender.key().to_owned(), json!(spread));
            }
            entry.insert("reference".to_owned(), json!(line.reference.map(Contender::key)));
            entry.insert("times_better".to_owned(), json!(line.ratio.map(Spread::json)));
            figures.insert(line.figure.key().to_owned(), Value::Object(entry));
        }
        let bandwidth: Vec<Value> = self
            .rounds
            .iter()
            .map(|round| json!({ "before": round.bandwidth_before, "after": round.bandwidth_after }))
            .collect();
        json!({
            "model": self.model,
            "model_bytes": self.model_bytes,
            "figures": figures,
            "read_bytes_per_s": bandwidth,
            "dunlin_bytes_per_token": self.bytes_per_token,
            "dunlin_decode_bandwidth_share": self.bandwidth_share().map(Spread::json),
        })
    }
}

impl Round {
    pub(super) fn sample(&self, figure: Figure, contender: Contender) -> Option<f64> {
        let at = Contender::ALL.iter().position(|&other| other == contender)?;
        self.samples[at].iter().find(|sample| sample.0 == figure).map(|sample| sample.1)
    }
}

impl Line {
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.figure.title().to_owned()];
        let spread = |spread: &Option<Spread>, scale: f64| {
            spread.map_or_else(|| "-".to_owned(), |spread| spread.scaled(scale).to_string())
        };
        for (contender, own) in Contender::ALL.into_iter().zip(&self.contenders) {
            let mark = if self.reference == Some(contender) { " *" } else { "" };
            cells.push(spread(own, self.figure.scale()) + mark);
        }
        cells.push(spread(&self.ratio, 1.0));
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(figure: Figure, values: [f64; 3]) -> Round {
        let samples = values.map(|value| vec![(figure, value)]);
        Round { samples, bandwidth_before: 30e9, bandwidth_after: 50e9 }
    }

    fn comparison(figure: Figure, rounds: &[[f64; 3]]) -> Comparison {
        let rounds = rounds.iter().map(|&values| round(figure, values)).collect();
        Comparison { model: "m".into(), model_bytes: 1_000_000, bytes_per_token: Some(1_000_000_000), rounds }
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
        let faster = comparison(Figure::Decode, &[[20.0, 8.0, 10.0], [30.0, 9.0, 10.0], [20.0, 8.0, 20.0]]);
        let line = faster.line(Figure::Decode);
        assert_eq!(line.reference, Some(Contender::LlamaPlain));
        assert_eq!(line.ratio, Some(Spread { median: 2.0, min: 1.0, max: 3.0, n: 3 }));

        let sooner = comparison(Figure::FirstToken, &[[0.5, 4.0, 2.0]]);
        let line = sooner.line(Figure::FirstToken);
        assert_eq!(line.reference, Some(Contender::LlamaPlain));
        assert_eq!(line.ratio.map(|ratio| ratio.median), Some(4.0));
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let text = comparison(Figure::Decode, &[[20.0, 8.0, 10.0]]).text();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[0], "m dunlin llama.cpp repack 1 llama.cpp repack 0 ratio");
        assert_eq!(lines[1], "prefill 512, tokens/s - - - -");
        assert_eq!(
            lines[2],
            "decode 64, tokens/s 20.00 (20.00-20.00) 8.00 (8.00-8.00) 10.00 (10.00-10.00) * 2.00 (2.00-2.00)"
        );
        assert_eq!(
            lines.last().unwrap(),
            "memory read in GB/s, around each round: 40.00 (30.00-50.00); \
             dunlin's decode uses, in percent: 50.00 (50.00-50.00)"
        );
    }
}
