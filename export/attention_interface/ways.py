"""How a class runs with a cache of ours, found by trying: through the attention interface, or by its own attention's products."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onnxport.errors import CheckpointError, one_line
from onnxport.export.attention_interface.attention import NAME, LayerShape, Step, cached_attention, handing_cache, running
from onnxport.export.attention_interface.experts import dense
from onnxport.export.attention_interface.masks import marked
from onnxport.export.attention_interface.own_attention import (
    FirstScores,
    Scores,
    Watch,
    bands,
    found_scores,
    found_table,
    watched_cache,
)
from onnxport.export.attention_interface.positions import NUMBERED, positions_of_rows
from onnxport.export.attention_interface.rotation import fixed_rotation
from onnxport.export.attention_interface.untraced import Untraced
from onnxport.export.deferred import weight_shape
from onnxport.runtime.bundle.interface import ATTENTION_MASK, POSITION_IDS

FEW, SOME, MANY = 12, 1024, 4096  # ids of a trial; of a bias that may be a slope; positions of one that is none
TOLERANCE = 1e-3  # of the largest difference, over the largest logit


@dataclass(frozen=True)
class Way:
    """positions: "given" as position_ids, "counted" by the class from the length of its cache, which is told of each row, or "none".
    scores: of each call of a class's own attention, None through the interface. shapes: the cache of each call. constants: see Untraced.
    first: position of a text's first token, where they are given.
    """

    positions: str
    scores: tuple[Scores, ...] | None = None
    shapes: tuple[LayerShape, ...] = ()
    constants: tuple[Any, ...] | None = None
    first: int = 0

    @contextmanager
    def prepared(self, model: Any) -> Iterator[None]:
        """The model runs this way, until the block is left."""
        with ExitStack() as stack:
            stack.enter_context(fixed_rotation(model))
            stack.enter_context(cached_attention(model) if self.scores is None else dense(model))
            if self.positions == "counted":
                stack.enter_context(positions_of_rows(model))
            yield

    def run(self, model: Any, step: Step, ids: Tensor, positions: Tensor, watch: Watch | None = None) -> Any:
        """The class's own answer for one step: ids and positions int64 [rows, length]. The model is prepared."""
        given = {POSITION_IDS: positions + self.first} if self.positions == "given" else {}
        if self.positions == "counted" and ATTENTION_MASK in inspect.signature(model.forward).parameters:
            given[ATTENTION_MASK] = torch.ones_like(ids)  # else the class makes one as long as its cache
        step.positions = positions if self.positions == "counted" else None
        step.at, step.known = positions, self.shapes
        with running(step), ExitStack() as stack:
            untraced = stack.enter_context(Untraced(self.constants))
            if self.scores is None:
                stack.enter_context(marked(NAME, lambda mark, mask: step.masks.update({id(mark): (mark, mask)})))
                cache = handing_cache(step)
            else:
                watch = watch or Watch(self.scores)
                stack.enter_context(watch)
                cache = watched_cache(step, watch)
            found = model(input_ids=ids, use_cache=True, cache=cache, **given)
        step.constants = untraced.found
        return found


def find_way(model: Any, longest: int | None) -> Way:
    """The way of a class whose texts have `longest` positions, None for no bound. CheckpointError: none gives its own answers."""
    few = min(FEW, longest or FEW)
    name = type(model).__name__
    reads = inspect.signature(model.forward).parameters
    if not {"cache", "past_key_values"} & reads.keys():
        raise CheckpointError(f"{name} takes no cache")
    _check_causal(model, few)
    reasons = []
    for start in _starts(model, reads):
        for find in (_through_interface, _by_products):
            try:
                way = find(model, start, few, longest)
                with torch.no_grad():
                    _try(model, way, few)
                return way
            except CheckpointError as error:
                reasons.append(str(error))
            except Exception as error:  # the class's own code raises what it likes
                reasons.append(f"it does not run with a cache of ours ({type(error).__name__}: {one_line(error, 200)})")
    raise CheckpointError(f"{name} cannot be traced with cached attention: {'; '.join(dict.fromkeys(reasons))}")


def _starts(model: Any, reads: Mapping[str, Any]) -> list[Way]:
    """Ways of positions that may be the class's; many kin of RoBERTa number them from behind the padding id on."""
    if POSITION_IDS not in reads:
        return [Way("counted"), Way("none")]
    padding = next((m.padding_idx for m in model.modules() if hasattr(m, NUMBERED) and isinstance(m.padding_idx, int)), None)
    return [Way("given") if padding is None else Way("given", first=padding + 1)]


