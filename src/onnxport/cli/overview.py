"""Overview of a bundle: its manifest as one dictionary, and a few lines for people."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.cli.console import complain, emit, emit_json
from onnxport.errors import CheckFailed
from onnxport.quantize.plan import KV
from onnxport.runtime.bundle.confirmations import confirmations
from onnxport.runtime.bundle.manifest import EncodingConfig, Variant
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import split
from onnxport.runtime.sessions import DEVICES
from onnxport.runtime.verify import DEVICE

if TYPE_CHECKING:
    from onnxport.compare.report.report import Report


@dataclass(frozen=True)
class Figure:
    """A metric of the parity as people read it: at the head of a column, in words, and the form of its numbers."""

    metric: str
    title: str
    words: str
    form: str


FIGURES = (
    Figure("kl", "KL", "divergence in nats a token", ".1e"),
    Figure("top1_agreement", "same top", "same most probable token", ".1%"),
    Figure("perplexity_change", "perplexity", "perplexity", "+z.2%"),
    Figure("cosine", "cosine", "mean cosine", ".5f"),
    Figure("cosine_least", "least", "least cosine", ".5f"),
    Figure("label_agreement", "same label", "same label", ".1%"),
    Figure("max_abs_diff", "max diff", "largest difference", ".1e"),
    Figure("relative_error", "rel. error", "relative error", ".1e"),
    Figure("greedy_agreement", "same greedy", "same greedy tokens", ".0%"),
)
ON_TEXTS = {"kl", "cosine"}
SCORES = {"single": "softmax of the logits", "multi": "sigmoid of each logit", "regression": "the logits as they are"}


def summary(bundle: Bundle) -> dict[str, Any]:
    """The manifest as it is written, with the bundle's folder."""
    return {"path": str(bundle.path), **bundle.manifest.as_dict()}


def notes(bundle: Bundle) -> list[str]:
    """What the export left out or assumed, a sentence each."""
    found = bundle.provenance.get("notes")
    return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []


def show_bundle(bundle: Bundle, as_json: bool, with_notes: bool = True) -> None:
    """Prints a bundle's manifest or its overview."""
    if as_json:
        emit_json(summary(bundle))
    else:
        emit(overview(bundle, with_notes))


def end_for_failed(bundle: Bundle) -> None:
    """Says which variants failed, each on a line, and ends the command with exit code 3; nothing where none did."""
    for name, reason in bundle.failed.items():
        complain(f"variant {name} failed: {reason}")
    if bundle.failed:
        complain(f"{bundle.path} is published with {', '.join(bundle.variants)}, without {', '.join(bundle.failed)}")
        sys.exit(CheckFailed.exit_code)


def report_folder(out: Path | None, bundle: Path) -> Path:
    """Where the reports on a bundle go."""
    return out or Path("artifacts/reports") / bundle.resolve().name


def show_report(report: Report, folder: Path) -> None:
    """Prints a comparison's table, and where the reports are."""
    from onnxport.compare import table

    emit(table(report))
    emit(f"report: {folder / 'report.html'}")


