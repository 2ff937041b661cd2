"""Formats over tokenizers that are not of bytes: by the texts of their tokens."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onnxport.errors import UsageError
from onnxport.runtime.structured.formats import grammar
from onnxport.runtime.structured.matcher import Vocabulary
from onnxport.runtime.tokenizer import TextTokenizer
from support import tiny_bundles as tiny

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", "a", "b", "▁b", "1", "▁1", "é", "ab", "▁ab"]


def metaspace() -> TextTokenizer:
    made = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=2))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return TextTokenizer(made.to_str().encode())


def allowed(vocabulary: Vocabulary, regex: str, *tokens: str) -> set[str]:
    state = vocabulary.begin(grammar({"type": "regex", "regex": regex}) or "")
    mask = np.zeros(vocabulary.size, np.float32)
    state.mask([PIECES.index(token) for token in tokens], mask)
    assert all(state.allows([PIECES.index(token) for token in tokens], i) == (mask[i] == 0) for i in range(len(PIECES)))
    return {PIECES[i] for i in np.flatnonzero(mask[: len(PIECES)] == 0)}


def test_tokens_count_by_what_they_add_to_a_text() -> None:
    tokenizer = metaspace()
    assert not tokenizer.spells_bytes and tokenizer.drops_first_space
    pieces = tokenizer.pieces(15)
    assert (
        pieces[:4] == [b"", b"", b"", b" "]
        and pieces[4:11] == [b" a", b"a", b"b", b" b", b"1", b" 1", "é".encode()]
        and pieces[13:] == [b"", b""]
    )


def test_a_space_before_the_first_word_is_free_as_it_is_dropped() -> None:
    vocabulary = Vocabulary(metaspace(), 15, [1])
    assert allowed(vocabulary, "ab? b") == {"▁", "▁a", "a", "ab", "▁ab"}
    assert allowed(vocabulary, "ab? b", "▁a") == {"b", "▁", "▁b"}
    assert allowed(vocabulary, "ab? b", "▁a", "▁") == {"b"}
    assert allowed(vocabulary, "a+", "a") == {"a", "</s>"}
    state = vocabulary.begin(grammar({"type": "regex", "regex": "ab? b"}) or "")
    assert state.ended([11, 7]) and not state.ended([11]) and not state.ended([]) and state.ended([11, 7, 1])


def test_what_no_token_can_begin_is_refused_at_once() -> None:
    words = Vocabulary(TextTokenizer(tiny.tokenizer("causal").to_str().encode()), tiny.VOCABULARY, [tiny.EOS])
    with pytest.raises(UsageError, match="no token for what must come next"):
        words.begin(grammar({"type": "json_object"}) or "")


def test_a_dead_end_is_told_where_it_comes() -> None:
    state = Vocabulary(metaspace(), 15, [1]).begin(grammar({"type": "regex", "regex": "a(x|y)|ab"}) or "")
    mask = np.zeros(15, np.float32)
    state.mask([5], mask)
    assert {PIECES[i] for i in np.flatnonzero(mask == 0)} == {"b"}
    stuck = Vocabulary(metaspace(), 15, [1]).begin(grammar({"type": "regex", "regex": "a[xyz]"}) or "")
    with pytest.raises(UsageError, match="no token for what must come next"):
        stuck.mask([5], mask)


def test_words_are_tokens_too() -> None:
    tokenizer = TextTokenizer(tiny.tokenizer("causal").to_str().encode())
    vocabulary = Vocabulary(tokenizer, tiny.VOCABULARY, [tiny.EOS])
    state = vocabulary.begin(grammar({"type": "regex", "regex": "w5 (w6|w17) w7"}) or "")
    mask = np.zeros(tiny.VOCABULARY, np.float32)
    for tokens, expected in (([], [5]), ([5], [6, 17]), ([5, 17], [7])):
        state.mask(tokens, mask)
        assert np.flatnonzero(mask == 0).tolist() == expected
    assert state.ended([5, 17, 7]) and tokenizer.decode([5, 17, 7]) == "w5 w17 w7"


def test_a_model_without_an_end_goes_on_until_the_form_ends() -> None:
    vocabulary = Vocabulary(metaspace(), 15, [])
    assert allowed(vocabulary, "ab?", "a") == {"b"}


def test_states_go_back_and_forth() -> None:
    state = Vocabulary(metaspace(), 15, [1]).begin(grammar({"type": "regex", "regex": "[ab1]{3}( a)*"}) or "")
    mask, other = np.zeros(15, np.float32), np.zeros(15, np.float32)
    state.mask([5, 6, 8], mask)
    for way in ([5], [6, 6, 6, 4, 4], [5, 6], [], [8, 8], [5, 6, 8, 1]):
        state.ended(way)
    state.mask([5, 6, 8], other)
    assert (mask == other).all() and state.count([5], [6, 8, 4, 4]) == 4 and state.count([5], [6, 8, 8]) == 2 and state.count([5], []) == 0
