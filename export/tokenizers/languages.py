"""Languages of a translation tokenizer of transformers: their codes and ids, and where they stand in a source and in an answer."""

from __future__ import annotations

import re
from typing import Any

START = ("MBartTokenizer", "PLBartTokenizer")  # whose models' answers start with their language; others have it forced behind the start
CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}|__[a-z]{3}__")  # what languages are called where no table lists them: eng_Latn, __eng__


def read(loaded: Any) -> dict[str, Any] | None:
    """The `languages` of a bundle's generation settings, see onnxport.runtime.bundle.manifest.Languages; None where there are none.

    They are tried: the tokenizer is set to each as a source's language, and back again.
    """
    if not hasattr(type(loaded), "src_lang") or not hasattr(loaded, "set_src_lang_special_tokens"):
        return None
    own = loaded.src_lang
    ids, sides = {}, None
    try:
        for code, language in _codes(loaded).items():
            loaded.src_lang = code
            around = [[None if i == language else i for i in part] for part in (loaded.prefix_tokens, loaded.suffix_tokens)]
            if None in [*around[0], *around[1]] and sides in (None, around):
                ids[_short(code)], sides = language, around
    finally:
        loaded.src_lang = own
    if sides is None:
        return None
    target = "start" if type(loaded).__name__.removesuffix("Fast") in START else "forced"
    return {"ids": ids, "before": sides[0], "after": sides[1], "target": target, "source": None if own is None else _short(own)}


def _codes(loaded: Any) -> dict[str, int]:
    """Codes as the tokenizer takes them, and their ids."""
    if found := getattr(loaded, "lang_code_to_id", None):
        return dict(found)
    return {token: i for i, added in sorted(loaded.added_tokens_decoder.items()) if CODE.fullmatch(token := str(added))}


def _short(code: str) -> str:
    """A code without the marks that make a token of it."""
    return code[2:-2] if code.startswith("__") and code.endswith("__") else code
