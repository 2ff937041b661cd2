"""Verification of a bundle: its files, and how far each variant is from the golden answers of the original class.

Golden answers are replayed through the sessions that `generate` uses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import BundleError, ParityError
from onnxport.runtime.arrays import relative_error
from onnxport.runtime.bundle import golden, signature
from onnxport.runtime.bundle.interface import ATTENTION_MASK
from onnxport.runtime.bundle.manifest import Variant
from onnxport.runtime.bundle.reader import Bundle, unreplaced
from onnxport.runtime.bundle.variant_names import suits
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.generator import Generator
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.options import Options, Watch
from onnxport.runtime.sessions import CPU, DEVICES, Sessions, check_version, required_device
from onnxport.runtime.text_replay import answers, distributions

Arrays = dict[str, np.ndarray]
DEVICE = "device"  # key of a parity: where it was measured, of a variant for another target


def verify(path: str | Path, threads: int | None = None, device: str | None = None, signed_by: str | Path | None = None) -> dict[str, Any]:
    """Check everything that can be checked on this machine.

    device: on which variants are run, those alone that are for it; None for all, each on the device that it was checked on when made.

    signed_by: a public key, or certificates of authorities, that the bundle must be signed by; see `bundle.signature`.

    Returns {"path", "signed_by" (that file, or None), "signer" (the name in the certificate that signed, or None), "files" (how many),
    "unlisted" (files the manifest does not name), "search" (they load), "variants": name → parity found now}. BundleError for a changed,
    missing or unloadable file, or a signature; DeviceError for a variant whose device cannot be had; ParityError when golden answers are
    not reproduced within the bounds that the manifest records.
    """
    return unreplaced([path], lambda: _verified(path, threads, device, signed_by))


def _verified(path: str | Path, threads: int | None, device: str | None, signed_by: str | Path | None) -> dict[str, Any]:
    bundle = Bundle.open(path, verify=True)
    signer = None if signed_by is None else signature.check(bundle, signed_by)
    sessions = Sessions.on(device or CPU.name, threads)
    for file in bundle.search.values():  # those for other devices load on the CPU too
        sessions.open(bundle.file(file))
    variants = {}
    for name, variant in bundle.variants.items():
        if device is not None and not suits(name, device, bundle.variants):
            continue
        variants[name] = replay(bundle, name, device or _checked_on(variant), threads)
        check_bounds(name, variant.parity.get("bounds", {}), variants[name])
    return {
        "path": str(bundle.path), "signed_by": None if signed_by is None else str(signed_by), "signer": signer,
        "files": len(bundle.files), "unlisted": bundle.unlisted(), "search": sorted(bundle.search), "variants": variants,
    }  # fmt: skip


def _checked_on(variant: Variant) -> str:
    """The device on which a variant's parity was measured."""
    found = variant.parity.get(DEVICE)
    return found if found in DEVICES else (required_device(variant.target) or CPU).name


