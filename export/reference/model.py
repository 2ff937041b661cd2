"""The original model in PyTorch behind the methods of a loaded bundle: it generates, encodes, classifies, answers and scores."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxport.errors import TextError, UsageError
from onnxport.export.adapters import Module
from onnxport.export.deferred import materialize
from onnxport.export.description import CausalModel, EncoderModel, Model, Seq2SeqModel
from onnxport.export.golden import real
from onnxport.export.pytorch.describe import describe
from onnxport.export.reference.plain_search import beam_search, greedy
from onnxport.export.resolve import resolve
from onnxport.export.routes.direct import flat_call, output_names
from onnxport.export.source import OnnxFile
from onnxport.export.transformers_library import quiet
from onnxport.export.user_code import evaluating
from onnxport.runtime.bundle.interface import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS
from onnxport.runtime.bundle.manifest import GenerationConfig, generation
from onnxport.runtime.decode.generator import Input
from onnxport.runtime.encoder import Encoder as TextEncoder
from onnxport.runtime.encoder import Text
from onnxport.runtime.tasks.classification import Candidates, Classification, choose, classify
from onnxport.runtime.tasks.embedding import encode
from onnxport.runtime.tasks.fill_mask import Fill, fill
from onnxport.runtime.tasks.question_answering import Answer, answer
from onnxport.runtime.tasks.reranking import Ranked, rerank
from onnxport.runtime.tasks.scoring import Likelihood, Row, Scored, Scorer
from onnxport.runtime.tasks.token_classification import OUTSIDE, Entity, entities, tags
from onnxport.runtime.tokenizer import TextTokenizer

NEW_TOKENS = 128
HELD = 0.5  # share of the free memory that weights may take in float32; others are made of their files for each layer that reads them
LOGITS = 2**26  # numbers of logits that are held at once


def _free_memory() -> float:
    """Bytes that programs can have without others giving theirs up; infinity where the system does not tell (it is not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


class PyTorchReference:
    """A source, as `export` takes it, run by its own class in eval mode. Errors: those of `export`, and TextError for its inputs."""

    def __init__(self, source: Any, threads: int | None = None, allow_pickle: bool = False) -> None:
        """`threads`: of the whole process; meant for a process of its own."""
        if threads is not None:
            torch.set_num_threads(threads)
        found = resolve(str(source) if isinstance(source, Path) else source, allow_pickle)
        self.adapter = found.adapter
        self.tokenizers = {side: TextTokenizer(data) for side, data in found.tokenizers.items()}
        self.described: Model | None = None
        if isinstance(self.adapter, OnnxFile):
            raise UsageError("the source is an ONNX file, expected a model in PyTorch; compare without --source: fp32 is the reference")
        if isinstance(self.adapter, Module):
            flat = flat_call(self.adapter)
            self.call, self.examples = flat.original, flat.examples
            self.modules: list[Any] = [self.adapter.module, self.call]
            return
        _, self.described = describe(found, hashed=False)
        self.max_length = self.described.max_length
        if isinstance(self.described, EncoderModel):
            self.modules = self.described.modules
        else:
            self.model: Any = self.described.original
            self.modules = self.model.modules
        for module in self.modules:
            if 4 * sum(parameter.numel() for parameter in module.parameters()) <= HELD * _free_memory():
                materialize(module)

    def generate(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        max_new_tokens: int = NEW_TOKENS,
        min_new_tokens: int | None = None,
        beam: int | None = None,
        batch_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Greedy or beam search. One {text, tokens (without end), score} an input: summed log-probabilities, over the length with beams.

        A Hugging Face folder goes through transformers' `generate` and its own settings; None as `min_new_tokens` or `beam` leaves them
        to these, and elsewhere is 0 and 1.
        """
        if not isinstance(self.described, Seq2SeqModel | CausalModel):
            raise UsageError(f"a {type(self.adapter).__name__} does not generate")
        rows = self._ids(inputs)
        results: list[dict[str, Any]] = [{"text": "", "tokens": [], "score": 0.0} for _ in rows]
        order = [i for i, row in enumerate(rows) if row]
        size = batch_size or max(1, len(order))
        decode = self._generate if hasattr(self.model, "generate") else self._decode
        width = int(self.described.search.get("beam") or 1) if beam is None else beam
        with evaluating(*self.modules, fused=True):
            for start in range(0, len(order), size):
                group = order[start : start + size]
                found = decode([rows[i] for i in group], max_new_tokens, min_new_tokens, width)
                for i, (tokens, score) in zip(group, found, strict=True):
                    results[i] = {"text": self._text(tokens), "tokens": tokens, "score": score}
        return results

    def _generate(self, rows: list[list[int]], most: int, least: int | None, beam: int) -> list[tuple[list[int], float]]:
        """By transformers' own `generate`."""
        most = min(most, self.max_length or most)
        with quiet():
            if isinstance(self.described, CausalModel):
                found = self.model.generate(rows, most, least, beam)
            else:
                source, mask = padded(rows, self._pad())
                found = self.model.generate(source, mask, most, least, beam)
        return list(found)

    def _decode(self, rows: list[list[int]], most: int, least: int | None, beam: int) -> list[tuple[list[int], float]]:
        assert isinstance(self.described, Seq2SeqModel | CausalModel)
        ids, pad = self.described.ids, self._pad()
        if isinstance(self.described, Seq2SeqModel):
            source, mask = padded(rows, pad)
            memory = self.model.encode(source, mask)
            begins = [[ids["decoder_start_id"]] for _ in rows]

            def logits(target: Tensor, owners: list[int]) -> Tensor:
                found: Tensor = self.model.decode(target, memory[owners], mask[owners])
                return found
        else:
            begins = rows

            def logits(target: Tensor, owners: list[int]) -> Tensor:
                found: Tensor = self.model.causal(target)
                return found

        def following(beginnings: list[list[int]], owners: list[int]) -> Tensor:
            target, _ = padded(beginnings, pad)
            return logits(target, owners)[torch.arange(len(beginnings)), torch.tensor([len(row) - 1 for row in beginnings])]

        room = self.max_length
        limits = [most if room is None else min(most, room - len(begin) + 1) for begin in begins]
        search = greedy if beam == 1 else beam_search
        return search(following, begins, limits, least or 0, ids["eos_id"], beam)

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """float32 [texts, hidden], as a bundle of this source gives them; [0, hidden] of no texts."""
        return encode(self._encoder("embedding"), texts, batch_size, None)

    def classify(
        self, texts: Sequence[Text], candidates: Sequence[str] | None = None, batch_size: int = 32, **options: Any
    ) -> list[Classification]:
        """As Model.classify."""
        if candidates is None:
            return classify(self._encoder("classification"), texts, batch_size, None)
        wanted = Candidates.of(candidates, options.get("hypothesis_template"), options.get("multi_label", False))
        task = "multiple-choice" if self._does("multiple-choice") else "classification"
        return choose(self._encoder(task), [str(text) for text in texts], [wanted] * len(texts), batch_size, None)

    def rerank(self, query: str, documents: Sequence[str], batch_size: int = 32) -> list[Ranked]:
        """As Model.rerank."""
        return rerank(self._encoder("classification"), query, documents, None, batch_size, None)

    def entities(self, texts: Sequence[str], aggregation: str = "first", batch_size: int = 32) -> list[list[Entity]]:
        """As Model.entities."""
        return entities(self._encoder("token-classification"), texts, aggregation, frozenset({OUTSIDE}), batch_size, None)

    def tags(self, sentences: Sequence[Sequence[str]], batch_size: int = 32) -> list[list[str]]:
        """As Model.tags."""
        return tags(self._encoder("token-classification"), sentences, batch_size, None)

    def fill(self, texts: Sequence[str], top_k: int = 5, batch_size: int = 32) -> list[list[Fill]]:
        """As Model.fill."""
        return fill(self._encoder("fill-mask"), texts, top_k, None, batch_size, None)

    def answer(self, *, question: Sequence[str], context: Sequence[str], no_answer: bool = False, batch_size: int = 32) -> list[Answer]:
        """As Model.answer."""
        pairs = list(zip(question, context, strict=True))
        return answer(self._encoder("question-answering"), pairs, 1, 30, no_answer, batch_size, None, None)

    def score(self, inputs: Sequence[Input], targets: Sequence[Input], *, top: int = 0, batch_size: int = 32) -> list[Scored]:
        """As Model.score."""
        return self._scorer().score(inputs, targets, top, batch_size)

    def likelihoods(
        self, texts: Sequence[Input], *, window: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> list[Likelihood]:
        """As Model.likelihoods."""
        return self._scorer().likelihoods(texts, window, stride, batch_size)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of an encoder or a module, named as in its bundle."""
        if isinstance(self.described, EncoderModel):
            return self._encoder("tensor").run(inputs)
        if not isinstance(self.adapter, Module):
            raise UsageError(f"a {type(self.adapter).__name__} generates; it does not run on arrays")
        with evaluating(*self.modules, fused=True):
            tensors = [torch.from_numpy(inputs[name]) for name in self.examples]
            outputs = self.call(*tensors)
            names = output_names(self.adapter.outputs, self.call.whole(tensors), len(outputs))
            return {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}

    def _does(self, task: str) -> bool:
        return isinstance(self.described, EncoderModel) and task in self.described.tasks

    def _encoder(self, task: str) -> TextEncoder:
        described = self.described
        if not isinstance(described, EncoderModel):
            raise UsageError(f"a {type(self.adapter).__name__} does not encode")
        if not self._does(task) and hasattr(self.adapter, "for_task"):  # a bundle whose task leaves the head out
            described = self.adapter.for_task(task).describe()
        return original_encoder(described, task, self.tokenizers.get("source"))

    def _scorer(self) -> Scorer:
        model = self.described
        if not isinstance(model, Seq2SeqModel | CausalModel):
            raise UsageError(f"a {type(self.adapter).__name__} does not generate, so it scores no texts")
        return Scorer(settings(model), self.tokenizers.get("source"), self.tokenizers.get("target"), partial(score, model, self._pad()))

    def _pad(self) -> int:
        assert isinstance(self.described, Seq2SeqModel | CausalModel)
        return int(self.described.ids.get("pad_id") or 0)

    def _ids(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        rows = []
        for one in inputs:
            if not isinstance(one, str):
                rows.append([int(i) for i in one])
            elif "source" not in self.tokenizers:
                raise TextError("the source has no tokenizer; give token ids")
            else:
                rows.append(self.tokenizers["source"].encode([one])[0] if one else [])
            if self.max_length is not None and len(rows[-1]) > self.max_length:
                raise TextError(f"input {len(rows) - 1} has {len(rows[-1])} tokens, the model takes at most {self.max_length}")
        return rows

    def _text(self, tokens: list[int]) -> str | None:
        return self.tokenizers["target"].decode(tokens) if "target" in self.tokenizers else None


def original_encoder(model: EncoderModel, task: str, tokenizer: TextTokenizer | None) -> TextEncoder:
    """The runtime's handling of texts around the original of an encoder."""

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with evaluating(*model.modules, fused=True):
            outputs = model.answer({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()})
            return {name: tensor.numpy() for name, tensor in outputs.items()}

    inputs = dict.fromkeys([INPUT_IDS, ATTENTION_MASK] + [TOKEN_TYPE_IDS] * (model.types > 0), "int64")
    return TextEncoder(task, model.encoding_config(), tokenizer, inputs, model.outputs, run, layers=model.layers)


def settings(model: Seq2SeqModel | CausalModel) -> GenerationConfig:
    """What the runtime would know of the model: enough to make rows of its texts."""
    if isinstance(model, Seq2SeqModel):
        sizes = {"kind": "seq2seq", "vocab_size": model.original.target_rows, "source_vocab_size": model.original.source_rows}
    else:
        sizes = {"kind": "causal", "vocab_size": model.original.rows}
    config = generation({"layers": 1, "kv_heads": 1, "head_size": 1, "max_length": model.max_length, **sizes, **model.ids})
    assert config is not None
    return config


def score(model: Seq2SeqModel | CausalModel, pad: int, rows: Sequence[Row], top: int) -> None:
    """Fills in what the rows wait for, as many rows together as `LOGITS` allows."""
    longest = max(len(row.prefix) + len(row.target) for row in rows)
    size = max(1, LOGITS // (longest * settings(model).vocab_size))
    with evaluating(*model.original.modules, fused=True):
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            target, _ = padded([[*row.prefix, *row.target][:-1] for row in group], pad)
            if isinstance(model, Seq2SeqModel):
                source, mask = padded([row.source for row in group], pad)
                logits = model.original.decode(target, model.original.encode(source, mask), mask)
            else:
                logits = model.original.causal(target)
            for row, line in zip(group, logits, strict=True):
                _fill(row, line[len(row.prefix) - 1 :][: len(row.target)].float().log_softmax(-1), top)


def _fill(row: Row, logprobs: Tensor, top: int) -> None:
    """Scores of a row from log-probabilities [target, vocabulary]."""
    places = slice(len(row.found.tokens) - len(row.target), None)
    row.found.token_logprobs[places] = logprobs[torch.arange(len(row.target)), torch.tensor(list(row.target))].numpy()
    best, ids = logprobs.topk(top)
    row.found.top_ids[places], row.found.top_logprobs[places] = ids.numpy(), best.numpy()


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """int64 ids and int32 mask [rows, longest], padded on the right."""
    lengths = [len(row) for row in rows]
    ids = torch.full((len(rows), max(lengths)), pad)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return ids, real(lengths)
