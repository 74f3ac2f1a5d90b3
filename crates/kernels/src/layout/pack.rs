//! How GGUF rows become strips. Block by block and within it row by row, so that what is being written stays in the
//! nearest cache; first bytes are brought into cells as they are, then bits are moved in whole cells.

use super::{Blocks, Bytes, CELL, HIGH_BITS, Layout, MINS, SCALES, STRIP};
use crate::format::{self, Format, Group};

/// Packs one strip: `rows` are up to 16 GGUF rows of `cols` weights each (missing ones become zeros).
///
/// # Panics
/// If a row or `out` has the wrong length for `cols`.
pub fn pack_strip(format: Format, bytes: Bytes, rows: &[&[u8]], cols: usize, out: &mut [u8]) {
    let layout = Layout::of(format);
    assert!(rows.len() <= STRIP, "a strip has at most {STRIP} rows");
    assert_eq!(out.len(), layout.strip_bytes(cols), "strip length of {layout:?}");
    for row in rows {
        assert_eq!(Some(row.len()), format.row_bytes(cols), "row length of {}", format.name());
    }
    match layout {
        Layout::F32 => interleave::<4>(rows, out),
        Layout::F16 | Layout::BF16 => interleave::<2>(rows, out),
        Layout::Q8 => pack_q8(bytes, rows, out),
        Layout::Q4 | Layout::Iq4Nl => pack_q4(rows, out),
        Layout::Mxfp4 => pack_mxfp4(rows, out),
        Layout::Q4K => pack_q4k(rows, out),
        Layout::Q5K => pack_q5k(rows, out),
        Layout::Q3K => pack_q3k(rows, out),
        Layout::Q6K => pack_q6k(rows, out),
        Layout::Iq4Xs => pack_iq4_xs(rows, out),
        Layout::W8 => pack_w8::<1>(format, bytes, rows, out),
        Layout::W8Half => pack_w8::<2>(format, bytes, rows, out),
    }
}

/// Columns of floats that are brought together at once: a cache line of `f32` from each row.
const FLOATS: usize = 16;

fn interleave<const N: usize>(rows: &[&[u8]], out: &mut [u8]) {
    if rows.len() < STRIP {
        out.fill(0);
    }
    for (i, out) in out.as_chunks_mut::<N>().0.chunks_mut(FLOATS * STRIP).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let row = &row.as_chunks::<N>().0[i * FLOATS..];
            for (out, x) in out.chunks_exact_mut(STRIP).zip(row) {
                out[r] = *x;
            }
        }
    }
}

/// Block `i` of all 16 rows; zeros for rows that are missing.
type Sources<'a, const N: usize> = [&'a [u8; N]; STRIP];

