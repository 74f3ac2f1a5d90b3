//! The fields that chat and text completions share: how many answers, how long, how chosen, how sent.

use engine::AdapterScale;
use engine::request::{Sampling, TOP_LOGPROBS_MAX, TokenId};
use serde_json::Value;

use crate::adapters;
use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Fields, Kind, kind_of, wrong_kind};

/// The names of the fields read here.
pub(crate) const FIELDS: &[&str] = &[
    "model",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "n_predict",
    "stop",
    "ignore_eos",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repetition_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "lora",
    "response_format",
    "best_of",
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];

/// Fields that ask for an answer of a certain form. An answer that ignored them would be worse than none.
const CONSTRAINTS: &[&str] = &[
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];

/// The largest `repeat_last_n`; -1, which means the whole context, becomes this.
const REPEAT_LAST_N_MAX: i64 = i32::MAX as i64;

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The model's name as asked for; empty means whichever is served.
    pub model: String,
    pub stream: bool,
    /// Whether a stream ends with an event about the tokens used.
    pub include_usage: bool,
    /// Answers per prompt.
    pub choices: usize,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    pub sampling: Sampling,
    /// The adapters to compute with; `None`: as the server has it.
    pub adapters: Option<Vec<AdapterScale>>,
}

impl Options {
    pub(crate) fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        refuse_constraints(fields, limits)?;
        let choices = fields.integer("n", 1..=limits.choices_max as i64)?.unwrap_or(1) as usize;
        // `best_of` asks for discarded answers, unless it asks for as many as are returned.
        if fields.integer("best_of", 1..=i64::MAX)?.is_some_and(|best_of| best_of as usize != choices) {
            return Err(ApiError::unsupported("best_of", "is not supported, unless it equals 'n'"));
        }
        Ok(Self {
            model: fields.string("model")?.unwrap_or_default(),
            stream: fields.boolean("stream")?.unwrap_or(false),
            include_usage: include_usage(fields)?,
            choices,
            max_tokens: max_tokens(fields)?,
            stop: stop(fields, limits)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            sampling: sampling(fields, limits)?,
            adapters: adapters::read(fields, limits)?,
        })
    }

    /// Refuses what `prompts` prompts would make too many generations of: an engine that is idle could not queue them.
    pub(crate) fn check_generations(&self, prompts: usize, limits: &Limits) -> Result<(), ApiError> {
        let (choices, max) = (self.choices, limits.generations_max);
        let generations = prompts.saturating_mul(choices);
        if generations <= max {
            return Ok(());
        }
        let problem = |what: String| format!("asks for {what}; a request may have {max}");
        Err(match choices {
            1 => ApiError::field("prompt", problem(format!("{generations} generations"))),
            _ => ApiError::field("n", problem(format!("{prompts} x {choices} = {generations} generations"))),
        })
    }
}

/// The number of alternatives wanted beside each token, at most the engine's limit.
pub(crate) fn alternatives(fields: &Fields<'_>, name: &str) -> Result<Option<usize>, ApiError> {
    Ok(fields.integer(name, 0..=TOP_LOGPROBS_MAX as i64)?.map(|n| n as usize))
}

fn refuse_constraints(fields: &Fields<'_>, limits: &Limits) -> Result<(), ApiError> {
    if let Some(name) = CONSTRAINTS.iter().find(|name| fields.text(name).is_some()) {
        return Err(ApiError::unsupported(*name, "is not supported yet: answers cannot be constrained"));
    }
    let Some(format) = fields.value("response_format", &[Kind::Object], limits.json_values_max)? else {
        return Ok(());
    };
    match &format["type"] {
        Value::String(kind) if kind == "text" => Ok(()),
        Value::String(kind) if kind == "json_object" || kind == "json_schema" => {
            let problem = format!("'{kind}' is not supported yet: answers cannot be constrained");
            Err(ApiError::unsupported("response_format.type", problem))
        }
        Value::String(_) => Err(ApiError::field("response_format.type", "must be 'text'")),
        other => Err(wrong_kind("response_format.type", &[Kind::String], Kind::of(other))),
    }
}

fn include_usage(fields: &Fields<'_>) -> Result<bool, ApiError> {
    let Some(options) = fields.value("stream_options", &[Kind::Object], 64)? else { return Ok(false) };
    match &options["include_usage"] {
        Value::Null => Ok(false),
        Value::Bool(include) => Ok(*include),
        other => Err(wrong_kind("stream_options.include_usage", &[Kind::Boolean], Kind::of(other))),
    }
}

