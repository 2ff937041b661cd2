"""Bundles as models of the lm-evaluation-harness (extra `lm-eval`), under the name "onnxport".

python -m onnxport.integrations.lm_eval run --model onnxport --model_args path=artifacts/smollm2,precision=int8 --tasks arc_easy

That is the harness's own command line, to which this module adds the model. A program of one's own imports this module, or hands an
OnnxportLM to `lm_eval.simple_evaluate`. Texts are tokenized, cut and scored as the harness does for models of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import UsageError
from onnxport.extras import require
from onnxport.runtime.model import load
from onnxport.runtime.options import whole

_api = require("lm_eval.api.model", "lm-eval", "a model of the lm-evaluation-harness")
_registry = require("lm_eval.api.registry", "lm-eval", "a model of the lm-evaluation-harness")
_reading = require("lm_eval.models.utils", "lm-eval", "a model of the lm-evaluation-harness")
_windows = require("lm_eval.utils", "lm-eval", "a model of the lm-evaluation-harness")

LENGTH = 2048  # tokens of a model without a length of its own, as the harness has it
NEW_TOKENS = 256
# the harness's names of the options of a search → those of Model.generate
OPTIONS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty"}


@_registry.register_model("onnxport")
class OnnxportLM(_api.TemplateLM):  # type: ignore[name-defined]
    """A bundle that continues texts, as the harness asks for it.

    path (or pretrained, the harness's usual name): the bundle. precision, device, threads: as in `onnxport.load`; device "cuda:0" is
    "cuda". batch_size: rows that are scored or answered together; "auto" is 32. max_length: tokens of a prompt and its continuation (None:
    what the model takes). max_gen_toks: new tokens where a task does not say.
    Errors: those of `onnxport.load`; UsageError for a bundle of another task, or an option that is not followed.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        pretrained: str | Path | None = None,
        precision: str | None = None,
        device: str | None = None,
        threads: int | str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = NEW_TOKENS,
    ) -> None:
        super().__init__()
        bundle = path if path is not None else pretrained
        if bundle is None:
            raise UsageError("path is missing, expected a bundle's folder, as in --model_args path=artifacts/smollm2")
        where = "cpu" if device is None else str(device).partition(":")[0]
        self.model = load(bundle, precision=precision, device=where, threads=None if threads is None else int(threads))
        self._device = self.model.device
        if self.model.task != "text-generation":
            raise UsageError(f"this bundle's task is {self.model.task}, expected text-generation")
        self._config = self.model.generating().config
        size = 32 if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.batch_size, self.max_gen_toks = whole("batch_size", size, 1), max_gen_toks
        self.max_length = max_length or self._config.max_length or LENGTH

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts. UsageError where the model has none."""
        if not self._config.eos_ids:
            raise UsageError("the model has no token that ends texts, which the harness puts before a text without a context")
        return self._config.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: the one that begins texts, else the one that ends them."""
        return self.eot_token_id if self._config.bos_id is None else self._config.bos_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches: the hash of the bundle's tokenizer."""
        bundle = self.model.bundle
        return "-".join(sorted({bundle.files[file].sha256 for file in bundle.tokenizers.values()}))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The bundle's own, for the harness's report; empty where it has none. UsageError for one by name."""
        if isinstance(chat_template, str) and chat_template:
            raise UsageError(f"chat_template is {chat_template!r:.60}, a bundle has one of its own; leave the name out")
        chat = self.model.bundle.chat
        return "" if chat is None or not chat_template else self.model.bundle.content(chat.template).decode("utf-8")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; without add_generation_prompt it goes on with the last message."""
        return self.model.prompt_text(chat_history, continue_final=not add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Ids of a text, with the special tokens that its tokenizer adds, unless it has the first of them already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.model.token_text(self.prefix_token_id))
        return self.model.tokenize_all([string], special=add_special_tokens)[0]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Of each (key, context, continuation): the sum of its tokens' log-probabilities, and whether greedy search would give it."""
        contexts, targets = [], []
        for _, context, target in requests:
            if not target or len(target) > self.max_length:
                raise UsageError(f"a continuation has {len(target)} tokens, expected 1 to {self.max_length}")
            kept = max(1, self.max_length + 1 - len(target))  # the last token is scored, not read
            contexts.append(context[-kept:])
            targets.append(target)
        found = []
        for request, one in zip(requests, self.model.score(contexts, targets, top=1, batch_size=self.batch_size), strict=True):
            answer = one.score, bool(np.array_equal(one.top_ids[:, 0], one.tokens))
            found.append(answer)
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, read in windows of max_length tokens, as the harness cuts them."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            cut = _windows.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            parts = [_windows.make_disjoint_window(one) for one in cut]
            windows += [(None, context, target) for context, target in parts]
            counts.append(len(parts))
        scores = iter(self._loglikelihood_tokens(windows))
        found = [float(sum(next(scores)[0] for _ in range(count))) for count in counts]
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, one)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each cut before the first text that ends it. UsageError for an option that is not followed."""
        found: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        ends = self.model.token_text(self.eot_token_id)
        for places in groups.values():
            asked = _reading.normalize_gen_kwargs(requests[places[0]].args[1], self.max_gen_toks)
            until = [text for text in _reading.handle_stop_sequences(asked.pop("until", None), eos=ends) if text]
            new, search = asked.pop("max_gen_toks"), self._search(asked)
            room = self.max_length - new
            if room < 1:
                raise UsageError(f"max_gen_toks is {new}, expected less than the {self.max_length} tokens that the model takes")
            prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in places]
            answers = self.model.generate(prompts, max_new_tokens=new, stop=until, batch_size=self.batch_size, **search)
            for i, answer in zip(places, answers, strict=True):
                found[i] = answer.text or ""
                self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
        return found

    def _search(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The options of Model.generate; greedy unless do_sample is asked for. UsageError."""
        sampling, beams = asked.pop("do_sample", None), asked.pop("num_beams", 1)
        if unknown := set(asked) - set(OPTIONS):
            raise UsageError(f"generation_kwargs has {min(unknown)}, expected some of do_sample, num_beams, {', '.join(OPTIONS)}")
        found = {OPTIONS[name]: value for name, value in asked.items()}
        if not sampling and not found.get("temperature"):
            found = {"repetition_penalty": found["repetition_penalty"]} if "repetition_penalty" in found else {}
            found["temperature"] = 0 if beams == 1 else None
        return found | {"beam": beams}


def main() -> None:
    """The harness's command line."""
    require("lm_eval.__main__", "lm-eval", "the lm-evaluation-harness").cli_evaluate()


if __name__ == "__main__":
    main()
