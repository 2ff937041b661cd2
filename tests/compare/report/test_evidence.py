"""What a report shows beside its figures: frontiers, sensitivities, errors by layer, partings, changes, energy."""

import re
from html.parser import HTMLParser

import pytest

from onnxport.compare import table
from onnxport.compare.report import divergence_table, format, frontier
from onnxport.compare.report.evidence import sensitivity
from onnxport.compare.report.evidence.layer_errors import layer_errors
from onnxport.compare.report.evidence.plan_search import searches
from onnxport.compare.report.evidence.sensitivity import Cell, heat_maps
from onnxport.compare.report.html import render_html
from onnxport.compare.report.svg import LETTER, ticks
from onnxport.compare.report.text import render_markdown
from support.compare_samples import metrics, report, translated

EVIL = "<b>&|`x`"
LAYERS = [{"name": f"model.{stack}.layers.{i}", "relative_error": 10.0 ** (i - 4)} for stack in ("encoder", "decoder") for i in range(3)]
MODULES = {
    "model.decoder.layers.10.fc1": {"int8-rows": 1e-3, "int4-blocks": 1e-1},
    "model.decoder.layers.2.fc1": {"int8-rows": 1e-4, "int4-blocks": None},
    "model.encoder.layers.0.fc1": {"int8-rows": 0.0, "int4-blocks": 1e-2},
    "shared": {"int8-rows": 1e-6, "int4-blocks": 1e-3},
}
PLAN = {"model.decoder.layers.10.fc1.weight": "int8-rows", "shared": "int8-rows+int4-blocks128"}


def token(number, text, end=False):
    return {"id": number, "text": text, "end": end}


def told(chosen, rest, own, other, top):
    return {"token": chosen, "rest": rest, "own": own, "other": other, "top": [t | {"probability": p} for t, p in top], "reason": None}


DU, SIE, END = token(4, " du"), token(5, " Sie"), token(2, None, True)
PARTING = {
    "index": 4, "input": f"Hi {EVIL}", "position": 1, "prefix": "Hallo", "why": "closest",
    "reference": told(DU, " du!", 0.4, 0.35, [(DU, 0.4), (SIE, 0.35), (END, 0.0001)]),
    "variant": told(SIE, " Sie", 0.45, 0.3, [(SIE, 0.45), (DU, 0.3)]),
}  # fmt: skip


def full(**more):
    """A report with everything in it."""
    given = {
        "evidence": {
            "fp16": {"layers": LAYERS, "plan": {}},
            "int8": {
                "layers": [entry | {"relative_error": 0.3} for entry in LAYERS],
                "sensitivity": {"metric": "kl", "modules": MODULES},
                "search": [{"plan": {"a": "fp32", "b": "int8-rows"}, "quality": 0.1, "seconds": 0.02}],
                "budget": {"expr": f"bleu_drop<=0.3 {EVIL}", "met": True},
                "plan": PLAN,
            },
        },
        "divergence": {"fp16": [], "int8": [PARTING]},
    }
    return report(**(given | more)).as_dict()


def test_everything_is_on_the_page_well_formed_and_fetches_nothing():
    class Closed(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "wbr"):
                self.open.append(tag)
            assert all(name not in ("src", "srcset") and (name != "href" or value.startswith("#")) for name, value in attrs)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    text = render_html(full(gates=[{"expr": EVIL, "value": None, "passed": False, "values": {}, "message": EVIL}]))
    page = Closed()
    page.feed(text)
    assert page.open == []
    assert "<b>&" not in text and not re.search(r"url\(|@import|https?://|<script", text)
    order = [
        "deploy int8",
        "1 of 1 gates failed",
        "Figures",
        "At a glance",
        "Which modules",
        "How the plan",
        "How the error",
        "Where answers part",
    ]
    places = [text.index(part) for part in [*order, 'id="gates"', "How it was measured"]]
    assert places == sorted(places)


def test_markdown_tells_the_same_in_short():
    text = render_markdown(full())
    for part in (
        "No other is better in both BLEU and speed: fp32, int8",
        "model.decoder.layers.10.fc1 in int4-blocks (0.1)",
        "fp16 0.0001 to 0.01; int8 0.3 to 0.3",
        "plans tried: 1",
        "after Hallo: du (fp32 40.0%, int8 30.0%) or Sie (int8 45.0%, fp32 35.0%)",
        "1 parting shown, a near tie for fp32",
    ):
        assert part in text, part
    assert "<b>" not in text