def replay(bundle: Bundle, variant: str, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Compare a variant with the bundle's goldens.

    A model that generates is run twice over every case, as prefill of each beginning and step by step; the worse counts. Returns
    max_abs_diff; relative_error, rms(difference) / rms(golden - its mean over the last axis); argmax_agreement, the share of positions with
    the golden arg-max (generating models); greedy_agreement, the share of golden greedy tokens before the first difference, the end counted
    (None without such a case); finite; cases, their number; on golden texts, where there are any, what `text_replay.distributions` measures
    of a model that generates, and `text_replay.answers` of an encoder. BundleError when goldens are missing, unreadable or leave nothing
    to compare.
    """
    entry = bundle.variants[variant]
    check_version(entry.min_onnxruntime, f"variant {variant} of {bundle.path}")
    cases = golden.read_answers(bundle)
    sessions = replace(Sessions.on(device, threads), sparing=True)
    if bundle.generation is None:
        return _encoded(Encoder.open(bundle, entry, sessions, None), cases)
    engine = Engine(bundle, entry, sessions)
    greedy, text = cases.pop(golden.GREEDY, None), cases.pop(golden.TEXT, None)
    differences = [pair for name, case in cases.items() for pair in _compared(name, _logits(engine, case))]
    if not differences:
        raise BundleError(f"{bundle.path}: the golden answers hold no logits to compare; export the model again")
    result = _summary([[pair] for pair in differences], None if greedy is None else _greedy(engine, greedy), logits=True)
    if text is None:
        return result
    with _complete():
        measured = distributions(engine, text)
    return result | measured | {"finite": result["finite"] and measured["kl"] is not None}


def check_bounds(
    name: str, bounds: Mapping[str, float], found: Mapping[str, Any], advice: str = "export the model again on this version"
) -> None:
    """ParityError when what was `found` of variant `name` breaks a bound: agreements and cosines have a least value, all else a greatest.

    Nothing passes by absence: not a variant without bounds, nor a metric that was not measured.
    """
    if not found.get("finite"):
        raise ParityError(f"variant {name}: values that are not finite, expected the golden answers; {advice}")
    if not isinstance(bounds, Mapping) or not bounds:
        raise ParityError(f"variant {name}: no bounds are recorded, expected at least relative_error; {advice}")
    for metric, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise ParityError(f"variant {name}: the bound of {metric} is {bound!r}, expected a number; {advice}")
    if problems := broken(bounds, found):
        raise ParityError(f"variant {name}: {', '.join(problems)}; {advice}")


def broken(bounds: Mapping[str, float], found: Mapping[str, Any]) -> list[str]:
    """What of `found` breaks a bound, a phrase each."""
    problems = []
    for metric, bound in bounds.items():
        value, least = found.get(metric), metric.endswith(("agreement", "cosine"))
        if value is None or not (value >= bound if least else value <= bound):
            shown = "not measured" if value is None else f"{value:.6g}" if metric == "cosine" else f"{value:.3g}"
            problems.append(f"{metric} is {shown}, expected at {'least' if least else 'most'} {bound:g}")
    return problems


def _compared(name: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a case that hold values. BundleError without any: a case that compares nothing must not pass."""
    found = [pair for pair in pairs if pair[0].size]
    if not found:
        raise BundleError(f"the golden case {name} has no outputs to compare; export the model again")
    return found


def _summary(cases: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], greedy: float | None, logits: bool = False) -> dict[str, Any]:
    largest = relative = 0.0
    agreement, finite = 1.0, True
    pairs = [(g.astype(np.float64), f.astype(np.float64)) for case in cases for g, f in case]
    for expected, found in pairs:
        if not np.isfinite(found).all():
            finite = False
            continue
        largest, relative = max(largest, float(np.abs(expected - found).max(initial=0))), max(relative, relative_error(expected, found))
        if logits:
            agreement = min(agreement, float((expected.argmax(-1) == found.argmax(-1)).mean()))
    result: dict[str, Any] = {"max_abs_diff": largest, "relative_error": relative, "finite": finite, "cases": len(cases)}
    return result | ({"argmax_agreement": agreement, "greedy_agreement": greedy} if logits else {})


@contextlib.contextmanager
def _complete() -> Iterator[None]:
    """BundleError where arrays of a case are missing or do not fit each other."""
    try:
        yield
    except (KeyError, ValueError, IndexError, TypeError) as e:
        raise BundleError(f"the golden answers are incomplete ({e}); export the model again") from None


