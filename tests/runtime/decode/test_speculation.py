"""Guesses change no answer: greedy and sampled, alone and in ragged batches, with every rule, up to every end."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.bundle import interface
from onnxport.runtime.decode.guess_policy import PassCosts
from onnxport.runtime.decode.sampling import RowBatch
from onnxport.runtime.decode.speculation import Text
from support import tiny_bundles as tiny

TEXTS = [[5, 9, 7, 5, 9], [11, 12, 13, 14, 11, 12], [8, 8, 8, 8], [21, 30, 4, 21, 30], [6, 7]]


class Cheap(PassCosts):
    """Passes whose guesses cost next to nothing, so that all that can be guessed is."""

    def needs_plain(self, rows: int) -> bool:
        return False

    def seconds(self, rows: int, width: int) -> float:
        return 1.0 + 1e-9 * width

    def add(self, rows: int, width: int, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Of both kinds a model and another that answers much like it."""
    found = {}
    for kind in ("causal", "seq2seq"):
        for name, sharpness in (("model", 3.0), ("draft", 2.6)):
            folder = tmp_path_factory.mktemp("guessing") / name
            found[f"{kind} {name}"] = load(tiny.write_bundle(folder, tiny.TinyModel(kind, 1, sharpness)), threads=1)
    return found