VARIANTS = {
    "fp32": translated(),
    "slow": translated(0.2, speedup=0.8, size=31_000_000),
    "int8": translated(0.4, speedup=2.0, size=9_000_000, bleu_drop_ci={"low": -0.1, "high": 0.9, "p": 0.1, "n": 200}),
    "int4": translated(3.0, speedup=2.5, size=5_000_000),
}


def test_the_frontier_is_what_no_other_beats():
    content = full(variants=VARIANTS, verdict=dict.fromkeys(VARIANTS, "x"), recommended="int8")
    assert frontier.front(content, "speed") == ["fp32", "int8", "int4"]
    assert frontier.front(content, "size") == ["int4", "int8", "fp32"]
    interval = next(p for p in frontier.points(content, "speed") if p.name == "int8")
    assert interval.y_range == pytest.approx((37.3 - 0.9, 37.3 + 0.1))
    svg = frontier.draw(content, "speed")
    assert "★ int8" in svg and svg.count('class="ring"') == 1 and svg.count("whisker") == 1 and svg.count('class="front"') == 1


def test_ticks_stay_clear_of_the_axis_label():
    shares = {"fp32": metrics(accuracy=0.9986), "int8": metrics(speedup=2.0, accuracy=0.9982)}
    svg = frontier.draw(full(variants=shares, verdict=dict.fromkeys(shares, "x"), recommended="int8"), "speed")
    label_ends = float(re.findall(r"translate\(([\d.]+) [\d.]+\) rotate\(-90\)", svg)[0]) + 4  # below its baseline
    beside = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([\d.]+%)<', svg)
    assert any(len(text) >= 5 for _, text in beside)
    assert all(float(x) - LETTER * len(text) > label_ends for x, text in beside)


def test_one_wild_run_does_not_press_the_plot_flat():
    noisy = {name: values | {"speedup_ci": {"low": 0.5, "high": 40.0}} for name, values in VARIANTS.items()}
    svg = frontier.draw(full(variants=noisy, verdict=dict.fromkeys(noisy, "x"), recommended="int8"), "speed")
    assert max(float(x) for x in re.findall(r'<circle class="t\d" cx="([\d.]+)"', svg)) > 240
    assert max(float(x) for x in re.findall(r"H([\d.]+)", svg)) <= 440


def test_less_is_better_of_some_and_the_plot_is_turned():
    variants = {"fp32": metrics(perplexity=20.0), "int8": metrics(speedup=2.0, perplexity=21.0), "bad": metrics(perplexity=30.0)}
    content = full(variants=variants, verdict=dict.fromkeys(variants, "x"), recommended="int8")
    assert frontier.front(content, "speed") == ["fp32", "int8"]
    heights = [float(y) for y in re.findall(r'<circle class="t\d" cx="[\d.]+" cy="([\d.]+)"', frontier.draw(content, "speed"))]
    assert heights[0] < heights[1] < heights[2]


@pytest.mark.parametrize("known, label", [
    ({"agreement": 0.97}, "Same answers"),
    ({"agreement": None, "cosine": 0.99}, "Cosine to the reference"),
    ({"agreement": None, "parity": {"relative_error": 1e-3}}, "Relative error of the golden answers"),
])  # fmt: skip
def test_without_references_something_else_stands_for_quality(known, label):
    variants = {"fp32": metrics(**known), "int8": metrics(speedup=2.0, **known)}
    content = full(variants=variants, verdict=dict.fromkeys(variants, "x"))
    assert frontier.quality_of(content).label == label and f">{label}" in frontier.draw(content, "size")


def test_labels_cover_neither_dots_nor_each_other():
    variants = {f"variant-{i}": translated(0.001 * i, speedup=1 + 0.01 * i) for i in range(6)}
    svg = frontier.draw(full(variants=variants, verdict=dict.fromkeys(variants, "x"), reference="variant-0", recommended=None), "speed")
    boxes = []
    for x, y, anchor, name in re.findall(r'<text class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg):
        left = float(x) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * 8 * len(name)
        boxes.append((left, float(y) - 10, left + 8 * len(name), float(y) + 2))
    assert len(boxes) == 6 and all(b[0] >= 0 and b[2] <= 460 for b in boxes)
    assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for i, a in enumerate(boxes) for b in boxes[:i])


