"""Every type of model that the installed transformers maps: a tiny random folder of each is exported, and its answers are compared.

    python benchmarks/census.py --kind encoders --out build/census
    python benchmarks/census.py --kind encoders --out build/census --type mpnet --type esm --again

Each type has a process of its own with a time limit, and a line in OUT/KIND.jsonl: a run that is begun again does what is missing. The
table in OUT/KIND.md says of each type whether its folder could be built, what became of the export, how far answers are from those of
transformers' own class, and how many attentions became kernels.

For encoders, answers are hidden states at tokens that are real, of batches with padding at sizes that no export traced. For decoders
they are the log-probabilities of generated tokens behind prompts of several lengths in one batch, windows full, in one block of prefill
and in several; for seq2seq, encoder-decoders, those behind sources of several lengths in one batch, with and without beginnings.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from tiny_folders import VOCABULARY, tiny_folder

from onnxport.errors import OnnxportError, one_line

TOLERANCE = 1e-4  # of the largest difference, over the largest answer
LIMIT = 900  # seconds a type, beside other work
CONTEXT = multiprocessing.get_context("forkserver")
OUTCOMES = ("equal", "wrong", "refused", "crashed", "not built", "out of time")
KERNELS = {"MultiHeadAttention", "GroupQueryAttention"}
WRITTEN_OUT = {"Softmax", "Attention"}  # ONNX's own Attention is no kernel of ONNX Runtime's: it is taken apart on the CPU


@dataclass
class Row:
    """A type's line. outcome: one of OUTCOMES. fused: attentions that became kernels; left: those that did not."""

    type: str
    cls: str
    outcome: str
    reason: str = ""
    difference: float | None = None
    fused: int = 0
    left: int = 0


@dataclass(frozen=True)
class Kind:
    """A kind of models. types: (type, class) pairs; difference: of a bundle's answers from those of the folder's own class, relative;
    settings: of every configuration that has the key."""

    types: Callable[[], Iterator[tuple[str, str]]]
    difference: Callable[[str, Path, Path], float]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _first(names: Any) -> str | None:
    return names if isinstance(names, str) or names is None else names[0]


def encoder_types() -> Iterator[tuple[str, str]]:
    """Types of encoders of texts: with a table of tokens of their own, a head for texts, and no generation."""
    import transformers
    from transformers.models.auto import modeling_auto

    heads = ("MASKED_LM", "TEXT_ENCODING", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING")
    tables = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in (*heads, "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")}
    for kind, names in modeling_auto.MODEL_MAPPING_NAMES.items():
        causal = kind in tables["CAUSAL_LM"] and kind not in tables["MASKED_LM"]
        if causal or kind in tables["SEQ_TO_SEQ_CAUSAL_LM"] or not any(kind in tables[name] for name in heads):
            continue
        name = _first(names)
        cls = getattr(transformers, str(name))
        others = {"vision_config", "visual_feat_dim", "image_feature_pool_shape"}
        if cls.main_input_name == "input_ids" and not others & cls.config_class().to_dict().keys():
            yield kind, str(name)


def encoder_difference(cls: str, folder: Path, bundle: Path) -> float:
    """The largest difference of hidden states at real tokens, over the largest hidden state."""
    import torch
    import transformers

    from onnxport.runtime import load

    theirs, ours = getattr(transformers, cls).from_pretrained(folder).eval(), load(bundle)
    random, worst, rows = np.random.default_rng(11), 0.0, min(VOCABULARY, int(theirs.config.vocab_size))
    for lengths in ([6, 13], [9], [17, 2, 12, 5]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.where(mask > 0, random.integers(5, rows - 8, mask.shape), getattr(theirs.config, "pad_token_id", None) or 0)
        with torch.no_grad():
            expected = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))["last_hidden_state"].numpy()
        got = ours.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        worst = max(worst, float(np.abs(got - expected)[mask > 0].max() / np.abs(expected[mask > 0]).max()))
    return worst


def decoder_types() -> Iterator[tuple[str, str]]:
    """Types of language models: with a head for generation, which read texts alone."""
    import transformers
    from transformers.models.auto import modeling_auto

    for kind, names in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        name = str(_first(names))
        if not _reads_more(getattr(transformers, name).config_class):
            yield kind, name


def _reads_more(config_class: Any) -> bool:
    """Whether a configuration is of a model that reads images or sounds too."""
    try:
        config = config_class()
    except Exception:  # defaults that its own validation refuses
        return False
    return any(hasattr(config, name) for name in ("vision_config", "audio_config", "audio_encoder"))


