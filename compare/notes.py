"""Notes on a report's figures: how they were measured, and what a reader must know before trusting them."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnxport.compare import bootstrap, metrics, speed
from onnxport.compare.measure import measurement
from onnxport.compare.workload import GOLDEN, Workload
from onnxport.runtime.bundle.reader import Bundle

PYTORCH = "pytorch"  # the name of the original's side
INPUT_NOUNS = {  # what inputs of a kind are called, where that is not inputs
    "pairs": "pairs",
    "questions": "questions",
    "rankings": "queries",
    "tags": "sentences",
    "words": "masks",
    **dict.fromkeys(("labelled", "texts", "entities", "choices"), "texts"),
}


def method(work: Workload, batches: Sequence[int], threads: int) -> dict[str, Any]:
    """The `method` of a report: how its figures were measured."""
    facts: dict[str, Any] = {
        "threads": threads,
        "batches": list(batches),
        "unit": work.unit,
        "launches": measurement.LAUNCHES,
        "processes": "each side in a process of its own; sides alternate run by run; medians, with warm-up",
        "speed": (
            f"median of the ratios round by round, with the {speed.LEVEL:.0%} interval of the sign test; faster is what is "
            f"{speed.FASTER:g} times as fast by the interval of {speed.SURE:.0%}"
        ),
        "size_bytes": "the variant's graphs and weights, tokenizers and search graphs; golden answers are not counted",
        "first_output_ms": "from the start of the process, imports included, to the first answer",
    }
    if work.generates:
        facts |= {"beam": work.natural["beam"], "natural": work.natural, "fixed": work.fixed}
        facts["throughput"] = f"{work.fixed['max_new_tokens']} new tokens a row, at batch size {batches[0]}"
        facts["latency_ms"] = "single inputs, each answered to its natural end"
    if work.kind == "pairs" and work.references and work.generates:
        facts["signatures"] = metrics.signatures(work.references)
        facts["bleu"] = f"{work.rows} rows, {len(work.inputs)} sources measured; BLEU against all references of a source"
    if work.scored is not None:
        facts["perplexity"] = (
            f"exp of the mean negative log-likelihood a token, a text's first not counted; windows of {work.scored.options['window']} "
            f"tokens every {work.scored.options['stride']}; agreement on the continued beginnings of {len(work.inputs)} texts"
        )
    if work.passages is not None:
        facts["recall"] = f"the nearest by cosine of the data's {len(work.passages.inputs)} different passages"
    if work.references or work.extra_request is not None or work.method == "encode":
        facts["intervals"] = (
            f"of X_drop: {bootstrap.LEVEL:.0%}, paired bootstrap over inputs (Koehn 2004), {bootstrap.RESAMPLES:,} resamples, "
            f"seed {bootstrap.SEED}; p is two-sided"
        )
    return facts


def notes(work: Workload, variants: Mapping[str, Mapping[str, Any]], busy: str) -> list[str]:
    """Sentences that a reader must know before trusting the figures. busy: see `machine.busy`."""
    sentences = []
    if work.kind == GOLDEN:
        sentences.append(f"Measured on the bundle's own {len(work.inputs)} golden inputs: quality on other data is not known.")
    elif work.built_in:
        sentences.append(f"No data was given: measured on {len(work.inputs)} {work.name}, so nothing is known of the quality. Give --data.")
    elif work.count < 100:
        sentences.append(f"Only {work.count} inputs were measured: quality figures may move by several points on other data.")
    if PYTORCH in variants and work.generates:
        sentences.append(
            "pytorch is the original class as it is: those of transformers decode by their `generate`, with its key/value cache; "
            "those around modules of torch have no cache, so that they are the slower the longer the answers."
        )
    for name, values in variants.items():
        if "tokens_per_pass" in values:
            sentences.append(f"{name}: {_guesses(values, work.natural['beam'])}.")
    if busy:
        worst = "; PyTorch, whose threads wait for one another, suffers most" if PYTORCH in variants else ""
        sentences.append(f"The machine was busy ({busy}): speeds are rough{worst}. Measure again on a quiet one.")
    return sentences


def _guesses(values: Mapping[str, Any], beam: int) -> str:
    """What came of a draft's guesses."""
    if values["acceptance"] is not None:
        share = metrics.percent(values["acceptance"])
        return f"{values['tokens_per_pass']:.2f} tokens a pass of the checking variant; {share} of the draft's guesses came true"
    why = f"{beam} beams are not guessed for; give --beam 1" if beam > 1 else "on this machine guesses promised no gain"
    return f"the draft guessed nothing: {why}"


def of_others(bundle: Bundle, others: Mapping[str, Bundle], work: Workload) -> list[str]:
    """Sentences on figures that hold only between bundles with the same tokenizer, where others have another."""
    hashes = {name: tokenizers(one) for name, one in others.items()}
    foreign = [name for name, own in hashes.items() if own != tokenizers(bundle)]
    if not foreign:
        return []
    names = ", ".join(foreign)
    if work.scored is not None:
        return [f"{names}: another tokenizer, so perplexity, which is of tokens, cannot be compared with {bundle.name}'s."]
    if work.generates:
        return [f"{names}: another tokenizer than {bundle.name}'s: tokens/s are of other tokens, and a text of the same words may be more."]
    return []


def tokenizers(bundle: Bundle) -> dict[str, str]:
    """Role -> hash: equal ones mean that ids mean the same."""
    return {role: bundle.files[file].sha256 for role, file in bundle.tokenizers.items()}