def test_modules_are_grouped_by_layer_on_a_scale_of_powers_of_ten():
    (drawn,) = heat_maps(full())
    assert [layer.name for layer in drawn.layers] == [
        "outside of layers", "model.encoder.layers.0", "model.decoder.layers.2", "model.decoder.layers.10",
    ]  # fmt: skip
    cells = {row.module: row.cells for layer in drawn.layers for row in layer.rows}
    assert [cell.step for cell in cells["shared"]] == [0, 4]
    assert [cell.step for cell in cells["model.decoder.layers.10.fc1"]] == [4, 6]
    assert [cell.text for cell in cells["model.decoder.layers.2.fc1"]] == ["0.0001", "–"]
    assert cells["model.encoder.layers.0.fc1"][0] == Cell(step=0, text="0", chosen=False)
    assert [cell.chosen for cell in cells["shared"]] == [True, True] and drawn.planned
    assert [one.text for one in drawn.worst] == ["0.1", "0.01", "0.001"]


def test_equal_sensitivities_are_shown_once():
    same = {"sensitivity": {"metric": "kl", "modules": MODULES}}
    (drawn,) = heat_maps(full(evidence={"a": same, "b": same, "c": {}}))
    assert drawn.names == ["a", "b"]


def test_errors_by_layer_are_lines_with_the_stacks_named():
    errors = layer_errors(full())
    assert errors.layers == ["encoder 0", "encoder 1", "encoder 2", "decoder 0", "decoder 1", "decoder 2"]
    assert errors.svg.count('class="line') == 2 and ">encoder<" in errors.svg and ">decoder<" in errors.svg
    one = layer_errors(full(evidence={"int8": {"layers": LAYERS[:1]}}))
    assert one.svg == "" and one.rows[0].cells == ["0.0001"]
    broken = [entry | {"relative_error": None} for entry in LAYERS]  # not finite, as JSON has it
    assert "int8" in render_html(full(evidence={"int8": {"layers": broken}}))


def test_a_parting_lists_every_token_that_either_side_thought_of():
    found = divergence_table.shown(full())
    assert list(found) == ["int8"]
    (parting,) = found["int8"]["divergences"]
    assert [(row["text"], [side["text"] for side in row["sides"]]) for row in parting["rows"]] == [
        ("du", ["40.0%", "30.0%"]), ("Sie", ["35.0%", "45.0%"]), ("(end)", ["<0.1%", "–"]),
    ]  # fmt: skip
    assert [[side["chosen"] for side in row["sides"]] for row in parting["rows"]] == [[True, False], [False, True], [False, False]]
    assert parting["answers"][0] == {"name": "fp32", "before": "Hallo", "token": " du", "rest": "!"}
    ids = PARTING | {"reference": told(token(90, None), "90 86 73", 0.4, 0.3, [])}
    (parting,) = divergence_table.shown(full(divergence={"int8": [ids]}))["int8"]["divergences"]
    assert (parting["answers"][0]["token"], parting["answers"][0]["rest"]) == (" #90", " 86 73")


def test_a_side_without_probabilities_is_told_with_its_reason():
    silent = PARTING["reference"] | {"own": None, "other": None, "top": [], "reason": f"no score {EVIL}"}
    content = full(divergence={"int8": [PARTING | {"reference": silent}]})
    text = render_html(content)
    assert "fp32 gives no probabilities: no score &lt;b&gt;" in text and divergence_table.summary(content, "int8") == ""
    assert "Sie (int8 45.0%)" in render_markdown(content)


def test_losses_have_their_interval_and_no_minus_before_a_zero():
    content = full(variants=VARIANTS, verdict=dict.fromkeys(VARIANTS, "x"), recommended="int8")
    assert [format.loss(content, name) for name in VARIANTS] == ["–", "0.20", "0.40 (-0.10 to 0.90)", "3.00"]
    assert format.fixed(-0.0004, 2) == "0.00"


