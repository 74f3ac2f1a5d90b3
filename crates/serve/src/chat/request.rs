//! A chat completion's request.

use serde_json::{Map, Value};

use crate::backend::Chat;
use crate::chat::messages;
use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Fields, Kind, wrong_kind};
use crate::options::{self, Options};

const FIELDS: &[&str] = &[
    "messages",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "logprobs",
    "top_logprobs",
    "add_generation_prompt",
    "chat_template_kwargs",
    "reasoning_effort",
];

#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub options: Options,
    /// `Some(n)`: log-probabilities of the chosen tokens and of `n` alternatives.
    pub logprobs: Option<usize>,
    pub chat: Chat,
}

impl ChatRequest {
    /// Reads and checks a body. What a model cannot be asked is refused here, before any model is.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::read(body, &[options::FIELDS, FIELDS])?;
        let options = Options::read(&fields, limits)?;
        options.check_generations(1, limits)?;
        Ok(Self {
            options,
            logprobs: logprobs(&fields)?,
            chat: Chat {
                messages: messages::read(&fields, limits)?,
                tools: tools(&fields, limits)?,
                add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
                extra: extra(&fields, limits)?,
            },
        })
    }
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    match options::alternatives(fields, "top_logprobs")? {
        Some(n) if n > 0 && !wanted => Err(ApiError::field("top_logprobs", "needs 'logprobs' to be true")),
        alternatives => Ok(wanted.then(|| alternatives.unwrap_or(0))),
    }
}

/// The tools for the template: none where the request forbids their use.
fn tools(fields: &Fields<'_>, limits: &Limits) -> Result<Option<Value>, ApiError> {
    for name in ["functions", "function_call"] {
        if fields.text(name).is_some() {
            return Err(ApiError::unsupported(name, "is not supported; use 'tools' and 'tool_choice'"));
        }
    }
    let tools = fields.value("tools", &[Kind::Array], limits.json_values_max)?;
    for (index, tool) in tools.iter().flat_map(|tools| tools.as_array().into_iter().flatten()).enumerate() {
        check_tool(&format!("tools[{index}]"), tool)?;
    }
    let may_use = may_use_tools(fields, limits)?;
    Ok(tools.filter(|tools| may_use && tools.as_array().is_some_and(|tools| !tools.is_empty())))
}

fn check_tool(param: &str, tool: &Value) -> Result<(), ApiError> {
    if !tool.is_object() {
        return Err(wrong_kind(param, &[Kind::Object], Kind::of(tool)));
    }
    if tool["type"] != "function" {
        return Err(ApiError::field(format!("{param}.type"), "must be 'function'"));
    }
    match &tool["function"]["name"] {
        Value::String(_) => Ok(()),
        other => Err(wrong_kind(&format!("{param}.function.name"), &[Kind::String], Kind::of(other))),
    }
}

fn may_use_tools(fields: &Fields<'_>, limits: &Limits) -> Result<bool, ApiError> {
    let wanted = &[Kind::String, Kind::Object];
    let forced = "cannot be forced yet; use 'auto' or 'none'";
    match fields.value("tool_choice", wanted, limits.json_values_max)? {
        None => Ok(true),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(true),
            "none" => Ok(false),
            "required" => Err(ApiError::unsupported("tool_choice", forced)),
            _ => Err(ApiError::field("tool_choice", "must be 'auto' or 'none'")),
        },
        Some(_) => Err(ApiError::unsupported("tool_choice", forced)),
    }
}

/// Variables for the template besides those it always has.
fn extra(fields: &Fields<'_>, limits: &Limits) -> Result<Map<String, Value>, ApiError> {
    let given = fields.value("chat_template_kwargs", &[Kind::Object], limits.json_values_max)?;
    let mut extra = match given {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    if let Some(effort) = fields.string("reasoning_effort")? {
        extra.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(extra)
}
