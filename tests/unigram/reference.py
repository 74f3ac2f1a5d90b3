"""Writes Unigram vocabularies as GGUF files, and beside each what SentencePiece itself makes of many texts.

NAME.gguf has a vocabulary laid out as llama.cpp's converter lays it out, and no tensors. NAME.json is a list of texts,
each with its ids and with what SentencePiece decodes from them; null in place of the latter if a token is unknown, which
SentencePiece shows and dunlin does not, or if SentencePiece drops more than one space at the beginning. Unlike the converter this script says of users' tokens that they are.

Without arguments it trains small vocabularies and writes the files beside this script, which the engine's tests read.
With a folder it writes there what takes more room: larger vocabularies by more rules, more texts, and any SentencePiece
models named after it. The same tests read them where DUNLIN_UNIGRAM names the folder.

Needs the packages of requirements.txt. Training depends on their versions, but what is checked here does not.

Usage: reference.py [FOLDER [MODEL ...]]
"""

import io
import itertools
import json
import pathlib
import random
import sys
import tempfile

import gguf
import sentencepiece
from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2

HERE = pathlib.Path(__file__).parent
PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
KINDS = {
    PIECE.NORMAL: TokenType.NORMAL,
    PIECE.UNKNOWN: TokenType.UNKNOWN,
    PIECE.CONTROL: TokenType.CONTROL,
    PIECE.USER_DEFINED: TokenType.USER_DEFINED,
    PIECE.UNUSED: TokenType.UNUSED,
    PIECE.BYTE: TokenType.BYTE,
}

SENTENCES = """
The pump on the second floor stopped twice this morning, and nobody knows why.
A small model that answers in time is worth more than a large one that does not.
Please send 12 of the 350 mm pipes to 4711 Harbour Road before 09:30 on 2026-11-27!
Der Kühlschrank brummt lauter als früher; wir müssten die Dichtung prüfen.
Große Straßen führen durch die Stadt, über Flüsse und an Häusern vorbei.
L'été dernier, les élèves ont mesuré la température de l'eau près du pont.
¿Dónde está la llave pequeña? Mañana volverá el señor del taller.
Насос на втором этаже остановился, и никто не знает почему.
Завтра утром мы проверим все датчики и запишем показания.
Η αντλία στον δεύτερο όροφο σταμάτησε δύο φορές σήμερα το πρωί.
توقفت المضخة في الطابق الثاني مرتين هذا الصباح ولا أحد يعرف السبب.
המשאבה בקומה השנייה נעצרה פעמיים הבוקר ואיש אינו יודע מדוע.
दूसरी मंज़िल का पंप आज सुबह दो बार रुका और किसी को नहीं पता क्यों।
ปั๊มน้ำบนชั้นสองหยุดสองครั้งเมื่อเช้านี้ และไม่มีใครรู้ว่าทำไม
二楼的水泵今天早上停了两次，没有人知道原因。
我们明天检查所有的传感器，并把读数记下来。
二階のポンプは今朝二回止まりました。理由は誰も知りません。
センサーをすべて確認して、値を記録してください。
이층 펌프가 오늘 아침에 두 번 멈췄는데 아무도 이유를 모른다.
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // dot product
""".strip().split("\n")

# What a normalizer may change, join, drop or never have seen.
ODDITIES = """
ﬁ ﬀ ½ ² ℃ № Å Å ｱｲｳ ＡＢＣ　１２３ ！？ ㍿ ﷺ ǆ İ ı ß ẞ Σς e\u0301 u\u0308 a\u0323\u0302 \u0301 \u200d \u200b \u200e \ufeff \u00ad
\u3000 \u00a0 \u2003 \u2028 \t \r\n \x0b \x0c \x00 \x01 \x1f \x7f \x85 \ufffd \U0010ffff \ue000 ▁ ▁▁ ▁a a▁b
👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ 😀😀😀 ⁉️ 한글 각 가나다 ก็ ำ क्ष ज़ ज\u093c 𝒜𝔹 𐍈 〆 々 ゛が か\u3099 <s> </s> <unk> <pad> <0x41> <0xE3> <user> <user><user>
<use aaaaaaa bbbbbbbbbbbb ---- ......... 0000000 1234567890 ''' \"\"\" \\n %20 &amp; ~~ ~ ～ … — – ‚ „“
""".replace("\n", " ").split(" ")

# Few rules in place of SentencePiece's 25 thousand: what they do is the same.
RULES = {
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},
    "\t": " ", "\n": " ", "\r": " ", "\u3000": " ", "\u00a0": " ", "\u200b": "", "\x7f": "",
    "ﬁ": "fi", "½": " 1⁄2", "…": "...", "Å": "å", "A": "a", "e\u0301": "é", "か\u3099": "が", "ﷺ": "صلى الله عليه وسلم",
    "\u0308": " ̈",
}  # fmt: skip


