//! `tojson` as templates know it: Python's `json.dumps`, which escapes no HTML and keeps the order of keys.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python;

/// Deeper values are refused, as they are by `json.dumps`.
const DEPTH_MAX: usize = 200;

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = option(ensure_ascii, &options, "ensure_ascii")?;
    let indent: Option<Value> = option(indent, &options, "indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(indent).unwrap_or(0).min(64)),
    });
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair of strings"));
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        output: String::new(),
        ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    Ok(writer.output)
}

fn option<T: for<'a> minijinja::value::ArgType<'a, Output = T>>(
    positional: Option<T>,
    options: &Kwargs,
    name: &str,
) -> Result<Option<T>, Error> {
    match positional {
        Some(value) => Ok(Some(value)),
        None => options.get(name),
    }
}

struct Writer {
    output: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// Between items, and between a key and its value.
    item: String,
    key: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self.output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.output.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.sequence(&items, depth)?;
            }
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                let message = format!("a value of the kind `{kind}` is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn sequence(&mut self, items: &[Value], depth: usize) -> Result<(), Error> {
        self.output.push('[');
        for (i, item) in items.iter().enumerate() {
            self.before_item(i, depth + 1);
            self.value(item, depth + 1)?;
        }
        self.after_items(items.len(), depth);
        self.output.push(']');
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in map.try_iter()? {
            entries.push((key_text(&key)?, map.get_item(&key)?));
        }
        if self.sort_keys {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.output.push('{');
        for (i, (key, value)) in entries.iter().enumerate() {
            self.before_item(i, depth + 1);
            self.string(key);
            self.output.push_str(&self.key);
            self.value(value, depth + 1)?;
        }
        self.after_items(entries.len(), depth);
        self.output.push('}');
        Ok(())
    }

    fn before_item(&mut self, i: usize, depth: usize) {
        if i > 0 {
            self.output.push_str(&self.item);
        }
        self.line(depth);
    }

    fn after_items(&mut self, count: usize, depth: usize) {
        if count > 0 {
            self.line(depth);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.output.push('\n');
            for _ in 0..depth {
                self.output.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.output.push('"');
        for c in text.chars() {
            match c {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.output.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.output.push(c),
            }
        }
        self.output.push('"');
    }
}

fn number(value: &Value) -> String {
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if value.is_integer() {
        value.to_string()
    } else if float.is_nan() {
        "NaN".into()
    } else if float.is_infinite() {
        if float > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        python::float(float)
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "keys must be text, numbers, booleans or none")),
    }
}