def decoder_difference(cls: str, folder: Path, bundle: Path) -> float:
    """The largest difference of log-probabilities of generated tokens, over the largest logit."""
    import torch
    import transformers

    from onnxport.runtime import load
    from onnxport.runtime.decode import state
    from onnxport.runtime.decode.generator import Generator
    from onnxport.runtime.options import Options, Watch

    theirs, ours, new, worst = getattr(transformers, cls).from_pretrained(folder).eval(), load(bundle), 12, 0.0
    assert ours.engine is not None
    config, options = ours.engine.config.plain(), Options(min_new_tokens=new, max_new_tokens=new)
    random, rows = np.random.default_rng(11), min(VOCABULARY, int(theirs.config.get_text_config().vocab_size))
    prompts = [random.integers(5, rows - 8, length).tolist() for length in (5, 17, 1, 30)]
    for block in (state.PREFILL_CHUNK, 7):
        state.PREFILL_CHUNK = block
        for prompt, answer in zip(
            prompts, Generator(ours.engine, None, None, config).generate(prompts, None, options, Watch()), strict=True
        ):
            with torch.no_grad():
                logits = theirs(input_ids=torch.tensor([[*prompt, *answer.tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            worst = max(worst, answer_difference(answer, logits))
    return worst


def answer_difference(answer: Any, logits: Any) -> float:
    """The largest difference of an answer's log-probabilities from those of logits [tokens, vocabulary], over the largest logit."""
    expected = logits.float().log_softmax(-1)[range(len(answer.tokens)), answer.tokens].numpy()
    return float(np.abs(np.array(answer.token_logprobs) - expected).max() / logits.abs().max())


def seq2seq_types() -> Iterator[tuple[str, str]]:
    """Types of encoder-decoders that read texts."""
    import transformers
    from transformers.models.auto import modeling_auto

    for kind, name in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items():
        cls = getattr(transformers, name)
        if cls.main_input_name == "input_ids" and not {"input_features", "input_values"} & inspect.signature(cls.forward).parameters.keys():
            yield kind, name


def seq2seq_difference(cls: str, folder: Path, bundle: Path) -> float:
    """The largest difference of log-probabilities of generated tokens, over the largest logit."""
    import torch
    import transformers

    from onnxport.runtime import load
    from onnxport.runtime.decode.generator import Generator
    from onnxport.runtime.options import Options, Watch

    theirs, ours, new, worst = getattr(transformers, cls).from_pretrained(folder).eval(), load(bundle), 12, 0.0
    assert ours.engine is not None and ours.engine.config.decoder_start_id is not None
    config = ours.engine.config.plain()
    random, rows = np.random.default_rng(11), min(config.vocab_size, config.source_vocab_size or config.vocab_size)
    sources = [random.integers(5, rows - 8, length).tolist() for length in (5, 17, 1, 30)]
    options = Options(beam=1, min_new_tokens=new, max_new_tokens=new)
    for beginnings in ([[], [], [], []], [[7], [9, 11, 13], [], [5, 6]]):  # rows of a batch then stand at different positions
        answers = Generator(ours.engine, None, None, config).generate(sources, beginnings, options, Watch())
        for source, beginning, answer in zip(sources, beginnings, answers, strict=True):
            begun = [config.decoder_start_id, *beginning]
            target, mask = torch.tensor([[*begun, *answer.tokens]]), torch.ones(1, len(source), dtype=torch.long)
            logits = target_logits(theirs, {"input_ids": torch.tensor([source]), "attention_mask": mask}, target)
            worst = max(worst, answer_difference(answer, logits[len(begun) - 1 : -1]))
    return worst


def target_logits(theirs: Any, source: Mapping[str, Any], target: Any) -> Any:
    """Logits [length, vocabulary] of a target int64 [1, length]: of all of it at once, but for ProphetNet, whose class then gives others
    than one by one, as its `generate` asks for them."""
    import torch

    with torch.no_grad():
        if theirs.config.model_type != "prophetnet":
            return theirs(**source, decoder_input_ids=target, use_cache=False).logits[0]
        rows, cache = [], None
        for ids in target.split(1, 1):
            found = theirs(**source, decoder_input_ids=ids, cache=cache, use_cache=True)
            rows, cache = [*rows, found.logits[0]], found.cache
        return torch.cat(rows)


KINDS = {
    "encoders": Kind(encoder_types, encoder_difference),
    "decoders": Kind(decoder_types, decoder_difference, {"is_decoder": True, "causal": True}),
    "seq2seq": Kind(seq2seq_types, seq2seq_difference),
}


def one(kind: Kind, row: Row, work: Path) -> None:
    """Builds, exports and compares one type; fills in `row`."""
    from onnxport.build import build

    folder, bundle = work / "folder", work / "bundle"
    try:
        tiny_folder(row.type, row.cls, folder, **kind.settings)
    except Exception as error:  # whatever a class raises at these sizes
        row.reason = f"{type(error).__name__}: {one_line(error, 200)}"
        return
    try:
        build(str(folder), bundle, precision=("fp32",))
    except OnnxportError as error:
        row.outcome = "crashed" if error.exit_code == 1 else "refused"
        row.reason = f"exit {error.exit_code}: {one_line(error).replace(str(folder), 'FOLDER')}"
        return
    row.difference = kind.difference(row.cls, folder, bundle)
    row.outcome = "equal" if row.difference <= TOLERANCE else "wrong"
    row.fused, row.left = attentions(bundle)


def attentions(bundle: Path) -> tuple[int, int]:
    """Kernels of attention in the graphs of the fp32 variant, and what is written out in standard nodes beside them."""
    import onnx

    files = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["variants"]["fp32"]["graphs"].values()
    nodes = Counter(node.op_type for file in files for node in onnx.load(bundle / file, load_external_data=False).graph.node)
    return sum(nodes[name] for name in KERNELS), sum(nodes[name] for name in WRITTEN_OUT)


def run_child(kind: str, model_type: str, cls: str, work: Path, found: Any) -> None:
    """The process of one type: sends its Row as a dict."""
    row = Row(model_type, cls, "not built")
    try:
        one(KINDS[kind], row, work)
    except Exception:  # the comparison itself
        row.outcome, row.reason = "crashed", traceback.format_exc(limit=-2)[-300:]
    found.send(asdict(row))


def answer_of(target: Callable[..., None], *args: Any, limit: float) -> dict[str, Any] | None:
    """What a process sends through the pipe that is its last argument; it is forked from one that has imported everything.

    None where nothing comes for `limit` seconds. ChildProcessError: it ended before it sent anything.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=target, args=(*args, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else None
    except EOFError:
        process.join()
        raise ChildProcessError(f"exit {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def run_type(kind: str, model_type: str, cls: str, work: Path) -> Row:
    """A type in a process of its own."""
    shutil.rmtree(work, ignore_errors=True)
    try:
        found = answer_of(run_child, kind, model_type, cls, work, limit=LIMIT)
        return Row(model_type, cls, "out of time", f"{LIMIT} s") if found is None else Row(**found)
    except ChildProcessError as error:
        return Row(model_type, cls, "crashed", str(error))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, after a line of sums."""
    counts = Counter(row.outcome for row in rows)
    fused = sum(row.outcome == "equal" and row.fused > 0 and row.left == 0 for row in rows)
    built = len(rows) - counts["not built"]
    lines = [f"{built} built: " + ", ".join(f"{counts[name]} {name}" for name in OUTCOMES) + f"; attention fused in {fused}", ""]
    lines += ["| type | class | outcome | difference | fused | left | reason |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        reason = row.reason.replace("|", "/").replace("\n", " ")
        lines.append(f"| {row.type} | {row.cls} | {row.outcome} | {difference} | {row.fused} | {row.left} | {reason} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--kind", type=click.Choice(sorted(KINDS)), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--type", "only", multiple=True, help="This type alone; may be given several times.")
@click.option("--again", is_flag=True, help="Types that have a line already, too.")
@click.option("--workers", type=int, default=1, show_default=True, help="Types at once.")
def main(kind: str, out: Path, only: tuple[str, ...], again: bool, workers: int) -> None:
    """Takes the census of one kind of models."""
    out.mkdir(parents=True, exist_ok=True)
    CONTEXT.set_forkserver_preload(["census_warm"])
    lines = out / f"{kind}.jsonl"
    found = [Row(**json.loads(line)) for line in lines.read_text().splitlines()] if lines.exists() else []
    rows = {row.type: row for row in found}
    asked = [
        (model_type, cls)
        for model_type, cls in KINDS[kind].types()
        if (not only or model_type in only) and (again or model_type not in rows)
    ]
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run_type, kind, model_type, cls, out / f"{model_type}.work") for model_type, cls in asked]
        for done in as_completed(running):
            row = rows[done.result().type] = done.result()
            click.echo(f"{row.type}: {row.outcome} {row.reason[:160]}")
            lines.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows.values()))
    text = table(sorted(rows.values(), key=lambda row: row.type))
    (out / f"{kind}.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
