"""Measures the demo model on the held-out split, from the GGUF file as it is quantized, greedily.

    python evaluate.py                     # prints the figures
    python evaluate.py --write             # also accuracy.json and the table in README.md
    python evaluate.py --server http://127.0.0.1:8080   # asks an OpenAI-compatible server as well and compares
    python evaluate.py --ask "What is dunlin?"
"""

import argparse
import functools
import json
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from random import Random

import jax
import jax.numpy as jnp
import numpy as np

import gguf
from grammar import Conversation, Corpus, Turns
from model import Shape, continue_greedily
from telemetry import GAUGES
from tokenizer import Tokenizer

HERE = Path(__file__).parent
SEED = "held-out"
COUNTS = {
    "telemetry": 1000, "each reading": 200, "which device": 100, "question": 600, "off topic": 200, "dialogue": 200,
}
ROWS = 64
ASKED_TOKENS_MAX = 400


@dataclass(frozen=True)
class Case:
    """The last answer of a held-out conversation; the answers before it are given, as a client would send them."""

    conversation: Conversation

    def history(self) -> Turns:
        return self.conversation.turns[:-1]

    def expected(self) -> str:
        return self.conversation.turns[-1][1]


class Model:
    def __init__(self, path: Path):
        metadata, tensors = gguf.read(path)
        self.weights = {name.removesuffix(".weight"): jnp.asarray(tensor) for name, tensor in tensors.items()}
        self.shape = Shape(
            vocab=metadata["llama.vocab_size"],
            width=metadata["llama.embedding_length"],
            layers=metadata["llama.block_count"],
            heads=metadata["llama.attention.head_count"],
            kv_heads=metadata["llama.attention.head_count_kv"],
            head_width=metadata["llama.attention.key_length"],
            hidden=metadata["llama.feed_forward_length"],
            context=metadata["llama.context_length"],
            rope_base=metadata["llama.rope.freq_base"],
            norm_epsilon=metadata["llama.attention.layer_norm_rms_epsilon"],
        )
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        self.words = Tokenizer(metadata["tokenizer.ggml.tokens"], merges)
        self.end = metadata["tokenizer.ggml.eos_token_id"]
        self.run = jax.jit(continue_greedily, static_argnums=(1, 4, 5))

    def answers(self, asked: list[tuple[Turns, int]]) -> list[str]:
        """The greedy answer to each history, cut after the given number of tokens."""
        prompts = [(self.words.conversation(turns, prompt=True), most) for turns, most in asked]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]) + prompts[i][1])
        said = {}
        for at in range(0, len(order), ROWS):
            chosen = order[at : at + ROWS]
            said |= zip(chosen, self.batch([prompts[i] for i in chosen]))
        return [said[i] for i in range(len(prompts))]

    def batch(self, prompts: list[tuple[list[int], int]]) -> list[str]:
        steps = max(len(ids) + most for ids, most in prompts)
        steps += -steps % 64  # few shapes to compile
        tokens = np.full((ROWS, steps + 1), self.end, np.int32)
        lengths = np.ones(ROWS, np.int32)
        for row, (ids, _) in enumerate(prompts):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        out = np.asarray(self.run(self.weights, self.shape, tokens, lengths, self.end, steps))
        return [self.text(out[row, len(ids) : len(ids) + most]) for row, (ids, most) in enumerate(prompts)]

    def text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self.end)
        return self.words.decode(ids[: ends[0]] if len(ends) else ids)


