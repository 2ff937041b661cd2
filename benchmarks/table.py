"""Rows of a benchmark as text and as a plot."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row_text(row: Row) -> str:
    """A heading and a line a side; a ratio is ours over that side, with the 10th and 90th percentile of the ratios round by round."""
    lines = [f"\n{row['workload']}: {row['case']}, {row['threads']} threads, {row['unit']}"]
    lines += [f"  {name:<22}{_number(found['rate']):>9}  {_notes(found)}".rstrip() for name, found in row["sides"].items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(found: dict[str, float]) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def _notes(found: dict[str, Any]) -> str:
    """What else was measured of a side."""
    ratios = found.get("ratios", {})
    notes = [f"ours {_spread(ratio)}" if len(ratios) == 1 else f"{name} {_spread(ratio)}" for name, ratio in ratios.items()]
    if "equal_tokens" in found:
        notes.append(f"equal tokens from the first on: {' '.join(map(str, found['equal_tokens']))}")
    if "same_token" in found:
        notes.append(f"{'the same' if found['same_token'] else 'another'} token as the first side")
    if "share_of_floor" in found:
        floor = f"{_number(found['floor'])}, {found['step_bytes'] / 1e6:.1f} MB a step at {found['bytes_per_s'] / 1e9:.1f} GB/s"
        notes.append(f"{found['share_of_floor']:.0%} of the floor ({floor})")
    if "share_of_ceiling" in found:
        notes.append(f"{_spread(found['share_of_ceiling'])} of {found['ceiling']}")
    if "bleu" in found:
        notes.append(f"BLEU {found['bleu']:.2f}, {found['tokens']} tokens")
    if "batching" in found:
        notes.append(f"batches of {' '.join(str(value) for value in found['batching'].values())}")
    if "load_s" in found:
        memory = f"{found['peak_mb_first']:.0f} MB then, {found['peak_mb_all']:.0f} MB at most"
        notes.append(f"load {found['load_s']:.2f} s, first output after {found['first_s']:.2f} s, {memory}")
    return "; ".join(notes)


def plot(rows: list[Row], path: Path) -> None:
    """A bar a side for every row, one panel a row; whiskers are the rates of single rounds, lowest to highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["workload"] != "check"]
    if not shown:
        return
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(5.2 * columns, 2.6 * height), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, shown, strict=False):
        names = list(reversed(row["sides"]))
        for place, name in enumerate(names):
            found = row["sides"][name]
            rates = [units / seconds for units, seconds in zip(found["units"], found["seconds"], strict=True)]
            around = [[max(0.0, found["rate"] - min(rates))], [max(0.0, max(rates) - found["rate"])]]
            axis.barh(place, found["rate"], xerr=around, color="#1b6ca8" if name.startswith("onnxport") else "#b8c4cc", ecolor="#44525c")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"{row['workload']}: {row['case']}, {row['threads']} threads", fontsize=9)
        axis.set_xlabel(row["unit"], fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        for spine in ("top", "right"):
            axis.spines[spine].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
