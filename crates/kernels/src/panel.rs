//! Activations as the tiles want them: panels of up to 12 tokens, quantized to 8 bits or as floats.
//!
//! A batch of tokens is cut into panels of 12, 8, 4, 2 and 1 tokens. In an integer panel of `T` tokens each group of 32
//! columns is one record of `60 T` bytes: `q [T][32] i8`, then per token `d f32`, `d * sum f32`, `-8 * sum i32`,
//! `-8 * sum0 i32`, `-8 * sum1 i32`, `d * sum0 f32`, `d * sum1 f32`, where `x ~ d * q`, `sum0` and `sum1` are the sums of
//! `q` over the two halves and `sum` over both. The sums turn weights stored with an offset or a minimum back into
//! their value without touching the inner loop. A float panel is `[cols][T] f32`.
//!
//! Layouts whose weights come in super-blocks of 256 columns are multiplied by panels of the same form in which the eight
//! records of a super-block have one `d`: what is summed over the super-block is then scaled once and not eight times.
//! ggml quantizes activations for these formats the same way (`block_q8_K`). Such a record holds, from its third word on,
//! `-128 * sum i32`, `-32 * sum0 i32`, `-32 * sum1 i32`, `[sum0, sum1] i16` and, in even groups, `[sum, sum of the next] i16`:
//! the offsets of these layouts without a shift, and factors that instructions for pairs of 16 bits take as they are.

use crate::elementwise::{Lanes, largest};
use crate::format::{GROUP, SUPERBLOCK};
use crate::isa::Table;
use half::bf16;
use std::ops::Range;

/// Panel widths, widest first. A tile exists for each; the widest is what 32 vector registers hold.
pub const PANEL_WIDTHS: [usize; 5] = [12, 8, 4, 2, 1];

/// Bytes per token and group of an integer panel.
pub(crate) const RECORD: usize = GROUP + 7 * 4;

/// Cuts `0..tokens` into panels.
pub fn panels(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let width = PANEL_WIDTHS.into_iter().find(|&w| start + w <= tokens)?;
        start += width;
        Some(start - width..start)
    })
}

/// The panel that holds `token`, without walking the ones before it.
fn panel_of(token: usize, tokens: usize) -> Range<usize> {
    let wide = PANEL_WIDTHS[0];
    if token / wide < tokens / wide {
        let start = token / wide * wide;
        return start..start + wide;
    }
    let first = tokens / wide * wide;
    let rest = panels(tokens - first).find(|p| p.contains(&(token - first)));
    let rest = rest.expect("token is within tokens");
    rest.start + first..rest.end + first
}

/// The activations of a batch of tokens, ready to be multiplied: integer panels, float panels or both.
#[derive(Debug, Default)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    integers: Vec<u8>,
    superblocks: Vec<u8>,
    floats: Vec<f32>,
    bf16s: Vec<f32>,
    kinds: Kinds,
    /// Where each group of tokens ends; groups have panels of their own.
    group_ends: Vec<usize>,
}

/// Which panels are filled; what a layer's matrices need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// 8 bits, with a scale for each 32 columns.
    pub integer: bool,
    /// 8 bits, with a scale for each 256 columns.
    pub superblock: bool,
    pub float: bool,
    /// Floats rounded to bfloat16, for BF16 weights: what processors with instructions for them multiply.
    pub bf16: bool,
}

impl Activations {
    /// Makes room for `tokens` x `cols`; contents are undefined until every token has been written.
    ///
    /// # Panics
    /// If integer panels are asked for and `cols` is not a multiple of the columns that share a scale.
    pub fn reset(&mut self, tokens: usize, cols: usize, kinds: Kinds) {
        self.reset_groups(&[tokens], cols, kinds);
    }

