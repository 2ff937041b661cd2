"""Tokenizers of a folder or of an adapter as bytes of a tokenizer.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from onnxport.errors import CheckpointError, one_line
from onnxport.export.config_checks import read_json
from onnxport.export.exported import ChatTemplate
from onnxport.export.tokenizers import chat_template, languages, library, marian, pieces, special_tokens
from onnxport.export.transformers_library import quiet
from onnxport.runtime.tokenizer import UNKNOWN_FROM

READY = "tokenizer.json"
# files that transformers makes a tokenizer of
FILES = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
SIDES = ("source", "target")
MASKS = ("[MASK]", "<mask>")
MOST_IDS = 1 << 24


@dataclass(frozen=True)
class FolderTokenizers:
    """A folder's tokenizers as transformers loads them.

    by_side: `source` and `target` → bytes of a tokenizer.json, equal where one serves both; {} without any. files: what was read.
    gives_types: whether token types are given. longest: tokens of a text, as the folder states it. assumed: ids of tokens that may be
    beyond the model's table: transformers' class adds them, or they are special and in no plain text. chat: the template of
    conversations. notes: what a user should know. mask_id, unknown_id: of the tokens that stand for a missing word and for what is not
    known, None without them. languages: for a bundle's generation settings.
    """

    by_side: dict[str, bytes] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    gives_types: bool = True
    longest: int | None = None
    assumed: frozenset[int] = frozenset()
    chat: ChatTemplate | None = None
    notes: tuple[str, ...] = ()
    mask_id: int | None = None
    unknown_id: int | None = None
    languages: dict[str, Any] | None = None

    def problems(self, rows: dict[str, int]) -> list[str]:
        """Why they do not fit tables of `rows` by side."""
        found = [vocabulary_problem(data, rows[side], side, self.assumed) for side, data in self.by_side.items()]
        return [problem for problem in found if problem]

    def beyond(self, rows: dict[str, int]) -> list[str]:
        """A sentence on tokens for which tables of `rows` by side have no row."""
        data = self.by_side.get(SIDES[0])
        ids = {} if data is None else Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True)
        found = sorted(token for token, i in ids.items() if i in self.assumed and i >= rows[SIDES[0]])
        return [f"the model has no row for {', '.join(found[:8])}: a text with such a token is refused"] if found else []


def hugging_face(folder: Path, model_type: str) -> FolderTokenizers:
    """The tokenizers of a folder. CheckpointError: files are damaged, disagree, or no tokenizer.json can say what transformers reads."""
    ready, data = folder / READY, None
    # transformers reads Marian's .spm files whatever else is there, so they are what counts where they are.
    own_pieces = model_type == "marian" and any((folder / name).is_file() for name in marian.PIECES)
    if ready.is_file() and not own_pieces:
        data = _read(ready)
        found: dict[str, bytes | None] = dict.fromkeys(SIDES, data)
        files = [ready]
    else:
        found, files = _converted(folder, model_type)
        if not files:
            return FolderTokenizers()
    settings = [folder / name for name in special_tokens.FILES if (folder / name).is_file()]
    if data is not None and not settings and not (folder / "config.json").is_file():
        return _of_file(data, ready)
    for path in settings:
        read_json(path)
    try:
        loaded = library.load(folder, model_type)
    except CheckpointError:
        if data is None or (settings and model_type):  # without a type the settings may be those of a class that is not found
            raise
        kind = f"a {model_type}" if model_type else "an unnamed"
        return _alone(data, ready, f"transformers has no tokenizer for {kind} model with this file")
    if data is not None and not settings and (other := _other_kind(loaded, data)):
        return _alone(data, ready, f"transformers would make {other} of it", library.gives_types(loaded))
    longest = _longest(folder, loaded)
    try:
        by_side = _as_loaded(folder, loaded, found)
    except CheckpointError:
        if data is None or settings:
            raise
        return _alone(data, ready, f"the {type(loaded).__name__} that transformers makes of it fails", library.gives_types(loaded))
    template, template_files = chat_template.read(folder, loaded)
    return FolderTokenizers(
        by_side,
        tuple(sorted({*files, *settings, *template_files})),
        library.gives_types(loaded),
        longest,
        _assumed(folder, loaded, files, settings) | _named_only(loaded),
        template,
        mask_id=loaded.mask_token_id,
        unknown_id=loaded.unk_token_id,
        languages=languages.read(loaded),
    )


def _longest(folder: Path, loaded: Any) -> int | None:
    """The most tokens that the tokenizer says a text may have; None where it says no such number. CheckpointError."""
    length = loaded.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise CheckpointError(f"{folder}: model_max_length of the tokenizer is {length!r:.60}, expected a whole number; correct it")
    return int(length) if 0 < length < 2**31 else None


def _converted(folder: Path, model_type: str) -> tuple[dict[str, bytes | None], list[Path]]:
    """By side what our own conversion makes of a folder without a tokenizer.json, None where transformers' own does; the files read."""
    if model_type == "marian":
        made, files = marian.convert(folder)
        return {side: tokenizer.to_str().encode() for side, tokenizer in made.items()}, files
    found = [folder / name for name in FILES if (folder / name).is_file()]
    alone = {path.name for path in found} & {"vocab.json", "merges.txt"}
    if len(alone) == 1 and not any(path.suffix == ".model" for path in found):
        missing = "merges.txt" if "vocab.json" in alone else "vocab.json"
        raise CheckpointError(f"{folder} has no {missing}, which a byte-level BPE tokenizer needs; copy the whole folder")
    return dict.fromkeys(SIDES), found


