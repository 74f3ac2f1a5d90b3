//! A conversation's messages, checked and brought to the form that templates expect: content as one string.

use serde_json::{Map, Value};

use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Fields, Kind, wrong_kind};

const ROLES: &[&str] = &["system", "user", "assistant", "tool", "function"];

/// An array of messages. Their other fields (`tool_calls`, `name` and the like) are left as they are: templates
/// read them.
pub(super) fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Value, ApiError> {
    let messages = fields.value("messages", &[Kind::Array], limits.json_values_max)?;
    let Some(Value::Array(mut messages)) = messages else {
        return Err(ApiError::field("messages", "is missing"));
    };
    if messages.is_empty() {
        return Err(ApiError::field("messages", "must have at least one message"));
    }
    for (index, message) in messages.iter_mut().enumerate() {
        normalize(&format!("messages[{index}]"), message)?;
    }
    Ok(Value::Array(messages))
}

fn normalize(param: &str, message: &mut Value) -> Result<(), ApiError> {
    let found = Kind::of(message);
    let Value::Object(message) = message else {
        return Err(wrong_kind(param, &[Kind::Object], found));
    };
    normalize_role(param, message)?;
    let content_param = format!("{param}.content");
    let from_assistant = message.get("role").is_some_and(|role| role == "assistant");
    match message.get_mut("content") {
        Some(Value::String(_)) => Ok(()),
        Some(content @ Value::Array(_)) => {
            *content = Value::String(join(&content_param, content.as_array().into_iter().flatten())?);
            Ok(())
        }
        // An assistant's message may consist of tool calls alone.
        None | Some(Value::Null) if from_assistant => {
            message.insert("content".to_owned(), Value::Null);
            Ok(())
        }
        None => Err(ApiError::field(content_param, "is missing")),
        Some(other) => Err(wrong_kind(&content_param, &[Kind::String, Kind::Array], Kind::of(other))),
    }
}

fn normalize_role(param: &str, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    let param = format!("{param}.role");
    match message.get_mut("role") {
        // OpenAI's newer word for what templates call the system.
        Some(Value::String(role)) if role == "developer" => {
            *role = "system".to_owned();
            Ok(())
        }
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => Ok(()),
        Some(Value::String(_)) => Err(ApiError::field(param, format!("must be one of {}", ROLES.join(", ")))),
        Some(other) => Err(wrong_kind(&param, &[Kind::String], Kind::of(other))),
        None => Err(ApiError::field(param, "is missing")),
    }
}

/// The text of content given in parts, a line break between two.
fn join<'a>(param: &str, parts: impl Iterator<Item = &'a Value>) -> Result<String, ApiError> {
    let mut joined = String::new();
    for (index, part) in parts.enumerate() {
        let text = text_of(&format!("{param}[{index}]"), part)?;
        if index > 0 {
            joined.push('\n');
        }
        joined.push_str(text);
    }
    Ok(joined)
}

fn text_of<'a>(param: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    match part {
        Value::String(text) => return Ok(text),
        Value::Object(_) => {}
        other => return Err(wrong_kind(param, &[Kind::Object], Kind::of(other))),
    }
    match (part["type"].as_str(), &part["text"]) {
        (Some("text" | "input_text" | "output_text"), Value::String(text)) => Ok(text),
        (Some("text" | "input_text" | "output_text"), other) => {
            Err(wrong_kind(&format!("{param}.text"), &[Kind::String], Kind::of(other)))
        }
        (
            Some(
                kind @ ("image_url" | "input_image" | "image" | "input_audio" | "audio" | "video_url"
                | "file"),
            ),
            _,
        ) => {
            let problem = format!("'{kind}' is not supported: this model reads text only");
            Err(ApiError::unsupported(format!("{param}.type"), problem))
        }
        (Some(_), _) => Err(ApiError::field(format!("{param}.type"), "must be 'text'")),
        (None, _) => Err(ApiError::field(format!("{param}.type"), "must be a string")),
    }
}
