"""Trains the demo model from nothing and writes it as a GGUF file.

    python train.py            # under an hour on two cores; a killed run resumes from its checkpoint

Everything random is drawn from SEED.
"""

import argparse
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import jax
import jax.numpy as jnp
import numpy as np

import gguf
import questions
import tokenizer
from grammar import ALL_SUBJECTS, FIRST_SUBJECTS, Corpus
from model import Shape, initial_weights, outputs_of, rms_norm
from telemetry import GAUGES, verdicts
from tokenizer import Tokenizer

SEED = 2026
HERE = Path(__file__).parent
WORK = HERE.parent / "target" / "demo"



@dataclass(frozen=True)
class Lesson:
    steps: int
    readings_max: int  # of a line of telemetry
    shares: dict[str, int]  # what conversations are about
    long_every: int | None = None  # every so many steps the rows are long


# Short lines about few things are quick to learn from. A conversation that does not fit into a row is left out, so long
# rows are what teaches long conversations.
LESSONS = (
    Lesson(300, 3, FIRST_SUBJECTS),
    Lesson(300, 7, FIRST_SUBJECTS),
    Lesson(800, 7, ALL_SUBJECTS, long_every=6),
)
ROWS = (16, 256)  # and tokens of a row
LONG_ROWS = (8, 640)
STEPS = sum(lesson.steps for lesson in LESSONS)
# The rate warms up, stays, and falls to zero.
WARMUP_STEPS, DECAY_STEPS = 60, 900
MATRIX_RATE, OTHER_RATE = 0.02, 0.003
MOMENTUM, BETAS, DECAY = 0.95, (0.9, 0.98), 0.01
# While it trains, a probe judges every reading in a line from the residual stream of this layer's input. The answer to a
# line says too little: one fault or two of up to seven readings, and those only once it has found them. The probe's
# weights are not in the file.
PROBED_LAYER, PROBE = 3, "probe"
UNSAID = -1
TOKENIZER_CONVERSATIONS = 4000
STEPS_BETWEEN_CHECKPOINTS = 100

# Roles other than these are read as the user.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' or message['role'] == 'developer' -%}{%- set role = 'system' -%}"
    "{%- elif message['role'] == 'assistant' -%}{%- set role = 'assistant' -%}"
    "{%- else -%}{%- set role = 'user' -%}{%- endif -%}"
    "{{- '<|' + role + '|>' + (message['content'] | trim) + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def main() -> None:
    args = arguments()
    WORK.mkdir(parents=True, exist_ok=True)
    shape, corpus = Shape(), Corpus(want_held_out=False)
    words = trained_tokenizer(corpus, shape.vocab)
    state = train(shape, corpus, words, args)
    weights = {name: weight for name, weight in state["weights"].items() if name != PROBE}
    export(args.out, shape, words, weights)
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes, {parameter_count(weights)} parameters")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "dunlin-demo.gguf")
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in target/demo")
    parser.add_argument("--stop-after", type=int, default=STEPS, metavar="STEPS",
                        help="stop early and write what there is, as a trial of the set-up")
    return parser.parse_args()


def trained_tokenizer(corpus: Corpus, size: int) -> Tokenizer:
    rng = Random(f"{SEED} tokenizer")
    texts = [text for _ in range(TOKENIZER_CONVERSATIONS) for _, text in corpus.conversation(rng).turns]
    return Tokenizer(*tokenizer.train(texts, size))


def train(shape: Shape, corpus: Corpus, words: Tokenizer, args: argparse.Namespace) -> dict:
    state, elapsed = load_checkpoint(shape, args.fresh)
    began, tokens = time.monotonic(), 0
    for step, batch in prefetched(corpus, words, range(int(state["step"]), args.stop_after)):
        state, losses = update(shape, state, batch, rate_of(step))
        tokens += batch["tokens"].size
        if (step + 1) % 20 == 0:
            answers, judged = map(float, losses)  # waits for the step
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{STEPS} loss of answers {answers:.4f} of verdicts {judged:.4f} "
                  f"{tokens / seconds:.0f} tokens/s {elapsed + seconds:.0f} s", flush=True)
        if (step + 1) % STEPS_BETWEEN_CHECKPOINTS == 0 or step + 1 == args.stop_after:
            save_checkpoint(state, elapsed + time.monotonic() - began)
    return state


