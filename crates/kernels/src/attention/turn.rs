//! Turning keys that are in the cache already, so that they count for another position.

use super::cache::{KvFormat, KvLayer, KvShape};
use super::store::{F16_MAX, Rotary, quantize};
use super::{HEAD_DIM_MAX, PAGE};
use crate::Context;
use crate::format::GROUP;
use crate::layout::{Blocks, Bytes, STRIP};
use crate::shared::SharedMut;
use half::{bf16, f16};

/// Turns every key of `pages` once more, all by the turn of `rotary`'s first position. Keys are rounded to the cache's format
/// again.
///
/// # Panics
/// If there is no such page, a page comes twice, or `rotary` turns more than a head has.
pub fn turn_pages(context: Context<'_>, layer: &mut KvLayer, rotary: &Rotary, pages: &[u32]) {
    let shape = layer.shape;
    assert!(rotary.dims <= shape.key_dim, "no more than a head has");
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|two| two[0] != two[1]), "each page once");
    assert!(pages.iter().all(|&page| (page as usize) < shape.pages), "pages of the cache");
    let starts: Vec<usize> = pages
        .iter()
        .flat_map(|&page| (0..shape.heads).map(move |head| (page as usize, head)))
        .map(|(page, head)| layer.keys_of(page, head).start)
        .collect();
    let kind = context.table.isa.bytes();
    let keys = SharedMut::new(layer.keys.as_mut_slice());
    context.pool.run(starts.len(), &|item| {
        // SAFETY: each item has a page's head of its own.
        let head = unsafe { keys.slice(starts[item], shape.key_bytes()) };
        (0..PAGE).for_each(|slot| turn_key(shape, kind, head, slot, rotary));
    });
}

/// Turns the key of one position of a page's head.
fn turn_key(shape: KvShape, kind: Bytes, head: &mut [u8], slot: usize, rotary: &Rotary) {
    let block = &mut head[slot / STRIP * shape.key_block_bytes()..][..shape.key_block_bytes()];
    let lane = slot % STRIP;
    let mut key = [0.0; HEAD_DIM_MAX];
    match shape.format {
        KvFormat::F32 => {
            turn_floats(block, lane, rotary, &mut key, f32::from_le_bytes, f32::to_le_bytes);
        }
        KvFormat::F16 => turn_floats(
            block,
            lane,
            rotary,
            &mut key,
            |bytes| f16::from_le_bytes(bytes).to_f32(),
            |x| f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_le_bytes(),
        ),
        KvFormat::BF16 => turn_floats(
            block,
            lane,
            rotary,
            &mut key,
            |bytes| bf16::from_le_bytes(bytes).to_f32(),
            |x| bf16::from_f32(x).to_le_bytes(),
        ),
        KvFormat::Q8_0 => turn_quantized(block, lane, rotary, &mut key, kind),
    }
}

fn turn_floats<const SIZE: usize>(
    block: &mut [u8],
    lane: usize,
    rotary: &Rotary,
    key: &mut [f32; HEAD_DIM_MAX],
    load: impl Fn([u8; SIZE]) -> f32,
    store: impl Fn(f32) -> [u8; SIZE],
) {
    let elements = block.as_chunks_mut::<SIZE>().0;
    let key = &mut key[..rotary.dims];
    for (c, x) in key.iter_mut().enumerate() {
        *x = load(elements[c * STRIP + lane]);
    }
    rotary.turn(0, key);
    for (c, &x) in key.iter().enumerate() {
        elements[c * STRIP + lane] = store(x);
    }
}

fn turn_quantized(
    block: &mut [u8],
    lane: usize,
    rotary: &Rotary,
    key: &mut [f32; HEAD_DIM_MAX],
    kind: Bytes,
) {
    const CELL: usize = 4 * STRIP;
    let groups = rotary.dims.div_ceil(GROUP);
    let flip = if kind == Bytes::Unsigned { 0x80 } else { 0 };
    let scale = |g: usize| Blocks::Q8.start(g) + (g % Blocks::Q8.groups * STRIP + lane) * 2;
    let cell = |g: usize, cell: usize| Blocks::Q8.cells(g) + cell * CELL + lane * 4;
    for (g, out) in key.as_chunks_mut::<GROUP>().0.iter_mut().take(groups).enumerate() {
        let d = f16::from_le_bytes([block[scale(g)], block[scale(g) + 1]]).to_f32();
        for (i, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (x, &q) in four.iter_mut().zip(&block[cell(g, i)..][..4]) {
                *x = f32::from((q ^ flip) as i8) * d;
            }
        }
    }
    rotary.turn(0, &mut key[..groups * GROUP]);
    for (g, x) in key.as_chunks::<GROUP>().0.iter().take(groups).enumerate() {
        let (q, d) = quantize(x);
        block[scale(g)..][..2].copy_from_slice(&d.to_le_bytes());
        for (i, four) in q.as_chunks::<4>().0.iter().enumerate() {
            block[cell(g, i)..][..4].copy_from_slice(&four.map(|q| q as u8 ^ flip));
        }
    }
}
