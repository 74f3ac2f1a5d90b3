//! `precompiled_charsmap`: SentencePiece's rules of what becomes what, in a double array of darts-clone.
//!
//! The size of the array in bytes as u32, its units, and the replacements, each ended by a zero byte; all little-endian.
//! A unit is a node: it lies where its parent's offset, xor the parent's place, xor a byte of the text leads. That byte is
//! in bits 0 to 7. Bit 8 says that a rule ends here: the unit at the offset then holds bit 31 and where its replacement
//! begins. The offset is in bits 10 to 30, shifted by 8 where bit 9 is set.

/// In bytes, of what is replaced and of what replaces it. SentencePiece's own rules come to 33.
const RULE_BYTES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Box<str>,
}

/// Why a `precompiled_charsmap` cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CharsmapError {
    #[error("it has {len} bytes, which is not enough for a double array of {array} bytes")]
    Length { len: usize, array: usize },
    #[error("a double array of {array} bytes is not made of units of 4")]
    Units { array: usize },
    #[error("the replacements are not UTF-8 from byte {at} on")]
    Utf8 { at: usize },
    #[error("unit {unit} of the double array leads outside of it")]
    Offset { unit: usize },
    #[error(
        "the replacement at byte {at}, of unit {unit}, does not begin at a character of the replacements"
    )]
    Replacement { unit: usize, at: usize },
    #[error("the replacement at byte {at} does not end within {RULE_BYTES_MAX} bytes")]
    ReplacementLength { at: usize },
}

impl Charsmap {
    /// `None` for no bytes: nothing is replaced.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, CharsmapError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (array, rest) = bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let array = u32::from_le_bytes(*array) as usize;
        let parts = rest.split_at_checked(array).filter(|_| bytes.len() >= 4);
        let (units, replacements) = parts.ok_or(CharsmapError::Length { len: bytes.len(), array })?;
        let (units, odd) = units.as_chunks();
        if units.is_empty() || !odd.is_empty() {
            return Err(CharsmapError::Units { array });
        }
        let charsmap = Self {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: str::from_utf8(replacements)
                .map_err(|error| CharsmapError::Utf8 { at: error.valid_up_to() })?
                .into(),
        };
        charsmap.check()?;
        Ok(Some(charsmap))
    }

    #[cfg(test)]
    pub(super) fn unchecked(units: Vec<u32>, replacements: &str) -> Self {
        Self { units, replacements: replacements.into() }
    }

    /// Looks at every unit, whether a text can lead to it or not.
    fn check(&self) -> Result<(), CharsmapError> {
        for (i, &unit) in self.units.iter().enumerate().filter(|(_, unit)| !is_value(**unit)) {
            let &next = self.units.get(i ^ offset(unit)).ok_or(CharsmapError::Offset { unit: i })?;
            if !ends_rule(unit) {
                continue;
            }
            let at = value(next);
            let replacement = self.replacements.get(at..).filter(|_| is_value(next));
            let bytes = replacement.ok_or(CharsmapError::Replacement { unit: i, at })?.as_bytes();
            if !bytes[..bytes.len().min(RULE_BYTES_MAX + 1)].contains(&0) {
                return Err(CharsmapError::ReplacementLength { at });
            }
        }
        Ok(())
    }

    /// The length of the longest match at the beginning of `text`, and what replaces it.
    #[inline]
    pub(super) fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut at = offset(*self.units.first()?);
        let mut longest = None;
        for (i, &byte) in text.as_bytes().iter().take(RULE_BYTES_MAX).enumerate() {
            at ^= usize::from(byte);
            let Some(&unit) = self.units.get(at).filter(|unit| label(**unit) == u32::from(byte)) else {
                break;
            };
            at ^= offset(unit);
            if ends_rule(unit) && text.is_char_boundary(i + 1) {
                longest = Some((i + 1, *self.units.get(at)?));
            }
        }
        let (len, unit) = longest?;
        let replacement = self.replacements.get(value(unit)..)?;
        Some((len, replacement.split('\0').next().unwrap_or_default()))
    }
}

#[inline]
fn is_value(unit: u32) -> bool {
    unit >> 31 == 1
}

#[inline]
fn value(unit: u32) -> usize {
    (unit & 0x7FFF_FFFF) as usize
}

/// The byte that leads here; for a value what no byte is.
#[inline]
fn label(unit: u32) -> u32 {
    unit & 0x8000_00FF
}

#[inline]
fn ends_rule(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

#[inline]
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}
