"""Long text in segments: sentences that join to the text, segments that fit, answers with the text's own lines."""

from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import TextError, UsageError
from onnxport.runtime import Model
from onnxport.runtime.tasks.long_text import Segmenter, sentences
from onnxport.runtime.tokenizer import TextTokenizer
from support import tiny_bundles as tiny

# Arthur Conan Doyle, A Scandal in Bohemia (1891); in the public domain
EXCERPT = """A SCANDAL IN BOHEMIA

I.

To Sherlock Holmes she is always THE woman. I have seldom heard
him mention her under any other name. In his eyes she eclipses
and predominates the whole of her sex. It was not that he felt
any emotion akin to love for Irene Adler.

"Wedlock suits you," he remarked. "I think, Watson, that you have
put on seven and a half pounds since I saw you."

"Seven!" I answered.
"""


def texts(text: str) -> list[str]:
    return [" ".join(one.text.split()) for one in sentences(text)[1]]


def test_an_excerpt_in_sentences() -> None:
    assert texts(EXCERPT) == [
        "A SCANDAL IN BOHEMIA",
        "I.",
        "To Sherlock Holmes she is always THE woman.",
        "I have seldom heard him mention her under any other name.",
        "In his eyes she eclipses and predominates the whole of her sex.",
        "It was not that he felt any emotion akin to love for Irene Adler.",
        '"Wedlock suits you," he remarked.',
        '"I think, Watson, that you have put on seven and a half pounds since I saw you."',
        '"Seven!"',
        "I answered.",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. Holmes met Dr. J. H. Watson at St. Mary. They left.", 2),
        ("He paid 3.50 to Smith & Co. in May. Why? Nobody knows!", 3),
        ("Es war am 3. Mai, z.B. im Garten. Danach kam er nie wieder.", 2),
        ("Room No. 5 is not free. No. Go", 3),
        ("Wait... what? “Yes.” (No.) Go", 4),
        ("今日は晴れ。明日は雨？「はい。」終わり", 4),
        ("one line\nanother line\n- a point\n- another", 4),
        ("this line goes on for more than forty characters, so\nit is wrapped, and one sentence.", 1),
        ("this line is long as well, it ends in no mark and then\n- there is a list\n- of two", 3),
        ("", 0),
        (" \n\t ", 0),
        ("no end", 1),
        ("a.b.c. d... e", 1),
    ],
)
def test_sentences_by_rules(text: str, count: int) -> None:
    before, found = sentences(text)
    assert before + "".join(one.text + one.after for one in found) == text
    assert len(found) == count, found
    assert all(one.text == one.text.strip() != "" for one in found)


@pytest.mark.parametrize("text", [EXCERPT, EXCERPT.replace("\n", "\r\n"), "  " + EXCERPT * 3, "a\u2003b.\x0b C\x85d!\u2028E"])
def test_sentences_join_to_the_text(text: str) -> None:
    before, found = sentences(text)
    assert before + "".join(one.text + one.after for one in found) == text


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny.tokenizer("seq2seq").to_str().encode())


@pytest.mark.parametrize("most", [2, 5, 9, 30])
@pytest.mark.parametrize("way", ["segments", "sentences"])
def test_segments_fit_and_join_to_the_text(tokenizer: TextTokenizer, most: int, way: str) -> None:
    before, found = Segmenter(tokenizer, most, way).cut(EXCERPT)
    assert all(len(tokenizer.encode([one.text])[0]) <= most for one in found)
    joined = before + "".join(one.text + one.after for one in found)
    assert joined.split() == EXCERPT.split()
    assert joined.count("\n\n") == EXCERPT.count("\n\n")
    assert all("\n" not in one.text for one in found)
    if way == "segments" and most == 30:
        assert found[2].text.startswith("To Sherlock")
        assert found[2].text.endswith("other name.")  # 8 + 11 + 12 tokens and one at the end: the third would be too many
        assert len(found) < len(sentences(EXCERPT)[1])


def test_a_sentence_without_spaces_is_cut_too(tokenizer: TextTokenizer) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = Segmenter(TextTokenizer(letters.to_str().encode()), 4, "segments")
    _, found = made.cut("ab" * 50)
    assert "".join(one.text + one.after for one in found) == "ab" * 50
    assert max(len(one.text) for one in found) <= 4


def test_a_long_text_is_answered_in_parts(model: Model) -> None:
    lines = ["W " + " ".join(f"w{4 + (i * j) % 36}" for j in range(1, 9)) + "." for i in range(1, 30)]
    text = "\n\n".join(" ".join(lines[i : i + 4]) for i in range(0, len(lines), 4)) + "\n"
    (found,) = model.generate(text, long="segments", max_new_tokens=5)
    parts = Segmenter(model._source(), tiny.POSITIONS, "segments").cut(text)[1]  # type: ignore[arg-type]
    single = [model.generate(part.text, max_new_tokens=5)[0] for part in parts]
    assert found.text == "".join(f"{answer.text}{part.after}" for answer, part in zip(single, parts, strict=True))
    assert found.tokens == [token for answer in single for token in answer.tokens]
    assert found.score == pytest.approx(sum(answer.score for answer in single), abs=1e-3)
    assert found.segments == len(parts) > 8 - 1
    assert found.text.count("\n\n") == text.count("\n\n")
    (one_by_one,) = model.generate([text], long="sentences", max_new_tokens=5)
    assert one_by_one.segments == len(lines)


def test_nothing_to_answer(model: Model) -> None:
    found = model.generate([" \n ", "", "w5"], long="segments", max_new_tokens=3)
    assert [one.segments for one in found] == [0, 0, 1]
    assert [one.finish_reason for one in found][:2] == ["empty", "empty"]
    assert found[0].text == " \n "


@pytest.mark.parametrize(
    ("inputs", "options", "error", "part"),
    [
        ("w5", {"long": "pages"}, UsageError, "long is 'pages'"),
        ("w5", {"n_best": 2, "beam": 2}, UsageError, "n_best"),
        ("w5", {"stop": "w"}, UsageError, "stop"),
        ("w5", {"prefix": "w"}, UsageError, "prefix"),
        ([[5, 6]], {}, TextError, "list"),
    ],
)
def test_what_does_not_go_with_segments(model: Model, inputs: Any, options: dict[str, Any], error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        model.generate(inputs, **{"long": "segments", **options})


def test_language_models_write_on_instead(causal_model: Model) -> None:
    with pytest.raises(UsageError, match="text-generation"):
        causal_model.generate("w5", long="segments")


def test_a_bundle_without_a_tokenizer(seq2seq: tiny.TinyModel, tmp_path: Path) -> None:
    from onnxport.runtime import load

    with (
        load(tiny.write_bundle(tmp_path / "b", seq2seq, with_tokenizer=False), threads=1) as model,
        pytest.raises(TextError, match="tokenizer"),
    ):
        model.generate("w5", long="segments")