/// The first of OpenAI's new name, its old one and llama-server's; -1 means no limit, as llama-server has it.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let mut wanted = None;
    for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
        let value = fields.integer(name, -1..=i64::MAX).ok().flatten();
        match (value, fields.text(name)) {
            (None, None) => {}
            (Some(-1 | 1..), _) => wanted = wanted.or(value),
            _ => {
                fields.integer(name, 1..=i64::MAX)?;
            }
        }
    }
    Ok(wanted.filter(|tokens| *tokens > 0).map(|tokens| tokens as usize))
}

fn stop(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let strings: Vec<String> = match fields.text("stop").map(kind_of) {
        None => Vec::new(),
        Some(Kind::String) => fields.string("stop")?.into_iter().collect(),
        Some(Kind::Array) => fields.list("stop", limits.stop_strings_max)?.unwrap_or_default(),
        Some(found) => return Err(wrong_kind("stop", &[Kind::String, Kind::Array], found)),
    };
    let bytes_max = limits.stop_string_bytes_max;
    if strings.iter().any(|string| string.len() > bytes_max) {
        return Err(ApiError::field("stop", format!("has a string of more than {bytes_max} bytes")));
    }
    Ok(strings.into_iter().filter(|string| !string.is_empty()).collect())
}

fn sampling(fields: &Fields<'_>, limits: &Limits) -> Result<Sampling, ApiError> {
    let default = Sampling::default();
    let number = |name, range, default: f32| -> Result<f32, ApiError> {
        Ok(fields.number(name, range)?.map_or(default, |number| number as f32))
    };
    let repeat_penalty = number("repetition_penalty", 0.01..=10.0, default.repeat_penalty)?;
    Ok(Sampling {
        temperature: number("temperature", 0.0..=2.0, default.temperature)?,
        // -1 keeps all, as vLLM has it.
        top_k: match fields.integer("top_k", -1..=i64::from(u32::MAX))? {
            None => default.top_k,
            Some(top_k) => usize::try_from(top_k).unwrap_or(0),
        },
        top_p: number("top_p", 0.0..=1.0, default.top_p)?,
        min_p: number("min_p", 0.0..=1.0, default.min_p)?,
        repeat_penalty: number("repeat_penalty", 0.01..=10.0, repeat_penalty)?,
        repeat_last_n: match fields.integer("repeat_last_n", -1..=REPEAT_LAST_N_MAX)? {
            None => default.repeat_last_n,
            Some(-1) => REPEAT_LAST_N_MAX as usize,
            Some(last_n) => last_n as usize,
        },
        presence_penalty: number("presence_penalty", -2.0..=2.0, default.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -2.0..=2.0, default.frequency_penalty)?,
        logit_bias: logit_bias(fields, limits)?,
        // -1 draws a seed, as llama-server has it; other negative ones are seeds like any (OpenAI).
        seed: fields.seed("seed")?.filter(|seed| *seed != -1).map(|seed| seed as u64),
    })
}

/// OpenAI's form, `{"15": -100}`, and llama-server's, `[[15, -100], [16, false]]`.
fn logit_bias(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let wanted = &[Kind::Object, Kind::Array];
    let values_max = 1 + 3 * limits.logit_bias_max;
    let biases: Vec<_> = match fields.value("logit_bias", wanted, values_max)? {
        Some(Value::Object(map)) => {
            map.iter().map(|(token, bias)| bias_of(token.parse().ok(), bias)).collect()
        }
        Some(Value::Array(pairs)) => pairs.iter().map(bias_of_pair).collect(),
        _ => Vec::new(),
    };
    if biases.len() > limits.logit_bias_max {
        let problem = format!("has more than {} entries", limits.logit_bias_max);
        return Err(ApiError::field("logit_bias", problem));
    }
    biases.into_iter().collect::<Result<_, _>>().map_err(|problem| ApiError::field("logit_bias", problem))
}

fn bias_of_pair(pair: &Value) -> Result<(TokenId, f32), &'static str> {
    match pair.as_array().map(Vec::as_slice) {
        Some([token, bias]) => bias_of(token.as_u64(), bias),
        _ => Err("must be an object, or an array of pairs of a token id and a bias"),
    }
}

fn bias_of(token: Option<u64>, bias: &Value) -> Result<(TokenId, f32), &'static str> {
    let token = token.and_then(|token| TokenId::try_from(token).ok()).ok_or("must be keyed by token ids")?;
    let bias = match bias {
        // llama-server's way to ban a token.
        Value::Bool(false) => Some(f32::NEG_INFINITY),
        other => other.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)).map(|bias| bias as f32),
    };
    Ok((token, bias.ok_or("must have biases between -100 and 100")?))
}
