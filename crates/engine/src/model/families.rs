//! The model families that the engine knows, one short file each.
//!
//! A family says which of the shared parts its layers are made of; everything else comes from the model file. To add
//! one: a file here and a line in [`FAMILIES`]. Where it needs a part that no family had before: a variant or field in
//! `config.rs`, its tensors in `weights.rs`, and its arithmetic in `forward/`, none of which knows a family's name.

mod bert;
mod cohere2;
mod deepseek2;
mod exaone4;
mod gemma2;
mod gemma3;
mod gemma4;
mod gemma_embedding;
mod glm4;
mod gpt_oss;
mod granite;
mod granitehybrid;
mod lfm2;
mod llama;
mod mamba2;
mod mistral3;
mod modern_bert;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35;
mod qwen3moe;
mod smollm3;

use super::ModelError;
use super::config::Config;
use super::keys::Keys;
use std::fmt;

/// A model family.
pub(crate) struct Family {
    /// `general.architecture` in the model file.
    pub(crate) name: &'static str,
    /// The models that people know it by.
    pub(crate) models: &'static str,
    /// What its layers are made of, by what the file says.
    pub(crate) read: fn(&Keys<'_>, &'static Family) -> Result<Config, ModelError>,
}

pub(crate) const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen2moe::FAMILY,
    &qwen3::FAMILY,
    &qwen3moe::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &granite::FAMILY,
    &granite::EXPERTS,
    &mistral3::FAMILY,
    &olmo2::FAMILY,
    &exaone4::FAMILY,
    &glm4::FAMILY,
    &cohere2::FAMILY,
    &gpt_oss::FAMILY,
    &deepseek2::FAMILY,
    &lfm2::FAMILY,
    &lfm2::EXPERTS,
    &qwen35::FAMILY,
    &qwen35::EXPERTS,
    &granitehybrid::FAMILY,
    &mamba2::FAMILY,
    &bert::FAMILY,
    &bert::NOMIC,
    &bert::JINA_2,
    &bert::JINA_3,
    &modern_bert::FAMILY,
    &gemma_embedding::FAMILY,
];

/// The family called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.name == name)
}

/// The names of all families, for messages.
pub fn known() -> String {
    FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ")
}

/// The name of each family and the models that people know it by.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    FAMILIES.iter().map(|family| (family.name, family.models))
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.name)
    }
}