@pytest.mark.parametrize("render", [render_html, render_markdown, table])
def test_energy_is_told_or_that_it_cannot_be(render):
    reason = "not measurable here: no counters"
    without = {name: values | {"energy": {"joules_per_unit": None, "reason": reason}} for name, values in VARIANTS.items()}
    with_it = {name: values | {"energy": {"joules_per_unit": 0.0214, "source": "RAPL"}} for name, values in VARIANTS.items()}
    one, other = (render(full(variants=v, verdict=dict.fromkeys(v, "x"), recommended="int8")) for v in (without, with_it))
    assert one.count(reason) == 1 and "21.4 mJ/token" in other and "RAPL" in other


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_changes_since_the_baseline(render):
    change = {"throughput": -0.1234, "size_bytes": 0.0, "bleu": -0.004, "agreement": 0.012}
    changed = {name: values | {"change": change} for name, values in VARIANTS.items()}
    text = render(full(variants=changed, verdict=dict.fromkeys(changed, "x"), recommended="int8"))
    assert all(part in text for part in ("Since the baseline", "-12.3%", "+0.0%", "+0.00", "+1.2 points"))


@pytest.mark.parametrize("values, top", [([37.3, 36.9], None), ([99.9, 100.0], 100.0), ([0.0, 0.0], None), ([-5.2, -3.0], None)])
def test_ticks_are_round_and_cover_the_values(values, top):
    found = ticks(values, 2.0, top, None if min(values) < 0 else 0.0)
    step = found[1] - found[0]
    assert found[0] <= min(values) and found[-1] >= max(values) and 4 <= len(found) <= 8
    assert all(abs(value / step - round(value / step)) < 1e-6 for value in found) and (top is None or found[-1] <= top)


def test_a_module_is_framed_by_what_the_plan_gave_its_weights():
    plan = {
        "decoder.layers.0.attn.q.weight": "int8-rows",
        "decoder.layers.0.attn.k.weight": "int8-blocks128",
        "decoder.layers.1.weight": "fp32",
    }
    assert sensitivity._chosen(plan, "decoder.layers.0.attn", "int8-rows")
    assert sensitivity._chosen(plan, "decoder.layers.0.attn (encoder)", "int8-blocks")
    assert not sensitivity._chosen(plan, "decoder.layers.0.attn", "int4-blocks")
    assert not sensitivity._chosen(plan, "decoder.layers.0.at", "int8-rows")
    assert not sensitivity._chosen(plan, "decoder.layers.1", "int8-rows")


def test_a_search_tells_what_its_budget_is_about():
    tried = [{"plan": "int8-rows 100%", "quality": {"bleu": 40.0, "bleu_drop": 0.25, "agreement": 0.9}, "seconds": 0.01}]
    content = {
        "evidence": {
            "auto": {
                "search": tried,
                "budget": {"expr": "bleu_drop<=0.3", "value": 0.25, "met": True},
                "chosen": "int8-rows 100%",
                "inputs": 9,
            }
        }
    }
    (search,) = searches(content)
    assert search.tried[0].quality == "bleu_drop 0.25"
    assert search.facts[0] == ("budget", "bleu_drop<=0.3") and ("chosen", "int8-rows 100%") in search.facts
    content["evidence"]["auto"]["budget"]["expr"] = "bleu_drop_ci.high<=0.3"
    (search,) = searches(content)
    assert search.tried[0].quality == "bleu 40, bleu_drop 0.25, agreement 0.9"


def test_the_metric_of_a_search_is_told_in_words():
    from onnxport.quantize.auto import module_loss

    assert {module_loss.KL, module_loss.ERROR} <= sensitivity.METRICS.keys()


def test_one_variant_alone_is_not_folded_away():
    def page(count):
        content = full()
        content["variants"] = {f"v{i}": translated(speedup=1.0 + i) for i in range(count)}
        content |= {"reference": "v0", "recommended": "v0", "verdict": dict.fromkeys(content["variants"], "told"), "examples": {}}
        return render_html(content | {"evidence": {}, "divergence": {}})

    assert "more variants" not in page(5)
    assert "2 more variants" in page(6)
