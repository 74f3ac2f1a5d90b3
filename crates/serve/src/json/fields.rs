//! The fields of a request's object.

use std::cell::Cell;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::bounded::{BoundedList, BoundedValue};
use super::{Kind, kind_of};
use crate::error::ApiError;

/// The names of known fields, in groups.
pub(crate) type Known = &'static [&'static [&'static str]];

fn position(known: Known, name: &str) -> Option<usize> {
    known.iter().copied().flatten().position(|known| *known == name)
}

/// The known fields of a JSON object, each still as text. A field that is null counts as absent, as OpenAI has it;
/// of a field given twice the last counts.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    known: Known,
    texts: Vec<Option<&'a RawValue>>,
}

impl<'a> Fields<'a> {
    /// Reads `body`, which must be a JSON object, and keeps the fields named in `known`.
    pub(crate) fn read(body: &'a [u8], known: Known) -> Result<Self, ApiError> {
        let text = text_of(body, "object")?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let texts =
            deserializer.deserialize_any(Object { known }).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => {
                    ApiError::invalid(format!("the body must be a JSON object, not {}", kind_of(text)))
                }
                _ => not_json(&error),
            })?;
        deserializer.end().map_err(|error| not_json(&error))?;
        Ok(Self { known, texts })
    }

    /// The text of a field that is present and not null.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        let index = position(self.known, name);
        debug_assert!(index.is_some(), "'{name}' is not among the known fields");
        let text = self.texts.get(index?)?.as_ref()?.get();
        (text != "null").then_some(text)
    }

    /// A field of one kind, or an error that says what it is instead.
    fn of_kind(&self, name: &str, wanted: &[Kind]) -> Result<Option<&'a str>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let found = kind_of(text);
        if wanted.contains(&found) { Ok(Some(text)) } else { Err(wrong_kind(name, wanted, found)) }
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        Ok(self.of_kind(name, &[Kind::Boolean])?.map(|text| text == "true"))
    }

    pub(crate) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(text) = self.of_kind(name, &[Kind::Number])? else { return Ok(None) };
        // A number too large for a double is an error of serde_json's and out of any range.
        let number = serde_json::from_str::<f64>(text).ok().filter(|number| range.contains(number));
        let (low, high) = (range.start(), range.end());
        number.map(Some).ok_or_else(|| ApiError::field(name, format!("must be between {low} and {high}")))
    }

    /// An integer; one written like `16.0` is taken too.
    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.of_kind(name, &[Kind::Number])? else { return Ok(None) };
        let (low, high) = (*range.start(), *range.end());
        let integer = integer(text).ok_or_else(|| ApiError::field(name, "must be an integer"))?;
        match i64::try_from(integer) {
            Ok(integer) if range.contains(&integer) => Ok(Some(integer)),
            _ if high == i64::MAX => Err(ApiError::field(name, format!("must be at least {low}"))),
            _ => Err(ApiError::field(name, format!("must be between {low} and {high}"))),
        }
    }

    /// A seed: any 64-bit integer, signed or not.
    pub(crate) fn seed(&self, name: &str) -> Result<Option<i128>, ApiError> {
        let Some(text) = self.of_kind(name, &[Kind::Number])? else { return Ok(None) };
        let range = i128::from(i64::MIN)..=i128::from(u64::MAX);
        let seed = integer(text).filter(|seed| range.contains(seed));
        seed.map(Some).ok_or_else(|| ApiError::field(name, "must be an integer of 64 bits"))
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, ApiError> {
        let Some(text) = self.of_kind(name, &[Kind::String])? else { return Ok(None) };
        read_field(name, text).map(Some)
    }

    /// A list of at most `max` elements of one type.
    pub(crate) fn list<T: Deserialize<'a>>(
        &self,
        name: &str,
        max: usize,
    ) -> Result<Option<Vec<T>>, ApiError> {
        let Some(text) = self.of_kind(name, &[Kind::Array])? else { return Ok(None) };
        seeded(name, text, BoundedList::new(max)).map(Some)
    }

    /// Any value of one of the kinds, with at most `values_max` values within.
    pub(crate) fn value(
        &self,
        name: &str,
        wanted: &[Kind],
        values_max: usize,
    ) -> Result<Option<Value>, ApiError> {
        let Some(text) = self.of_kind(name, wanted)? else { return Ok(None) };
        let left = Cell::new(values_max);
        seeded(name, text, BoundedValue { left: &left }).map(Some)
    }
}

/// A body that is a list of at most `max` elements of one type.
pub(crate) fn read_list<'a, T: Deserialize<'a>>(body: &'a [u8], max: usize) -> Result<Vec<T>, ApiError> {
    let text = text_of(body, "array")?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let list =
        BoundedList::new(max).deserialize(&mut deserializer).map_err(|error| match error.classify() {
            serde_json::error::Category::Data if kind_of(text) == Kind::Array => {
                ApiError::invalid(format!("the body cannot be read: {error}"))
            }
            serde_json::error::Category::Data => {
                ApiError::invalid(format!("the body must be a JSON array, not {}", kind_of(text)))
            }
            _ => not_json(&error),
        })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(list)
}

fn text_of<'a>(body: &'a [u8], wanted: &str) -> Result<&'a str, ApiError> {
    let text = str::from_utf8(body).map_err(|error| {
        ApiError::invalid(format!("the body is not valid UTF-8 at byte {}", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(ApiError::invalid(format!("the body is empty; send a JSON {wanted}")));
    }
    Ok(text)
}

pub(crate) fn wrong_kind(param: &str, wanted: &[Kind], found: Kind) -> ApiError {
    let wanted: Vec<_> = wanted.iter().map(Kind::to_string).collect();
    let error = ApiError::field(param, format!("must be {}, not {found}", wanted.join(" or ")));
    ApiError { code: Some("invalid_type"), ..error }
}

fn integer(text: &str) -> Option<i128> {
    if let Ok(integer) = text.parse::<i128>() {
        return Some(integer);
    }
    // Beyond 2^53 a double no longer says which integer was meant.
    let number = serde_json::from_str::<f64>(text).ok()?;
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i128)
}

fn read_field<'a, T: Deserialize<'a>>(name: &str, text: &'a str) -> Result<T, ApiError> {
    serde_json::from_str(text).map_err(|error| bad_field(name, &error))
}

fn seeded<'a, S: DeserializeSeed<'a>>(name: &str, text: &'a str, seed: S) -> Result<S::Value, ApiError> {
    seed.deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| bad_field(name, &error))
}

/// An error within a field. Its line and column would count from the field's beginning, so they are left out.
fn bad_field(name: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let problem = text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem);
    match problem.strip_prefix("has ") {
        Some(rest) => ApiError::field(name, format!("has {rest}")),
        None => ApiError::field(name, format!("cannot be read: {problem}")),
    }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError {
        code: Some("invalid_json"),
        ..ApiError::invalid(format!("the body is not valid JSON: {error}"))
    }
}

struct Object {
    known: Known,
}

impl<'de> Visitor<'de> for Object {
    type Value = Vec<Option<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut texts = vec![None; self.known.iter().map(|names| names.len()).sum()];
        while let Some(index) = access.next_key_seed(Name { known: self.known })? {
            match index {
                Some(index) => texts[index] = Some(access.next_value()?),
                None => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        Ok(texts)
    }
}

/// A field's name as its place among the known ones.
struct Name {
    known: Known,
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(position(self.known, name))
    }
}
