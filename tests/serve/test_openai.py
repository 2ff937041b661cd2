"""OpenAI's own client gets what the runtime's methods give."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from onnxport.runtime import Model

LENGTH = {"max_tokens": 12, "extra_body": {"min_new_tokens": 12}}
OURS = {"max_new_tokens": 12, "min_new_tokens": 12}
TALK: list[Any] = [{"role": "user", "content": "w5 w6"}]
REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
Find = Callable[[str], Model]


def test_models_are_listed_by_their_names(client: OpenAI) -> None:
    names = {one.id for one in client.models.list()}
    assert names == {"translator", "plain", "chat", "vectors", "labels", "ranker", "reader"}
    assert client.models.retrieve("plain").id == "plain"
    with pytest.raises(NotFoundError, match="this server has translator, plain"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("name", ["translator", "plain"])
def test_completions_are_generations(name: str, client: OpenAI, model: Find) -> None:
    prompts = ["w5 w9", "w7", "w30 w4 w11"]
    expected = model(name).generate(prompts, max_new_tokens=9)
    found = client.completions.create(model=name, prompt=prompts, max_tokens=9)
    assert [choice.text for choice in found.choices] == [one.text for one in expected]
    assert [choice.finish_reason for choice in found.choices] == [REASONS[one.finish_reason] for one in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(len(model(name).tokenize(one)) for one in prompts)
    assert found.usage.completion_tokens == sum(len(one.tokens) for one in expected)
    assert found.object == "text_completion" and found.model == name


def test_prompts_may_be_token_ids(client: OpenAI, model: Find) -> None:
    (expected,) = model("plain").generate([[1, 5, 9]], **OURS)
    for prompt in ([1, 5, 9], [[1, 5, 9]]):
        assert client.completions.create(model="plain", prompt=prompt, **LENGTH).choices[0].text == expected.text


def test_an_empty_prompt_has_an_empty_answer(client: OpenAI) -> None:
    found = client.completions.create(model="translator", prompt="")
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("", "stop")


@pytest.mark.parametrize("name", ["translator", "plain"])
def test_streams_join_to_the_whole_answer(name: str, client: OpenAI, model: Find) -> None:
    expected = model(name).generate(["w5 w9", "w8"], beam=1, **OURS)
    texts, reasons, usage = ["", ""], ["", ""], None
    events = client.completions.create(model=name, prompt=["w5 w9", "w8"], stream=True, stream_options={"include_usage": True}, **LENGTH)
    for event in events:
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [one.text for one in expected] and reasons == ["length", "length"]
    assert usage is not None and usage.completion_tokens == 24


def test_stop_texts_end_an_answer(client: OpenAI, model: Find) -> None:
    (whole,) = model("plain").generate("w5 w9", **OURS)
    words = (whole.text or "").split()
    stop = next(word for word in words[3:] if words.index(word) >= 3)
    for given in (stop, [stop, "never there"]):
        choice = client.completions.create(model="plain", prompt="w5 w9", stop=given, **LENGTH).choices[0]
        assert choice.finish_reason == "stop" and choice.text == (whole.text or "")[: (whole.text or "").find(stop)]


def test_seeds_repeat_samples_and_n_gives_several(client: OpenAI) -> None:
    def sampled(seed: int, **more: Any) -> list[str]:
        found = client.completions.create(model="plain", prompt="w5 w9", temperature=1.5, seed=seed, n=4, **LENGTH, **more)
        return [choice.text for choice in found.choices]

    assert sampled(3) == sampled(3) != sampled(4)
    assert len(set(sampled(3))) > 1
    streamed: dict[int, str] = {}
    for event in client.completions.create(model="plain", prompt="w5 w9", temperature=1.5, seed=3, n=3, stream=True, **LENGTH):
        streamed[event.choices[0].index] = streamed.get(event.choices[0].index, "") + event.choices[0].text
    assert sorted(streamed) == [0, 1, 2] and streamed[0] == sampled(3)[0] and len(set(streamed.values())) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_tokens(stream: bool, client: OpenAI, model: Find) -> None:
    (expected,) = model("plain").generate("w5 w9", **OURS)
    answer: Any = client.completions.create(model="plain", prompt="w5 w9", logprobs=0, stream=stream, **LENGTH)
    told = [one.choices[0].logprobs for one in (answer if stream else [answer]) if one.choices[0].logprobs]
    tokens = [token for one in told for token in one.tokens]
    assert "".join(tokens) == expected.text and len(tokens) == 12
    np.testing.assert_allclose([value for one in told for value in one.token_logprobs], expected.token_logprobs, atol=1e-5)
    offsets = [offset for one in told for offset in one.text_offset]
    assert offsets == [len("".join(tokens[:place])) for place in range(12)]


@pytest.mark.parametrize("stream", [False, True])
def test_chats_are_generations_of_their_prompts(stream: bool, client: OpenAI, model: Find) -> None:
    talk: list[Any] = [
        {"role": "developer", "content": "w4"},
        {"role": "user", "content": [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6"}]},
        {"role": "assistant", "content": "w7"},
        *TALK,
    ]
    prompt = model("chat").prompt([{"role": "system", "content": "w4"}, talk[1] | {"content": "w5 w6"}, *talk[2:]])
    (expected,) = model("chat").generate([prompt], **OURS)
    options: dict[str, Any] = {"max_completion_tokens": 12, "extra_body": {"min_new_tokens": 12}, "logprobs": True}
    answer: Any = client.chat.completions.create(model="chat", messages=talk, stream=stream, **options)
    if stream:
        events = list(answer)
        assert events[0].choices[0].delta.role == "assistant"
        text = "".join(event.choices[0].delta.content or "" for event in events)
        told = [entry for event in events if event.choices[0].logprobs for entry in event.choices[0].logprobs.content]
        reason = events[-1].choices[0].finish_reason
    else:
        text, told, reason = answer.choices[0].message.content, answer.choices[0].logprobs.content, answer.choices[0].finish_reason
        assert answer.choices[0].message.role == "assistant" and answer.usage.prompt_tokens == len(prompt)
    assert text == expected.text and reason == "length"
    assert "".join(entry.token for entry in told) == text and bytes(told[0].bytes).decode() == told[0].token
    np.testing.assert_allclose([entry.logprob for entry in told], expected.token_logprobs, atol=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_the_best_tokens_are_told(stream: bool, client: OpenAI, model: Find) -> None:
    loaded = model("plain")
    (expected,) = loaded.generate("w5 w9", **OURS, top_logprobs=3)
    before = [None, *expected.tokens]
    best = [
        {loaded.token_text(token, last): value for token, value in one} for one, last in zip(expected.top_logprobs, before, strict=False)
    ]
    answer: Any = client.completions.create(model="plain", prompt="w5 w9", logprobs=3, stream=stream, **LENGTH)
    told = [one.choices[0].logprobs for one in (answer if stream else [answer]) if one.choices[0].logprobs]
    found = [one for part in told for one in part.top_logprobs or []]
    assert all(token in one for part in told for token, one in zip(part.tokens, part.top_logprobs or [], strict=True))  # greedy
    assert [set(one) for one in found] == [set(one) for one in best] and len(found) == 12
    assert all(found[place][name] == pytest.approx(value, abs=1e-5) for place, one in enumerate(best) for name, value in one.items())
    chat = client.chat.completions.create(model="chat", messages=TALK, logprobs=True, top_logprobs=2, max_tokens=2)
    assert chat.choices[0].logprobs and chat.choices[0].logprobs.content
    entry = chat.choices[0].logprobs.content[0]
    assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_answers_have_the_form_that_is_asked_for(client: OpenAI) -> None:
    form: Any = {"type": "regex", "regex": "w7 w8 w(9|10)"}
    found = client.completions.create(model="plain", prompt="w5", extra_body={"response_format": form})
    assert found.choices[0].text in ("w7 w8 w9", "w7 w8 w10") and found.choices[0].finish_reason == "stop"
    plain = client.chat.completions.create(model="chat", messages=TALK, response_format={"type": "text"}, max_tokens=3)
    assert plain.choices[0].message.content
    with pytest.raises(BadRequestError, match="response_format"):
        client.chat.completions.create(model="chat", messages=TALK, extra_body={"response_format": {"type": "poem"}})


def test_tokens_are_favoured_and_end_answers(client: OpenAI) -> None:
    favoured = client.completions.create(model="plain", prompt="w5", logit_bias={"7": 100}, max_tokens=3)
    assert favoured.choices[0].text == "w7 w7 w7"
    ended = client.completions.create(model="plain", prompt="w5", logit_bias={"7": 100}, extra_body={"stop_token_ids": [7]})
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")


def test_embeddings_are_vectors(client: OpenAI, model: Find) -> None:
    texts = ["a b c", "d"]
    expected = model("vectors").encode(texts)
    for form in ("base64", "float"):
        found = client.embeddings.create(model="vectors", input=texts, encoding_format=form)  # type: ignore[call-overload]
        vectors = [one.embedding for one in found.data]
        if form == "base64":
            vectors = [np.frombuffer(base64.b64decode(one), "<f4") for one in vectors]
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    found = client.embeddings.create(model="vectors", input="a b c")  # the client decodes what it asks for itself
    np.testing.assert_allclose(found.data[0].embedding, expected[0], atol=1e-6)
    assert found.usage.prompt_tokens == len(model("vectors").tokenize("a b c"))
    short = client.embeddings.create(model="vectors", input=texts, dimensions=3, extra_body={"normalize_embeddings": True})
    np.testing.assert_allclose(np.linalg.norm([one.embedding for one in short.data], axis=1), 1, atol=1e-5)
    assert len(short.data[0].embedding) == 3


def test_many_texts_are_embedded_in_turns(client: OpenAI, model: Find) -> None:
    texts = [f"{'abcdefgh'[place % 8]} {'ijklm'[place % 5]}" for place in range(150)]
    found = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert [one.index for one in found.data] == list(range(150))
    np.testing.assert_allclose([one.embedding for one in found.data], model("vectors").encode(texts), atol=1e-6)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"presence_penalty": 1.0}, "presence_penalty", "repetition_penalty"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"max_tokens": 0}, "max_tokens", "expected 1 or more"),
    ({"extra_body": {"top_logprobs": 3}}, "top_logprobs", "top_logprobs"),
    ({"max_tokens": "5"}, "max_tokens", "is a text, expected a whole number"),
    ({"n": True}, "n", "expected a whole number"),
    ({"stop": [""]}, "stop", "not empty"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "goes with stream"),
    ({"extra_body": {"num_beams": 4}}, "num_beams", "use beam"),
    ({"extra_body": {"nonsense": 1}}, "nonsense", "unknown here"),
]


@pytest.mark.parametrize(("options", "param", "part"), REFUSED)
@pytest.mark.parametrize("path", ["completions", "chat"])
def test_what_is_not_answered_is_refused_by_name(path: str, options: dict[str, Any], param: str, part: str, client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=part) as caught:
        if path == "chat":
            client.chat.completions.create(model="chat", messages=TALK, **options)
        else:
            client.completions.create(model="plain", prompt="w5", **options)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
    assert "\n" not in str(caught.value.body)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "w5"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_completions_refuse_by_name(options: dict[str, Any], param: str, client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(**{"model": "plain", "prompt": "w5", **options})
    assert caught.value.param == param


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"top_p": 2.0},
        {"seed": -1},
        {"extra_body": {"beam": 2, "top_k": 3}},
        {"prompt": [999]},
        {"prompt": "w5 " * 60},
    ],
)
def test_what_the_runtime_refuses_is_told(options: dict[str, Any], client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="expected|outside|choose|at most"):
        client.completions.create(**{"model": "plain", "prompt": "w5", **options})


def test_a_stream_that_cannot_begin_has_a_status(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="expected 1 to stream"):
        client.completions.create(model="translator", prompt="w5", stream=True, extra_body={"beam": 2})


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "empty"),
        ([{"role": "clown", "content": "w5"}], "expected system, developer"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "of type 'image_url'"),
        ([{"role": "user", "content": "w5", "colour": "red"}], "unknown here"),
    ],
)
def test_bad_messages_are_told(messages: list[Any], part: str, client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=part):
        client.chat.completions.create(model="chat", messages=messages)


def test_models_of_another_task_say_so(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="does not generate"):
        client.completions.create(model="vectors", prompt="a")
    with pytest.raises(BadRequestError, match="use generate"):
        client.embeddings.create(model="plain", input="w5")
    with pytest.raises(BadRequestError, match="no chat template"):
        client.chat.completions.create(model="plain", messages=TALK)
    with pytest.raises(BadRequestError, match="token ids"):
        client.embeddings.create(model="vectors", input=[1, 2])


def test_harmless_parameters_are_taken(client: OpenAI) -> None:
    found = client.chat.completions.create(
        model="chat", messages=TALK, max_tokens=2, user="me", metadata={"a": "b"}, store=True, presence_penalty=0, logit_bias={}, n=1
    )
    assert found.choices[0].message.content