    /// As [`Activations::reset`] for groups of the given lengths, each cut into panels by itself, so that each can be
    /// multiplied by another matrix.
    ///
    /// # Panics
    /// As [`Activations::reset`].
    pub fn reset_groups(&mut self, groups: &[usize], cols: usize, kinds: Kinds) {
        self.group_ends.clear();
        let mut tokens = 0;
        self.group_ends.extend(groups.iter().map(|len| {
            tokens += len;
            tokens
        }));
        (self.tokens, self.cols, self.kinds) = (tokens, cols, kinds);
        for (wanted, records, span) in [
            (kinds.integer, &mut self.integers, GROUP),
            (kinds.superblock, &mut self.superblocks, SUPERBLOCK),
        ] {
            if !wanted {
                continue;
            }
            assert!(cols.is_multiple_of(span), "{cols} columns are not a multiple of {span}");
            let len = tokens * cols / GROUP * RECORD;
            if records.len() < len {
                records.resize(len, 0);
            }
        }
        for (wanted, floats) in [(kinds.float, &mut self.floats), (kinds.bf16, &mut self.bf16s)] {
            if wanted && floats.len() < tokens * cols {
                floats.resize(tokens * cols, 0.0);
            }
        }
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// Writes one token's row.
    pub fn write(&mut self, table: &Table, token: usize, row: &[f32]) {
        assert_eq!(row.len(), self.cols, "length of a row");
        let writer = self.writer();
        // SAFETY: `&mut self` excludes every other writer and reader.
        unsafe { writer.write(table, token, 0, row) }
    }

    /// Whether these tokens are a group.
    pub(crate) fn is_group(&self, tokens: &Range<usize>) -> bool {
        let i = self.group_ends.partition_point(|&end| end < tokens.end);
        let start = if i == 0 { 0 } else { self.group_ends[i - 1] };
        tokens.is_empty() || (self.group_ends.get(i) == Some(&tokens.end) && start == tokens.start)
    }

    /// A handle through which several threads write different tokens or columns at once.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        Writer {
            tokens: self.tokens,
            group_ends: &self.group_ends,
            cols: self.cols,
            kinds: self.kinds,
            integers: self.integers.as_mut_ptr(),
            superblocks: self.superblocks.as_mut_ptr(),
            floats: self.floats.as_mut_ptr(),
            bf16s: self.bf16s.as_mut_ptr(),
        }
    }

    /// Start of the integer panel whose first token is `token`.
    pub(crate) fn integer_panel(&self, token: usize) -> *const u8 {
        assert!(self.kinds.integer, "integer panels were not asked for");
        self.integers[token * self.cols / GROUP * RECORD..].as_ptr()
    }

    /// Start of the integer panel with a scale for each super-block whose first token is `token`.
    pub(crate) fn superblock_panel(&self, token: usize) -> *const u8 {
        assert!(self.kinds.superblock, "super-block panels were not asked for");
        self.superblocks[token * self.cols / GROUP * RECORD..].as_ptr()
    }

    /// Start of the float panel whose first token is `token`.
    pub(crate) fn float_panel(&self, token: usize) -> *const u8 {
        assert!(self.kinds.float, "float panels were not asked for");
        self.floats[token * self.cols..].as_ptr().cast()
    }

    /// Start of the panel of floats rounded to bfloat16 whose first token is `token`.
    pub(crate) fn bf16_panel(&self, token: usize) -> *const u8 {
        assert!(self.kinds.bf16, "bfloat16 panels were not asked for");
        self.bf16s[token * self.cols..].as_ptr().cast()
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Writer<'a> {
    tokens: usize,
    group_ends: &'a [usize],
    cols: usize,
    kinds: Kinds,
    integers: *mut u8,
    superblocks: *mut u8,
    floats: *mut f32,
    bf16s: *mut f32,
}

// SAFETY: the pointers are only followed by `write`, whose contract makes threads touch different elements.
unsafe impl Send for Writer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Writer<'_> {}

