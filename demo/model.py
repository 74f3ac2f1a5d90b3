"""The llama architecture in JAX, as small as it goes: what `train.py` trains and `evaluate.py` runs.

Rotary positions turn adjacent pairs (2i, 2i+1), which is what `general.architecture = llama` means in a GGUF file.
Matrices are stored as GGUF stores them, (out, in), and applied as `x @ w.T`. The output matrix is the token embedding.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    """What the GGUF metadata says about the model. The defaults are the demo model's.

    Rows are multiples of 256 so that every block format, K-quants included, can hold the model.
    """

    vocab: int = 768
    width: int = 256
    layers: int = 5
    heads: int = 8
    kv_heads: int = 2
    head_width: int = 32
    hidden: int = 512
    context: int = 1024
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by GGUF name, each as (out, in)."""
        query, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "attn_q": (query, self.width),
            "attn_k": (kv, self.width),
            "attn_v": (kv, self.width),
            "attn_output": (self.width, query),
            "ffn_gate": (self.hidden, self.width),
            "ffn_up": (self.hidden, self.width),
            "ffn_down": (self.width, self.hidden),
        }


def initial_weights(shape: Shape, seed: int) -> dict[str, jax.Array]:
    """Normal weights of deviation 1/sqrt(in); what writes to the residual stream is smaller by the depth.

    The embedding starts large enough not to drown in the residual stream, and the last norm starts small by as much,
    because the embedding is also the output: the first logits are then of order one.
    """
    louder = 0.25 * shape.width**0.5
    rng = np.random.default_rng(seed)

    def normal(dims, deviation):
        return jnp.asarray(rng.normal(0.0, deviation, dims), jnp.float32)

    weights = {
        "token_embd": normal((shape.vocab, shape.width), louder * shape.width**-0.5),
        "output_norm": jnp.ones(shape.width) / louder,
    }
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{name}"] = jnp.ones(shape.width)
        for name, dims in shape.matrices().items():
            to_residual = name in ("attn_output", "ffn_down")
            deviation = dims[1] ** -0.5 * ((2 * shape.layers) ** -0.5 if to_residual else 1.0)
            weights[f"blk.{layer}.{name}"] = normal(dims, deviation)
    return weights


def rms_norm(x, scale, epsilon):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale


def rotate(x, positions, base):
    """x: (..., position, head, head_width); positions: (position,)."""
    width = x.shape[-1]
    frequencies = base ** (-jnp.arange(0, width, 2) / width)
    angles = positions[:, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def feed_forward(weights, shape, layer, x):
    w = lambda name: weights[f"blk.{layer}.{name}"]
    normed = rms_norm(x, w("ffn_norm"), shape.norm_epsilon)
    return (jax.nn.silu(normed @ w("ffn_gate").T) * (normed @ w("ffn_up").T)) @ w("ffn_down").T


def project(weights, shape, layer, x, positions):
    """Queries (batch, position, kv head, group, width), keys and values (batch, position, kv head, width)."""
    w = lambda name: weights[f"blk.{layer}.{name}"]
    batch, length, _ = x.shape
    normed = rms_norm(x, w("attn_norm"), shape.norm_epsilon)
    query = (normed @ w("attn_q").T).reshape(batch, length, shape.heads, shape.head_width)
    key = (normed @ w("attn_k").T).reshape(batch, length, shape.kv_heads, shape.head_width)
    value = (normed @ w("attn_v").T).reshape(batch, length, shape.kv_heads, shape.head_width)
    query = rotate(query, positions, shape.rope_base)
    key = rotate(key, positions, shape.rope_base)
    group = shape.heads // shape.kv_heads
    return query.reshape(batch, length, shape.kv_heads, group, shape.head_width), key, value


def attend(shape, query, key, value, mask):
    """mask: (batch, query position, key position), true where a query may look."""
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", query, key) * shape.head_width**-0.5
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    mixed = jnp.einsum("bhgqk,bkhd->bqhgd", jax.nn.softmax(scores, axis=-1), value)
    return mixed.reshape(*mixed.shape[:2], shape.heads * shape.head_width)


def attend_whole(shape, query, key, value, mask):
    """What `attend` computes, one row and key-value head after the other: the scores of one stay in the cache, and the
    backward pass computes them again. A third faster in training, far slower for a single query."""
    batch, length, kv_heads, group, width = query.shape
    heads_first = lambda x: jnp.moveaxis(x, 1, -2).reshape(batch * kv_heads, -1, width)
    bias = jnp.tile(jnp.where(mask, 0.0, -1e30), (1, group, 1))

    def one(parts):
        query, key, value, row = parts
        scores = (query @ key.T) * width**-0.5 + bias[row]
        return jax.nn.softmax(scores, axis=-1) @ value

    rows = jnp.repeat(jnp.arange(batch), kv_heads)
    mixed = jax.lax.map(jax.checkpoint(one), (heads_first(query), heads_first(key), heads_first(value), rows))
    mixed = jnp.moveaxis(mixed.reshape(batch, kv_heads, group, length, width), 3, 1)
    return mixed.reshape(batch, length, kv_heads * group * width)


def outputs_of(weights, shape, tokens, segments, probed):
    """Logits (batch, position, vocab) for packed rows, and the residual stream (batch, position, width) as layer
    `probed` finds it. A token sees only earlier tokens of its own segment."""
    positions = jnp.arange(tokens.shape[1])
    mask = (segments[:, :, None] == segments[:, None, :]) & (positions[:, None] >= positions[None, :])
    x = weights["token_embd"][tokens]
    for layer in range(shape.layers):
        if layer == probed:
            inside = x
        query, key, value = project(weights, shape, layer, x, positions)
        x = x + attend_whole(shape, query, key, value, mask) @ weights[f"blk.{layer}.attn_output"].T
        x = x + feed_forward(weights, shape, layer, x)
    x = rms_norm(x, weights["output_norm"], shape.norm_epsilon)
    return x @ weights["token_embd"].T, inside


def continue_greedily(weights, shape, prompts, lengths, end_token, steps):
    """Run `steps` positions over a batch with a KV cache. Returns (batch, steps + 1) tokens.

    Row b holds its prompt up to `lengths[b]` and what the model said after that; after the end token it repeats it.
    `prompts` is (batch, at least steps + 1), padded with anything.
    """
    batch = prompts.shape[0]
    empty = jnp.zeros((batch, steps, shape.kv_heads, shape.head_width))
    cache = [(empty, empty)] * shape.layers

    def step(carry, position):
        tokens, cache = carry
        x = weights["token_embd"][jax.lax.dynamic_index_in_dim(tokens, position, 1)]
        mask = jnp.broadcast_to(jnp.arange(steps) <= position, (batch, 1, steps))
        for layer in range(shape.layers):
            query, key, value = project(weights, shape, layer, x, position[None])
            keys, values = (
                jax.lax.dynamic_update_slice(old, new, (0, position, 0, 0))
                for old, new in zip(cache[layer], (key, value))
            )
            cache = [*cache[:layer], (keys, values), *cache[layer + 1 :]]
            mixed = attend(shape, query, keys, values, mask)
            x = x + mixed @ weights[f"blk.{layer}.attn_output"].T
            x = x + feed_forward(weights, shape, layer, x)
        x = rms_norm(x[:, 0], weights["output_norm"], shape.norm_epsilon)
        best = jnp.argmax(x @ weights["token_embd"].T, axis=-1).astype(tokens.dtype)
        now = jax.lax.dynamic_index_in_dim(tokens, position, 1, keepdims=False)
        given = jax.lax.dynamic_index_in_dim(tokens, position + 1, 1, keepdims=False)
        over = (now == end_token) & (position >= lengths)
        following = jnp.where(position + 1 < lengths, given, jnp.where(over, end_token, best))
        tokens = jax.lax.dynamic_update_slice(tokens, following[:, None], (0, position + 1))
        return (tokens, cache), None

    (tokens, _), _ = jax.lax.scan(step, (prompts[:, : steps + 1], cache), jnp.arange(steps))
    return tokens
