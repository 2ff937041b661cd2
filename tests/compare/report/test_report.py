import errno
import itertools
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxport.compare import table
from onnxport.compare.gates import evaluate, parse_gate
from onnxport.compare.report import format, frontier
from onnxport.compare.report.baseline import changes, differences, read_baseline
from onnxport.compare.report.html import render_html
from onnxport.compare.report.junit import render_junit
from onnxport.compare.report.report import check_out
from onnxport.compare.report.svg import Frame, colors
from onnxport.compare.report.text import render_markdown
from onnxport.errors import DataError, GateError, OutputError, UsageError
from support.compare_samples import metrics, report, translated
from support.speed_samples import against_each_other


def gated(*exprs):
    made = report()
    return report(gates=evaluate([parse_gate(e) for e in exprs], made.variants, "fp32"))


class Page(HTMLParser):
    """Tags and attributes that would fetch something, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.fetched += [
            f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset") and not (value or "").startswith("#")
        ]
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass  # <line .../> of a plot

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_three_files_are_written(tmp_path):
    out = tmp_path / "deep" / "report"
    report().write(out)
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json", "report.md"]
    content = json.loads((out / "report.json").read_text())
    assert content["variants"]["int8"]["latency_ms"].keys() == {"p50", "p90", "p99"}
    assert content["verdict"].keys() == content["variants"].keys() == {"fp32", "fp16", "int8"}
    assert [p.name for p in out.parent.iterdir()] == ["report"]


def test_gates_are_written_as_junit(tmp_path):
    gated("int8.speedup>=1.5", "bleu_drop<=0.05").write(tmp_path)
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()[0]
    assert {name: suite.attrib[name] for name in ("tests", "failures", "errors")} == {"tests": "2", "failures": "1", "errors": "0"}
    passed, failed = suite
    assert (passed.attrib["name"], passed.find("failure")) == ("int8.speedup>=1.5", None)
    assert failed.find("failure").attrib["message"] == "int8 has 0.1, expected <= 0.05"
    with pytest.raises(OutputError, match=r"holds report\.json, report\.md, report\.html, report\.xml already"):
        check_out(tmp_path, False)
    report().write(tmp_path, force=True)  # without gates: an earlier report's would be taken for this one's
    assert not (tmp_path / "report.xml").exists()


def test_junit_holds_any_text():
    gate = {"expr": "a<b&\x00\ud800>=1", "value": None, "passed": False, "values": {}, "message": '"<&\x1b'}
    case = ElementTree.fromstring(render_junit(report(bundle="<\x07>", gates=[gate]).as_dict()))[0][0]
    assert case.attrib["name"] == "a<b&??>=1"
    assert case[0].attrib["message"] == '"<&?'


def test_an_existing_report_is_kept_without_force(tmp_path):
    report().write(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        report().write(tmp_path)
    report(bundle="other").write(tmp_path, force=True)
    assert json.loads((tmp_path / "report.json").read_text())["bundle"] == "other"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_out(tmp_path / "out", True)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report().write(tmp_path / "file" / "out")


def test_an_earlier_report_survives_a_full_disk(tmp_path, monkeypatch):
    report().write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def full(path, text, **options):
        if path.name == "report.html":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        report(bundle="other").write(tmp_path, force=True)
    assert caught.value.exit_code == 6
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_try_leaves_nothing_behind(tmp_path):
    check_out(tmp_path, False)
    check_out(tmp_path / "new", False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_rendering_fails(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxport\[compare\]'"):
        report().write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_json_holds_no_number_that_json_lacks():
    content = report(variants={"fp32": translated(max_abs_diff=float("inf"))}).as_dict()
    assert content["variants"]["fp32"]["max_abs_diff"] is None
    json.dumps(content, allow_nan=False)


def test_failed_gates_are_raised_together():
    made = gated("int8.speedup>=1.5", "bleu_drop<=0.05", "comet>=1")
    assert not made.passed
    with pytest.raises(GateError, match=r"2 of 3 gates failed: bleu_drop<=0.05 .*int8 has 0.1.*comet>=1 .*not measured"):
        made.raise_for_gates()
    assert gated("int8.speedup>=1.5").passed
    gated("int8.speedup>=1.5").raise_for_gates()


def test_the_page_fetches_nothing_and_is_well_formed():
    text = render_html(gated("int8.speedup>=1.5", "comet>=1").as_dict())
    page = Page(text)
    assert page.fetched == []
    assert page.open == []
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_page_begins_with_the_verdict_and_shows_what_differs():
    text = render_html(report().as_dict())
    assert text.index("deploy int8") < text.index("Figures") < text.index("Where answers part")
    assert "prefers-color-scheme: dark" in text
    assert "<mark>du</mark>" in text
    assert "<svg" in text


def test_texts_are_escaped_everywhere():
    evil = "<script>alert(1)</script>|"
    made = report(
        bundle=evil,
        notes=[evil],
        data={"name": evil, "kind": "pairs", "count": 1, "built_in": False},
        examples={"int8": [{"index": 0, "input": evil, "expected": evil, "reference": evil, "variant": evil + "x", "first_difference": 0}]},
    ).as_dict()
    assert "<script" not in render_html(made)
    text = render_markdown(made)
    assert "<script" not in text
    assert {line.count("|") - line.count("\\|") for line in text.splitlines() if "alert" in line and line.startswith("|")} == {4}


def test_names_of_variants_and_gates_are_escaped_in_markdown():
    evil = "<img src=x>\n| `x` | **y** [z](u) |"
    base, other = f"base {evil}", f"other {evil}"
    example = {"index": 0, "input": "a", "expected": None, "reference": "b", "variant": "c", "first_difference": 0}
    text = render_markdown(
        report(
            reference=base,
            variants={base: translated(), other: translated(speedup=2.0)},
            verdict={base: "the reference", other: "fast"},
            recommended=other,
            examples={other: [example]},
            gates=[{"expr": f"{evil}>=1", "value": None, "passed": False, "values": {}, "message": f"{other} has 0"}],
        ).as_dict()
    )
    told = [line for line in text.splitlines() if "img" in line]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in told]
    wide = next(line for line in text.splitlines() if line.startswith("| Variant")).count("|")
    # failed gate, title, two verdicts, gate, two rows, two frontiers, reference, heading and heads of the examples
    assert bars == [0, 0, 0, 0, 4, wide, wide, 0, 0, 0, 0, 4]
    for line in told:
        assert "<" not in line
        assert not re.search(r"(?<!\\)[`\[\]]", line)


def test_entities_strikes_and_control_characters_are_only_text_in_markdown():
    text = render_markdown(report(notes=["&lt;b&gt; ~~x~~ \x1b[31m \u202e", "two\nlines"]).as_dict())
    assert "> &amp;lt;b&amp;gt; \\~\\~x\\~\\~ \\\\x1b\\[31m \\\\u202e" in text
    assert "> two lines" in text


def test_a_variants_name_is_escaped_in_plots():
    made = report(
        variants={"fp32": translated(), "<x&y>": translated(speedup=2.0)}, verdict={"fp32": "the reference", "<x&y>": "fast"}, examples={}
    )
    text = render_html(made.as_dict() | {"recommended": "fp32"})
    assert "<x&y>" not in text
    Page(text)


@pytest.mark.parametrize("render", [render_html, render_markdown, table])
def test_every_form_survives_what_was_not_measured(render):
    bare = {
        "fp32": metrics(size_bytes=None, size_ratio=None, max_abs_diff=None),
        "v": metrics(size_ratio=None, max_abs_diff=None, agreement=None, cosine=0.5),
    }
    content = report(variants=bare, verdict={"fp32": "the reference", "v": "as fast"}, recommended=None, examples={}).as_dict()
    assert "fp32" in render(content)


def test_the_table_fits_a_terminal():
    text = table(gated("comet>=1"))
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("gate FAILED  comet>=1: comet was not measured for fp16, int8")
    assert "\nen-de: deploy int8: 2.10× the speed of fp32 (2.08× to 2.12×), 0.27× the size\n" in text
    assert re.search(r"Same answers +100% +99% +96.5%", text)
    assert re.search(r"Speed-up \(95%\) +1.00× +0.50 \(0.49 to 0.51\) +2.10 \(2.08 to 2.12\)", text)


def test_a_failed_gate_stands_above_everything_else():
    content = gated("int8.speedup>=1.5", "bleu_drop<=0.05").as_dict()
    page, text = render_html(content), render_markdown(content)
    assert page.index('<section class="banner bad">') < page.index("<h1>")
    assert page.index("<code>bleu_drop&lt;=0.05</code>: int8 has 0.1, expected &lt;= 0.05") < page.index("<h1>")
    assert text.startswith("**✗ gate failed** bleu\\_drop&lt;=0.05: int8 has 0.1")
    assert "banner bad" not in render_html(gated("int8.speedup>=1.5").as_dict())


@pytest.mark.parametrize("render", [render_html, render_markdown, table])
def test_a_busy_machine_is_told_beside_the_headline(render):
    busy = "a timed run had a processor for 60% of its time"
    told = render(report(busy=busy).as_dict())
    assert "busy machine" in " ".join(told[: told.index("37.3")].split())
    assert "busy" not in render(report().as_dict()).replace(".busy", "")


def test_a_headline_says_when_a_variant_is_for_its_size():
    variants = against_each_other({"fp32": translated(), "fp16": translated(speedup=0.98, size=15_000_000)})
    made = {"variants": variants, "verdict": dict.fromkeys(variants, "fine"), "examples": {}}
    small = report(**made, recommended="fp16", recommended_for="size").as_dict()
    assert format.headline(small) == "en-de: deploy fp16 for its size: 0.50× the size, 0.98× the speed of fp32 (0.97× to 0.99×)"
    unsure = report(**made, recommended="fp32", unclear=["fp16"]).as_dict()
    assert format.headline(unsure) == "en-de: stay with fp32: too noisy to tell whether fp16 gains enough"


def test_a_variant_has_one_colour_in_every_report():
    few = {"variants": dict.fromkeys(["fp32", "int8"])}
    many = {"variants": dict.fromkeys(["pytorch", "fp32", "fp16", "bf16", "int8", "int8-static", "int4", "auto", "old/int8", "mine"])}
    assert colors(many) | colors(few) == colors(many)
    assert len(set(colors(many).values())) == 10
    page = render_html(report().as_dict())
    own = colors(report().as_dict())
    for name, number in own.items():
        assert f'<div class="bar t{number}"><span>{name}</span>' in page
        assert re.search(rf'<circle class="t{number}"[^>]*><title>{name}:', page)
        assert re.search(rf'<article class="card t{number} \w*">\n<header><b>{name}</b>', page)


@pytest.mark.parametrize(
    "more, fact",
    [
        ({"bleu": 37.3}, "<dt>BLEU</dt><dd>37.30</dd>"),
        ({"accuracy": 0.9, "macro_f1": 0.8}, "<dt>macro F1</dt><dd>80%</dd>"),
        ({"perplexity": 12.3}, "<dt>Perplexity</dt><dd>12.30</dd>"),
        ({"cosine": 0.9876, "agreement": None}, "<dt>Cosine to the reference</dt><dd>0.9876</dd>"),
        ({"parity": {"relative_error": 0.012}, "agreement": None}, "<dt>Relative error</dt><dd>0.012</dd>"),
    ],
)
def test_cards_have_the_measure_of_the_task(more, fact):
    variants = {"fp32": metrics(**more), "int8": metrics(**more)}
    page = render_html(report(variants=variants, verdict=dict.fromkeys(variants, "fine"), recommended="int8", examples={}).as_dict())
    assert fact in page


def test_percentages_have_an_axis_of_percentages():
    variants = {"fp32": metrics(accuracy=0.911), "int8": metrics(2.0, accuracy=0.9, agreement=0.6)}
    page = render_html(report(variants=variants, verdict=dict.fromkeys(variants, "fine"), recommended="int8", examples={}).as_dict())
    assert re.search(r'text-anchor="end">9\d(\.\d+)?%</text>', page)
    assert '<i style="width:60.0%"></i></span><span>60%</span>' in page  # of all answers, not of the longest bar


def test_a_baseline_gives_changes(tmp_path):
    report().write(tmp_path)
    earlier = read_baseline(tmp_path)["variants"]["int8"]
    now = translated(0.3, speedup=1.05, size=8_000_000)
    found = changes(now, earlier)
    assert found["throughput"] == pytest.approx(-0.5)
    assert found["latency_ms_p50"] == pytest.approx(1.0)
    assert found["size_bytes"] == 0
    assert found["bleu"] == pytest.approx(-0.2)


def test_a_baseline_of_something_else_is_told():
    then = report().as_dict()
    assert differences(then, report().as_dict()) == []
    other = report(bundle="en-fr", data={"name": "dev.tsv", "kind": "pairs", "count": 200, "built_in": False}).as_dict()
    other["machine"]["cpu"] = "Another CPU"
    (told,) = differences(then, other)
    for words in ("bundle en-de, here en-fr", "data test.tsv, here dev.tsv", "processor A CPU, here Another CPU"):
        assert words in told
    assert "number of inputs" not in told


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("[]", "no 'variants'"),
        ('{"variants": [1]}', "no 'variants'"),
    ],
)
def test_a_bad_baseline_is_refused(tmp_path, content, told):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=told):
        read_baseline(path)


def same_report(folder):
    """What the files of a report say of the bundle's name, which all of them hold."""
    names = {json.loads((folder / "report.json").read_text())["bundle"]}
    for name in ("report.md", "report.html"):
        names |= {found for found in ("bundle-one", "bundle-two") if found in (folder / name).read_text()}
    return names


