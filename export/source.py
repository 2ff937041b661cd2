"""What the user named → one Source."""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.errors import CheckpointError, UsageError
from onnxport.export.adapters import Adapter, CausalLM, Encoder, Module, Seq2Seq

if TYPE_CHECKING:
    from onnxport.export.models import Described
    from onnxport.export.onnx_source import OnnxFile


@dataclass
class Source:
    """An adapter and where it came from. `task` is what the source says itself; `settings` are ready for JSON. `owned`: nobody else holds
    the adapter's modules."""

    adapter: Adapter | Described | OnnxFile
    name: str
    family: str
    task: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    tokenizers: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chat: dict[str, Any] | None = None
    owned: bool = False


def resolve(source: Any, allow_pickle: bool = False) -> Source:
    """A folder, `package.module:factory`, an adapter, or `(module, example inputs)`.

    Errors: CheckpointError when it is there but cannot be exported, UsageError when there is no such thing.
    """
    if isinstance(source, str) and not Path(source).exists() and _looks_importable(source):
        made = _call(source)
        found = from_object(made, default_name=source.rpartition(":")[0].rpartition(".")[2])
        return found
    if isinstance(source, str | Path):
        return _from_path(Path(source), allow_pickle)
    return from_object(source)


def _looks_importable(text: str) -> bool:
    module, colon, factory = text.rpartition(":")
    return bool(colon) and factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _call(text: str) -> Any:
    """What the factory returns, imported with the current directory on the path, which is taken off again."""
    from onnxport.export.guard import contained

    module_name, _, factory_name = text.rpartition(":")
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        try:
            with contained(f"importing {module_name}"):
                module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise CheckpointError(f"importing {module_name} failed: {error}; install what it needs") from error
            raise UsageError(
                f"no module {module_name} here or installed; run the command where {module_name.split('.')[0]}.py is"
            ) from error
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"importing {module_name} failed: {_one_line(error)}") from error
        factory = getattr(module, factory_name, None)
        if factory is None:
            raise UsageError(f"{module_name} has no {factory_name}; give a function that returns an adapter or (module, inputs)")
        if not callable(factory):
            raise UsageError(f"{text} is a {type(factory).__name__}, not a function that returns an adapter or (module, inputs)")
        try:
            with contained(text):
                return factory()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{text} failed: {_one_line(error)}") from error
    finally:
        sys.path[:] = before


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _from_path(path: Path, allow_pickle: bool) -> Source:
    if not path.exists():
        name = str(path)
        if all(part.isidentifier() for part in name.split(".")) and Path(f"{name.replace('.', '/')}.py").is_file():
            raise UsageError(f"{name} is a module; write {name}:FACTORY, a function in it that returns an adapter or (module, inputs)")
        raise CheckpointError(f"{path} does not exist; give a folder with config.json and weights, package.module:factory or model.onnx")
    if path.suffix == ".onnx" and not path.is_dir():
        from onnxport.export.onnx_source import read_onnx

        return read_onnx(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a folder with config.json and weights nor a file.onnx")
    from onnxport.export.families import read_folder

    return read_folder(path, allow_pickle)


def from_object(made: Any, default_name: str = "") -> Source:
    """A Source from an adapter, or from a module with example inputs."""
    import torch

    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.nn.Module):
        made = Module(module=made[0], inputs=made[1])
    if isinstance(made, torch.nn.Module):
        raise CheckpointError(f"a {type(made).__name__} without example inputs cannot be traced; return (module, inputs) or an adapter")
    if not isinstance(made, Seq2Seq | CausalLM | Encoder | Module):
        raise CheckpointError(f"got a {type(made).__name__}; return Seq2Seq, CausalLM, Encoder, Module or (module, inputs)")
    if isinstance(made, Module):
        family = f"{type(made.module).__module__}.{type(made.module).__qualname__}"
        return Source(made, made.name or default_name or type(made.module).__name__.lower(), family)
    kind = "torch.nn.Transformer" if isinstance(made, Seq2Seq) else "torch.nn.TransformerEncoder"
    tokenizers = read_tokenizers(made)
    hashes: dict[str, str] = {}
    settings = {"embedding_scale": made.embedding_scale, "max_length": made.max_length}
    return Source(made, made.name or default_name or type(made).__name__.lower(), kind, made.task, hashes, tokenizers, settings)


def read_tokenizers(adapter: Seq2Seq | CausalLM | Encoder) -> dict[str, bytes]:
    """`source` and `target` tokenizer bytes; CheckpointError when one knows ids that its table has not."""
    shared = getattr(adapter, "tokenizer", None)
    given = {"source": getattr(adapter, "source_tokenizer", None) or shared, "target": getattr(adapter, "target_tokenizer", None) or shared}
    if not isinstance(adapter, Seq2Seq):
        given = {"source": shared, "target": shared}
    result = {side: tokenizer_bytes(value) for side, value in given.items() if value is not None}
    if isinstance(adapter, Seq2Seq):
        tables = {"source": adapter.source_embedding, "target": adapter.target_embedding or adapter.source_embedding}
    else:
        tables = {"source": adapter.embedding, "target": adapter.embedding}
    problems = []
    for side, data in result.items():
        rows = getattr(tables[side], "num_embeddings", None)  # what is no embedding is refused with the other parts
        if rows is not None and (problem := vocabulary_problem(data, rows, side)):
            problems.append(problem)
    if problems:
        raise CheckpointError("; ".join(dict.fromkeys(problems)))
    return result


def tokenizer_bytes(value: Any) -> bytes:
    """The tokenizer.json of a path or a tokenizers.Tokenizer, after it was proven to load."""
    from tokenizers import Tokenizer

    if isinstance(value, Tokenizer):
        return value.to_str().encode()
    path = Path(value)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"tokenizer {path} cannot be read: {error.strerror}; give the path of a tokenizer.json") from error
    try:
        Tokenizer.from_str(data.decode())
    except Exception as error:
        raise CheckpointError(f"tokenizer {path} is not a tokenizer.json: {_one_line(error)}") from error
    return data


def vocabulary_problem(data: bytes, rows: int, side: str) -> str | None:
    """Why a tokenizer does not fit a table of `rows`, if so. Entries behind the mark of a converted tokenizer are no ids."""
    from tokenizers import Tokenizer

    from onnxport.runtime.tokenizer import UNKNOWN_FROM

    vocabulary = Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True)
    end = vocabulary.get(UNKNOWN_FROM)
    largest = max((i for i in vocabulary.values() if end is None or i < end), default=-1)
    if largest >= rows:
        return f"the {side} tokenizer has ids up to {largest} and the {side} vocabulary {rows} rows"
    return None


def file_hash(path: Path) -> str:
    """sha256 of a file, read piece by piece. CheckpointError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