def prefetched(corpus: Corpus, words: Tokenizer, steps: range) -> Iterator[tuple[int, dict]]:
    """Batches in order, made by a thread while the last step runs."""
    ready = queue.Queue(maxsize=4)

    def fill():
        for step in steps:
            ready.put((step, batch_of(corpus, words, step)))
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    return iter(ready.get, None)


def batch_of(corpus: Corpus, words: Tokenizer, step: int) -> dict[str, np.ndarray]:
    """Packed rows for one step. `segments` numbers the conversations of a row; `learn` marks the answers' tokens."""
    rng = Random(f"{SEED} {step}")
    lesson, step_of_lesson = lesson_at(step)
    corpus.readings_max, corpus.shares = lesson.readings_max, lesson.shares
    long = lesson.long_every is not None and (step_of_lesson + 1) % lesson.long_every == 0
    rows, length = LONG_ROWS if long else ROWS
    tokens = np.zeros((rows, length + 1), np.int32)
    segments = np.full((rows, length + 1), -1, np.int32)
    learn = np.zeros((rows, length + 1), np.float32)
    verdict = np.full((rows, length + 1), UNSAID, np.int32)
    used, misses, segment = [0] * rows, 0, 0
    while misses < 2 * rows:
        ids, said, judged = marked(words, corpus.conversation(rng).turns)
        row = next((row for row in range(rows) if used[row] + len(ids) <= length + 1), None)
        if row is None:
            misses += 1
            continue
        span = slice(used[row], used[row] + len(ids))
        tokens[row, span], segments[row, span], learn[row, span], verdict[row, span] = ids, segment, said, judged
        used[row] += len(ids)
        segment += 1
    return {
        "tokens": tokens[:, :-1],
        "segments": segments[:, :-1],
        "targets": tokens[:, 1:],
        "learn": learn[:, 1:] * (segments[:, 1:] == segments[:, :-1]),
        "verdict": verdict[:, :-1],
    }


def lesson_at(step: int) -> tuple[Lesson, int]:
    """The lesson that a step belongs to, and the step's number in it."""
    for lesson in LESSONS:
        if step < lesson.steps:
            return lesson, step
        step -= lesson.steps
    raise ValueError("a step after the last lesson")


def rate_of(step: int) -> float:
    """The share of the full rate."""
    return min((step + 1) / WARMUP_STEPS, 1.0, (STEPS - step) / DECAY_STEPS)


def marked(words: Tokenizer, turns: list[tuple[str, str]]) -> tuple[list[int], list[int], list[int]]:
    """Ids of a conversation; 1 where the assistant speaks, its end token included; and for the token after a user's
    reading the verdict on it: 0 for a healthy one, else one more than its gauge's place."""
    ids, said, judged = [words.control("begin")], [0], [UNSAID]
    for role, text in turns:
        readings = verdicts(text) if role == "user" else []
        found = {end: GAUGES.index(gauge) + 1 if bad else 0 for end, gauge, bad in readings}
        body, places = words.encode_noting(text, found.keys())
        ids += [words.control(role), *body, words.control("end")]
        said += [0] + [int(role == "assistant")] * (len(body) + 1)
        start = len(judged) + 1
        judged += [UNSAID] * (len(body) + 2)
        for end, index in places.items():
            judged[start + index] = found[end]
    return ids, said, judged


def loss_of(weights, shape, batch):
    """Mean cross entropy, in nats, of the answers' tokens; and beside it that of the verdicts."""
    logits, inside = outputs_of(weights, shape, batch["tokens"], batch["segments"], PROBED_LAYER)
    answers = mean_cross_entropy(logits, batch["targets"], batch["learn"])
    inside = rms_norm(inside, 1.0, shape.norm_epsilon)
    said = (batch["verdict"] != UNSAID).astype(jnp.float32)
    judged = mean_cross_entropy(inside @ weights[PROBE].T, jnp.maximum(batch["verdict"], 0), said)
    return answers + judged, (answers, judged)


def mean_cross_entropy(logits, targets, counted):
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = (jax.nn.logsumexp(logits, axis=-1) - chosen) * counted
    return losses.sum() / jnp.maximum(counted.sum(), 1.0)


