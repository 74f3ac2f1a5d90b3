//! What Jinja2 templates expect of Python and the template engine does not have, or has otherwise.

use std::fmt;

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;

use super::json;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(write);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(super::source::PERCENT, percent);
    environment.add_filter("string", string);
    environment.add_filter("pprint", repr);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("float", to_float);
    environment.add_filter("indent", indent);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
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

/// Python's `%` on text: a tuple holds several values, anything else is one. Values that are no text print as in Python.
fn percent(format: &str, values: &Value) -> Result<String, Error> {
    let values = match values.downcast_object_ref::<Tuple>() {
        Some(_) => values.try_iter()?.collect(),
        None => vec![values.clone()],
    };
    let printed = |value: Value| match value.kind() {
        ValueKind::Seq => Value::from(str(&value)),
        _ => value,
    };
    let values: Vec<Value> = values.into_iter().map(printed).collect();
    formatting::format(FormatStyle::Printf, format, &values)
}

/// What is undefined has no length in this engine, and none to speak of in Jinja2.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// A whole number, or the default where there is none.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, options: Kwargs) -> Result<Value, Error> {
    let default = default.map_or_else(|| options.get("default"), |default| Ok(Some(default)))?;
    let base = base.map_or_else(|| options.get("base"), |base| Ok(Some(base)))?;
    let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
    options.assert_all_used()?;
    let number = match value.as_str().map(str::trim) {
        Some(text) => i128::from_str_radix(text, base).ok().or_else(|| text.parse().ok().and_then(whole)),
        None if value.is_integer() => return Ok(value.clone()),
        None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
        None => f64::try_from(value.clone()).ok().and_then(whole),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from))
}

fn whole(float: f64) -> Option<i128> {
    float.is_finite().then_some(float as i128)
}

fn to_float(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = default.map_or_else(|| options.get("default"), |default| Ok(Some(default)))?;
    options.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// An indent is cut to this many spaces.
const INDENT_SPACES_MAX: usize = 1000;

/// Indents every line but the first and the empty ones, unless told to. The width may be text that goes in front.
fn indent(
    text: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| options.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| options.get("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| options.get("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    options.assert_all_used()?;
    let space = match &width {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(space) => space.to_owned(),
            None => " ".repeat(usize::try_from(width.clone())?.min(INDENT_SPACES_MAX)),
        },
    };
    let mut output = String::new();
    for (i, line) in str(text).split('\n').enumerate() {
        if i > 0 {
            output.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            output.push_str(&space);
        }
        output.push_str(line.strip_suffix('\r').unwrap_or(line));
    }
    Ok(output)
}

fn escape(value: &Value) -> String {
    let mut output = String::new();
    for c in str(value).chars() {
        match c {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '\'' => output.push_str("&#39;"),
            '"' => output.push_str("&#34;"),
            c => output.push(c),
        }
    }
    output
}

/// Python's `str`.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Number => repr(value),
        _ => value.to_string(),
    }
}

/// Python's `repr` ends here with dots, for fear of the stack.
const DEPTH_MAX: usize = 200;

/// Python's `repr`.
fn repr(value: &Value) -> String {
    repr_within(value, 0)
}

fn repr_within(value: &Value, depth: usize) -> String {
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
                value.try_iter().into_iter().flatten().map(|item| repr_within(&item, depth + 1)).collect();
            match (value.downcast_object_ref::<Tuple>(), &items[..]) {
                (None, _) => format!("[{}]", items.join(", ")),
                (Some(_), [item]) => format!("({item},)"),
                (Some(_), _) => format!("({})", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr_within(&key, depth + 1), repr_within(&item, depth + 1))
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

/// Methods of Python's text and lists that the compatibility layer lacks or has otherwise, then the layer's.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => str_method(text, name, args),
        None if value.kind() == ValueKind::Seq && name == "index" => Some(index(value, args)),
        None => None,
    };
    own.unwrap_or_else(|| pycompat::unknown_method_callback(state, value, name, args))
}

fn index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    match list.try_iter()?.position(|item| item == *wanted) {
        Some(at) => Ok(Value::from(at)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "the value is not in the list")),
    }
}

fn str_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let one = || from_args::<(&str,)>(args).map(|(only,)| only);
    let none = || from_args::<()>(args);
    let result = match name {
        "removeprefix" => one().map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one().map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => one().map(|separator| match text.split_once(separator) {
            Some((before, after)) => three([before, separator, after]),
            None => three([text, "", ""]),
        }),
        "rpartition" => one().map(|separator| match text.rsplit_once(separator) {
            Some((before, after)) => three([before, separator, after]),
            None => three(["", "", text]),
        }),
        "rsplit" => rsplit(text, args),
        "index" | "rindex" => one().and_then(|part| {
            let found = if name == "index" { text.find(part) } else { text.rfind(part) };
            let missing = || Error::new(ErrorKind::InvalidOperation, "the text is not found");
            found.map(|at| Value::from(text[..at].chars().count())).ok_or_else(missing)
        }),
        "zfill" => from_args::<(usize,)>(args).map(|(width,)| {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = width.min(PADDING_MAX).saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }),
        "ljust" | "rjust" | "center" => pad(text, name, args),
        "swapcase" => none().map(|()| Value::from(swap_case(text))),
        "casefold" => none().map(|()| Value::from(text.to_lowercase())),
        "title" => none().map(|()| Value::from(title(text))),
        _ => return None,
    };
    Some(result)
}

/// A text is padded to no more than this many characters.
const PADDING_MAX: usize = 10_000;

fn pad(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(" ");
    let width = width.min(PADDING_MAX);
    let missing = width.saturating_sub(text.chars().count());
    let before = match name {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one in front where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(Value::from(format!("{}{text}{}", fill.repeat(before), fill.repeat(missing - before))))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, splits): (Option<&str>, Option<i64>) = from_args(args)?;
    let splits = splits.and_then(|splits| usize::try_from(splits).ok()).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "the separator is empty")),
        Some(separator) => text.rsplitn(splits + 1, separator).collect(),
        None => rsplit_space(text, splits),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn rsplit_space(text: &str, splits: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let start = rest.trim_end_matches(|c: char| !c.is_whitespace()).len();
        if parts.len() == splits || start == 0 {
            parts.push(rest.trim_start());
            break;
        }
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn swap_case(text: &str) -> String {
    let swap =
        |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
    text.chars().map(swap).collect()
}

/// A capital after everything that is no letter, apostrophes too.
fn title(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if within {
            output.extend(c.to_lowercase());
        } else {
            output.extend(c.to_uppercase());
        }
        within = c.is_alphabetic();
    }
    output
}

fn three(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}