def test_the_files_of_a_report_appear_as_one(tmp_path, monkeypatch):
    report(bundle="bundle-one").write(tmp_path / "out")
    inode = (tmp_path / "out").stat().st_ino

    def failing(*_):
        raise AssertionError("a single file was replaced")

    monkeypatch.setattr("os.replace", failing)
    report(bundle="bundle-two").write(tmp_path / "out", force=True)
    assert same_report(tmp_path / "out") == {"bundle-two"}
    assert (tmp_path / "out").stat().st_ino != inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_a_folder_that_cannot_be_moved_stays_where_it_is(tmp_path, monkeypatch, number):
    report(bundle="bundle-one").write(tmp_path / "out")
    inode = (tmp_path / "out").stat().st_ino

    def failing(one, other):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("onnxport.runtime.bundle.publish._exchange", failing)
    report(bundle="bundle-two").write(tmp_path / "out", force=True)
    assert same_report(tmp_path / "out") == {"bundle-two"}
    assert (tmp_path / "out").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


def test_the_mode_of_the_folder_stays(tmp_path):
    report().write(tmp_path / "out")
    (tmp_path / "out").chmod(0o2750)
    report().write(tmp_path / "out", force=True)
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o2750


def test_beside_other_files_the_numbers_come_last(tmp_path, monkeypatch):
    gated("bleu_drop<=0.05").write(tmp_path)
    (tmp_path / "mine").mkdir()
    replace, order = os.replace, []

    def told(source, target):
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("os.replace", told)
    report(bundle="bundle-two").write(tmp_path, force=True)
    assert order[-1] == "report.json"
    assert same_report(tmp_path) == {"bundle-two"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "report.html", "report.json", "report.md"]