def _check_causal(model: Any, few: int) -> None:
    """CheckpointError: what is behind a token changes what the class makes of it."""
    ids = _ids(model, few, rows=1)
    try:
        with torch.no_grad():
            whole, part = (model(input_ids=some, use_cache=False).logits for some in (ids, ids[:, :-1]))
    except Exception as error:  # the class's own code raises what it likes
        raise CheckpointError(f"{type(model).__name__} itself does not run ({type(error).__name__}: {one_line(error, 200)})") from error
    if _difference(whole[:, : few - 1], part) > TOLERANCE:
        why = "; is_decoder is False in config.json, expected True" if getattr(model.config, "is_decoder", None) is False else ""
        raise CheckpointError(f"{type(model).__name__} looks at what comes behind a token, expected a language model{why}")


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max()) if a.numel() else 0.0


def _through_interface(model: Any, way: Way, few: int, longest: int | None) -> Way:
    """Through transformers' attention interface. CheckpointError: it does not come through it."""
    step = _first_run(model, way, _ids(model, few))
    if not step.shapes:
        raise CheckpointError("its attention does not come through transformers' attention interface")
    return replace(way, shapes=tuple(step.shapes), constants=tuple(step.constants))


def _by_products(model: Any, way: Way, few: int, longest: int | None) -> Way:
    """By the products of its own attention. CheckpointError: they are none that are known."""
    way, seen = replace(way, scores=()), bands(model)
    watches = [Watch(None, product, seen) for product in (0.0, 1.0, 2.0)]
    for watch in watches:
        _first_run(model, way, _ids(model, few), watch)
    if not watches[0].calls:
        raise CheckpointError("its attention asks no cache for keys and values")
    scores = found_scores([watch.calls for watch in watches])
    if any(one.table is not None for one in scores):
        scores = _with_long_bias(model, way, scores, longest)
    way = replace(way, scores=tuple(scores))
    step = _first_run(model, way, _ids(model, few))
    return replace(way, shapes=tuple(step.shapes), constants=tuple(step.constants))


def _first_run(model: Any, way: Way, ids: Tensor, watch: Watch | None = None) -> Step:
    """A step of whole rows, and what it leaves."""
    rows, length = ids.shape
    last = torch.full((rows,), length - 1, dtype=torch.int32)
    step = Step([], last, torch.tensor(length, dtype=torch.int32), last + 1, tries=True)
    with torch.no_grad(), way.prepared(model):
        way.run(model, step, ids, torch.arange(length).expand(rows, length), watch)
    return step


def _with_long_bias(model: Any, way: Way, scores: list[Scores], longest: int | None) -> list[Scores]:
    """Scores with a bias that holds for long texts: found at many positions, and at all where it is no slope."""
    first = scores[0].table
    if first is None or any(one.table is None or not torch.equal(one.table, first) for one in scores):
        raise CheckpointError("the bias of scores differs from layer to layer")
    for length in (min(SOME, longest or SOME), longest):
        if length is None or length > MANY:
            raise CheckpointError(f"the bias of scores is no slope, and texts are bounded to {longest} tokens, expected at most {MANY}")
        watch = Watch(None, 0.0, bands(model), first=True)
        with suppress(FirstScores):
            _first_run(model, way, _ids(model, length, rows=1), watch)
        table = found_table(watch.calls[0])
        assert table is not None
        found = [one.with_table(table) for one in scores]
        if found[0].slopes is not None or length == longest:
            break
    return found


def _ids(model: Any, length: int, rows: int = 2) -> Tensor:
    """Random ids int64 [rows, length] that are none of the special ones."""
    config = model.config.get_text_config()
    stated = [getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    special = {i for value in stated for i in (value if isinstance(value, list) else [value])}
    count = min(512, int(weight_shape(model.get_input_embeddings())[0]))
    usual = torch.tensor([i for i in range(count) if i not in special] or [0])
    return usual[torch.randint(len(usual), (rows, length), generator=torch.Generator().manual_seed(7))]


def _try(model: Any, way: Way, few: int) -> None:
    """CheckpointError: two rows of different lengths get other answers step by step than from the class itself over the whole text."""
    ids = _ids(model, few)
    expected = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
    ends = torch.tensor([few - few // 4 - 2, max(1, few // 4)])
    chunks = [ends, torch.tensor([2, 1]), *[torch.tensor([1, 1])] * (few // 4)] if few >= 4 else [torch.tensor([few, 1])]
    starts = torch.zeros(2, dtype=torch.long)
    past: list[Tensor] = []
    with way.prepared(model):
        for real in chunks:
            length = int(real.max())
            positions = starts[:, None] + torch.arange(length)
            last = (starts + real - 1).int()
            step = Step(past, last, last.max() + 1, real.int(), tries=True)
            logits = way.run(model, step, ids.gather(1, positions.clamp(max=few - 1)), positions).logits
            rows = torch.arange(2)
            worst = _difference(logits[rows, real - 1], expected[rows, last.long()])
            if not worst <= TOLERANCE:
                what = "its answers from a cache differ" if past else "its answers with cached attention differ"
                raise CheckpointError(f"{what} from its own by {worst:.1g} of the largest logit")
            starts, past = starts + real, [*step.present]