def main() -> None:
    args = arguments()
    model = Model(args.model)
    if args.ask:
        turns = [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(args.ask)]
        print(model.answers([(turns, ASKED_TOKENS_MAX)])[0])
        return
    cases = held_out_cases()
    asked = [(case.history(), len(model.words.encode(case.expected())) + 8) for case in cases]
    answers = model.answers(asked)
    figures = measure(cases, answers)
    print(table(figures))
    if args.mistakes:
        show_mistakes(cases, answers)
    if args.server:
        served = [ask_server(args.server, case.history(), most) for case, (_, most) in zip(cases, asked)]
        same = sum(mine == theirs for mine, theirs in zip(answers, served))
        print(f"\n{args.server} gives the same answer to {same} of {len(cases)}. Its own figures:\n")
        print(table(measure(cases, served)))
    if args.write:
        write(figures)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "dunlin-demo.gguf")
    parser.add_argument("--write", action="store_true", help="write accuracy.json and the table in README.md")
    parser.add_argument("--mistakes", action="store_true", help="show every wrong answer")
    parser.add_argument("--server", metavar="URL")
    parser.add_argument("--ask", nargs="+", metavar="TEXT", help="a user's message; more texts take turns")
    return parser.parse_args()


def held_out_cases() -> list[Case]:
    corpus = Corpus(want_held_out=True)
    return [
        Case(corpus.of_kind(Random(f"{SEED} {kind} {i}"), kind))
        for kind, count in COUNTS.items()
        for i in range(count)
    ]


def measure(cases: list[Case], answers: list[str]) -> dict[str, dict[str, int | float]]:
    """For each figure, how many were right of how many."""
    right, of = {}, {}

    def note(figure: str, good: bool) -> None:
        right[figure] = right.get(figure, 0) + good
        of[figure] = of.get(figure, 0) + 1

    for case, answer in zip(cases, answers):
        kind = case.conversation.kind
        note(f"{kind}: whole answer exact", answer == case.expected())
        if kind == "telemetry":
            report = case.conversation.reports[-1]
            found = findings(answer)
            wanted = {gauge.name: value for gauge, value in report.faults()[:2]}
            note("telemetry: faults right, worst first", list(found) == list(wanted))
            note("telemetry: device name right", answer.startswith(f"{report.name or 'The device'} "))
            for name in wanted.keys() & found.keys():
                note("telemetry: number right, where the fault is", found[name] == wanted[name])
    return {
        figure: {"right": right[figure], "of": of[figure], "share": round(right[figure] / of[figure], 4)}
        for figure in sorted(right, key=lambda figure: (list(COUNTS).index(figure.split(":")[0]), figure))
    }


@functools.cache
def finding_patterns() -> list[tuple[str, re.Pattern]]:
    return [(g.name, re.compile(re.escape(g.finding).replace(r"\{\}", r"([-+.\d]+)"))) for g in GAUGES]


def findings(answer: str) -> dict[str, str]:
    """The faults an answer names with their numbers, in its order."""
    found = [(match.start(), name, match[1]) for name, pattern in finding_patterns() if (match := pattern.search(answer))]
    return {name: value for _, name, value in sorted(found)}


def show_mistakes(cases: list[Case], answers: list[str]) -> None:
    for case, answer in zip(cases, answers):
        if answer != case.expected():
            print(f"\n{case.conversation.kind}")
            for role, text in case.history():
                print(f"  {role}: {text}")
            print(f"  expected: {case.expected()}\n  answered: {answer}")


def ask_server(url: str, turns: Turns, tokens_max: int) -> str:
    body = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "max_tokens": tokens_max,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def table(figures: dict[str, dict[str, int | float]]) -> str:
    rows = [f"| {name} | {f['right']} of {f['of']} | {100 * f['share']:.1f}% |" for name, f in figures.items()]
    return "\n".join(["| Held-out figure | Right | Share |", "|---|---|---|", *rows])


def write(figures: dict[str, dict[str, int | float]]) -> None:
    (HERE / "accuracy.json").write_text(json.dumps(figures, indent=2) + "\n")
    readme = HERE / "README.md"
    before, rest = readme.read_text().split("<!-- accuracy -->\n")
    _, after = rest.split("<!-- /accuracy -->\n")
    readme.write_text(f"{before}<!-- accuracy -->\n{table(figures)}\n<!-- /accuracy -->\n{after}")


if __name__ == "__main__":
    main()
