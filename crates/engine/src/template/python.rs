//! What Jinja2 templates expect of Python and the template engine does not have, or has otherwise.

use std::fmt;

use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;

use super::json;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(write);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", string);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("number", is_number);
    environment.add_test("callable", is_callable);
}

/// JSON as the template's values. Whole numbers stay whole, and a number that fits nothing else is a float.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

/// The error behind `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// What a template said in `raise_exception`, if that is what ended it.
pub(super) fn refusal(error: &Error) -> Option<&str> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message);
        }
        source = error.source();
    }
    None
}

/// `{{ ... }}` prints what Python's `str` does.
fn write(output: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let result = match value.kind() {
        ValueKind::String => output.write_str(value.as_str().unwrap_or_default()),
        _ => output.write_str(&str(value)),
    };
    result.map_err(|error| Error::new(ErrorKind::WriteFailure, "writing failed").with_source(error))
}

fn string(value: &Value) -> String {
    str(value)
}

/// Python's `str`.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map => repr(value, 0),
        ValueKind::Number => repr(value, 0),
        _ => value.to_string(),
    }
}

/// Python's `repr` ends here with dots, for fear of the stack.
const DEPTH_MAX: usize = 200;

fn repr(value: &Value, depth: usize) -> String {
    if depth > DEPTH_MAX {
        return "...".into();
    }
    match value.kind() {
        ValueKind::String => repr_str(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or(value.to_string(), float)
        }
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::Seq => {
            let items: Vec<String> =
                value.try_iter().into_iter().flatten().map(|item| repr(&item, depth + 1)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key, depth + 1), repr(&item, depth + 1))
            };
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(pair).collect();
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    }
}

fn repr_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut output = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => output.push_str("\\\\"),
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            c if c == quote => output.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                output.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => output.push(c),
        }
    }
    output.push(quote);
    output
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent from 1e16 and below 1e-4.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// Text and maps are sequences in Python too: they have a length and items.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// Booleans are numbers in Python.
fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain && !value.is_undefined()
}

/// Methods of Python's text, lists and maps: those that the compatibility layer lacks or has otherwise, then the layer's.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = str_method(text, name, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn str_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    fn affix(args: &[Value]) -> Result<&str, Error> {
        from_args::<(&str,)>(args).map(|(affix,)| affix)
    }
    let result = match name {
        "removeprefix" => affix(args).map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => affix(args).map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => affix(args).map(|separator| match text.split_once(separator) {
            Some((before, after)) => three([before, separator, after]),
            None => three([text, "", ""]),
        }),
        "rpartition" => affix(args).map(|separator| match text.rsplit_once(separator) {
            Some((before, after)) => three([before, separator, after]),
            None => three(["", "", text]),
        }),
        "casefold" => from_args::<()>(args).map(|()| Value::from(text.to_lowercase())),
        _ => return None,
    };
    Some(result)
}

fn three(parts: [&str; 3]) -> Value {
    parts.into_iter().map(Value::from).collect()
}
