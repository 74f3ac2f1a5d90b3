"""Asks a running server for the embeddings of sentences.txt through OpenAI's own Python client and compares them with
minilm.f32. Prints a line per check; exit code 1 if one fails.

The default limit is for all-MiniLM-L6-v2 in f32 and f16. In q8_0 the rounding of the weights alone takes the furthest
sentence to 0.9993.

Usage: check.py http://127.0.0.1:PORT [--cosine-min 0.9999]
"""

import argparse
import base64
import math
import pathlib
import struct
import sys

import openai

HERE = pathlib.Path(__file__).parent
WIDTH = 384
WIDTH_CUT = 128
BATCH = 32
SECONDS_MAX = 120
# Between one implementation of float32 and another.
COSINE_MIN = 0.9999
# Between one sentence's two runs on the same server, where only the order of the sums may differ.
COSINE_AGAIN_MIN = 0.99999
# A component of a vector of length one is off by no more than this where nothing is computed anew but its scale.
ERROR_MAX = 1e-6


def read_sentences():
    return (HERE / "sentences.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")


def read_reference():
    return list(struct.iter_unpack(f"<{WIDTH}f", (HERE / "minilm.f32").read_bytes()))


class Embedder:
    """The server's answers, each batch asked for once."""

    def __init__(self, client, model, cosine_min):
        self.client, self.model, self.cosine_min = client, model, cosine_min
        self.sentences = read_sentences()
        self.all_of = {}

    def ask(self, texts, encoding="float", **options):
        return self.client.embeddings.create(model=self.model, input=texts, encoding_format=encoding, **options)

    def vectors(self, texts, encoding="float", **options):
        data = self.ask(texts, encoding, **options).data
        return [unpack(one.embedding) if encoding == "base64" else one.embedding for one in data]

    def all(self, encoding="float"):
        if encoding not in self.all_of:
            batches = [self.sentences[at : at + BATCH] for at in range(0, len(self.sentences), BATCH)]
            self.all_of[encoding] = [vector for batch in batches for vector in self.vectors(batch, encoding)]
        return self.all_of[encoding]


def unpack(text):
    values = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(values) // 4}f", values)


def length(vector):
    return math.sqrt(math.fsum(x * x for x in vector))


def cosine(a, b):
    assert len(a) == len(b), f"{len(a)} numbers, not {len(b)}"
    return math.fsum(x * y for x, y in zip(a, b)) / (length(a) * length(b))


def compare(vectors, others, sentences, cosine_min):
    assert len(vectors) == len(others) == len(sentences), f"{len(vectors)} vectors for {len(sentences)} sentences"
    cosines = [cosine(a, b) for a, b in zip(vectors, others)]
    low = [at for at, value in enumerate(cosines) if not value >= cosine_min]
    if low:
        worst = min(low, key=lambda at: cosines[at])
        raise AssertionError(f"{len(low)} below {cosine_min}, the lowest {cosines[worst]:.6f} for {sentences[worst]!r}")


def check_float(embedder):
    compare(embedder.all("float"), read_reference(), embedder.sentences, embedder.cosine_min)


def check_base64(embedder):
    compare(embedder.all("base64"), read_reference(), embedder.sentences, embedder.cosine_min)


def check_float_is_base64(embedder):
    for sentence, floats, packed in zip(embedder.sentences, embedder.all("float"), embedder.all("base64"), strict=True):
        assert struct.pack(f"<{len(floats)}f", *floats) == struct.pack(f"<{len(packed)}f", *packed), repr(sentence)


def check_length_one(embedder):
    for sentence, vector in zip(embedder.sentences, embedder.all(), strict=True):
        assert abs(length(vector) - 1) <= ERROR_MAX, f"length {length(vector)} for {sentence!r}"


def check_alone(embedder):
    picked = range(0, len(embedder.sentences), 10)
    sentences = [embedder.sentences[at] for at in picked]
    alone = [embedder.vectors(sentence)[0] for sentence in sentences]
    compare(alone, [embedder.all()[at] for at in picked], sentences, COSINE_AGAIN_MIN)


def check_order(embedder):
    backwards = embedder.sentences[:BATCH][::-1]
    answer = embedder.ask(backwards)
    assert [one.index for one in answer.data] == list(range(BATCH)), [one.index for one in answer.data]
    compare([one.embedding for one in answer.data], embedder.all()[:BATCH][::-1], backwards, COSINE_AGAIN_MIN)


def check_dimensions(embedder):
    sentences = embedder.sentences[:BATCH]
    for encoding in ["float", "base64"]:
        vectors = embedder.vectors(sentences, encoding, dimensions=WIDTH_CUT)
        for sentence, vector, whole in zip(sentences, vectors, embedder.all()[:BATCH], strict=True):
            assert len(vector) == WIDTH_CUT, f"{len(vector)} numbers, not {WIDTH_CUT}"
            assert abs(length(vector) - 1) <= ERROR_MAX, f"length {length(vector)} for {sentence!r}"
            scale = length(whole[:WIDTH_CUT])
            error = max(abs(x - y / scale) for x, y in zip(vector, whole))
            assert error <= ERROR_MAX, f"off by {error} for {sentence!r}"


def check_usage(embedder):
    short, long = embedder.ask(embedder.sentences[0]).usage, embedder.ask(embedder.sentences[:2]).usage
    assert 0 < short.prompt_tokens < long.prompt_tokens, (short, long)
    assert short.total_tokens == short.prompt_tokens and long.total_tokens == long.prompt_tokens, (short, long)


def check_no_input(embedder):
    try:
        embedder.ask([])
    except openai.BadRequestError:
        return
    raise AssertionError("an empty list was answered")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("url", metavar="URL")
    arguments.add_argument("--cosine-min", type=float, default=COSINE_MIN, help="to the reference, of every sentence")
    arguments = arguments.parse_args()
    url = arguments.url.rstrip("/") + "/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=SECONDS_MAX)
    embedder = Embedder(client, client.models.list().data[0].id, arguments.cosine_min)
    checks = [check_float, check_base64, check_float_is_base64, check_length_one, check_alone, check_order]
    checks += [check_dimensions, check_usage, check_no_input]
    failed = 0
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            check(embedder)
            print(f"ok {name}", flush=True)
        except Exception as error:
            failed += 1
            print(f"failed {name}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
