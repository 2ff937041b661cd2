"""The tokenizer of a Hugging Face folder as transformers loads it: what a bundle's tokenizer must say too."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders

from onnxport.errors import OnnxportError, one_line
from onnxport.export.tokenizers.sentencepiece import CLEAN_UP
from onnxport.export.transformers_library import import_transformers, quiet, refusing
from onnxport.runtime.tokenizer import UNKNOWN_IS, TextTokenizer

TEXTS = (  # capitals, accents, blanks, scripts, digits, marks: what the settings of tokenizers treat in different ways
    *("What THE Cat saw", "hello", " hello", "  two  blanks  ", "\ttab\nline\r\nline", "trailing ", "(a) [b] {c}"),
    *("don't , we've . n't 's", "Café naïve ÜBER Ångström", "e\u0301 A\u030a n\u0303", "İstanbul ı ſ ß ẞ", "Ωμέγα ΣΑΣ", "Привет МИР"),
    *("ＦＵＬＬ ｗｉｄｔｈ ﬁ ½ ™", "日本語のテキスト", "你好世界a你b", "한국어", "สวัสดี", "مرحبا", "नमस्ते"),
    *("🙂 👩\u200d👧 🇩🇪", "1234567 3.14 a1b2", "a\u200bb\u00adc\u00a0d", "\x00 \x01 \ufffd", "x = y_z ** 2;  # -- != ->"),
    *("http://a.b/c?d=e&f", "user@mail.com #tag", "▁ a▁b", "Ġ a", "hahahahahaha" * 4, "!!!! .... ----"),
)
SAMPLES, LENGTH = 48, 10  # random rows of ids, which are decoded, and their texts, which are encoded
BPE_TOO = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"  # else byte pairs are not cleaned
MOST = 2000  # added tokens that are tried


def load(folder: Path, model_type: str) -> Any:
    """transformers' own tokenizer of a folder, without its padding and truncation. CheckpointError where there is none.

    model_type: that of the model, which decides where the folder has no config.json; "" where nothing names it.
    """
    transformers = import_transformers()
    with quiet(), refusing(folder):
        named = model_type and not (folder / "config.json").is_file()
        config = {"config": transformers.AutoConfig.for_model(model_type)} if named else {}
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **config)
    if (tokenizer := backend(loaded)) is not None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return loaded


def backend(loaded: Any) -> Tokenizer | None:
    """The tokenizers.Tokenizer inside a tokenizer of transformers; None for one that is written in Python."""
    found = getattr(loaded, "backend_tokenizer", None)
    return found if isinstance(found, Tokenizer) else None


def written(loaded: Any) -> bytes | None:
    """The tokenizer.json of a tokenizer of transformers, with the cleaning of its answers; None for one that is written in Python."""
    tokenizer = backend(loaded)
    if tokenizer is None:
        return None
    data = tokenizer.to_str()
    if not loaded.clean_up_tokenization_spaces or (type(tokenizer.model).__name__ == "BPE" and not getattr(loaded, BPE_TOO, False)):
        return data.encode()
    copy = Tokenizer.from_str(data)
    joined = decoders.WordPiece(prefix=UNKNOWN_IS, cleanup=False) if copy.decoder is None else copy.decoder  # without one: by blanks
    steps = [decoders.Replace(before, after) for before, after in CLEAN_UP]
    copy.decoder = decoders.Sequence([joined, decoders.Fuse(), *steps])
    return copy.to_str().encode()


def difference(loaded: Any, data: bytes, side: str = "source") -> str | None:
    """How a tokenizer.json differs from transformers' tokenizer on texts, pairs, every added token, and in what it decodes; None: nowhere.

    side: "target" for the texts that a translation model answers.
    """
    try:
        ours = TextTokenizer(data)
        with quiet():
            return _difference(loaded, ours, Tokenizer.from_str(data.decode()), side)
    except OnnxportError as error:
        return str(error)
    except Exception as error:  # the library raises bare Exception
        return f"it cannot read a text of ours ({one_line(error)})"


def _difference(loaded: Any, ours: TextTokenizer, parsed: Tokenizer, side: str) -> str | None:
    separate = getattr(loaded, "separate_vocabs", False)
    # with two vocabularies transformers knows one id of padding, the source's, which is another token of the target
    foreign = {loaded.pad_token_id, loaded.target_encoder.get(loaded.pad_token)} if separate and side == "target" else set()
    rows = [row for row in _rows(loaded, side) if not foreign & set(row)]
    texts = [*TEXTS, *_around(_added(loaded, parsed)), *(text for row in rows if (text := _decoded(loaded, row)).strip())]
    wanted = _ids(loaded, texts, side)
    for text, right, found in zip(texts, wanted, ours.encode(texts), strict=True):
        if right != found and not foreign & set(right):
            return f"{text!r:.60} is {_tokens(loaded, right)} there and {_tokens(loaded, found)} here"
    if side == "source" and (pair := _pair_difference(loaded, ours, list(zip(TEXTS, TEXTS[1:], strict=False)))):
        return pair
    if separate and side == "source":
        return None  # only answers are decoded
    for row in [*rows, *(row for row in wanted if not foreign & set(row))]:
        if (right_text := _decoded(loaded, row)) != (found_text := ours.decode(row)):
            return f"ids {row[:8]} are {right_text!r:.60} there and {found_text!r:.60} here"
    return None


def _pair_difference(loaded: Any, ours: TextTokenizer, pairs: list[tuple[str, str]]) -> str | None:
    firsts, seconds = zip(*pairs, strict=True)
    right = loaded(list(firsts), list(seconds))
    types = right.get("token_type_ids")
    for i, found in enumerate(ours.read(pairs)):
        if ours.known(found.ids) != right["input_ids"][i]:
            return f"the pair {pairs[i]!r:.60} is {_tokens(loaded, right['input_ids'][i])} there and {_tokens(loaded, found.ids)} here"
        if types is not None and found.type_ids != types[i]:
            return f"the pair {pairs[i]!r:.60} has token types {types[i]} there and {found.type_ids} here"
    return None


def _ids(loaded: Any, texts: list[str], side: str) -> list[list[int]]:
    found: list[list[int]] = (loaded(texts) if side == "source" else loaded(text_target=texts))["input_ids"]
    return found


def _decoded(loaded: Any, row: Sequence[int]) -> str:
    return str(loaded.decode(list(row), skip_special_tokens=True))


def _rows(loaded: Any, side: str) -> list[list[int]]:
    """Random rows of ids that the tokenizer knows, the same ones each time."""
    vocabulary = getattr(loaded, "target_encoder", None) if side == "target" and getattr(loaded, "separate_vocabs", False) else None
    # bytes in an order that no text has are left out: what is shown in their place differs, and is nobody's answer
    ids = sorted({i for token, i in (vocabulary or loaded.get_vocab()).items() if not re.fullmatch(r"<0x[0-9A-F]{2}>", token)})
    draw = random.Random(0)
    return [draw.choices(ids, k=LENGTH) for _ in range(SAMPLES)]


def _added(loaded: Any, parsed: Tokenizer) -> list[str]:
    """Texts of the tokens that either finds before all others."""
    found = [str(token) for token in loaded.added_tokens_decoder.values()]
    found += [token.content for token in parsed.get_added_tokens_decoder().values()]
    return list(dict.fromkeys(found))[:MOST]


def _around(tokens: Iterable[str]) -> list[str]:
    """Added tokens among words, blanks and letters, and in other cases: their flags decide what is found."""
    return [text for t in tokens for text in (t, f"a  {t}  b", f"a{t}b", f"{t} {t}{t}", f"a {t.upper()} b", f"a {t.lower()} b")]


def _tokens(loaded: Any, ids: Sequence[int]) -> str:
    names = [str(loaded.convert_ids_to_tokens(i)) for i in ids[:12]]
    return " ".join(names) + (" ..." if len(ids) > 12 else "")


def named_tokens(loaded: Any) -> dict[str, str]:
    """Texts of special tokens by name, as chat templates call them: `eos_token`, and the folder's own names."""
    return {name: text for name, text in sorted(loaded.special_tokens_map.items()) if isinstance(text, str) and text}


def gives_types(loaded: Any) -> bool:
    """Whether it gives `token_type_ids`."""
    return "token_type_ids" in loaded.model_input_names


def same(a: bytes | str, b: bytes | str) -> bool:
    """Whether two tokenizer.json files are one tokenizer, padding and truncation aside."""
    parts = [json.loads(value) for value in (a, b)]
    for part in parts:
        part |= {"padding": None, "truncation": None}
    return bool(parts[0] == parts[1])
