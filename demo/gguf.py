"""Writes and reads the GGUF file of the demo model: version 3, F32 and Q8_0 tensors.

Written from the GGUF specification (ggml, docs/gguf.md). The reader knows what the writer writes and refuses the rest.
"""

import struct
from pathlib import Path

import numpy as np

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
F32, Q8_0 = 0, 8  # ggml_type
MOSTLY_Q8_0 = 7  # general.file_type
BLOCK = 32  # weights in a Q8_0 block, stored as an f16 scale and 32 signed bytes

U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # gguf_metadata_value_type


def quantize(matrix: np.ndarray) -> bytes:
    """Q8_0 blocks of a matrix: scale amax/127, quotients rounded half away from zero."""
    blocks = matrix.astype(np.float32).reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = blocks * inverse
    quants = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)
    packed = np.empty(len(blocks), dtype=[("scale", "<f2"), ("quants", "i1", BLOCK)])
    packed["scale"], packed["quants"] = scale[:, 0].astype(np.float16), quants
    return packed.tobytes()


def dequantize(raw: bytes, count: int) -> np.ndarray:
    packed = np.frombuffer(raw, dtype=[("scale", "<f2"), ("quants", "i1", BLOCK)], count=count // BLOCK)
    return (packed["scale"].astype(np.float32)[:, None] * packed["quants"]).reshape(-1)


def write(path: Path, metadata: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    """Matrices become Q8_0, vectors stay F32. Metadata: bool, int (u32), float (f32), str, and lists of str or int."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [string(key), field(value)]
    data, at = [], 0
    for name, tensor in tensors.items():
        raw = quantize(tensor) if tensor.ndim == 2 else tensor.astype("<f4").tobytes()
        dims = tensor.shape[::-1]  # GGUF counts from the fastest
        head += [string(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, Q8_0 if tensor.ndim == 2 else F32, at)]
        data.append(raw + bytes(-len(raw) % ALIGNMENT))
        at += len(data[-1])
    front = b"".join(head)
    path.write_bytes(front + bytes(-len(front) % ALIGNMENT) + b"".join(data))


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", U32, value)
        case float():
            return struct.pack("<If", FLOAT, value)
        case str():
            return struct.pack("<I", STRING) + string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(string, value))
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", ARRAY, I32, len(value), *value)
    raise TypeError(f"no GGUF type for {value!r}")


class Reader:
    def __init__(self, raw: bytes):
        self.raw, self.at = raw, 0

    def take(self, layout: str):
        values = struct.unpack_from("<" + layout, self.raw, self.at)
        self.at += struct.calcsize("<" + layout)
        return values[0] if len(values) == 1 else values

    def string(self) -> str:
        length = self.take("Q")
        self.at += length
        return self.raw[self.at - length : self.at].decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, count = self.take("IQ")
            return [self.value(item) for _ in range(count)]
        return self.take({U32: "I", I32: "i", FLOAT: "f", BOOL: "?"}[kind])


def read(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """The metadata, and the tensors as float32."""
    reader = Reader(path.read_bytes())
    magic, version, tensor_count, field_count = reader.take("4sIQQ")
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(f"{path} is not a GGUF file of version {VERSION}")
    metadata = {}
    for _ in range(field_count):
        key = reader.string()
        metadata[key] = reader.value(reader.take("I"))
    infos = []
    for _ in range(tensor_count):
        name, rank = reader.string(), reader.take("I")
        dims = [reader.take("Q") for _ in range(rank)]
        infos.append((name, dims[::-1], *reader.take("IQ")))
    start = reader.at + -reader.at % ALIGNMENT
    tensors = {}
    for name, dims, kind, at in infos:
        count = int(np.prod(dims))
        raw = reader.raw[start + at :]
        flat = dequantize(raw, count) if kind == Q8_0 else np.frombuffer(raw, "<f4", count)
        tensors[name] = flat.reshape(dims)
    return metadata, tensors
