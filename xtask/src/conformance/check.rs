//! Runs one check: reads the reference, asks the subject, compares.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use engine::gguf::{GgmlType, Gguf};
use serde_json::Value;

use super::compare::{differing, logits_distance};
use super::discover::Check;
use super::subject::{Refusal, Subject, Unknown};
use super::verdict::{Figure, Figures, Verdict};

/// The most that logits of F32, F16 and BF16 weights may differ from the reference.
const NMSE_MAX_FLOAT: f64 = 1e-5;
/// Of quantized weights: the reference quantizes activations to 8 bits.
const NMSE_MAX_QUANTIZED: f64 = 2e-3;
/// Where the reference's two largest logits differ by more than this, ours must put the same one first.
const ARGMAX_MARGIN: f32 = 0.1;
/// The prompt of models with a vocabulary of 512 in a folder without `tokens.txt`.
const STORY_TOKENS: [u32; 10] = [1, 403, 407, 261, 378, 432, 317, 394, 410, 472];
const STORY_VOCABULARY: usize = 512;
/// Between the strings of a tokenizer's test.
const STRING_SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// An unreadable reference is a failure, not the end.
pub(super) fn run(check: &Check, subject: &dyn Subject) -> Verdict {
    let verdict = match check {
        Check::Logits { model, reference, tokens } => logits(subject, model, reference, tokens.as_deref()),
        Check::Tokenizer { model, strings, ids } => tokenizer(subject, model, strings, ids),
        Check::Template { template, cases } => self::template(subject, template, cases),
        Check::Dequantize { blocks, reference } => dequantize(subject, blocks, reference),
        Check::Quantize { rows, importance, blocks } => {
            quantize(subject, rows, importance.as_deref(), blocks)
        }
        Check::Incomplete { missing, .. } => Ok(Verdict::fail(format!("{missing} is missing beside it"))),
    };
    verdict.unwrap_or_else(|error| Verdict::fail(format!("{error:#}")))
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Verdict {
        match refusal {
            Refusal::Unknown(what) => Verdict::Unknown(what),
            Refusal::Error(reason) => Verdict::fail(reason),
        }
    }
}

fn logits(
    subject: &dyn Subject,
    model: &Path,
    reference: &Path,
    tokens: Option<&Path>,
) -> anyhow::Result<Verdict> {
    let gguf = Gguf::open(model)?;
    let tokens = prompt(&gguf, tokens)?;
    let quantized = gguf.tensors().iter().any(|tensor| tensor.ty.block_len() > 1);
    drop(gguf);
    let reference = read_floats(reference)?;
    let own = match subject.logits(model, &tokens) {
        Ok(own) => own,
        Err(refusal) => return Ok(refusal.into()),
    };
    if own.len() != reference.len() {
        return Ok(Verdict::fail(format!("{} logits where {} are expected", own.len(), reference.len())));
    }
    let distance = logits_distance(&reference, &own, tokens.len(), ARGMAX_MARGIN);
    let nmse_max = if quantized { NMSE_MAX_QUANTIZED } else { NMSE_MAX_FLOAT };
    let figures = Figures(vec![
        ("nmse", Figure::Error(distance.nmse)),
        ("argmax", Figure::Share(distance.argmax_same, distance.rows)),
    ]);
    // Asked this way round, a NaN is too large.
    let small = distance.nmse <= nmse_max;
    let reason = if !small {
        Some(format!("nmse is above {nmse_max:e}"))
    } else if quantized && distance.argmax_lost > 0 {
        Some(format!("{} argmax lost that the reference is sure of", distance.argmax_lost))
    } else {
        None
    };
    Ok(Verdict::of(figures, reason))
}

fn prompt(gguf: &Gguf, tokens: Option<&Path>) -> anyhow::Result<Vec<u32>> {
    let Some(path) = tokens else {
        let vocabulary = gguf.strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        ensure!(vocabulary == STORY_VOCABULARY, "tokens.txt is missing beside it");
        return Ok(STORY_TOKENS.to_vec());
    };
    let tokens = read_ids(&read_text(path)?).with_context(|| format!("in {}", path.display()))?;
    ensure!(!tokens.is_empty(), "{} holds no tokens", path.display());
    Ok(tokens)
}

