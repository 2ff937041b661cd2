"""The original in PyTorch as a peer: the user's own class, decoding as that class does; torch's own have no cache."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxport.errors import TextError, UsageError
from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.described import original_encoder, original_seq2seq
from onnxport.export.direct import flat_call, output_names
from onnxport.export.families.hugging_face_seq2seq import HuggingFaceSeq2Seq
from onnxport.export.golden import real
from onnxport.export.guard import evaluating
from onnxport.export.model.encoder import pool
from onnxport.export.prepare import prepare
from onnxport.export.source import resolve
from onnxport.export.transformers_library import quiet
from onnxport.runtime.tokenizer import TextTokenizer

NEW_TOKENS = 128
# (rows of ids, the input that each row belongs to) → logits [rows, vocabulary] of each row's next token
Next = Callable[[list[list[int]], list[int]], Tensor]


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """int64 ids and int32 mask [rows, longest], padded on the right."""
    lengths = [len(row) for row in rows]
    ids = torch.full((len(rows), max(lengths)), pad)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return ids, real(lengths)


class PyTorchReference:
    """A source, as `export` takes it, run by its own class in eval mode. Errors: those of `export`, and TextError for its inputs."""

    def __init__(self, source: Any, threads: int | None = None, allow_pickle: bool = False) -> None:
        """`threads`: of the whole process; meant for a process of its own."""
        if threads is not None:
            torch.set_num_threads(threads)
        found = resolve(str(source) if isinstance(source, Path) else source, allow_pickle)
        self.adapter = found.adapter
        self.tokenizers = {side: TextTokenizer(data) for side, data in found.tokenizers.items()}
        if isinstance(self.adapter, Module):
            flat = flat_call(self.adapter)
            self.call, self.examples = flat.original, flat.examples
            self.modules = [self.adapter.module, self.call]
            return
        if isinstance(self.adapter, HuggingFaceSeq2Seq):
            self.max_length: int | None = self.adapter.max_length
            self.model: Any = self.adapter.original()
        else:
            assert isinstance(self.adapter, Seq2Seq | CausalLM | Encoder), "what describes itself brings its own original"
            self.parts = prepare(self.adapter)
            self.max_length = self.parts.max_length
            self.model = original_seq2seq(self.parts) if isinstance(self.adapter, Seq2Seq) else original_encoder(self.parts)
        self.modules = self.model.modules

    def generate(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        max_new_tokens: int = NEW_TOKENS,
        min_new_tokens: int | None = None,
        beam: int | None = None,
        batch_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Greedy or beam search. One {text, tokens (without end), score} an input: summed log-probabilities, over the length with beams.

        A Hugging Face folder goes through transformers' `generate` and its own settings; None as `min_new_tokens` or `beam` is what they
        say, and elsewhere 0 and 1.
        """
        if not isinstance(self.adapter, Seq2Seq | CausalLM | HuggingFaceSeq2Seq):
            raise UsageError(f"a {type(self.adapter).__name__} does not generate")
        rows = self._ids(inputs)
        results: list[dict[str, Any]] = [{"text": "", "tokens": [], "score": 0.0} for _ in rows]
        order = [i for i, row in enumerate(rows) if row]
        size = batch_size or max(1, len(order))
        decode, own = (self._generate, self.adapter.generation) if isinstance(self.adapter, HuggingFaceSeq2Seq) else (self._decode, {})
        width = own.get("beam", 1) if beam is None else beam
        with evaluating(*self.modules, fused=True):
            for start in range(0, len(order), size):
                group = order[start : start + size]
                for i, result in zip(group, decode([rows[i] for i in group], max_new_tokens, min_new_tokens, width), strict=True):
                    results[i] = result
        return results

    def _generate(self, rows: list[list[int]], most: int, least: int | None, beam: int) -> list[dict[str, Any]]:
        assert isinstance(self.adapter, HuggingFaceSeq2Seq), "only transformers' own classes bring a generate"
        source, mask = padded(rows, self.adapter.ids["pad_id"])
        with quiet():
            found = self.model.generate(source, mask, min(most, self.adapter.max_length or most), least, beam)
        return [{"text": self._text(tokens), "tokens": tokens, "score": score} for tokens, score in found]

    def _decode(self, rows: list[list[int]], most: int, least: int | None, beam: int) -> list[dict[str, Any]]:
        ids = self.parts.ids
        if isinstance(self.adapter, Seq2Seq):
            source, mask = padded(rows, ids["pad_id"])
            memory = self.model.encode(source, mask)
            begins = [[ids["decoder_start_id"]] for _ in rows]

            def following(beginnings: list[list[int]], owners: list[int]) -> Tensor:
                target, _ = padded(beginnings, ids["pad_id"])
                logits = self.model.decode(target, memory[owners], mask[owners])
                return logits[torch.arange(len(beginnings)), torch.tensor([len(row) - 1 for row in beginnings])]
        else:
            begins = rows

            def following(beginnings: list[list[int]], owners: list[int]) -> Tensor:
                target, _ = padded(beginnings, ids["pad_id"])
                return self.model.causal(target)[torch.arange(len(beginnings)), torch.tensor([len(row) - 1 for row in beginnings])]

        room = self.max_length
        limits = [most if room is None else min(most, room - len(begin) + 1) for begin in begins]
        search = greedy if beam == 1 else beam_search
        found = search(following, begins, limits, least or 0, ids["eos_id"], beam)
        return [{"text": self._text(tokens), "tokens": tokens, "score": score} for tokens, score in found]

    def encode(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        """float32 [texts, hidden]: pooled as the adapter says (mean by default), of length 1; [0, hidden] of no texts."""
        if not isinstance(self.adapter, Encoder):
            raise UsageError(f"a {type(self.adapter).__name__} does not encode")
        if not texts:
            return np.zeros((0, self.parts.transformer.layers[0].self_attn.embed_dim), np.float32)
        ids, mask = padded(self._ids(texts), self.parts.ids["pad_id"])
        with evaluating(*self.modules, fused=True):
            hidden = pool(self.model.encode(ids, mask), mask, self.adapter.pooling or "mean")
        result: np.ndarray = (torch.nn.functional.normalize(hidden, dim=-1) if normalize else hidden).numpy()
        return result

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of an encoder or a module, named as in its bundle."""
        with evaluating(*self.modules, fused=True):
            if isinstance(self.adapter, Encoder):
                pooling = self.adapter.pooling if self.parts.head is not None else None
                output = original_encoder(self.parts, pooling).encode(
                    torch.from_numpy(inputs["input_ids"]), torch.from_numpy(inputs["attention_mask"])
                )
                return {"last_hidden_state" if self.parts.head is None else "logits": output.numpy()}
            if not isinstance(self.adapter, Module):
                raise UsageError(f"a {type(self.adapter).__name__} generates; it does not run on arrays")
            tensors = [torch.from_numpy(inputs[name]) for name in self.examples]
            outputs = self.call(*tensors)
            names = output_names(self.adapter.outputs, self.call.whole(tensors), len(outputs))
            return {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}

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


def greedy(
    following: Next, begins: list[list[int]], limits: list[int], least: int, eos: int, beam: int = 1
) -> list[tuple[list[int], float]]:
    """(new tokens without the end, sum of log-probabilities with it) of each input; finished rows leave the batch."""
    rows, scores = [list(begin) for begin in begins], [0.0] * len(begins)
    live, length = [i for i, limit in enumerate(limits) if limit > 0], 0
    while live:
        logits = following([rows[i] for i in live], live).float()
        if length < least:
            logits[:, eos] = -torch.inf
        best, tokens = logits.log_softmax(-1).max(-1)
        length += 1
        for i, token, logprob in zip(live, tokens.tolist(), best.tolist(), strict=True):
            rows[i].append(token)
            scores[i] += logprob
        live = [i for i in live if rows[i][-1] != eos and length < limits[i]]
    new = [row[len(begin) :] for row, begin in zip(rows, begins, strict=True)]
    return [(row[:-1] if row and row[-1] == eos else row, score) for row, score in zip(new, scores, strict=True)]


def beam_search(
    following: Next, begins: list[list[int]], limits: list[int], least: int, eos: int, beam: int
) -> list[tuple[list[int], float]]:
    """The best hypothesis of each input by the rules of transformers' generate: 2 * beam candidates, an end counts among the first `beam`,
    log-probability over the number of tokens."""
    running = [[(0.0, list(begin))] for begin in begins]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in begins]
    live, length = [i for i, limit in enumerate(limits) if limit > 0], 0
    while live:
        owners = [i for i in live for _ in running[i]]
        logprobs = following([row for i in live for _, row in running[i]], owners).float().log_softmax(-1)
        length += 1
        if length <= least:
            logprobs[:, eos] = -torch.inf
        at, still = 0, []
        for i in live:
            width = len(running[i])
            sums = torch.tensor([score for score, _ in running[i]])[:, None] + logprobs[at : at + width]
            at += width
            if _advance(sums, running, finished[i], i, length, limits[i], len(begins[i]), eos, beam):
                still.append(i)
        live = still
    return [_best(found) for found in finished]


def _advance(
    sums: Tensor,
    running: list[Any],
    finished: list[tuple[float, list[int]]],
    i: int,
    length: int,
    limit: int,
    begin: int,
    eos: int,
    beam: int,
) -> bool:
    """One step of one input; whether it goes on."""
    values, indices = sums.flatten().topk(min(2 * beam, sums.numel()))
    kept = []
    for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
        parent, token = divmod(index, sums.shape[1])
        row = [*running[i][parent][1], token]
        if token != eos and length < limit:
            kept.append((value, row))
        elif rank < beam and value > -np.inf:
            finished.append((value / length, row[begin : -1 if token == eos else None]))
    finished.sort(key=lambda hypothesis: -hypothesis[0])
    del finished[beam:]
    running[i] = kept[:beam]
    return bool(kept) and not (len(finished) == beam and kept[0][0] / length <= finished[-1][0])


def _best(found: list[tuple[float, list[int]]]) -> tuple[list[int], float]:
    return (found[0][1], found[0][0]) if found else ([], 0.0)
