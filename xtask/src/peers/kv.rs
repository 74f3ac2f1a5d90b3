//! Formats of key-value caches by the names that llama.cpp has for them.

use std::str::FromStr;

use engine::KvFormat;

/// A format that both sides have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kv {
    /// What `--cache-type-k` takes.
    pub(crate) name: &'static str,
    pub(crate) format: KvFormat,
}

impl Kv {
    pub(super) const F16: Kv = Kv { name: "f16", format: KvFormat::F16 };
    const ALL: [Kv; 3] =
        [Kv::F16, Kv { name: "bf16", format: KvFormat::BF16 }, Kv { name: "f32", format: KvFormat::F32 }];

    /// llama.cpp reads quantized values by flash attention only.
    pub(super) fn is_quantized(self) -> bool {
        !matches!(self.format, KvFormat::F32 | KvFormat::F16 | KvFormat::BF16)
    }
}

impl FromStr for Kv {
    type Err = String;

    fn from_str(name: &str) -> Result<Kv, String> {
        Kv::ALL.into_iter().find(|kv| kv.name == name).ok_or_else(|| {
            let known = Kv::ALL.map(|kv| kv.name).join(", ");
            format!("the engine has no key-value cache of {name}; it has {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_is_not_there_is_named() {
        assert_eq!("f16".parse(), Ok(Kv::F16));
        assert!("q3_9".parse::<Kv>().unwrap_err().contains("no key-value cache of q3_9; it has f16"));
    }
}