@jax.jit(static_argnums=0, donate_argnums=1)
def update(shape, state, batch, rate):
    """One step: Muon for the matrices, AdamW for the embedding and the norms."""
    (_, losses), slopes = jax.value_and_grad(loss_of, has_aux=True)(state["weights"], shape, batch)
    norm = jnp.sqrt(sum(jnp.sum(slope * slope) for slope in slopes.values()))
    slopes = {name: slope * jnp.minimum(1.0, 1.0 / norm) for name, slope in slopes.items()}
    step = state["step"]
    new = {"step": step + 1, "weights": {}, "mean": {}, "square": {}}
    for name, weight in state["weights"].items():
        slope, mean, square = slopes[name], state["mean"][name], state["square"][name]
        if weight.ndim == 2 and name not in ("token_embd", PROBE):
            mean = MOMENTUM * mean + (1 - MOMENTUM) * slope
            towards = orthogonal(MOMENTUM * mean + (1 - MOMENTUM) * slope)
            scale = MATRIX_RATE * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        else:
            mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
            square = BETAS[1] * square + (1 - BETAS[1]) * slope * slope
            unbiased = [moment / (1 - beta ** (step + 1.0)) for moment, beta in zip((mean, square), BETAS)]
            towards, scale = unbiased[0] / (jnp.sqrt(unbiased[1]) + 1e-8), OTHER_RATE
        decay = DECAY * scale if weight.ndim == 2 else 0.0
        new["weights"][name] = weight - rate * (scale * towards + decay * weight)
        new["mean"][name], new["square"][name] = mean, square
    return new, losses


def orthogonal(slope):
    """The nearest semi-orthogonal matrix, roughly: the quintic Newton-Schulz iteration of Muon (Jordan et al., 2024)."""
    tall = slope.shape[0] > slope.shape[1]
    x = slope.T if tall else slope
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def load_checkpoint(shape: Shape, fresh: bool) -> tuple[dict, float]:
    path = WORK / "checkpoint.npz"
    if not fresh and path.exists():
        arrays = np.load(path)
        state = {"weights": {}, "mean": {}, "square": {}}
        for key in arrays.files:
            if "/" in key:
                part, name = key.split("/")
                state[part][name] = jnp.asarray(arrays[key])
        print(f"resuming at step {arrays['step']}")
        return {**state, "step": jnp.asarray(arrays["step"])}, float(arrays["seconds"])
    weights = initial_weights(shape, SEED) | {PROBE: jnp.zeros((1 + len(GAUGES), shape.width))}
    zeros = lambda: {name: jnp.zeros_like(weight) for name, weight in weights.items()}
    return {"weights": weights, "mean": zeros(), "square": zeros(), "step": jnp.asarray(0)}, 0.0


def save_checkpoint(state: dict, seconds: float) -> None:
    parts = {f"{part}/{name}": array for part in ("weights", "mean", "square") for name, array in state[part].items()}
    unfinished = WORK / "unfinished.npz"
    np.savez(unfinished, step=state["step"], seconds=seconds, **parts)
    unfinished.rename(WORK / "checkpoint.npz")


def parameter_count(weights: dict) -> int:
    return sum(weight.size for weight in weights.values())


def export(path: Path, shape: Shape, words: Tokenizer, weights: dict) -> None:
    millions = round(parameter_count(weights) / 1e6)
    assert questions.SIZE == f"{millions} million parameters", "the model misstates its own size"
    metadata = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "dunlin-demo",
        "general.description": "Reads device telemetry and answers questions about dunlin. A demo, not an assistant.",
        "general.license": "mit",
        "general.size_label": f"{millions}M",
        "general.languages": ["en"],
        "general.file_type": gguf.MOSTLY_Q8_0,
        "general.quantization_version": 2,
        "llama.vocab_size": shape.vocab,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_width,
        "llama.attention.value_length": shape.head_width,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": shape.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": [3 if token in tokenizer.CONTROL else 1 for token in words.tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in words.ranks],
        "tokenizer.ggml.bos_token_id": words.control("begin"),
        "tokenizer.ggml.eos_token_id": words.control("end"),
        "tokenizer.ggml.add_bos_token": False,  # the template writes it
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    gguf.write(path, metadata, {f"{name}.weight": np.asarray(weight) for name, weight in weights.items()})


if __name__ == "__main__":
    main()
