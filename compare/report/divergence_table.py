"""Divergences as a page shows them: a table of the tokens that either side found probable, and a sentence on how close they were."""

from collections.abc import Mapping
from typing import Any

from onnxport.compare.report import format

REASONS = {"earliest": "among the earliest", "closest": "among the closest", "widest": "among the least close"}
_TIE = 1.25  # two probabilities that are within this factor of one another


def shown(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Variant -> {"divergences", "summary"}; variants without any are left out.

    A divergence: why, input, position, answers (name, before, token, rest), rows of tokens (text, sides: [{"text", "width", "chosen"}]),
    reasons (why a side gives no probability).
    """
    return {
        name: {"divergences": [_shown(one, content["reference"], name) for one in divergences], "summary": summary(content, name)}
        for name, divergences in content.get("divergence", {}).items()
        if divergences
    }


def summary(content: Mapping[str, Any], name: str) -> str:
    """One sentence on how close the decisions were at which a variant's answers diverge."""
    divergences = content.get("divergence", {}).get(name) or []
    known = [p["reference"] for p in divergences if p["reference"]["own"] is not None]
    if not known:
        return ""
    close = sum(max(side["own"], side["other"]) <= _TIE * min(side["own"], side["other"]) for side in known)
    if close == len(known):
        how = "all of them near ties" if close > 1 else "a near tie"
    else:
        how = f"{close} of them near ties" if close else "none of them a near tie"
    count = f"{len(known)} partings" if len(known) > 1 else "1 parting"
    return f"{count} shown, {how} for {content['reference']} (probabilities within a factor of {_TIE:g})"


def word(token: Mapping[str, Any]) -> str:
    """A token as people read it: the end by name, ids where there is no text."""
    if token.get("end"):
        return "(end)"
    text = token.get("text")
    if text is None:
        return f"#{token['id']}"
    if not text.strip():
        return "(line break)" if "\n" in text else "(space)" if text else f"#{token['id']}"
    return str(text).strip()


def _shown(divergence: Mapping[str, Any], reference: str, name: str) -> dict[str, Any]:
    sides = [divergence["reference"], divergence["variant"]]
    tokens: dict[int, Mapping[str, Any]] = {side["token"]["id"]: side["token"] for side in sides}
    for side in sides:
        tokens |= {top["id"]: top for top in side["top"] if top["id"] not in tokens}
    known = [{side["token"]["id"]: side["own"], other["token"]["id"]: side["other"]} for side, other in (sides, sides[::-1])]
    for side, values in zip(sides, known, strict=True):
        values |= {top["id"]: top["probability"] for top in side["top"] if values.get(top["id"]) is None}
    rows = [
        {
            "text": word(token),
            "sides": [
                {
                    "text": _share(values.get(number)),
                    "width": round(100 * (values.get(number) or 0), 1),
                    "chosen": side["token"]["id"] == number,
                }
                for side, values in zip(sides, known, strict=True)
            ],
        }
        for number, token in tokens.items()
    ]
    answers = [
        {"name": who, "before": divergence["prefix"], "token": _begin(side), "rest": _after(side)}
        for who, side in zip((reference, name), sides, strict=True)
    ]
    reasons = [
        f"{who} gives no probabilities: {side['reason']}" for who, side in zip((reference, name), sides, strict=True) if side["reason"]
    ]
    return {
        "why": REASONS.get(divergence["why"], divergence["why"]),
        "input": divergence["input"],
        "position": divergence["position"] + 1,
        "answers": answers,
        "rows": rows,
        "reasons": reasons,
    }


def _begin(side: Mapping[str, Any]) -> str:
    """The token as it stands in the text, its space with it; the end as a word."""
    token = side["token"]
    return f" {word(token)}" if token.get("end") or not token.get("text") else str(token["text"])


def _after(side: Mapping[str, Any]) -> str:
    """The answer behind the token; of a side without texts, which lists ids, behind its id."""
    token, rest = side["token"], str(side["rest"])
    own = "" if token.get("end") else str(token["id"]) if token.get("text") is None else str(token["text"])
    return rest.removeprefix(own)


def _share(value: float | None) -> str:
    if value is None:
        return format.MISSING
    return f"{100 * value:.1f}%" if value >= 0.001 else "<0.1%"