def train(sentences, vocabulary, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def with_rules(sentences, vocabulary, rules, **options):
    """A normalizer of the rules' own."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
        for source, target in rules.items():
            print(*(" ".join(f"{ord(c):X}" for c in text) for text in (source, target)), sep="\t", file=file)
        file.flush()
        return train(sentences, vocabulary, normalization_rule_tsv=file.name, **options)


def write(path, model, texts, xlm_roberta=False):
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = [(piece.piece, piece.score, KINDS[piece.type]) for piece in proto.pieces]
    if xlm_roberta:
        # fairseq's four, then the pieces one place later, then the mask that SentencePiece does not know.
        special = [(name, 0.0, TokenType.CONTROL) for name in ("<s>", "<pad>", "</s>")]
        special.append(("<unk>", 0.0, TokenType.UNKNOWN))
        tokens = special + tokens[3:] + [("[PAD]", -10000.0, TokenType.UNUSED)]

    writer = gguf.GGUFWriter(path, "bert" if xlm_roberta else "t5")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    if xlm_roberta:
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        writer.add_sep_token_id(2)
        writer.add_unk_token_id(3)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    unknown = processor.unk_id()
    merges = proto.normalizer_spec.remove_extra_whitespaces
    records = []
    for text in texts:
        ids = processor.encode(text)
        dropped = merges and "".join(map(processor.id_to_piece, ids)).startswith("▁▁")
        decoded = None if unknown in ids or dropped else processor.decode(ids)
        if xlm_roberta:
            ids = [3 if id == unknown else id + 1 for id in ids]
        records.append([text, ids, decoded])
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
    path.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path.name}: {len(tokens)} tokens, {len(records)} texts")


def make_texts(count, seed):
    """The sentences and what is odd, then mixtures of both, of their parts and of characters from anywhere."""
    chance = random.Random(seed)
    words = [word for sentence in SENTENCES for word in sentence.split(" ")] + ODDITIES
    letters = sorted(set("".join(words)))
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0x980), (0x1100, 0x1200)]
    blocks += [(0x2000, 0x2100), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0xFE00, 0x10000)]
    blocks += [(0x1F300, 0x1FA00), (0, 0x20), (0xE000, 0x110000)]

    def anywhere():
        return chr(chance.randrange(*chance.choice(blocks)))

    def mixture():
        kind = chance.randrange(5)
        size = chance.choice([1, 2, 3, 5, 8, 20])
        if kind == 0:
            return chance.choice(["", " ", "  "]).join(chance.choices(words, k=size))
        if kind == 1:
            return "".join(chance.choices(letters, k=2 * size))
        if kind == 2:
            return "".join(anywhere() for _ in range(size))
        if kind == 3:
            return chance.choice(letters) * chance.randrange(1, 40)
        sentence = chance.choice(SENTENCES)
        start = chance.randrange(len(sentence))
        end = start + chance.randrange(40)
        return " " * chance.randrange(3) + sentence[start:end] + chance.choice(words) + " " * chance.randrange(3)

    fixed = ["", " ", "   ", "\n", "\u3000", "\u200b", *ODDITIES, *SENTENCES, " ".join(SENTENCES)]
    return list(itertools.islice(itertools.chain(fixed, iter(mixture, None)), count))


def mixed(count, seed):
    """Training text: the sentences' words in other orders."""
    chance = random.Random(seed)
    sentences = list(SENTENCES)
    while len(sentences) < count:
        words = chance.choice(SENTENCES).split(" ") + chance.choice(SENTENCES).split(" ")
        sentences.append(" ".join(chance.sample(words, len(words))))
    return sentences


def write_small():
    texts = make_texts(240, 1)
    latin = [sentence for sentence in SENTENCES if sentence.isascii()] + [SENTENCES[3], SENTENCES[16]]
    kept = ["<user>", "<user> x", "ABC"]
    rules = with_rules(latin, 150, RULES, user_defined_symbols=kept)
    write(HERE / "rules.gguf", rules, texts)
    spaces = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    plain = train(latin, 420, normalization_rule_name="identity", byte_fallback=True, split_digits=True, **spaces)
    write(HERE / "bytes.gguf", plain, texts)
    write(HERE / "xlm-roberta.gguf", with_rules(latin, 150, RULES), texts, xlm_roberta=True)


def write_large(folder, models):
    folder.mkdir(parents=True, exist_ok=True)
    texts = make_texts(4000, 2)
    texts.append(" ".join(texts))
    sentences = mixed(2000, 3)
    flags = [False, True]
    number = 0
    for rule in ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"]:
        for prefix, merge, fallback in itertools.product(flags, flags, flags):
            number += 1
            options = {
                "normalization_rule_name": rule,
                "add_dummy_prefix": prefix,
                "remove_extra_whitespaces": merge,
                "byte_fallback": fallback,
                "split_digits": number % 4 == 0,
                "split_by_whitespace": number % 5 != 0,
                "user_defined_symbols": ["<user>", "  ", "e\u0301", "pump"] if number % 3 else [],
            }
            name = f"{number:02}-{rule}{'-prefix' * prefix}{'-merge' * merge}{'-bytes' * fallback}.gguf"
            write(folder / name, train(sentences, 1500, **options), texts)
    for layout in flags:
        write(folder / f"roberta-{layout}.gguf", train(sentences, 1200), texts, xlm_roberta=layout)
    for model in models:
        write(folder / f"{model.stem}.gguf", model.read_bytes(), texts)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_small()
    else:
        folder, *models = map(pathlib.Path, sys.argv[1:])
        write_large(folder, models)