@pytest.fixture(params=["causal", "seq2seq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(loaded: dict[str, Model], kind: str, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(loaded[f"{kind} model"].engine, "pass_costs", Cheap())
    return loaded[f"{kind} model"]


@pytest.fixture(params=["lookup", "draft"])
def guesses(request: pytest.FixtureRequest, loaded: dict[str, Model], kind: str) -> dict[str, Any]:
    return {"lookup": 5} if request.param == "lookup" else {"draft": loaded[f"{kind} draft"]}


SEARCHES: list[dict[str, Any]] = [
    {},
    {"temperature": 3.0, "seed": 7},
    {"temperature": 4.0, "top_k": 6, "top_p": 0.9, "seed": 8},
    {"repetition_penalty": 1.2},
    {"min_new_tokens": 20},
    {"no_repeat_ngram": 2},
    {"stop": ["w8", "w13", "w34 w"]},
    {"max_new_tokens": 3},
    {"temperature": 3.0, "seed": 9, "repetition_penalty": 1.2, "min_new_tokens": 10},
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda one: " ".join(one) or "greedy")
def test_answers_are_those_without_guesses(model: Model, guesses: dict[str, Any], search: dict[str, Any]) -> None:
    options = {"max_new_tokens": 24, **search}
    for texts in (TEXTS, [TEXTS[1]]):
        plain, guessed = model.generate(texts, **options), model.generate(texts, **options, **guesses)
        assert [(r.tokens, r.text, r.finish_reason) for r in guessed] == [(r.tokens, r.text, r.finish_reason) for r in plain]
        for one, other in zip(plain, guessed, strict=True):
            np.testing.assert_allclose(other.token_logprobs, one.token_logprobs, atol=1e-4)
            assert other.score == pytest.approx(one.score, abs=1e-3)
            assert other.guessed >= other.accepted >= 0 and len(other.tokens) <= options["max_new_tokens"]


def test_guesses_are_checked_and_come_true(model: Model, kind: str) -> None:
    plain = model.generate([TEXTS[0]], min_new_tokens=20, max_new_tokens=20)[0]
    runs: list[int] = []
    state = model.engine.positions  # type: ignore[union-attr]
    before = state.computed
    found = model.generate([TEXTS[0]], min_new_tokens=20, max_new_tokens=20, draft=model)[0]  # its own guesses are all right
    runs.append(state.computed - before)
    assert found.tokens == plain.tokens and found.accepted == found.guessed >= 14


def test_passes_are_counted_where_the_end_is_a_guess_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    advance = RowBatch._advance
    monkeypatch.setattr(RowBatch, "_advance", lambda *given: (runs.append(1), advance(*given))[1])
    plain = model.generate(TEXTS[:1], max_new_tokens=20)[0]
    ends = [token for place, token in enumerate(plain.tokens) if place > 2 and token not in plain.tokens[:place]]
    assert len(ends) > 2
    for end in ends:
        runs.clear()
        found = model.generate(TEXTS[:1], max_new_tokens=20, stop_token_ids=[end], draft=model)[0]
        assert found.tokens == plain.tokens[: plain.tokens.index(end)] and found.finish_reason == "stop"
        assert plain.passes == 0 and found.passes == len(runs) <= len(found.tokens)


def test_a_draft_of_fewer_positions_guesses_as_far_as_they_go(model: Model, kind: str, tmp_path: Path) -> None:
    short = load(tiny.write_bundle(tmp_path / "short", tiny.TinyModel(kind, 1, 2.6, positions=16)), threads=1)
    texts = [[5, 9, 7], [8, 8, 8, 8, 21, 30], [6, 7], [5, 9, 7] * 8]  # the last is longer than the draft's positions
    options: dict[str, Any] = {"min_new_tokens": 20, "max_new_tokens": 20}
    for some in (texts, texts[:1], texts[1:2], texts[3:], [*texts, *texts]):
        plain, guessed = model.generate(some, **options), model.generate(some, **options, draft=short)
        assert [one.tokens for one in guessed] == [one.tokens for one in plain]
    long = guessed[3]
    assert long.guessed == 0 and (kind == "seq2seq" or sum(one.guessed for one in guessed) > 0)
    alone = model.generate(texts[:1], **options, draft=short)[0]
    assert alone.guessed > 0


def test_a_stream_gives_the_same_text(model: Model, guesses: dict[str, Any]) -> None:
    whole = model.generate([TEXTS[0]], max_new_tokens=20, stop=["w13"])[0]
    stream = model.stream(TEXTS[0], max_new_tokens=20, stop=["w13"], **guesses)
    assert "".join(stream) == whole.text
    assert stream.result is not None and stream.result.tokens == whole.tokens


def test_rows_join_and_leave_while_others_guess(model: Model, guesses: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    texts = [rng.integers(4, tiny.VOCABULARY, rng.integers(2, 9)).tolist() * 2 for _ in range(11)]
    plain = model.generate(texts, max_new_tokens=16)
    assert [r.tokens for r in model.generate(texts, max_new_tokens=16, batch_size=3, **guesses)] == [r.tokens for r in plain]


def test_nothing_is_guessed_where_it_does_not_pay(loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    class Dear(Cheap):
        def seconds(self, rows: int, width: int) -> float:
            return float(width)

    model = loaded["causal model"]
    monkeypatch.setattr(model.engine, "pass_costs", Dear())
    assert sum(r.guessed for r in model.generate(TEXTS, max_new_tokens=20, lookup=5)) == 0


def test_an_encoder_decoder_without_ragged_lengths_guesses_for_one_row(loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["seq2seq model"]
    monkeypatch.setattr(model.engine, "pass_costs", Cheap())
    assert interface.QUERY_LENGTHS not in model.engine.inputs  # type: ignore[union-attr]
    options: dict[str, Any] = {"min_new_tokens": 12, "max_new_tokens": 12, "draft": model}
    assert sum(r.guessed for r in model.generate(TEXTS[:1], **options)) > 0
    assert sum(r.guessed for r in model.generate(TEXTS[:2], **options)) == 0


def test_a_full_window_takes_no_guesses(loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["causal model"]
    monkeypatch.setattr(model.engine, "pass_costs", Cheap())
    monkeypatch.setattr(type(model.engine), "shortest_window", 9)
    found = model.generate([TEXTS[0]], min_new_tokens=20, max_new_tokens=20, draft=model)[0]
    assert found.tokens == model.generate([TEXTS[0]], min_new_tokens=20, max_new_tokens=20)[0].tokens
    assert 0 < found.guessed <= 9 - len(TEXTS[0])


def test_a_variant_guesses_for_its_bundle(tmp_path: Path) -> None:
    path = tiny.write_bundle(tmp_path / "bundle", tiny.TinyModel("causal"))
    with load(path, threads=1, draft="fp32") as model:
        model.engine.pass_costs = Cheap()  # type: ignore[union-attr]
        found = model.generate([TEXTS[0]], min_new_tokens=9, max_new_tokens=9)[0]
        assert found.accepted == found.guessed > 0
        assert model.generate([TEXTS[0]], min_new_tokens=9, max_new_tokens=9, draft=False)[0].guessed == 0
        assert model.generate([TEXTS[0]], beam=2, max_new_tokens=9)[0].tokens  # beams have no guesses
    with pytest.raises(UsageError, match="draft is 'int3', this bundle has fp32"):
        load(path, draft="int3")


def test_what_cannot_guess_is_told(loaded: dict[str, Model], tmp_path: Path) -> None:
    model, other = loaded["causal model"], loaded["seq2seq draft"]
    for options, message in (
        ({"draft": other}, "the draft has another kind"),
        ({"draft": "int8"}, "draft is str, expected a loaded Model"),
        ({"lookup": 4, "beam": 2}, "choose beams or guesses"),
        ({"lookup": 4, "draft": loaded["causal draft"]}, "choose one"),
        ({"lookup": -1}, "lookup is -1"),
    ):
        with pytest.raises(UsageError, match=message):
            model.generate([TEXTS[0]], **options)


def test_a_decoder_of_one_position_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "pick_rows", lambda model: model)  # as bundles were made before
    path = tiny.write_bundle(tmp_path / "bundle", tiny.TinyModel("causal"))
    model = load(path, threads=1)
    assert model.generate([TEXTS[0]], max_new_tokens=4)[0].tokens
    with pytest.raises(UsageError, match="lookup: the decoder of variant fp32 .* export the model again"):
        model.generate([TEXTS[0]], lookup=4)
    with pytest.raises(UsageError, match="draft: the decoder .* export the model again"):
        load(path, draft="fp32")


def test_lookup_takes_the_place_most_like_the_end() -> None:
    text = Text([1, 5, 6, 7, 2, 5, 6, 8, 3, 5, 6, 9, 2, 5, 6])
    assert text.following(3) == [8, 3, 5]  # after 2 5 6, not after the latest 5 6
    text.extend([8, 4, 4, 4])
    assert text.following(3) == [4, 4, 4]  # a text that repeats itself goes on so
    assert Text([1, 2, 3]).following(3) == [] and Text([1]).following(3) == []


def test_calls_and_streams_of_many_threads_guess_in_one_batch(model: Model, guesses: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    texts = [rng.integers(4, tiny.VOCABULARY, rng.integers(2, 9)).tolist() * 2 for _ in range(12)]
    plain = [model.generate([text], max_new_tokens=20)[0].text for text in texts]

    def answer(i: int) -> str | None:
        if i % 2:
            return model.generate([texts[i]], max_new_tokens=20, **guesses)[0].text
        return "".join(model.stream(texts[i], max_new_tokens=20, **guesses))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, range(len(texts)))) == plain
