//! Reading request bodies: known fields by name, each checked by itself, so that an error can name its field.
//!
//! Unknown fields are skipped without being stored. Nothing here allocates more than [`parse_bytes_max`] says.

mod bounded;
mod fields;
mod kind;

pub(crate) use fields::{Fields, read_list, wrong_kind};
pub(crate) use kind::{Kind, kind_of};

use crate::config::Limits;

/// The most memory, in bytes, that reading a body of `body_bytes` may hold at once, besides the body.
///
/// Six bytes for one of the body: tokens given as numbers take two bytes there and, while their list doubles, up to
/// twelve in memory; text is held twice at most. And 300 for every JSON value, which takes two bytes at least and of
/// which the limits allow only so many in each of three fields (`messages`, `tools`, `chat_template_kwargs`).
pub fn parse_bytes_max(body_bytes: usize, limits: &Limits) -> usize {
    let values = (body_bytes / 2).min(3 * limits.json_values_max);
    16 * 1024 + 6 * body_bytes + 300 * values
}
