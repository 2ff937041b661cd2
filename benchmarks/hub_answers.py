"""Whether a bundle's answers are those of transformers' own class, pipeline, or of sentence-transformers, on the folder it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

NEW = 10  # tokens of an answer
CLOSE = 1e-4
TEXTS = ("What is a bundle of graphs?", "It says the answers in two lines, 3.14 of them.", "hello")
QUERY, DOCUMENTS = "How is a model exported?", ("Run the command on its folder.", "Cats sleep.", "A model has weights, and a tokenizer.")
QUESTION, CONTEXT = "Who wrote the answer?", "Ada Lovelace wrote the answer in London, before the bundle was made."
CANDIDATES = ("sport", "politics", "weather")


class Asked(NamedTuple):
    """What `onnxport run` is asked for a task: arguments, and a line of standard input or None."""

    arguments: tuple[str, ...]
    line: str | None = None


GENERATED = Asked(("--max-new-tokens", str(NEW), TEXTS[0]))
LINES: dict[str, Asked] = {
    "chat": Asked(("--chat", "--max-new-tokens", str(NEW), TEXTS[0])),
    "text-generation": GENERATED,
    "translation": GENERATED,
    "summarization": GENERATED,
    "text2text": GENERATED,
    "embedding": Asked((TEXTS[0],)),
    "classification": Asked((TEXTS[0],)),
    "token-classification": Asked((CONTEXT,)),
    "fill-mask": Asked(("A bundle is a [MASK] of graphs.",)),
    "question-answering": Asked((), json.dumps({"question": QUESTION, "context": CONTEXT}) + "\n"),
    "zero-shot": Asked(("--candidates", ",".join(CANDIDATES), TEXTS[0])),
    "rerank": Asked((), json.dumps({"query": QUERY, "documents": DOCUMENTS}) + "\n"),
}


def _parts(folder: Path, auto: str) -> tuple[Any, Any, Any]:
    """The tokenizer and the model of a folder by transformers, and the bundle's loader."""
    import transformers

    from onnxport.runtime import load

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return tokenizer, model, load


def _apart(name: str, ours: Any, theirs: Any) -> str:
    """How far arrays are apart; "" where they are close."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape:
        return f"{name}: {ours.shape} for {theirs.shape}"
    worst = float(np.abs(ours - theirs).max(initial=0) / max(1.0, np.abs(theirs).max(initial=0)))
    return "" if worst <= CLOSE else f"{name}: {worst:.1e} apart"


def _generated(tokenizer: Any, model: Any, ids: list[int], got: Any, start: int, **more: Any) -> str:
    """What parts an answer from that of transformers' generate. start: ids before the answer, that of a decoder's start among them."""
    with torch.no_grad():
        rows = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, **more)
    theirs = rows[0, start:].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    wanted = theirs[: next((i for i, token in enumerate(theirs) if token in ends), len(theirs))]
    if list(got.tokens) != wanted:
        return f"tokens {list(got.tokens)} for {wanted}"
    text = tokenizer.decode(wanted, skip_special_tokens=True)
    return "" if got.text == text else f"text {got.text!r} for {text!r}"


def decoder(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """A language model's greedy answers, to texts and where it has a template to a conversation."""
    tokenizer, theirs, load = _parts(folder, "AutoModelForCausalLM")
    ours = load(bundle, precision="fp32")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if ours.tokenize(text) != ids:
            return f"ids {ours.tokenize(text)} for {ids}"
        (got,) = ours.generate([text], max_new_tokens=NEW, temperature=0)
        if found := _generated(tokenizer, theirs, ids, got, len(ids)):
            return found
    if model["task"] == "chat":
        talk = [{"role": "user", "content": TEXTS[0]}]
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
        if ours.prompt(talk) != ids:
            return f"prompt {ours.prompt(talk)} for {ids}"
        (got,) = ours.chat(talk, max_new_tokens=NEW, temperature=0)
        return _generated(tokenizer, theirs, ids, got, len(ids))
    return ""