impl Writer<'_> {
    fn panel_of(&self, token: usize) -> Range<usize> {
        let i = self.group_ends.partition_point(|&end| end <= token);
        let start = if i == 0 { 0 } else { self.group_ends[i - 1] };
        let panel = panel_of(token - start, self.group_ends[i] - start);
        start + panel.start..start + panel.end
    }

    /// Writes the columns of one token from `first` on into every panel that is wanted. They begin and end where a scale of
    /// integer panels does.
    ///
    /// # Safety
    /// The [`Activations`] behind this handle is alive and not otherwise used, and no other thread writes these columns of
    /// `token`.
    pub(crate) unsafe fn write(&self, table: &Table, token: usize, first: usize, columns: &[f32]) {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        assert!(first + columns.len() <= self.cols, "columns {first} and on of {}", self.cols);
        let panel = self.panel_of(token);
        let (width, lane) = (panel.len(), token - panel.start);
        for (wanted, records, span) in [
            (self.kinds.integer, self.integers, GROUP),
            (self.kinds.superblock, self.superblocks, SUPERBLOCK),
        ] {
            if wanted {
                assert!(
                    (first | columns.len()).is_multiple_of(span),
                    "columns that share a scale stay together"
                );
                // SAFETY: `reset` made room for `tokens * cols / 32` records and this panel's lie from its first token on.
                unsafe {
                    let start = records.add((panel.start * self.cols + first * width) / GROUP * RECORD);
                    (table.quantize_row)(columns, span, start, width, lane);
                }
            }
        }
        if self.kinds.float {
            // SAFETY: `reset` made room for `tokens * cols` floats.
            unsafe {
                let start = self.floats.add(panel.start * self.cols + first * width + lane);
                write_floats(start, width, columns.iter().copied());
            }
        }
        if self.kinds.bf16 {
            let rounded = columns.iter().map(|&x| bf16::from_f32(x).to_f32());
            // SAFETY: as above.
            unsafe {
                write_floats(self.bf16s.add(panel.start * self.cols + first * width + lane), width, rounded);
            }
        }
    }
}

/// # Safety
/// Every `width`-th float from `lane` on, one per element of `row`, may be written and is not otherwise used.
unsafe fn write_floats(lane: *mut f32, width: usize, row: impl Iterator<Item = f32>) {
    for (c, x) in row.enumerate() {
        // SAFETY: the caller's contract.
        unsafe { lane.add(c * width).write(x) }
    }
}

/// Quantizes a row, with one scale for each `span` columns, into lane `lane` of a panel of `width` tokens. Values that are
/// not finite become integers like others, and `d` stays finite.
///
/// # Safety
/// `panel` points at `row.len() / 32` records of `60 * width` bytes that nobody else uses; the processor has the instruction
/// set of `L`.
#[inline(always)]
pub(crate) unsafe fn quantize_row_body<L: Lanes>(
    row: &[f32],
    span: usize,
    panel: *mut u8,
    width: usize,
    lane: usize,
) {
    let spans = row.as_chunks::<GROUP>().0.chunks(span / GROUP);
    for (first, groups) in spans.enumerate().map(|(i, groups)| (i * (span / GROUP), groups)) {
        // SAFETY: the same contract.
        let (d, inverse) = scale(unsafe { largest::<L>(groups) });
        for (g, x) in groups.iter().enumerate() {
            // SAFETY: the same contract; record `first + g` lies within the panel, and its parts within the record.
            unsafe {
                let (q, sums) = L::quantize(x, inverse);
                let sum = sums[0] + sums[1];
                let record = panel.add((first + g) * RECORD * width);
                record.add(lane * GROUP).cast::<[i8; GROUP]>().write_unaligned(q);
                let tail = record.add(width * GROUP + lane * 4);
                let field = |i: usize| tail.add(i * width * 4);
                field(0).cast::<f32>().write_unaligned(d);
                field(1).cast::<f32>().write_unaligned(d * sum as f32);
                let (whole, half) = if span == GROUP { (-8, -8) } else { (-128, -32) };
                field(2).cast::<i32>().write_unaligned(whole * sum);
                field(3).cast::<i32>().write_unaligned(half * sums[0]);
                field(4).cast::<i32>().write_unaligned(half * sums[1]);
                if span == GROUP {
                    field(5).cast::<f32>().write_unaligned(d * sums[0] as f32);
                    field(6).cast::<f32>().write_unaligned(d * sums[1] as f32);
                } else {
                    field(5).cast::<[i16; 2]>().write_unaligned(sums.map(|sum| sum as i16));
                    let even = field(6).sub(g % 2 * RECORD * width).cast::<i16>();
                    even.add(g % 2).write_unaligned(sum as i16);
                }
            }
        }
    }
}