fn tokenizer(subject: &dyn Subject, model: &Path, strings: &Path, ids: &Path) -> anyhow::Result<Verdict> {
    let gguf = Gguf::open(model)?;
    let (strings, ids) = (read_text(strings)?, read_text(ids)?);
    let strings: Vec<&str> =
        strings.strip_suffix(STRING_SEPARATOR).unwrap_or(&strings).split(STRING_SEPARATOR).collect();
    let ids: Vec<&str> = ids.lines().collect();
    ensure!(strings.len() == ids.len(), "{} strings and {} lines of ids", strings.len(), ids.len());

    let all = match subject.encode(&gguf, &strings) {
        Ok(all) => all,
        Err(refusal) => return Ok(refusal.into()),
    };
    let mut tally = Tally::default();
    for ((string, line), own) in strings.iter().zip(ids).zip(all) {
        let expected = read_ids(line)?;
        if own == expected {
            tally.right();
        } else {
            tally.wrong(|| format!("{string:?} gives {own:?}, not {expected:?}"));
        }
    }
    Ok(tally.verdict("strings"))
}

fn template(subject: &dyn Subject, template: &Path, cases: &Path) -> anyhow::Result<Verdict> {
    let template = read_text(template)?;
    let cases: serde_json::Map<String, Value> =
        serde_json::from_str(&read_text(cases)?).with_context(|| format!("in {}", cases.display()))?;
    ensure!(!cases.is_empty(), "there are no cases");

    let mut tally = Tally::default();
    for (name, case) in &cases {
        let expected = case.get("output").and_then(Value::as_str);
        ensure!(
            expected.is_some() != case.get("error").is_some(),
            "case {name} wants neither text nor an error, or both"
        );
        match (subject.render(&template, &case["input"]), expected) {
            (Err(Refusal::Unknown(what)), _) => return Ok(Verdict::Unknown(what)),
            (Ok(own), Some(expected)) if own == expected => tally.right(),
            (Err(Refusal::Error(_)), None) => tally.right(),
            (Ok(own), Some(expected)) => {
                tally.wrong(|| format!("{name}: {}", first_difference(expected, &own)));
            }
            (Ok(_), None) => tally.wrong(|| format!("{name}: rendered, where the reference refuses")),
            (Err(Refusal::Error(error)), Some(_)) => tally.wrong(|| format!("{name}: {error}")),
        }
    }
    Ok(tally.verdict("cases"))
}

fn dequantize(subject: &dyn Subject, blocks: &Path, reference: &Path) -> anyhow::Result<Verdict> {
    let ty = match type_of(blocks) {
        Ok(ty) => ty,
        Err(unknown) => return Ok(Verdict::Unknown(unknown)),
    };
    let reference = read_floats(reference)?;
    let own = match subject.dequantize(ty, &read(blocks)?) {
        Ok(own) => own,
        Err(refusal) => return Ok(refusal.into()),
    };
    if own.len() != reference.len() {
        return Ok(Verdict::fail(format!("{} numbers where {} are expected", own.len(), reference.len())));
    }
    let differing = differing(&reference, &own);
    let figures = Figures(vec![("same", Figure::Share(own.len() - differing, own.len()))]);
    Ok(Verdict::of(figures, (differing > 0).then(|| format!("{differing} numbers differ"))))
}

fn quantize(
    subject: &dyn Subject,
    rows: &Path,
    importance: Option<&Path>,
    blocks: &Path,
) -> anyhow::Result<Verdict> {
    let ty = match type_of(blocks) {
        Ok(ty) => ty,
        Err(unknown) => return Ok(Verdict::Unknown(unknown)),
    };
    let (rows, reference) = (read_floats(rows)?, read(blocks)?);
    let importance = importance.map(read_floats).transpose()?;
    // Without an importance matrix all rows may be taken for one: they are whole numbers of blocks.
    let cols = importance.as_ref().map_or(rows.len(), Vec::len);
    let own = match subject.quantize(ty, &rows, cols, importance.as_deref()) {
        Ok(own) => own,
        Err(refusal) => return Ok(refusal.into()),
    };
    if own.len() != reference.len() {
        return Ok(Verdict::fail(format!("{} bytes where {} are expected", own.len(), reference.len())));
    }
    let block_bytes = ty.block_bytes() as usize;
    let pairs = reference.chunks(block_bytes).zip(own.chunks(block_bytes));
    let (same, all) =
        (pairs.filter(|(reference, own)| reference == own).count(), reference.len() / block_bytes);
    let figures = Figures(vec![("blocks", Figure::Share(same, all))]);
    Ok(Verdict::of(figures, (same < all).then(|| format!("{} blocks differ", all - same))))
}