def _as_loaded(folder: Path, loaded: Any, by_side: dict[str, bytes | None]) -> dict[str, bytes]:
    """Tokenizers that say what transformers' says: those given where they do, else its own."""
    own, result = library.written(loaded), {}
    if own is None and None in by_side.values() and (made := pieces.convert(loaded)) is not None:
        own = made.to_str().encode()
    kind = type(loaded).__name__
    for side, data in by_side.items():
        if data is not None and own is not None and library.same(Tokenizer.from_str(data.decode()).to_str(), own):
            result[side] = data
            continue
        candidate = data if own is None else own
        if candidate is None:
            raise CheckpointError(f"{folder} has a {kind}, which cannot be written as a tokenizer.json; give a tokenizer.json instead")
        # what many languages' tokenizers put around a target is that of an answer that is learned: here answers are only decoded
        if found := library.difference(loaded, candidate, "source" if side == "target" and hasattr(loaded, "tgt_lang") else side):
            raise CheckpointError(
                f"{folder} has a {kind} of transformers that no tokenizer.json here can say: {found}; "
                "save the folder again with its tokenizer's save_pretrained, or give a tokenizer.json that agrees"
            )
        result[side] = candidate
    return result


def _alone(data: bytes, ready: Path, why: str, gives_types: bool = True) -> FolderTokenizers:
    """A tokenizer.json that nothing else says anything about, where transformers has no use for it."""
    return _of_file(data, ready, gives_types, (f"{READY} is taken as it is: {why}",))


def _of_file(data: bytes, ready: Path, gives_types: bool = True, notes: tuple[str, ...] = ()) -> FolderTokenizers:
    """A tokenizer.json alone, which does not say what its special tokens are for: they go by their usual names."""
    tokenizer = Tokenizer.from_str(data.decode())
    masks = [i for name in MASKS if (i := tokenizer.token_to_id(name)) is not None]
    unknown = getattr(tokenizer.model, "unk_token", None)
    return FolderTokenizers(
        dict.fromkeys(SIDES, data),
        (ready,),
        gives_types,
        notes=notes,
        mask_id=masks[0] if masks else None,
        unknown_id=tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None,
    )


def _other_kind(loaded: Any, data: bytes) -> str | None:
    """What transformers made of a tokenizer.json where that is another kind of tokenizer."""
    made = library.backend(loaded)
    kinds = type(Tokenizer.from_str(data.decode()).model).__name__, type(loaded if made is None else made.model).__name__
    return None if kinds[0] == kinds[1] else f"{kinds[1]} where the file has {kinds[0]}"


def _assumed(folder: Path, loaded: Any, files: list[Path], settings: list[Path]) -> frozenset[int]:
    """Ids of added tokens that are in no file: the class names them itself."""
    texts = "".join(path.read_text("utf-8", errors="replace") for path in [*files, *settings] if path.suffix in (".json", ".txt"))
    return frozenset(i for i, token in loaded.added_tokens_decoder.items() if str(token) not in texts)


def _named_only(loaded: Any) -> frozenset[int]:
    """Ids of special tokens that stand in no text but where they are named: bart-large-cnn has no row for its mask."""
    with quiet():
        usual = {i for ids in loaded(["a", "b"])["input_ids"] for i in ids}
    special = {i for i, token in loaded.added_tokens_decoder.items() if token.special}
    return frozenset(special | set(loaded.all_special_ids)) - usual


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        check_ids(Tokenizer.from_str(data.decode()))
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a usable tokenizer ({one_line(e)}); copy it again") from e
    return data


def check_ids(tokenizer: Tokenizer) -> None:
    """ValueError where a token's id is beyond all vocabularies: the library counts up to it when it writes the tokenizer."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest > MOST_IDS:
        raise ValueError(f"it holds the token id {largest}, expected at most {MOST_IDS}")


def tokenizer_bytes(value: Any) -> bytes:
    """The tokenizer.json of a path or a tokenizers.Tokenizer, after it was proven to load."""
    if isinstance(value, Tokenizer):
        return value.to_str().encode()
    path = Path(value)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"tokenizer {path} cannot be read: {error.strerror}; give the path of a tokenizer.json") from error
    try:
        check_ids(Tokenizer.from_str(data.decode()))
    except Exception as error:
        raise CheckpointError(f"tokenizer {path} is not a tokenizer.json: {type(error).__name__}: {one_line(error)}") from error
    return data


def vocabulary_problem(data: bytes, rows: int, side: str, assumed: frozenset[int] = frozenset()) -> str | None:
    """Why a tokenizer does not fit a table of `rows`; None where it fits. Entries behind the mark of a converted tokenizer are no ids.

    assumed: ids that may be beyond the table; a text that has them is refused when it is read.
    """
    vocabulary = Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True)
    end = vocabulary.get(UNKNOWN_FROM)
    largest = max((i for i in vocabulary.values() if i not in assumed and (end is None or i < end)), default=-1)
    if largest >= rows:
        return f"the {side} tokenizer has ids up to {largest} and the {side} vocabulary {rows} rows"
    return None
