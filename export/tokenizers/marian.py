"""Marian's source.spm, target.spm and vocab.json as one tokenizer.json a side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json
from onnxport.export.tokenizers import sentencepiece as spm
from onnxport.export.tokenizers import special_tokens

PIECES = ("source.spm", "target.spm")
DEFAULTS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def convert(folder: Path) -> tuple[dict[str, Tokenizer], list[Path]]:
    """Tokenizers of both sides, and the files they came from. ({}, []) without any such file; CheckpointError names all that is missing."""
    separate = read_json(config).get("separate_vocabs", False) if (config := folder / special_tokens.FILES[0]).is_file() else False
    names = [*PIECES, "vocab.json", *(["target_vocab.json"] if separate else [])]
    missing = [name for name in names if not (folder / name).is_file()]
    if len(missing) == len(names):
        return {}, []
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(missing)}, which a Marian tokenizer needs; copy the whole folder")
    models = {side: spm.read(folder / f"{side}.spm") for side in ("source", "target")}
    ids = {
        side: special_tokens.read_vocabulary(folder / name)
        for side, name in zip(models, (names[2], names[-1] if separate else names[2]), strict=True)
    }
    result, files = {}, [folder / name for name in names]
    for side, model in models.items():
        tokens = special_tokens.read(folder, ids[side], DEFAULTS)
        codes = [] if separate else [token for token in ids[side] if token.startswith(">>") and token.endswith("<<")]
        result[side] = _tokenizer(model, models["target" if separate else "source"], ids[side], codes, tokens)
        files += tokens.files
    return result, sorted(set(files))


def _tokenizer(
    model: spm.SentencePiece, reader: spm.SentencePiece, ids: Mapping[str, int], codes: list[str], tokens: special_tokens.SpecialTokens
) -> Tokenizer:
    normalizer = spm.normalizer(model, codes)
    unknown, eos = tokens.named["unk_token"], tokens.named["eos_token"]
    ids = {**ids, **{token.content: i for i, token in tokens.added.items()}}
    _check(model, ids, codes, unknown)
    entries = {code: normalizer.normalize_str(code) for code in codes}
    rows = spm.vocabulary(model, ids, entries, unknown, [token.content for token in tokens.added.values()])
    made = Tokenizer(spm.unigram(model, rows, ids[unknown]) if model.kind == spm.UNIGRAM else spm.bpe(model, rows, unknown))
    made.normalizer = normalizer
    if (splitter := spm.splitter(model)) is not None:
        made.pre_tokenizer = splitter
    made.decoder = spm.decoder(model, reader, bool(tokens.config.get("clean_up_tokenization_spaces")))
    made.post_processor = processors.TemplateProcessing(single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, ids[eos])])
    for token in tokens.added.values():  # MarianTokenizer finds all of them in the raw text
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        raw = AddedToken(token.content, special=token.special, normalized=False, **flags)
        (made.add_special_tokens if token.special else made.add_tokens)([raw])
    return made


def _check(model: spm.SentencePiece, ids: Mapping[str, int], codes: list[str], unknown: str) -> None:
    """CheckpointError with every reason why a tokenizer.json could not say the same as these files."""
    marks = {*spm.MARKS, *model.symbols.values(), " "}
    alone = {piece for piece in model.reachable if len(piece) == 1}
    half = model.alphabet - alone - marks
    problems = []
    if unusable := sorted(token for token in ids if marks & set(token)):
        problems.append(f"tokens with spaces or noncharacters, first {unusable[0]!r}")
    if absent := [piece for piece in model.of_type(spm.BYTE) if piece not in ids]:
        problems.append(f"no ids for {len(absent)} byte pieces of {model.path.name}")
    if both := [code for code in codes if code in model.reachable]:
        problems.append(f"{both[0]!r} as a code and as a piece of {model.path.name}")
    if lookalike := [t for t in ids if t not in model.reachable and half & set(t) and not alone & set(t) and len(t) < 8]:
        problems.append(f"{lookalike[0]!r}, characters that {model.path.name} knows only inside longer pieces")
    if unknown not in ids:
        problems.append(f"no unknown token {unknown!r}")
    if problems:
        raise CheckpointError(
            f"{model.path.parent} cannot be told as a tokenizer.json: it has {'; '.join(problems)}; give tokenizer.json and no .spm"
        )