def seq2seq(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """An encoder-decoder's answers by its own settings."""
    tokenizer, theirs, load = _parts(folder, "AutoModelForSeq2SeqLM")
    ours = load(bundle, precision="fp32")
    for text in TEXTS:
        more = {}
        if "languages" in model:
            tokenizer.src_lang, target = model["languages"]
            more["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(target)
        ids = tokenizer(text)["input_ids"]
        options = dict(zip(("src_lang", "tgt_lang"), model["languages"], strict=True)) if "languages" in model else {}
        (got,) = ours.generate([text], max_new_tokens=NEW, **options)
        if found := _generated(tokenizer, theirs, ids, got, 1, **more):
            return found
    return ""


def embedding(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Vectors of sentence-transformers, or the mean of hidden states."""
    from onnxport.runtime import load

    ours = load(bundle, precision="fp32").encode(list(TEXTS))
    if "native" in model:
        return _apart("vectors", ours, _native_means(model, folder))
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True)
    return _apart("vectors", ours, theirs.encode(list(TEXTS), convert_to_numpy=True))


def _native_means(model: dict[str, Any], folder: Path) -> np.ndarray:
    """Of a folder whose config.json is that of other code: transformers' class by its own keys, the mean over tokens."""
    import transformers
    from hub_folders import build

    config = json.loads((folder / "config.json").read_text())
    theirs, tokenizer = build(model, config), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    read = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**read).last_hidden_state
    mask = read["attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def _pipeline(task: str, folder: Path, **more: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.pipeline(task, model=str(folder), device="cpu", dtype=torch.float32, **more)


def classification(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Probabilities of the text-classification pipeline."""
    from onnxport.runtime import load

    theirs, ours = _pipeline("text-classification", folder, top_k=None), load(bundle, precision="fp32")
    for text, got in zip(TEXTS, ours.classify(list(TEXTS)), strict=True):
        (found,) = theirs([text])
        wanted = {one["label"]: one["score"] for one in found}
        if set(wanted) != set(got.scores):
            return f"labels {sorted(got.scores)} for {sorted(wanted)}"
        if apart := _apart("scores", [got.scores[label] for label in wanted], list(wanted.values())):
            return apart
    return ""


def zero_shot(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Scores of the zero-shot-classification pipeline."""
    from onnxport.runtime import load

    theirs, ours = _pipeline("zero-shot-classification", folder), load(bundle, precision="fp32")
    for multi in (False, True):
        for text, got in zip(TEXTS, ours.classify(list(TEXTS), candidates=list(CANDIDATES), multi_label=multi), strict=True):
            answer = theirs(text, list(CANDIDATES), multi_label=multi)
            wanted = dict(zip(answer["labels"], answer["scores"], strict=True))
            if found := _apart("scores", [got.scores[label] for label in wanted], list(wanted.values())):
                return found
    return ""


def entities(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Entities of the token-classification pipeline, by every way to join them."""
    from onnxport.runtime import load

    ours = load(bundle, precision="fp32")
    for way in ("none", "simple", "first", "average", "max"):
        theirs = _pipeline("token-classification", folder, aggregation_strategy=way)
        for text in (CONTEXT, *TEXTS):
            wanted = [(one.get("entity_group", one.get("entity")), one["start"], one["end"], one["score"]) for one in theirs(text)]
            got = [(one.label, one.start, one.end, one.score) for one in ours.entities([text], aggregation=way)[0]]
            if [one[:3] for one in got] != [one[:3] for one in wanted]:
                return f"{way}: {got[:4]} for {wanted[:4]}"
            if found := _apart(way, [one[3] for one in got], [one[3] for one in wanted]):
                return found
    return ""


def answers(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Logits of starts and ends on a question with its context, and that the answer is in the context."""
    tokenizer, theirs, load = _parts(folder, "AutoModelForQuestionAnswering")
    ours, read = load(bundle, precision="fp32"), tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**read)
    got = ours.run({name: value.numpy() for name, value in read.items()})
    (answer,) = ours.answer(question=QUESTION, context=CONTEXT)
    if CONTEXT[answer.start : answer.end] != answer.answer or not answer.answer:
        return f"answer {answer}"
    return next((found for name in ("start_logits", "end_logits") if (found := _apart(name, got[name], wanted[name]))), "")


def masks(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Tokens of the fill-mask pipeline."""
    from onnxport.runtime import load

    theirs, ours = _pipeline("fill-mask", folder, top_k=5), load(bundle, precision="fp32")
    text = LINES["fill-mask"].arguments[0]
    wanted, (got,) = theirs(text), ours.fill([text], top_k=5)
    if [one.id for one in got] != [one["token"] for one in wanted]:
        return f"tokens {[one.id for one in got]} for {[one['token'] for one in wanted]}"
    if [one.token for one in got] != [one["token_str"] for one in wanted]:
        return f"tokens {[one.token for one in got]} for {[one['token_str'] for one in wanted]}"
    return _apart("scores", [one.score for one in got], [one["score"] for one in wanted])


def ranking(model: dict[str, Any], folder: Path, bundle: Path) -> str:
    """Scores of sentence-transformers' CrossEncoder."""
    from sentence_transformers import CrossEncoder

    from onnxport.runtime import load

    theirs = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True)
    wanted = theirs.rank(QUERY, list(DOCUMENTS))
    got = load(bundle, precision="fp32").rerank(QUERY, list(DOCUMENTS))
    if [one.index for one in got] != [one["corpus_id"] for one in wanted]:
        return f"order {[one.index for one in got]} for {[one['corpus_id'] for one in wanted]}"
    return _apart("scores", [one.score for one in got], [one["score"] for one in wanted])


Check = Callable[[dict[str, Any], Path, Path], str]
CHECKS: dict[str, Check] = {
    "chat": decoder,
    "text-generation": decoder,
    "translation": seq2seq,
    "summarization": seq2seq,
    "text2text": seq2seq,
    "embedding": embedding,
    "classification": classification,
    "zero-shot": zero_shot,
    "token-classification": entities,
    "question-answering": answers,
    "fill-mask": masks,
    "rerank": ranking,
}
NAMES: Sequence[str] = tuple(CHECKS)