/// The type that a file of blocks is named after: `q4_K.bin`, `q4_K.imatrix.bin`.
fn type_of(blocks: &Path) -> Result<GgmlType, Unknown> {
    let name = blocks.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    GgmlType::from_name(stem).ok_or_else(|| Unknown::Type(stem.to_owned()))
}

/// Right and wrong answers, and what was wrong with the first.
#[derive(Default)]
struct Tally {
    right: usize,
    all: usize,
    first_wrong: Option<String>,
}

impl Tally {
    fn right(&mut self) {
        self.right += 1;
        self.all += 1;
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.all += 1;
        self.first_wrong.get_or_insert_with(what);
    }

    fn verdict(self, of: &'static str) -> Verdict {
        Verdict::of(Figures(vec![(of, Figure::Share(self.right, self.all))]), self.first_wrong)
    }
}

/// Where two texts part, with a little of what comes before.
fn first_difference(expected: &str, own: &str) -> String {
    let same = expected.chars().zip(own.chars()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| text.chars().skip(same.saturating_sub(20)).take(40).collect::<String>();
    format!("{:?} where {:?} is expected", around(own), around(expected))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Little-endian.
fn read_floats(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = read(path)?;
    let (floats, rest) = bytes.as_chunks::<4>();
    ensure!(rest.is_empty(), "{} holds no whole number of f32", path.display());
    Ok(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn read_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    text.split_whitespace().map(|id| id.parse().with_context(|| format!("{id:?} is no token id"))).collect()
}

#[cfg(test)]
mod tests {
    use engine::gguf::GgufWriter;

    use super::super::discover::discover;
    use super::*;

    /// Answers with what it is told to.
    #[derive(Default)]
    struct Fake {
        logits: Vec<f32>,
        ids: Vec<u32>,
        text: Option<String>,
        unknown: bool,
    }

    impl Fake {
        fn answer<T>(&self, answer: T) -> Result<T, Refusal> {
            if self.unknown { Err(Refusal::Unknown(Unknown::Part("this".into()))) } else { Ok(answer) }
        }
    }

    impl Subject for Fake {
        fn logits(&self, _: &Path, _: &[u32]) -> Result<Vec<f32>, Refusal> {
            self.answer(self.logits.clone())
        }

        fn encode(&self, _: &Gguf, texts: &[&str]) -> Result<Vec<Vec<u32>>, Refusal> {
            let ids = |text: &&str| if text.is_empty() { vec![] } else { self.ids.clone() };
            self.answer(texts.iter().map(ids).collect())
        }

        fn render(&self, _: &str, _: &Value) -> Result<String, Refusal> {
            self.answer(())?;
            self.text.clone().ok_or(Refusal::Error("refused".into()))
        }

        fn dequantize(&self, _: GgmlType, _: &[u8]) -> Result<Vec<f32>, Refusal> {
            self.answer(self.logits.clone())
        }

        fn quantize(&self, _: GgmlType, _: &[f32], _: usize, _: Option<&[f32]>) -> Result<Vec<u8>, Refusal> {
            self.answer(vec![1; 18])
        }
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn model(ty: GgmlType) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        writer.tensor("token_embd.weight", &[32, 1], ty).unwrap();
        writer.into_bytes(|_, len| vec![0; len]).unwrap()
    }

    /// Runs all checks of a folder with these files; one line each.
    fn check(name: &str, files: &[(&str, Vec<u8>)], subject: &Fake) -> Vec<String> {
        let dir = std::env::temp_dir().join(format!("dunlin-conformance-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for (file, content) in files {
            fs::write(dir.join(file), content).unwrap();
        }
        let reports =
            discover(&dir).unwrap().into_iter().map(|check| super::super::report(&dir, &check, subject));
        let lines = reports
            .map(|report| report.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        fs::remove_dir_all(&dir).unwrap();
        lines
    }

    #[test]
    fn logits_have_their_limits() {
        let far = vec![0.0, 1.0001, 1.0, 0.0];
        let cases = [
            (GgmlType::F32, vec![0.0, 1.0, 1.0, 0.0], "pass logits m.gguf nmse 0.00e0 argmax 2/2"),
            (
                GgmlType::F32,
                vec![0.0, 1.01, 1.0, 0.0],
                "fail logits m.gguf nmse 5.00e-5 argmax 2/2 nmse is above 1e-5",
            ),
            (GgmlType::Q8_0, vec![0.0, 1.01, 1.0, 0.0], "pass logits m.gguf nmse 5.00e-5 argmax 2/2"),
            (GgmlType::F32, far, "pass logits m.gguf nmse 5.00e-9 argmax 2/2"),
            (GgmlType::F32, vec![f32::NAN; 4], "fail logits m.gguf nmse NaN argmax 1/2 nmse is above 1e-5"),
            (GgmlType::F32, vec![0.0; 3], "fail logits m.gguf 3 logits where 4 are expected"),
        ];
        for (ty, logits, expected) in cases {
            let files = [
                ("m.gguf", model(ty)),
                ("m.logits.f32", floats(&[0.0, 1.0, 1.0, 0.0])),
                ("tokens.txt", b"1 2\n".to_vec()),
            ];
            assert_eq!(check("logits", &files, &Fake { logits, ..Fake::default() }), [expected]);
        }
    }

    #[test]
    fn prompts_come_from_the_folder_or_not_at_all() {
        let files = [("m.gguf", model(GgmlType::F32)), ("m.logits.f32", floats(&[0.0; 4]))];
        assert_eq!(
            check("prompt", &files, &Fake::default()),
            ["fail logits m.gguf tokens.txt is missing beside it"]
        );
    }

    #[test]
    fn tokenizers_are_counted_by_string() {
        let files = |ids: &str| {
            [
                ("v.gguf", model(GgmlType::F32)),
                ("v.inp", b"a b\n__ggml_vocab_test__\n\n__ggml_vocab_test__\n".to_vec()),
                ("v.out", ids.as_bytes().to_vec()),
            ]
        };
        let subject = Fake { ids: vec![5, 6], ..Fake::default() };
        assert_eq!(check("ids", &files(" 5 6\n\n"), &subject), ["pass tokenizer v.gguf strings 2/2"]);
        assert_eq!(
            check("ids", &files("5 7\n\n"), &subject),
            ["fail tokenizer v.gguf strings 1/2 \"a b\" gives [5, 6], not [5, 7]"]
        );
        assert_eq!(
            check("ids", &files("5 7\n"), &subject),
            ["fail tokenizer v.gguf 2 strings and 1 lines of ids"]
        );
    }

    #[test]
    fn templates_must_render_and_refuse_like_the_reference() {
        let cases = br#"{ "a": { "input": {}, "output": "hello" }, "b": { "input": {}, "error": "no" } }"#;
        let files = [("t.jinja", b"".to_vec()), ("t.json", cases.to_vec())];
        let subject = Fake { text: Some("hello".into()), ..Fake::default() };
        assert_eq!(
            check("template", &files, &subject),
            ["fail template t.jinja cases 1/2 b: rendered, where the reference refuses"]
        );
        assert_eq!(
            check("template", &files, &Fake::default()),
            ["fail template t.jinja cases 1/2 a: refused"]
        );
    }

    #[test]
    fn blocks_must_be_the_same() {
        let files = [
            ("q4_0.bin", vec![1; 18]),
            ("q4_0.imatrix.bin", vec![2; 18]),
            ("q4_0.dequant.f32", floats(&[1.0, 2.0])),
            ("q9_9.dequant.f32", floats(&[1.0])),
            ("q9_9.bin", vec![1]),
            ("rows.f32", floats(&[0.0; 32])),
            ("imatrix.f32", floats(&[1.0; 32])),
        ];
        let subject = Fake { logits: vec![1.0, 3.0], ..Fake::default() };
        assert_eq!(
            check("blocks", &files, &subject),
            [
                "pass quantize q4_0.bin blocks 1/1",
                "fail dequantize q4_0.dequant.f32 same 1/2 1 numbers differ",
                "fail quantize q4_0.imatrix.bin blocks 0/1 1 blocks differ",
                "unknown quantize q9_9.bin not yet known: type q9_9",
                "unknown dequantize q9_9.dequant.f32 not yet known: type q9_9",
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_neither_right_nor_wrong() {
        let files = [
            ("t.jinja", b"".to_vec()),
            ("t.json", br#"{ "a": { "input": {}, "error": "no" } }"#.to_vec()),
            ("v.gguf", model(GgmlType::F32)),
        ];
        assert_eq!(
            check("unknown", &files, &Fake { unknown: true, ..Fake::default() }),
            [
                "unknown template t.jinja not yet known: this",
                "fail incomplete v.gguf v.logits.f32 or v.out is missing beside it",
            ]
        );
    }
}