def _logits(engine: Engine, case: Arrays) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(golden, found) logits [positions, vocabulary] by prefill, then by steps."""
    with _complete():
        ids, lengths = golden.targets(case)
        expected, (rows, length) = case["logits"], ids.shape
        sources = golden.sources(case) if engine.encoder is not None else None
        real = np.arange(length) < lengths.reshape(rows, 1)
        if not ids.size or len(sources or ids) != rows:
            raise ValueError(f"{rows} rows of {length} ids for {len(sources or ids)} sources")
    for found in (_prefilled(engine, sources, ids), _stepped(engine, sources, ids)):
        if found.shape != expected.shape:
            raise BundleError(f"the golden logits have shape {expected.shape}, the model gives {found.shape}; export the model again")
        yield expected[real], found[real]


def _prefilled(engine: Engine, sources: list[list[int]] | None, ids: np.ndarray) -> np.ndarray:
    """Each beginning of each row is a row of one prefill; those of one source share its keys and values, as beams do."""
    cross = engine.encode(sources) if sources is not None else None
    rows, length = ids.shape
    beginnings = [row[: t + 1].tolist() for row in ids for t in range(length)]
    state = DecoderState(engine, cross, beginnings, 1)
    state.prefill()
    logits: np.ndarray = state.logits.numpy().reshape(rows, length, -1)
    return logits


def _stepped(engine: Engine, sources: list[list[int]] | None, ids: np.ndarray) -> np.ndarray:
    cross = engine.encode(sources) if sources is not None else None
    state = DecoderState(engine, cross, ids[:, :1].tolist(), ids.shape[1])
    state.prefill()
    found = [state.logits.numpy().copy()]
    for t in range(1, ids.shape[1]):
        state.ids[:, 0] = ids[:, t]
        state.step()
        found.append(state.logits.numpy().copy())
    return np.stack(found, 1)


def _greedy(engine: Engine, case: Arrays) -> float:
    with _complete():
        tokens, inputs = case["tokens"], golden.sources(case)
        lengths = case["lengths"].reshape(len(inputs))
        if not tokens.size or tokens.shape[:-1] != lengths.shape:
            raise ValueError(f"greedy tokens of shape {tokens.shape} for {len(inputs)} inputs")
    plain = Generator(engine, None, None, engine.config.plain())  # goldens are the class alone, whatever its generation config says
    answers = plain.generate(inputs, None, Options(max_new_tokens=tokens.shape[1]), Watch())
    same = total = 0
    for answer, row, length in zip(answers, tokens, lengths, strict=True):
        end = [-1] if length < tokens.shape[1] else []  # the original ended here
        expected = [*row[:length].tolist(), *end]
        found = [*answer.tokens, *([-1] if answer.finish_reason == "eos" else [])]
        different = [i for i, token in enumerate(expected) if i >= len(found) or found[i] != token]
        same, total = same + (different[0] if different else len(expected)), total + len(expected)
    return same / max(total, 1)


def _encoded(encoder: Encoder, cases: Mapping[str, Arrays]) -> dict[str, Any]:
    found = {name: encoder.run(golden.inputs(case)) for name, case in cases.items()}
    result = _summary([_compared(name, _tensors(encoder, case, found[name])) for name, case in cases.items()], None)
    texts = [(case, found[name]) for name, case in cases.items() if name.startswith(golden.TEXT)]
    if not texts or not result["finite"]:
        return result
    with _complete():
        return result | answers(encoder, texts)


def _tensors(encoder: Encoder, case: Arrays, found: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    """(golden, found) of every output; positions that an attention mask leaves out are not compared."""
    inputs = golden.inputs(case)
    pairs = []
    for name, expected in golden.outputs(case).items():
        if name not in found or found[name].shape != expected.shape:
            raise BundleError(
                f"the golden output {name} has shape {expected.shape}, the model gives {found.get(name, np.zeros(0)).shape}; export again"
            )
        mask = inputs.get(ATTENTION_MASK)
        if mask is not None and (expected.ndim > 2 or name in encoder.by_token) and expected.shape[:2] == mask.shape:
            pairs.append((expected[mask > 0], found[name][mask > 0]))
        else:
            pairs.append((np.atleast_1d(expected), np.atleast_1d(found[name])))
    return pairs
