//! The model families that the engine knows, one short file each.
//!
//! A family says which of the shared parts its layers are made of; everything else comes from the model file. To add
//! one: a file here, a line in [`FAMILIES`], and a part in `model/` if it needs something that no family had before.

mod llama;
mod qwen2;
mod qwen3;

use kernels::attention::Pairing;

/// What sets one family's layers apart from another's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// `general.architecture` in the model file.
    pub(crate) name: &'static str,
    /// Which elements of a head the rotary embedding turns together.
    pub(crate) pairing: Pairing,
    /// Queries and keys are normalized, head by head, before they are turned.
    pub(crate) head_norms: bool,
    /// The frequencies of the rotary embedding may be divided by `rope_freqs.weight`.
    pub(crate) rope_factors: bool,
    /// The matrices of the feed-forward part may have a scale each (`ffn_up.scale` and so on).
    pub(crate) feed_forward_scales: bool,
}

pub(crate) const FAMILIES: &[Family] = &[llama::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// The family called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

/// The names of all families, for messages.
pub fn known() -> String {
    FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ")
}
