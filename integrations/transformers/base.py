"""What all pipelines share: their arguments, and the forms of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from onnxport.errors import TextError, UsageError
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.model import Model
from onnxport.runtime.options import whole

Options = dict[str, Any]
BATCH = 32  # inputs at once where a caller says nothing; answers do not depend on it
WITHOUT_EFFECT = frozenset({"num_workers", "framework", "torch_dtype", "binary_output"})


class Pipeline:
    """A bundle that is called as one of transformers' pipelines.

    model: the loaded Model. device: where it runs. task: the pipeline's name.
    A list gives a list of results, a generator or a dataset an iterator over them, anything else one result.
    """

    task: ClassVar[str]
    bundle_tasks: ClassVar[tuple[str, ...]]
    arguments: ClassVar[frozenset[str]] = frozenset()  # those that are followed
    advice: ClassVar[Mapping[str, str]] = {}  # what to do in place of an argument that is not

    def __init__(self, model: Model, languages: Mapping[str, str], options: Options) -> None:
        self.model, self.device = model, model.device
        self._batch_size = options.pop("batch_size", None)
        self._options = self._checked({**languages, **options})

    def __call__(self, inputs: Any, *args: Any, num_workers: int | None = None, batch_size: int | None = None, **options: Any) -> Any:
        """The results of inputs. Errors: UsageError names an argument that is not followed; those of the model's method."""
        if args:
            raise UsageError(f"found {len(args) + 1} arguments without a name, expected one: the inputs")
        call = {**self._options, **self._checked(options)}
        size = batch_size if batch_size is not None else self._batch_size if self._batch_size is not None else BATCH
        whole("batch_size", size, 1)
        if is_stream(inputs):
            return self._streamed(inputs, call, size)
        if self._is_list(inputs):
            return self._answers(list(inputs), call, size)
        return self._answers([inputs], call, size)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Any]:
        """A result an input."""
        raise NotImplementedError

    def _is_list(self, inputs: Any) -> bool:
        """Whether these are several inputs."""
        return isinstance(inputs, list | tuple)

    def _checked(self, options: Options) -> Options:
        """The arguments that have an effect. UsageError for one that is not followed."""
        for name in options:
            if name not in self.arguments | WITHOUT_EFFECT:
                known = ", ".join(sorted(self.arguments))
                raise UsageError(f"{self.task}: {name} is not followed; {self.advice.get(name, f'expected some of {known}')}")
        return {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}

    def _streamed(self, inputs: Iterable[Any], options: Options, batch_size: int) -> Iterator[Any]:
        items = iter(inputs) if hasattr(inputs, "__iter__") else (inputs[i] for i in range(len(inputs)))  # type: ignore[arg-type, index]
        while batch := list(islice(items, batch_size)):
            yield from self._answers(batch, options, batch_size)


class EncoderPipeline(Pipeline):
    """A pipeline of a model that answers in one pass."""

    def _encoder(self, truncation: Any = False, max_length: int | None = None, pairs: str = "longest_first") -> Encoder:
        """The bundle's encoder, which reads empty texts too and cuts long ones where that is asked for.

        truncation: as transformers' tokenizers take it. max_length: tokens; None is what the model reads. pairs: which of two texts is cut
        with truncation=True. UsageError.
        """
        encoder = replace(self.model.encoding(), reads_empty=True)
        if truncation in (None, False, "do_not_truncate"):
            return encoder
        way = pairs if truncation is True else truncation
        if way not in ("longest_first", "only_first", "only_second"):
            raise UsageError(f"truncation is {truncation!r:.60}, expected True, False, 'longest_first', 'only_first' or 'only_second'")
        most = encoder.config.max_length if max_length is None else whole("max_length", max_length, 1)
        if encoder.tokenizer is None or most is None:
            return encoder
        return replace(encoder, tokenizer=encoder.tokenizer.truncating(most, way), config=replace(encoder.config, max_length=None))


def is_stream(inputs: Any) -> bool:
    """Whether inputs are taken one after the other: a generator, or a dataset (which has a length and members, and is no collection)."""
    if isinstance(inputs, str | Mapping | Sequence):
        return False
    return isinstance(inputs, Iterator) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def texts(inputs: Sequence[Any]) -> list[str]:
    """Inputs that must be texts. TextError."""
    for i, one in enumerate(inputs):
        if not isinstance(one, str):
            raise TextError(f"input {i} is {type(one).__name__}, expected a text")
    return list(inputs)
