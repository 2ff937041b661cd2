"""Tokenizers of transformers that are SentencePiece in Python, with ids of their own, as a tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from onnxport.export.tokenizers import sentencepiece as spm

FILES = ("spm_file", "vocab_file")  # what such a tokenizer calls the file of its pieces
SAMPLE = "a"


def convert(loaded: Any) -> Tokenizer | None:
    """A tokenizer that should say what `loaded` says, for a check against it; None where it has no file of pieces. CheckpointError."""
    path = next((Path(name) for key in FILES if isinstance(name := getattr(loaded, key, None), str) and name.endswith(".model")), None)
    if path is None or not hasattr(loaded, "sp_model") or loaded.unk_token is None:
        return None
    model, added, unknown = spm.read(path), dict(loaded.added_tokens_decoder), str(loaded.unk_token)
    languages = dict(getattr(loaded, "lang_token_to_id", {}))  # some classes find them in no text, and have them all the same
    ids = languages | {str(token): i for i, token in added.items()} | loaded.get_vocab()
    special = {token for token in map(str, loaded.all_special_tokens) if token in ids}  # one that has no id is the unknown one
    by_id = {i: token for token, i in ids.items()}
    ids |= {f"{spm.OPEN}{i}": i for i in range(max(by_id)) if i not in by_id}  # no text has them
    rows = spm.vocabulary(model, ids, {}, unknown, [*map(str, added.values()), *special, *languages])
    made = Tokenizer(spm.unigram(model, rows, ids[unknown]) if model.kind == spm.UNIGRAM else spm.bpe(model, rows, unknown))
    made.normalizer = spm.normalizer(model, None)
    if (splitter := spm.splitter(model)) is not None:
        made.pre_tokenizer = splitter
    made.decoder = spm.decoder(model, model, bool(loaded.clean_up_tokenization_spaces))
    made.post_processor = _around(loaded, by_id)
    raw = [
        AddedToken(str(t), single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=False, special=t.special)
        for t in added.values()
    ]
    raw += [AddedToken(t, normalized=False, special=True) for t in special - {str(t) for t in added.values()}]
    for token in sorted(raw, key=lambda one: ids[one.content]):
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    return made


def _around(loaded: Any, by_id: dict[int, str]) -> processors.TemplateProcessing:
    """What stands before and behind a text, as the tokenizer builds it."""
    text = loaded.convert_tokens_to_ids(loaded.tokenize(SAMPLE))
    whole = loaded.build_inputs_with_special_tokens(text)
    start = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    before, after = ([(by_id[i], i) for i in part] for part in (whole[:start], whole[start + len(text) :]))
    names = [[name for name, _ in part] for part in (before, after)]
    return processors.TemplateProcessing(
        single=[*names[0], "$A", *names[1]], pair=[*names[0], "$A", "$B", *names[1]], special_tokens=list({*before, *after})
    )
