//! Reading request bodies: known fields by name, each checked by itself, so that an error can name its field.
//!
//! Unknown fields are skipped without being stored. Nothing here allocates more than [`parse_bytes_max`] says.

mod bounded;
mod fields;
mod kind;

pub(crate) use fields::{Fields, wrong_kind};
pub(crate) use kind::{Kind, kind_of};

use crate::config::Limits;

/// The most memory, in bytes, that reading a body of `body_bytes` may hold at once, besides the body.
///
/// A body is held about three times over (text fields, the values of a conversation, the normalized conversation,
/// each growing by doubling) and every JSON value costs up to 400 bytes, of which the limits allow only so many
/// in each of four fields. A token given as a number takes two bytes of body and up to 12 of a growing list.
pub fn parse_bytes_max(body_bytes: usize, limits: &Limits) -> usize {
    let values = body_bytes.min(4 * limits.json_values_max);
    16 * 1024 + 16 * body_bytes + 400 * values
}
