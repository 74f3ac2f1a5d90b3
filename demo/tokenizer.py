"""A byte-level BPE tokenizer: trained on the corpus, written into the GGUF as `gpt2` tokens and merges.

No merge holds a digit, so numbers are read and copied digit by digit. Words are merged first and the space before them
last, so a word is cut the same way at the start of a line and after a space: copying a name is then one token for one.
"""

import functools
import re
from collections import Counter

CONTROL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# The `llama-bpe` pre-tokenizer. Python's `re` has no \p{L} and \p{N}: [^\W\d_] and \d differ from them only in
# characters the corpus never holds, such as Roman numerals.
PIECES = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|(?:[^\r\n\w]|_)?[^\W\d_]+"
    r"|\d{1,3}"
    r"| ?(?:[^\s\w]|_)+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


@functools.cache
def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where it prints, else the next free letter from 256 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in prints}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(prints)))
    return letters


SPACE = byte_letters()[0x20]


def pieces(text: str) -> list[str]:
    """The text cut by the pre-tokenizer, each piece spelled in byte letters."""
    letters = byte_letters()
    return ["".join(letters[byte] for byte in piece.encode()) for piece in PIECES.findall(text)]


def train(texts: list[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn a vocabulary of `size` tokens from texts. Returns the tokens and the merges, best first."""
    counts = Counter(piece for text in texts for piece in pieces(text))
    base = list(CONTROL) + sorted(byte_letters().values())
    words, spaced = Counter(), Counter()
    for piece, count in counts.items():
        word = piece.removeprefix(SPACE)
        if word:
            words[word] += count
            spaced[word] += count if piece != word else 0
    room = size - len(base)
    cuts = {word: list(word) for word in words}
    merges = [merge for merge, _ in learn(cuts, words, room * 2 // 3)]
    # The space joins the first token of a word, most frequent first.
    firsts = Counter()
    for word, count in spaced.items():
        firsts[cuts[word][0]] += count
    firsts = Counter({first: n for first, n in firsts.items() if first[0].isalpha() and first[0].isascii()})
    merges += [(SPACE, first) for first, _ in firsts.most_common(room - len(merges))]
    tokens = base + [left + right for left, right in merges]
    assert len(tokens) == len(set(tokens)) == size, "the corpus is too small for the vocabulary"
    return tokens, merges


def learn(cuts: dict[str, list[str]], counts: Counter, wanted: int):
    """Merge the most frequent pair of ASCII letters `wanted` times, in place. Ties go to the earlier spelling."""
    for _ in range(wanted):
        pairs = Counter()
        for word, cut in cuts.items():
            for pair in zip(cut, cut[1:]):
                if pair[0].isascii() and pair[0].isalpha() and pair[1].isascii() and pair[1].isalpha():
                    pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for word, cut in cuts.items():
            cuts[word] = merge(cut, best)
        yield best, pairs[best]


def merge(cut: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(cut):
        if i + 1 < len(cut) and (cut[i], cut[i + 1]) == pair:
            merged.append(cut[i] + cut[i + 1])
            i += 2
        else:
            merged.append(cut[i])
            i += 1
    return merged


class Tokenizer:
    def __init__(self, tokens: list[str], merges: list[tuple[str, str]]):
        self.tokens = tokens
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        self.piece_ids = functools.cache(self.piece_ids)

    def control(self, name: str) -> int:
        return self.ids[f"<|{name}|>"]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; a control token spelled out in it is text."""
        return [i for piece in pieces(text) for i in self.piece_ids(piece)]

    def encode_noting(self, text: str, places: set[int]) -> tuple[list[int], dict[int, int]]:
        """Ids of plain ASCII text, and for each place between two pieces the index of the token that follows it."""
        assert text.isascii(), "places count characters, pieces are spelled in bytes"
        ids, noted, at = [], {}, 0
        for piece in pieces(text):
            if at in places:
                noted[at] = len(ids)
            ids += self.piece_ids(piece)
            at += len(piece)
        if at in places:
            noted[at] = len(ids)
        return ids, noted

    def piece_ids(self, piece: str) -> list[int]:
        cut = list(piece)
        while len(cut) > 1:
            best = min(zip(cut, cut[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            cut = merge(cut, best)
        return [self.ids[token] for token in cut]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, control tokens left out."""
        letters = "".join(self.tokens[i] for i in ids if i >= len(CONTROL))
        return bytes(self.bytes_of[letter] for letter in letters).decode(errors="replace")

    def conversation(self, turns: list[tuple[str, str]], prompt: bool = False) -> list[int]:
        """Ids of (role, text) turns as the chat template lays them out, open for the assistant if `prompt`."""
        ids = [self.control("begin")]
        for role, text in turns:
            ids += [self.control(role), *self.encode(text), self.control("end")]
        return ids + [self.control("assistant")] if prompt else ids