/// Calls `pack` with block `i` of every row, for each `i` in turn.
fn for_blocks<const N: usize>(rows: &[&[u8]], mut pack: impl FnMut(usize, Sources<'_, N>)) {
    let rows: [&[[u8; N]]; STRIP] =
        std::array::from_fn(|r| rows.get(r).map_or(&[][..], |row| row.as_chunks().0));
    for i in 0..rows[0].len() {
        pack(i, rows.map(|row| row.get(i).unwrap_or(&[0; N])));
    }
}

type Cell = [u8; CELL];

/// Bytes `at ..` of each row's block, 4 to a cell.
#[inline(always)]
fn gather<const N: usize, const CELLS: usize>(sources: &Sources<'_, N>, at: usize) -> [Cell; CELLS] {
    let mut cells = [[0; CELL]; CELLS];
    for (r, source) in sources.iter().enumerate() {
        let fours = source[at..][..4 * CELLS].as_chunks::<4>().0;
        for (cell, four) in cells.iter_mut().zip(fours) {
            cell.as_chunks_mut::<4>().0[r] = *four;
        }
    }
    cells
}

/// Two bytes of each row's block, one row after the other.
#[inline(always)]
fn gather_halves<const N: usize>(sources: &Sources<'_, N>, at: usize, out: &mut [u8]) {
    for (out, source) in out[..2 * STRIP].as_chunks_mut::<2>().0.iter_mut().zip(sources) {
        out.copy_from_slice(&source[at..at + 2]);
    }
}

/// The cell whose bytes are `f` of their places.
#[inline(always)]
fn cell(f: impl Fn(usize) -> u8) -> Cell {
    std::array::from_fn(f)
}

#[inline(always)]
fn write<const CELLS: usize>(out: &mut [u8], cells: [Cell; CELLS]) {
    out[..CELLS * CELL].copy_from_slice(cells.as_flattened());
}

/// Cells of nibble pairs out of the nibbles of 8 cells.
#[inline(always)]
fn pair_nibbles(nibble: impl Fn(usize, usize) -> u8) -> [Cell; 4] {
    std::array::from_fn(|c| cell(|b| nibble(c, b) | nibble(c + 4, b) << 4))
}

fn pack_q8(bytes: Bytes, rows: &[&[u8]], out: &mut [u8]) {
    let flip = if bytes == Bytes::Unsigned { 0x80 } else { 0 };
    for_blocks::<34>(rows, |g, sources| {
        gather_halves(&sources, 0, &mut out[Blocks::Q8.start(g) + g % 2 * 32..]);
        let cells = gather::<34, 8>(&sources, 2).map(|q| cell(|b| q[b] ^ flip));
        write(&mut out[Blocks::Q8.cells(g)..], cells);
    });
}

fn pack_q4(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<18>(rows, |g, sources| {
        gather_halves(&sources, 0, &mut out[Blocks::Q4.start(g) + g % 2 * 32..]);
        write(&mut out[Blocks::Q4.cells(g)..], gather::<18, 4>(&sources, 2));
    });
}

fn pack_mxfp4(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<17>(rows, |g, sources| {
        let scales = &mut out[Blocks::MXFP4.start(g) + g % 4 * STRIP..][..STRIP];
        scales.copy_from_slice(&sources.map(|source| source[0]));
        write(&mut out[Blocks::MXFP4.cells(g)..], gather::<17, 4>(&sources, 1));
    });
}

/// The headers of Q4_K and Q5_K.
fn pack_scales_and_mins<const N: usize>(sources: &Sources<'_, N>, header: &mut [u8]) {
    gather_halves(sources, 0, header);
    gather_halves(sources, 2, &mut header[32..]);
    let (scales, mins) = header[SCALES..][..16 * STRIP].split_at_mut(MINS - SCALES);
    for (r, source) in sources.iter().enumerate() {
        for g in 0..8 {
            (scales[g * STRIP + r], mins[g * STRIP + r]) = format::scale_and_min(&source[4..16], g);
        }
    }
}

/// The nibbles of groups `2 * pair` and `2 * pair + 1` of Q4_K and Q5_K, whose bytes start at `at`.
#[inline(always)]
fn k_nibbles<const N: usize>(sources: &Sources<'_, N>, at: usize, pair: usize) -> [[Cell; 4]; 2] {
    let q = gather::<N, 8>(sources, at + pair * 32);
    [pair_nibbles(|c, b| q[c][b] & 15), pair_nibbles(|c, b| q[c][b] >> 4)]
}

fn pack_q4k(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<144>(rows, |i, sources| {
        let out = &mut out[i * Blocks::Q4K.bytes()..][..Blocks::Q4K.bytes()];
        pack_scales_and_mins(&sources, out);
        for pair in 0..4 {
            for (h, nibbles) in k_nibbles(&sources, 16, pair).into_iter().enumerate() {
                write(&mut out[Blocks::Q4K.cells(2 * pair + h)..], nibbles);
            }
        }
    });
}

fn pack_q5k(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<176>(rows, |i, sources| {
        let out = &mut out[i * Blocks::Q5K.bytes()..][..Blocks::Q5K.bytes()];
        pack_scales_and_mins(&sources, out);
        let high = gather::<176, 8>(&sources, 16);
        for pair in 0..4 {
            for (h, nibbles) in k_nibbles(&sources, 48, pair).into_iter().enumerate() {
                let g = 2 * pair + h;
                let out = &mut out[Blocks::Q5K.cells(g)..];
                write(out, nibbles);
                let fifth = cell(|b| !(0..8).fold(0, |bits, c| bits | (high[c][b] >> g & 1) << c));
                write(&mut out[HIGH_BITS..], [fifth]);
            }
        }
    });
}

fn pack_q3k(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<110>(rows, |i, sources| {
        let out = &mut out[i * Blocks::Q3K.bytes()..][..Blocks::Q3K.bytes()];
        gather_halves(&sources, 108, out);
        for (r, source) in sources.iter().enumerate() {
            for j in 0..16 {
                out[SCALES + j * STRIP + r] = format::q3_k_scale(&source[96..108], j) as u8;
            }
        }
        let high = gather::<110, 8>(&sources, 0);
        for half in 0..2 {
            let low = gather::<110, 8>(&sources, 32 + half * 32);
            for part in 0..4 {
                let g = half * 4 + part;
                let q: [Cell; 8] = std::array::from_fn(|c| {
                    cell(|b| low[c][b] >> (part * 2) & 3 | (high[c][b] >> g & 1) << 2)
                });
                let fields = [
                    cell(|b| q[0][b] | q[1][b] << 5 | (q[6][b] & 3) << 3),
                    cell(|b| q[2][b] | q[3][b] << 5 | (q[6][b] >> 2) << 3 | (q[7][b] >> 2) << 4),
                    cell(|b| q[4][b] | q[5][b] << 5 | (q[7][b] & 3) << 3),
                ];
                write(&mut out[Blocks::Q3K.cells(g)..], fields);
            }
        }
    });
}

fn pack_q6k(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<210>(rows, |i, sources| {
        let out = &mut out[i * Blocks::Q6K.bytes()..][..Blocks::Q6K.bytes()];
        gather_halves(&sources, 208, out);
        for (r, source) in sources.iter().enumerate() {
            for (j, scale) in source[192..208].iter().enumerate() {
                out[SCALES + j * STRIP + r] = *scale;
            }
        }
        for half in 0..2 {
            let low = gather::<210, 16>(&sources, half * 64);
            let high = gather::<210, 8>(&sources, 128 + half * 32);
            for part in 0..4 {
                let low = &low[part % 2 * 8..][..8];
                let out = &mut out[Blocks::Q6K.cells(half * 4 + part)..];
                write(out, pair_nibbles(|c, b| low[c][b] >> (part / 2 * 4) & 15));
                let bits = |c: usize| {
                    cell(|b| {
                        (0..4).fold(0, |bits, j| bits | (high[2 * j + c][b] >> (part * 2) & 3) << (2 * j))
                    })
                };
                write(&mut out[HIGH_BITS..], [bits(0), bits(1)]);
            }
        }
    });
}

fn pack_iq4_xs(rows: &[&[u8]], out: &mut [u8]) {
    for_blocks::<136>(rows, |i, sources| {
        let out = &mut out[i * Blocks::IQ4_XS.bytes()..][..Blocks::IQ4_XS.bytes()];
        gather_halves(&sources, 0, out);
        for g in 0..8 {
            let scales = &mut out[SCALES + g * STRIP..][..STRIP];
            scales.copy_from_slice(&sources.map(|source| format::iq4_xs_scale(source, g) as u8));
            write(&mut out[Blocks::IQ4_XS.cells(g)..], gather::<136, 4>(&sources, 8 + g * 16));
        }
    });
}

fn pack_w8<const HALVES: usize>(format: Format, bytes: Bytes, rows: &[&[u8]], out: &mut [u8]) {
    let header = HALVES * 2 * 64;
    // Only weights below zero must be moved up to be unsigned.
    let offset: i16 = match (bytes, format) {
        (Bytes::Unsigned, Format::Q2_K | Format::Q4_1 | Format::Q5_1) => 0,
        (Bytes::Unsigned, _) => 128,
        (Bytes::Signed, _) => 0,
    };
    if rows.len() < STRIP {
        out.fill(0);
    }
    for (g, out) in out.chunks_exact_mut(header + 8 * CELL).enumerate() {
        let (header, cells) = out.split_at_mut(header);
        let (scales, mins) = header.split_at_mut(HALVES * 64);
        let (scales, mins) = (scales.as_chunks_mut::<4>().0, mins.as_chunks_mut::<4>().0);
        let cells = cells.as_chunks_mut::<CELL>().0;
        for (r, row) in rows.iter().enumerate() {
            let Group { q, scale, min } = format.decode_group(row, g);
            for h in 0..HALVES {
                let min = min[h] + scale[h] * f32::from(offset);
                scales[h * STRIP + r] = scale[h].to_le_bytes();
                mins[h * STRIP + r] = min.to_le_bytes();
            }
            let q = q.map(|q| (i16::from(q) + offset) as u8);
            for (cell, four) in cells.iter_mut().zip(q.as_chunks::<4>().0) {
                cell.as_chunks_mut::<4>().0[r] = *four;
            }
        }
    }
}
