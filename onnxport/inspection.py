"""A bundle at a glance, as text and as a dictionary."""

from typing import Any

from onnxport.runtime.bundle import Bundle


def summary(bundle: Bundle) -> dict[str, Any]:
    """The manifest as it is written, with the bundle's folder."""
    return {"path": str(bundle.path), **bundle.manifest.as_dict()}


def overview(bundle: Bundle) -> str:
    """A few lines for people."""
    manifest = bundle.manifest.as_dict()
    provenance = manifest["provenance"]
    generation = manifest["generation"] or {}
    lines = [
        f"{manifest['name']}  {manifest['task']}, {manifest['family']}, {provenance.get('route')} route, opset {provenance.get('opset')}",
        "made with " + ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items()),
    ]
    if generation:
        shown = ("layers", "kv_heads", "head_size", "vocab_size", "max_length")
        lines.append("decoder: " + ", ".join(f"{name.replace('_', ' ')} {generation[name]}" for name in shown if generation.get(name)))
    base = manifest["variants"].get("fp32", {}).get("bytes")
    row = "{:<10}{:>11}{:>9}{:>10}{:>12}{:>13}  {}"
    lines += ["", row.format("variant", "size", "of fp32", "max diff", "rel. error", "same greedy", "fusions")]
    for name, variant in manifest["variants"].items():
        parity = variant["parity"]
        greedy = parity.get("greedy_agreement")
        lines.append(
            row.format(
                name + ("*" if name == manifest["default"] else ""),
                f"{variant['bytes'] / 1e6:.2f} MB",
                f"{variant['bytes'] / base:.2f}" if base else "",
                f"{parity['max_abs_diff']:.1e}" if "max_abs_diff" in parity else "",
                f"{parity['relative_error']:.1e}" if "relative_error" in parity else "",
                "" if greedy is None else f"{greedy:.0%}",
                ", ".join(f"{rule} {count}" for rule, count in variant["fusions"].items() if count) or "-",
            )
        )
    lines.append("* the default variant; differences are to the original module's own answers")
    return "\n".join(lines)