/// The scale of values of magnitude `amax` and below as integers of -127 to 127, and its inverse. Both are finite.
#[inline(always)]
fn scale(amax: f32) -> (f32, f32) {
    let amax = amax.min(f32::MAX);
    let d = amax / 127.0;
    (d, if d > 0.0 { (127.0 / amax).min(f32::MAX) } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn panels_cover_every_token_once() {
        for tokens in 0..100 {
            let mut next = 0;
            for p in panels(tokens) {
                assert_eq!(p.start, next);
                assert!(PANEL_WIDTHS.contains(&p.len()));
                for t in p.clone() {
                    assert_eq!(panel_of(t, tokens), p, "token {t} of {tokens}");
                }
                next = p.end;
            }
            assert_eq!(next, tokens);
        }
    }

    #[test]
    fn a_scale_is_finite_whatever_it_is_for() {
        assert_eq!(scale(0.0), (0.0, 0.0));
        assert_eq!(scale(127.0), (1.0, 1.0));
        for amax in [f32::MIN_POSITIVE / 4.0, f32::MIN_POSITIVE, 1.0, f32::MAX, f32::INFINITY] {
            let (d, inverse) = scale(amax);
            assert!(d.is_finite() && inverse.is_finite(), "{amax}: {d}, {inverse}");
        }
    }

    /// A row in lane 1 of a panel of 2 tokens.
    fn panel_on(isa: Isa, row: &[f32], span: usize) -> Vec<u8> {
        let mut panel = vec![0; row.len() / GROUP * RECORD * 2];
        let table = isa.table().expect("a set that the processor has");
        // SAFETY: the panel has a record of two tokens for each group.
        unsafe { (table.quantize_row)(row, span, panel.as_mut_ptr(), 2, 1) };
        panel
    }

    #[test]
    fn every_set_quantizes_to_the_same_bytes() {
        let row: Vec<_> = (0..1024).map(|i| (i as f32 * 0.37).sin() * 1.01f32.powi(i - 700)).collect();
        // Halves between two integers go to the even one.
        let ties: Vec<_> = (0..1024).map(|i| (i % 255 - 127) as f32 / 2.0).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.table().is_some()) {
            for (row, span) in [(&row, GROUP), (&row, SUPERBLOCK), (&ties, GROUP), (&vec![0.0; 512], GROUP)] {
                let (panel, expected) = (panel_on(isa, row, span), panel_on(Isa::Scalar, row, span));
                assert!(panel == expected, "{isa}, a scale for each {span}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_quantized_within_range() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.table().is_some()) {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 4.0] {
                let mut row = [1.0; GROUP];
                row[3] = bad;
                let panel = panel_on(isa, &row, GROUP);
                let d = f32::from_le_bytes(panel[2 * GROUP + 4..][..4].try_into().expect("4 bytes"));
                assert!(d.is_finite(), "{isa}: {bad} gives {d}");
                assert!(panel[GROUP..2 * GROUP].iter().all(|&q| q as i8 >= -127), "{isa}: {bad}");
            }
        }
    }
}
