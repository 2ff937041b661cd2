"""Tokenizer files in the forms in which the Hugging Face hub has them, with small vocabularies trained on this project's documents.

The special tokens, their places and the pre-tokenizers are those of the models in hub_folders.json.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
PIECES = 420  # of a SentencePiece vocabulary, byte pieces included
MERGED = 160  # tokens of a byte-level vocabulary beside its 256 bytes
SPLITS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}
SPACE = "▁"


def texts() -> list[str]:
    """Lines that vocabularies are trained on."""
    paths = sorted((ROOT / "docs").glob("*.md"))
    return [line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 40][:1500]


def write(spec: dict[str, Any], folder: Path) -> dict[str, int]:
    """Writes the files that `spec["files"]` names into `folder`; token → id of the whole tokenizer."""
    return KINDS[spec["kind"]](spec, folder)


def content(token: Any) -> str:
    """The text of a token of hub_folders.json."""
    return token if isinstance(token, str) else str(token["content"])


def added_token(token: Any) -> AddedToken:
    """A token of hub_folders.json with its flags."""
    flags = {} if isinstance(token, str) else {key: value for key, value in token.items() if key != "content"}
    return AddedToken(content(token), **{"special": True, "normalized": False, **flags})


def _finish(tokenizer: Tokenizer, spec: dict[str, Any], folder: Path) -> dict[str, int]:
    tokenizer.add_tokens([added_token(token) for token in (*spec.get("first", ()), *spec.get("last", ()), *spec.get("added", ()))])
    if "tokenizer.json" in spec["files"]:
        tokenizer.save(str(folder / "tokenizer.json"))
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if "added_tokens.json" in spec["files"]:
        extra = {content(token): ids[content(token)] for token in spec.get("added", ())}
        (folder / "added_tokens.json").write_text(json.dumps(extra, ensure_ascii=False))
    return ids


def _wordpiece(spec: dict[str, Any], folder: Path) -> dict[str, int]:
    """BERT's: [PAD] is 0, [UNK], [CLS], [SEP] and [MASK] begin at 100 behind unused ones."""
    lower = spec["lower"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lower)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=400, show_progress=False))
    found = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    named = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), *named, *found]
    ids = {word: i for i, word in enumerate(words)}
    if "vocab.txt" in spec["files"]:
        (folder / "vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    if spec.get("truncation"):
        tokenizer.enable_truncation(spec["truncation"])
    if spec.get("padding"):
        tokenizer.enable_padding(length=128)
    return _finish(tokenizer, {**spec, "added": ["[PAD]", *named]} if "added_tokens.json" not in spec["files"] else spec, folder)


def _byte_level(spec: dict[str, Any], folder: Path) -> dict[str, int]:
    """GPT-2's kind of BPE. first and last: tokens in the vocabulary itself; added: behind it, in tokenizer.json alone."""
    trained = Tokenizer(models.BPE())
    split = spec["split"]
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt2", "digits"))
    if split == "digits":
        trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_alone])
    elif split == "gpt2":
        trained.pre_tokenizer = bytes_alone
    else:
        trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"), bytes_alone])
    if split == "qwen2":
        trained.normalizer = normalizers.NFC()
    first = [content(token) for token in spec.get("first", ())]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 256 + MERGED, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts(), trainer)
    model = json.loads(trained.to_str())["model"]
    ids, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    for token in spec.get("last", ()):
        ids[content(token)] = len(ids)
    if "vocab.json" in spec["files"]:
        (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    if "merges.txt" in spec["files"]:
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([added_token(token) for token in (*spec.get("first", ()), *spec.get("last", ()), *spec.get("added", ()))])
    tokenizer.post_processor = _ends(spec, tokenizer) or processors.ByteLevel(trim_offsets=False)
    return _finish(tokenizer, spec, folder)


def _ends(spec: dict[str, Any], tokenizer: Tokenizer) -> Any:
    if spec.get("roberta"):
        return processors.RobertaProcessing(("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    if "pair" in spec:
        start, end = spec["pair"]
        named = [(name, tokenizer.token_to_id(name)) for name in (start, end)]
        return processors.TemplateProcessing(f"{start} $A {end}", f"{start} $A {end} $B {end}", named)
    if "begin" in spec:
        start = spec["begin"]
        return processors.TemplateProcessing(f"{start} $A", f"{start} $A {start}:1 $B:1", [(start, tokenizer.token_to_id(start))])
    return None


def _pieces(spec: dict[str, Any], kind: str) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model with the special pieces in the places where the layout has them."""
    layout, made = spec.get("layout"), io.BytesIO()
    named: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if layout == "t5":
        named = {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}
    elif layout == "marian":
        named = {"unk_id": 1, "bos_id": -1, "eos_id": 0, "pad_id": -1}
    elif layout is None and (first := [content(token) for token in spec["first"]]):
        named = {f"{name}_id": first.index(token) if token in first else -1 for name, token in _named(first)}
        more = [token for token in first if token not in [token for _, token in _named(first)]]
        named |= {f"{name}_piece": token for name, token in _named(first) if token in first} | {"user_defined_symbols": more}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=made, model_type=kind, vocab_size=PIECES + 256 * (kind == "bpe" and layout is None),
        byte_fallback=kind == "bpe" and layout is None, character_coverage=0.9995, minloglevel=2, **named,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def _named(first: list[str]) -> list[tuple[str, str]]:
    gemma = "<bos>" in first
    return [("unk", "<unk>"), ("bos", "<bos>" if gemma else "<s>"), ("eos", "<eos>" if gemma else "</s>"), ("pad", "<pad>")]


def _sentencepiece(spec: dict[str, Any], folder: Path) -> dict[str, int]:
    """Of Llama's and Gemma's kind with bytes for what is not known, or of T5, XLM-RoBERTa, NLLB, mBART and Marian."""
    kind = spec["kind"].removeprefix("sentencepiece-")
    pieces = _pieces(spec, kind)
    if spec.get("layout") == "marian":
        return _marian(spec, pieces, folder)
    for name in spec["files"]:
        if name.endswith("model"):
            (folder / name).write_bytes(pieces.serialized_model_proto())
    if "class" in spec:
        return _by_class(spec, pieces, folder)
    listed = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(listed)}
    tokenizer = Tokenizer(models.BPE(ids, _merges(pieces, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    form = spec["form"]
    if form == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif form == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps if form == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_tokens([added_token(token) for token in (*spec.get("first", ()), *spec.get("added", ()))])
    tokenizer.post_processor = _ends(spec, tokenizer) or processors.TemplateProcessing("$A", "$A $B:1", [])
    return _finish(tokenizer, spec, folder)


def _merges(pieces: sentencepiece.SentencePieceProcessor, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that make another, in the order of its score."""
    found: list[tuple[float, int, tuple[str, str]]] = []
    for piece, i in ids.items():
        if not (pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i)):
            pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            found += [(-pieces.get_score(i), n, pair) for n, pair in enumerate(pairs) if pair[0] in ids and pair[1] in ids]
    return [pair for _, _, pair in sorted(found)]


def _by_class(spec: dict[str, Any], pieces: sentencepiece.SentencePieceProcessor, folder: Path) -> dict[str, int]:
    """What transformers' class makes of the model file; its tokenizer.json where the hub has one."""
    import transformers

    with tempfile.TemporaryDirectory() as made:
        name = next(name for name in spec["files"] if name != "tokenizer.json") if len(spec["files"]) > 1 else "sentencepiece.bpe.model"
        Path(made, name).write_bytes(pieces.serialized_model_proto())
        loaded = getattr(transformers, spec["class"]).from_pretrained(made)
        loaded.save_pretrained(made)
        if "tokenizer.json" in spec["files"]:  # the class puts tokens of its own, such as languages, behind those of the file
            Path(made, "tokenizer_config.json").unlink()
            loaded = type(loaded).from_pretrained(made)
            loaded.backend_tokenizer.save(str(folder / "tokenizer.json"))
        ids: dict[str, int] = loaded.get_vocab() | {str(token): i for i, token in loaded.added_tokens_decoder.items()}
    return ids


def _marian(spec: dict[str, Any], pieces: sentencepiece.SentencePieceProcessor, folder: Path) -> dict[str, int]:
    """Two model files and one vocabulary, whose padding is its last token."""
    listed: Iterator[str] = (pieces.id_to_piece(i) for i in range(pieces.get_piece_size()))
    ids = {piece: i for i, piece in enumerate(listed)}
    ids["<pad>"] = len(ids)
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(pieces.serialized_model_proto())
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    return ids


KINDS = {
    "wordpiece": _wordpiece,
    "byte-level": _byte_level,
    "sentencepiece-bpe": _sentencepiece,
    "sentencepiece-unigram": _sentencepiece,
}
