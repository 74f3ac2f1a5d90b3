//! Metadata under a family's prefix, checked as it is read.

use super::ModelError;
use crate::gguf::{Gguf, Value};

/// Reads the keys of one architecture.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) gguf: &'a Gguf,
    pub(crate) architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// An integer; `None` where there is none.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<u64>, ModelError> {
        Ok(self.gguf.u64(&self.key(name))?)
    }

    /// An integer from 1 to `max`.
    pub(crate) fn required(&self, name: &str, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(name)?.ok_or_else(|| self.missing(name))?;
        self.in_range(name, value, 1, max)
    }

    /// An integer from 1 to `max`, `default` where there is none.
    pub(crate) fn or(&self, name: &str, default: usize, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(name)?.unwrap_or(default as u64);
        self.in_range(name, value, 1, max)
    }

    /// An integer up to `max`, 0 where there is none.
    pub(crate) fn count(&self, name: &str, max: usize) -> Result<usize, ModelError> {
        self.in_range(name, self.optional(name)?.unwrap_or(0), 0, max)
    }

    /// An integer up to `max` for each layer, from one that is for all or from a list; `None` where there is neither.
    pub(crate) fn per_layer(
        &self,
        name: &str,
        layers: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        match self.gguf.get(&self.key(name)) {
            Some(Value::Array(_)) => {
                let values = self.list(name, layers)?;
                let value = |value: i128| match usize::try_from(value) {
                    Ok(value) if value <= max => Ok(value),
                    _ => Err(self.bad(name, value, format!("from 0 to {max} in each layer"))),
                };
                values.into_iter().map(value).collect::<Result<_, _>>().map(Some)
            }
            _ => match self.optional(name)? {
                Some(value) => Ok(Some(vec![self.in_range(name, value, 0, max)?; layers])),
                None => Ok(None),
            },
        }
    }

    /// A list with a yes or no for each layer, as booleans or numbers; `None` where the key is not a list.
    pub(crate) fn flags(&self, name: &str, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        match self.gguf.get(&self.key(name)) {
            Some(Value::Array(_)) => {
                Ok(Some(self.list(name, layers)?.into_iter().map(|value| value != 0).collect()))
            }
            _ => Ok(None),
        }
    }

    /// At least `layers` numbers; those for layers that are not computed are left away.
    fn list(&self, name: &str, layers: usize) -> Result<Vec<i128>, ModelError> {
        let array = self.gguf.get(&self.key(name)).and_then(|value| value.as_array());
        let array = array.expect("the caller has seen a list");
        if array.len() < layers {
            let found = format!("a list of {}", array.len());
            return Err(self.bad(name, found, format!("a number for each of {layers} layers")));
        }
        let number = |value: Value<'_>| value.as_int().or_else(|| value.as_bool().map(i128::from));
        let numbers: Option<Vec<i128>> = array.scalars().take(layers).map(number).collect();
        numbers.filter(|numbers| numbers.len() == layers).ok_or_else(|| {
            self.bad(name, format!("a list of {}", array.ty()), "a list of whole numbers".to_owned())
        })
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, ModelError> {
        let value = self.gguf.f32(&self.key(name))?.unwrap_or(default);
        if value.is_finite() { Ok(value) } else { Err(self.bad(name, value, "a finite number".to_owned())) }
    }

    pub(crate) fn positive(&self, name: &str, default: f32) -> Result<f32, ModelError> {
        let value = self.float(name, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.bad(name, value, "above zero".to_owned())) }
    }

    /// A number above zero; `None` where there is none or it is 0, which writers put for "not used".
    pub(crate) fn unless_zero(&self, name: &str) -> Result<Option<f32>, ModelError> {
        let value = self.float(name, 0.0)?;
        if value == 0.0 { Ok(None) } else { self.positive(name, value).map(Some) }
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.gguf.bool(&self.key(name))?.unwrap_or(default))
    }

    pub(crate) fn str(&self, name: &str) -> Result<Option<&str>, ModelError> {
        Ok(self.gguf.str(&self.key(name))?)
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn in_range(&self, name: &str, value: u64, min: usize, max: usize) -> Result<usize, ModelError> {
        match usize::try_from(value) {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(self.bad(name, value, format!("from {min} to {max}"))),
        }
    }

    pub(crate) fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingKey(self.key(name))
    }

    pub(crate) fn bad(&self, name: &str, value: impl ToString, wanted: String) -> ModelError {
        ModelError::BadValue { key: self.key(name), value: value.to_string(), wanted }
    }
}