@pytest.mark.parametrize("name", ["report.json", "report.xml", "."])
def test_a_fifo_is_not_replaced(tmp_path, name):
    out = tmp_path / "out"
    if name == ".":
        os.mkfifo(out)
    else:
        out.mkdir()
        os.mkfifo(out / name)
    for write in (check_out, lambda place, force: report().write(place, force=force)):
        with pytest.raises(OutputError, match="FIFO"):
            write(out, True)
    assert (out / name).is_fifo()


def named_boxes(svg):
    """Where the names of variants stand in a plot, by letters of 7 units."""
    found = {}
    for x, y, anchor, name in re.findall(r'<text class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg):
        wide = 7.0 * len(name)
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        found[name] = (left, float(y) - 11, left + wide, float(y))
    return found


def test_labels_of_near_points_do_not_collide():
    names = ["fp32", "fp16", "bf16", "int8", "int8-static", "int8-weight", "int4", "int4-hqq", "auto"]
    near = {n: translated(0.02 * i, speedup=2 + 0.01 * i, size=8_000_000 + 10_000 * i) for i, n in enumerate(names)}
    made = report(variants=near, verdict=dict.fromkeys(near, "fine"), recommended="int8", examples={}).as_dict()
    for along in ("speed", "size"):
        boxes = named_boxes(frontier.draw(made, along))
        assert len(boxes) == len(names)
        for (a, one), (b, other) in itertools.combinations(boxes.items(), 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (along, a, b)


def test_names_beside_lines_stay_within_the_plot():
    frame = Frame([0.0, 1.0], [0.0, 1.0])
    frame.labels_beside({f"variant {i}": 0.001 * i for i in range(8)})
    heights = sorted(float(y) for y in re.findall(r' y="([\d.]+)"', "".join(frame.parts)))
    assert frame.top <= heights[0] and heights[-1] <= frame.bottom + 4
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15