def overview(bundle: Bundle, with_notes: bool = True) -> str:
    """A table of the variants, below lines about the model, what the bundle was made with, and its notes."""
    provenance, generation = bundle.provenance, bundle.generation
    versions = found if isinstance(found := provenance.get("versions"), dict) else {}
    lines = [f"{bundle.name}  {bundle.task}, {bundle.family}, {provenance.get('route')} route, opset {provenance.get('opset')}"]
    if versions:
        lines.append("made with " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if generation is not None:
        shown = ("layers", "kv_heads", "head_size", "vocab_size", "max_length")
        lines.append("decoder: " + ", ".join(f"{name.replace('_', ' ')} {getattr(generation, name)}" for name in shown))
    if bundle.task == "classification":
        lines.append(f"scores: {SCORES[bundle.encoding.problem]}")
    if bundle.task == "embedding":
        lines.append(_vectors(bundle.encoding))
    lines += [f"note: {note}" for note in notes(bundle) if with_notes]
    lines += ["", *_table(bundle)]
    lines.append("* the default variant; differences are to the original module's own answers")
    if any("kl" in variant.parity for variant in bundle.variants.values()):
        lines.append("  on golden texts: divergence in nats a token, the same most probable token, more perplexity than the original's")
    if any("cosine" in variant.parity for variant in bundle.variants.values()):
        labels = any(_known(variant.parity, "label_agreement") for variant in bundle.variants.values())
        lines.append(
            "  on golden texts: the mean and the least cosine" + (", the same label where the original is decided" if labels else "")
        )
    lines += list(_unconfirmed(bundle))
    lines += [f"failed: {name}: {reason}" for name, reason in bundle.failed.items()]
    lines += [line for name, variant in bundle.variants.items() if (line := _plan(name, variant))]
    return "\n".join(lines)


def _unconfirmed(bundle: Bundle) -> Iterator[str]:
    """Where variants for other targets were checked: on the CPU when they were made, and by whom since."""
    known = confirmations(bundle)
    elsewhere = [name for name, variant in bundle.variants.items() if split(name)[1] in DEVICES and DEVICE in variant.parity]
    if waiting := [name for name in elsewhere if name not in known and split(name)[1] != bundle.variants[name].parity[DEVICE]]:
        yield f"not confirmed by a device yet: {', '.join(waiting)}; checked on the CPU, see `onnxport verify --device --record`"
    for name in elsewhere:
        for entry in known.get(name, ()):
            where = entry["machine"].get("gpu", entry["device"])
            yield f"{name}: confirmed on {where}, {entry['date']}: {parity_line(entry['parity'])}"


def _table(bundle: Bundle) -> list[str]:
    """A row for each variant. Figures that no variant has are left out, and the largest difference where there are better ones."""
    base = bundle.variants["fp32"].bytes if "fp32" in bundle.variants else None
    measured = {name for variant in bundle.variants.values() for name, value in variant.parity.items() if value is not None}
    shown = [figure for figure in FIGURES if figure.metric in measured and (figure.metric != "max_abs_diff" or not measured & ON_TEXTS)]
    widths = [max(len(figure.title), 7) + 3 for figure in shown]
    longest = max(10, *(len(name) + 2 for name in bundle.variants))
    row = f"{{:<{longest}}}{{:>11}}{{:>9}}" + "".join(f"{{:>{width}}}" for width in widths) + "  {}"
    lines = [row.format("variant", "size", "of fp32", *(figure.title for figure in shown), "fusions")]
    for name, variant in bundle.variants.items():
        lines.append(
            row.format(
                name + ("*" if name == bundle.default else ""),
                f"{variant.bytes / 1e6:.2f} MB",
                f"{variant.bytes / base:.2f}" if base else "",
                *(_number(variant.parity.get(figure.metric), figure.form) for figure in shown),
                ", ".join(f"{rule} {count}" for rule, count in variant.fusions.items() if count) or "-",
            )
        )
    return lines


def parity_line(parity: Mapping[str, Any]) -> str:
    """What was measured of a variant, in plain words."""
    return ", ".join(f"{figure.words} {_number(parity[figure.metric], figure.form)}" for figure in FIGURES if _known(parity, figure.metric))


def _known(parity: Mapping[str, Any], metric: str) -> bool:
    return isinstance(parity.get(metric), int | float)


def _vectors(config: EncodingConfig) -> str:
    """How vectors are made of hidden states, in a line."""
    steps = [config.pooling, *(layer.kind for layer in config.layers), *(["normalize"] if config.normalize else [])]
    size = "" if config.truncate_dim is None else f", cut to {config.truncate_dim}"
    prompts = [f"{name} (default)" if name == config.default_prompt else name for name in config.prompts]
    return f"vectors: {', '.join(steps)}{size}" + (f"; prompts: {', '.join(prompts)}" if prompts else "")


def _plan(name: str, variant: Variant) -> str:
    """How many weights have each scheme, and what the cache is; "" where one scheme has them all and nothing else is to tell."""
    if (cache := variant.plan.get(KV)) is not None:
        rest = _plan(name, replace(variant, plan={entry: scheme for entry, scheme in variant.plan.items() if entry != KV}))
        return f"{rest}; key/value cache {cache}" if rest else f"{name}: key/value cache {cache}"
    counts = Counter(str(scheme) for pattern, scheme in variant.plan.items() if "*" not in pattern)
    shares = ", ".join(f"{count} {'weight' if count == 1 else 'weights'} {scheme}" for scheme, count in counts.most_common())
    if chosen := variant.evidence.get("chosen"):
        return f"{name}: {chosen}" + (f"; {shares}" if len(counts) > 1 else "")
    return f"{name}: {shares}" if len(counts) > 1 else ""


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def estimated(found: Mapping[str, Any]) -> str:
    """What an export would write and take; see onnxport.build.estimate."""
    lines = [f"{size / 1e6:12,.1f} MB  {name}" for name, size in sorted(found["files"].items())]
    lines.append(f"{found['bytes'] / 1e6:12,.1f} MB  in all, of {found['parameters'] / 1e6:,.0f} million parameters")
    lines.append(f"{found['memory'] / 1e6:12,.1f} MB  of memory, roughly, beside pages of files that the system can take back")
    lines.append(f"{found['disk'] / 1e6:12,.1f} MB  of disk while it runs")
    lines.append(f"{found['seconds'] / 60:12,.1f} min of time, very roughly, if nothing else runs")
    return "\n".join(lines)
