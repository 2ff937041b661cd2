"""The model card of a bundle, README.md: what its manifest says that does not change from machine to machine, and how to use it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxport.files import read_regular
from onnxport.runtime.bundle.manifest import Variant
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import Staging

CARD = "README.md"
LICENSE = "license"  # key of the provenance
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
_FRONT = re.compile(r"\A---\r?\n(?P<front>.*?)\r?\n---\s", re.DOTALL)  # the metadata of a card on the Hugging Face hub
_STATED = re.compile(r"^(?P<key>license|license_name):[ \t]*(?P<value>[^\r\n#]+)", re.MULTILINE)
_MOST = 1 << 20  # bytes of a card or licence that are looked at
_UNSAFE = re.compile(r"[^\w .,/@+:()-]")  # what Markdown or YAML could take for more than text
_LONGEST = 80
_HUB_TASKS = {
    "translation": "translation",
    "summarization": "summarization",
    "text-generation": "text-generation",
    "embedding": "feature-extraction",
    "classification": "text-classification",
    "token-classification": "token-classification",
    "fill-mask": "fill-mask",
    "question-answering": "question-answering",
}
_CALLS = {
    "embedding": 'model.encode(["How are you?"])',
    "classification": 'model.classify(["How are you?"])',
    "token-classification": 'model.entities(["Ada came to London."])',
    "fill-mask": 'model.fill("Paris is the [MASK] of France.")    # with the mask as this model writes it',
    "multiple-choice": 'model.classify(["How are you?"], candidates=["Fine.", "Green."])',
    "question-answering": 'model.answer(question="Who came?", context="Ada came.")',
    "tensor": "model.run(inputs)                          # name → array",
}
_INPUTS = {
    "fill-mask": '"Paris is the [MASK] of France."',
    "multiple-choice": """'{"text": "How are you?", "candidates": ["Fine.", "Green."]}'""",
    "question-answering": """'{"question": "Who came?", "context": "Ada came."}'""",
    "tensor": "--npz inputs.npz --out outputs.npz",
}
_FOOTNOTE = (
    "Sizes are those of all that a variant needs. `bundle.json` has the hash of every file and what was measured when the bundle was made; "
    "`onnxport compare` measures speed and quality on your machine and data."
)


def add_license(staging: Staging, source: Any) -> None:
    """Notes in the manifest the licence that a source states, if it does."""
    found = stated_license(source)
    if found is not None:
        assert staging.manifest is not None
        staging.manifest["provenance"][LICENSE] = found


def stated_license(source: Any) -> str | None:
    """The licence in the metadata of a folder's README.md, as on the Hugging Face hub, else the first line of its licence; None without.

    Of a file that is exported the folder counts that it lies in.
    """
    if not isinstance(source, str | Path) or not os.path.exists(source):
        return None
    folder = Path(source) if os.path.isdir(source) else Path(source).parent
    if front := _FRONT.match(_text(folder / CARD)):
        stated = {found["key"]: _plain(found["value"].strip(" \t'\"")) for found in _STATED.finditer(front["front"])}
        own = stated.get("license_name") if stated.get("license") == "other" else None
        if name := own or stated.get("license"):
            return name
    lines = (line.strip() for name in _LICENSE_FILES for line in _text(folder / name).splitlines())
    return next((_plain(line) for line in lines if line), None)


def write_card(staging: Staging) -> None:
    """Writes the card of a bundle in the making, whose variants are all there."""
    (staging.path / CARD).write_bytes(card(staging.preview()).encode())


def card(bundle: Bundle) -> str:
    """The text of a bundle's card: a function of its manifest alone."""
    name, task, found = _plain(bundle.name), bundle.task, bundle.provenance.get(LICENSE)
    stated = _plain(found) if isinstance(found, str) and found else None
    hub = _HUB_TASKS.get(task)
    inputs = _INPUTS.get(task, '"How are you?"')
    call = _CALLS.get(task, 'model.generate(["How are you?"])')
    return "\n".join(
        [
            "---",
            "library_name: onnxport",
            *([f"pipeline_tag: {hub}"] if hub else []),
            *([f'license: "{stated}"'] if stated else []),
            "tags: [onnx, onnxruntime, onnxport]",
            "---",
            "",
            f"# {name}",
            "",
            "A bundle of onnxport: graphs for ONNX Runtime, checked against the original model.",
            "",
            "| | |",
            "| --- | --- |",
            f"| task | {task} |",
            f"| family | {_plain(bundle.family)} |",
            f"| licence | {f'{stated}, as the source states it' if stated else 'the source states none'} |",
            f"| default | `{_plain(bundle.default)}` |",
            "",
            "## Variants",
            "",
            "| variant | devices | size | held against the original |",
            "| --- | --- | --- | --- |",
            *(_row(variant) for variant in bundle.variants.values()),
            "",
            _FOOTNOTE,
            "",
            "## Use",
            "",
            "```sh",
            "pip install 'onnxport[cpu]'",
            f"onnxport run FOLDER {inputs}",
            "onnxport verify FOLDER",
            "```",
            "",
            "```python",
            "from onnxport import load",
            "",
            'model = load("FOLDER")',
            call,
            "```",
            "",
            "## Source",
            "",
            "| file | SHA-256 |",
            "| --- | --- |",
            *(f"| `{_plain(file)}` | `{_plain(digest)}` |" for file, digest in _source(bundle)),
            "",
        ]
    )


def _row(variant: Variant) -> str:
    parity = "; ".join(_parity(variant.parity))
    return f"| `{_plain(variant.name)}` | {_plain(variant.target)} | {variant.bytes / 1e6:.2f} MB | {parity} |"


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    """What a variant was judged by: each metric with its bound."""
    bounds = parity.get("bounds")
    for metric, bound in sorted(bounds.items()) if isinstance(bounds, Mapping) else ():
        value = parity.get(metric)
        if isinstance(value, int | float) and isinstance(bound, int | float):
            least = metric.endswith(("agreement", "cosine"))
            yield f"{_plain(metric).replace('_', ' ')} {value:.2g} (at {'least' if least else 'most'} {bound:g})"


def _source(bundle: Bundle) -> list[tuple[str, str]]:
    found = bundle.provenance.get("source")
    return sorted((str(file), str(digest)) for file, digest in found.items()) if isinstance(found, Mapping) else []


def _text(path: Path) -> str:
    try:
        return read_regular(path, _MOST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _UNSAFE.sub("-", " ".join(text.split()))[:_LONGEST]
