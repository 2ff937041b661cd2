"""Hugging Face's models behind plain functions of ids: transformers' own classes, and their own `generate`."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.export.deferred import weight_shape
from onnxport.export.transformers_library import encoder_output


class TransformersSeq2Seq:
    """A model of transformers with a language-modelling head."""

    def __init__(self, model: Any, ids: dict[str, Any]) -> None:
        self.model, self.ids = model, ids
        self.modules = [model]
        self.source_rows = _rows(model.get_encoder())
        self.target_rows = min(_rows(model.get_decoder()), _outputs(model.get_output_embeddings()))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 and int32 [batch, source] → memory [batch, source, d]."""
        return self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def decode(self, target_ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """int64 [batch, target], memory and mask as in `encode` → logits [batch, target, vocabulary]."""
        return self.model(
            encoder_outputs=encoder_output(memory), attention_mask=mask.long(), decoder_input_ids=target_ids, use_cache=False
        ).logits

    def forward(self, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
        """Teacher-forced logits [batch, target, vocabulary] through the class's own forward."""
        return self.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=target_ids, use_cache=False).logits

    def generate(self, ids: Tensor, mask: Tensor, most: int, least: int | None, beam: int) -> list[tuple[list[int], float]]:
        """(new tokens without the end, score) a row, by the folder's own settings and a cache.

        The score is the sum of log-probabilities, or with beams what transformers ranks by.
        """
        lengths = {"max_new_tokens": most} | ({} if least is None else {"min_new_tokens": least})
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            num_beams=beam,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **lengths,
        )
        return _answers(out, 1, self.ids["eos_id"], beam)


class SteppedSeq2Seq(TransformersSeq2Seq):
    """ProphetNet's, whose logits of one token a time, which `generate` asks for, are others than those of a whole text.

    There transformers gives positions of a predicting stream the distances of others (`get_predict_relative_pos_embeddings`).
    """

    def decode(self, target_ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Logits by cached steps; as in TransformersSeq2Seq."""
        logits, cache = [], None
        for ids in target_ids.split(1, 1):
            found = self.model(
                encoder_outputs=encoder_output(memory), attention_mask=mask.long(), decoder_input_ids=ids, cache=cache, use_cache=True
            )
            cache = found.cache
            logits.append(found.logits)
        return torch.cat(logits, 1)

    def forward(self, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
        """Logits by cached steps; as in TransformersSeq2Seq."""
        return self.decode(target_ids, self.encode(ids, mask), mask)


def _rows(part: Any) -> int:
    """Rows of the table of tokens of an encoder or decoder; some classes have none that is asked for."""
    table = part.embed_tokens if hasattr(part, "embed_tokens") else part.get_input_embeddings()
    return int(table.num_embeddings)


def _outputs(head: Any) -> int:
    """Ids that a head scores: it may be a table of tokens itself."""
    return int(weight_shape(head)[0])


def _until(row: list[int], ends: set[int]) -> tuple[list[int], int]:
    """The row before its first end, and how many steps it took with it."""
    for i, token in enumerate(row):
        if token in ends:
            return row[:i], i + 1
    return row, len(row)


class TransformersEncoder:
    """A model of transformers that answers in one pass. names: of its outputs that count."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model, self.names, self.modules = model, names, [model]

    def answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 [batch, sequence] → outputs by name."""
        found = self.model(**inputs)
        return {name: found[name] for name in self.names}


class Wrapped(nn.Module):
    """A class of transformers, the `model`, behind the inputs and outputs of an encoder of texts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class OneChoice(Wrapped):
    """A class of multiple choice as a function of one choice a row: it reads [batch, choices, sequence], and answers a logit for each."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Inputs [batch, sequence] by name → "logits" [batch, 1]."""
        return {"logits": self.model(**{name: tensor[:, None] for name, tensor in inputs.items()}).logits}


class TokenHead(Wrapped):
    """A classifier whose head reads one token of each row: the last that is `end`, or without one the last that is real.

    Its class finds that token by code that cannot be traced, or for a single row only.
    """

    def __init__(self, model: Any, end: int | None) -> None:
        super().__init__(model)
        self.end = end

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """int64 [batch, sequence] → "logits" [batch, labels]."""
        shifted = getattr(self.model, "_shift_right", None)  # T5's classes make the decoder's input before their base
        more = {} if shifted is None else {"decoder_input_ids": shifted(input_ids)}
        base = getattr(self.model, self.model.base_model_prefix)
        hidden = base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)[0]
        chosen = (attention_mask != 0).reshape(input_ids.shape) if self.end is None else input_ids == self.end
        last = (chosen * torch.arange(input_ids.shape[1])).amax(1)
        head = self.model.score if hasattr(self.model, "score") else self.model.classification_head
        return {"logits": head(hidden[torch.arange(input_ids.shape[0]), last])}


class RowByRow:
    """A class that answers a row alone, or rows that are like one another. names: of its outputs that count."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model, self.names = model, names

    def answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs [batch, sequence] by name, padded on the right → outputs [batch, ...] by name."""
        rows = []
        for i, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            rows.append(self.model(**{name: tensor[i : i + 1, :length] for name, tensor in inputs.items()}))
        return {name: torch.cat([row[name] for row in rows]) for name in self.names}


class TransformersCausal:
    """A language model of transformers."""

    def __init__(self, model: Any, ids: dict[str, Any]) -> None:
        self.model, self.ids, self.modules = model, ids, [model]
        self.rows = min(model.get_input_embeddings().num_embeddings, model.get_output_embeddings().out_features)
        self._takes_fewer = "logits_to_keep" in inspect.signature(model.forward).parameters

    def causal(self, ids: Tensor, last: int | None = None) -> Tensor:
        """int64 [batch, length] → logits [batch, length or `last`, vocabulary]; rows are padded on the right, where nothing real looks."""
        fewer = {} if last is None or not self._takes_fewer else {"logits_to_keep": last}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **fewer).logits
        return logits if last is None else logits[:, -last:]

    def generate(self, prompts: list[list[int]], most: int, least: int | None, beam: int) -> list[tuple[list[int], float]]:
        """(new tokens without the end, score) a prompt, by the folder's own settings and a cache; see TransformersSeq2Seq."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.ids["pad_id"])
        mask = torch.zeros_like(ids)
        for row, real, prompt in zip(ids, mask, prompts, strict=True):
            row[longest - len(prompt) :], real[longest - len(prompt) :] = torch.tensor(prompt), 1
        lengths = {"max_new_tokens": most} | ({} if least is None else {"min_new_tokens": least})
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=beam,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=self.ids["pad_id"],
            **lengths,
        )
        return _answers(out, longest, self.ids["eos_id"], beam)


def _answers(out: Any, start: int, eos: Any, beam: int) -> list[tuple[list[int], float]]:
    """What `generate` found behind the first `start` ids of each row."""
    ends = set(eos) if isinstance(eos, list) else {eos}
    rows = [_until(row[start:].tolist(), ends) for row in out.sequences]
    if beam > 1:
        return [(row, score) for (row, _), score in zip(rows, out.sequences_scores.tolist(), strict=True)]
    logprobs = torch.stack(out.scores, 1).log_softmax(-1)
    chosen = logprobs.gather(2, out.sequences[:, start:, None])[:, :, 0]
    return [(row, float(line[:steps].sum())) for (row, steps), line in zip(rows, chosen, strict=True)]
