"""The command line: one thin function a command. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxport import __version__
from onnxport.cli.console import StageLines, catch_signals, emit, emit_json, reported
from onnxport.cli.memory import use_less
from onnxport.errors import OnnxportError
from onnxport.printable import printable
from onnxport.quantize.plan import CACHES
from onnxport.quantize.precisions import DEFAULT, PRECISIONS
from onnxport.runtime.bundle.variant_names import TARGETS, named
from onnxport.runtime.other_names import OPTIONS, hint
from onnxport.runtime.sessions import DEVICES

Function = TypeVar("Function", bound=Callable[..., Any])
EVERYWHERE = ("quiet", "verbose")  # these options may also stand before the command


class Device(click.Choice[str]):
    """A device's name, refused with ours where another program's is given."""

    def __init__(self) -> None:
        super().__init__(list(DEVICES))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Click's own."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(error.message.rstrip(".") + hint("device", value), ctx, param) from None


class Command(click.Command):
    """A command whose help keeps the layout of its examples and whose failures end with the contract's exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples as they were written, a line each."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Examples:\n" + "".join(f"  {line.strip()}\n" for line in self.epilog.strip().splitlines()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's own; an option of another program is refused with the name of ours."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            ours = {str(param.name): param.opts[-1] for param in self.params if isinstance(param, click.Option)}
            meant = OPTIONS.get(error.option_name.lstrip("-").replace("-", "_").lower())
            if meant not in ours:
                raise
            said = f"No such option {error.option_name!r}. Did you mean {ours[meant]!r}?"  # click would drop what is not spelt alike
            raise click.NoSuchOption(error.option_name, message=said, ctx=error.ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; failures become exit codes."""
        before = {} if ctx.parent is None else ctx.parent.params
        ctx.params |= {name: ctx.params[name] or before.get(name, False) for name in EVERYWHERE}
        with reported(ctx.params["verbose"]):
            return super().invoke(ctx)


def common(function: Function) -> Function:
    """The options that every command has, and that may also stand before it."""
    return _with_options(
        function,
        click.option("-q", "--quiet", is_flag=True, help="No progress, only results and errors."),
        click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and details."),
    )


def variant_options(function: Function) -> Function:
    """The options that `export` and `quantize` share: what variants are made with."""
    return _with_options(
        function,
        click.option("--calibrate", type=click.Path(path_type=Path), help="Calibration data, for the schemes that need it."),
        click.option(
            "--budget",
            help="What the variant auto may lose, a gate such as 'bleu_drop<=0.3'; default: by task, such as kl<=0.01 of language models.",
        ),
        click.option("--data", type=click.Path(path_type=Path), help="What auto measures plans on; default: rows of --calibrate."),
        click.option("--threads", type=click.IntRange(1), help="For what auto measures; default: what the machine or container grants."),
        click.option("--kv", type=click.Choice(CACHES), help="Caches of language models in 8 bits, for long contexts on the CPU."),
    )


def _with_options(function: Function, *options: Callable[[Function], Function]) -> Function:
    """The function with options, which help shows in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def precision_list(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names between commas, each once."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise click.BadParameter("expected a list such as fp32,fp16,int8")
    return tuple(dict.fromkeys(names))


def precisions_from(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """For completion in a shell: the names that a list may go on with, a bundle's variants where one was typed before."""
    before, comma, begun = incomplete.rpartition(",")
    known: Iterable[str] = PRECISIONS
    path = ctx.params.get("bundle") or next(iter(ctx.args), None)  # an option without its value ends click's own parsing
    if path is not None and ctx.info_name in ("run", "compare", "triton"):
        from onnxport.runtime.bundle.reader import Bundle

        try:
            known = Bundle.read(path).variants
        except OnnxportError:
            known = ()
    return [f"{before}{comma}{name}" for name in known if name.startswith(begun)]


def number_list(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers from 1 between commas."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"expected whole numbers from 1, such as 1,8, found {value!r}")
    return numbers


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="onnxport")
@common
def cli(quiet: bool, verbose: bool) -> None:
    """From a PyTorch Transformer to an application on ONNX Runtime: export, run, compare."""


def command(examples: str) -> Callable[[Callable[..., None]], Command]:
    """Makes a function a command of `cli`. examples: lines that its help ends with."""

    def register(function: Callable[..., None]) -> Command:
        made = click.command(cls=Command, epilog=examples)(function)
        cli.add_command(made)
        return made

    return register


@command("""
    onnxport export examples/en-de --out artifacts/en-de
    onnxport export mymodel:build --out artifacts/mine --precision fp32,int8
""")
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder; made whole or not at all.")
@click.option(
    "--task",
    help="translation, summarization, text2text, text-generation, embedding, classification, token-classification, fill-mask, "
    "multiple-choice, question-answering or tensor; default: the source's own.",
)
@click.option(
    "--precision",
    callback=precision_list,
    shell_complete=precisions_from,
    help=f"Variants, some of {', '.join(PRECISIONS)}; the first is the default one; default: {','.join(DEFAULT)}, or what a quantized "
    "source carries.",
)
@click.option(
    "--target",
    callback=precision_list,
    default="cpu",
    show_default=True,
    help="What variants are for: some of cpu,cuda,web; int8 for CUDA is int8@cuda, for runtimes of JavaScript int8@web.",
)
@click.option("--opset", type=int, help="ONNX opset of the traced graphs, from 23 on.")
@variant_options
@click.option("--allow-pickle", is_flag=True, help="Read PyTorch pickles too (weights only).")
@click.option("--allow-remote-code", is_flag=True, help="Run a folder's own code (auto_map): it can do whatever you can.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA adapter's folder, merged into the weights.")
@click.option("--route", hidden=True)
@click.option("--force", is_flag=True, help="Replace an existing output, unless it has a variant that fails now.")
@click.option("--keep-going", is_flag=True, help="Replace it also where a variant that it has fails now.")
@click.option("--resume", is_flag=True, help="Keep what is finished in .OUT.work until all is, and go on with what is there.")
@click.option("--dry-run", is_flag=True, help="Print files, sizes, memory, disk and time, and make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
@common
def export(
    source: str,
    out: Path,
    task: str | None,
    precision: tuple[str, ...] | None,
    target: tuple[str, ...],
    opset: int | None,
    calibrate: Path | None,
    budget: str | None,
    data: Path | None,
    threads: int | None,
    kv: str | None,
    allow_pickle: bool,
    allow_remote_code: bool,
    adapter: Path | None,
    route: str | None,
    force: bool,
    keep_going: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Export SOURCE to a checked bundle.

    Traces it, compares with the original, fuses, makes the variants, and checks each again. A variant that fails is left out (exit 3).

    SOURCE is a folder with config.json and weights, package.module:factory, model.onnx, or model.gguf.
    """
    from onnxport.build import build
    from onnxport.cli.overview import end_for_failed, estimated, notes, show_bundle

    if dry_run:
        from onnxport.extras import require

        require("onnx_ir", "export")
        from onnxport.build.estimate import estimate

        found = estimate(source, precision, target, task=task, allow_pickle=allow_pickle)
        emit_json(found.as_dict()) if as_json else emit(estimated(found.as_dict()))
        return
    use_less()
    with StageLines(quiet) as progress:
        bundle = build(
            source,
            out,
            task=task,
            precision=precision,
            target=target,
            opset=opset,
            calibrate=calibrate,
            budget=budget,
            data=data,
            threads=threads,
            kv=kv,
            allow_pickle=allow_pickle,
            allow_remote_code=allow_remote_code,
            adapter=adapter,
            route=route,
            force=force,
            keep_going=keep_going,
            resume=resume,
            progress=progress,
        )
    if not quiet:
        for note in notes(bundle):
            click.echo(printable(f"note: {note}"), err=True)
    try:
        show_bundle(bundle, as_json, with_notes=False)
    finally:  # what failed counts even when nobody reads the table to its end
        end_for_failed(bundle)


@command("""
    onnxport quantize artifacts/en-de --precision int8
    onnxport quantize artifacts/en-de --precision auto --calibrate dev.tsv --budget 'bleu_drop<=0.3'
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", required=True, shell_complete=precisions_from, help=f"The variant to add: {', '.join(PRECISIONS)}.")
@click.option("--target", type=click.Choice(TARGETS), help="What it is for; int8@cuda names precision and target in one.")
@click.option("--plan", type=click.Path(path_type=Path), help="A precision plan.")
@variant_options
@click.option("--force", is_flag=True, help="Replace the variant if the bundle has it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
@common
def quantize(
    bundle: Path,
    precision: str,
    target: str | None,
    plan: Path | None,
    calibrate: Path | None,
    budget: str | None,
    data: Path | None,
    threads: int | None,
    kv: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Add one variant to BUNDLE.

    It is made from the fp32 variant and checked against the golden answers.
    """
    from onnxport.build import add_variant
    from onnxport.cli.overview import show_bundle

    use_less()
    with StageLines(quiet) as progress:
        made = add_variant(
            bundle,
            precision if target is None or "@" in precision else named(precision, target),
            plan=plan,
            calibrate=calibrate,
            budget=budget,
            data=data,
            threads=threads,
            kv=kv,
            force=force,
            progress=progress,
        )
    show_bundle(made, as_json)


@command("""
    onnxport run artifacts/en-de "How are you?"
    onnxport run artifacts/en-de --precision int8 --beam 4 --json "How are you?"
    onnxport run artifacts/en-de < sentences.txt
    onnxport run artifacts/en-de --long sentences < book.txt
    onnxport run artifacts/reader '{"question": "Who came?", "context": "Ada came."}'
    onnxport run artifacts/ner --aggregation first "Ada came to London."
    onnxport run artifacts/nli --candidates sport,politics "The match ended in a draw."
    onnxport run artifacts/plain --npz inputs.npz --out outputs.npz
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1)
@click.option("--precision", shell_complete=precisions_from, help="The variant to run; default: the bundle's own default.")
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: what the machine or container grants.")
@click.option("--beam", type=click.IntRange(1), help="Beams; 1 is greedy; default: the model's own.")
@click.option("--length-penalty", type=float, help="Above 0 favours longer answers (beams); default: the model's own.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer; default: the model's own, else 128.")
@click.option("--min-new-tokens", type=click.IntRange(0), help="Shortest answer; default: the model's own.")
@click.option("--temperature", type=float, help="Sample, at this temperature.")
@click.option(
    "--top-k", type=click.IntRange(1), help="Sample among the K most probable tokens; answers for a mask, documents of a ranking."
)
@click.option("--top-p", type=float, help="Sample among the most probable tokens that reach probability P together.")
@click.option("--repetition-penalty", type=float, help="Above 1 makes tokens of the answer less probable; default: the model's own.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--draft", help="A smaller variant that guesses tokens, which this one checks: the same answers, sooner.")
@click.option("--lookup", type=click.IntRange(0), help="Guess up to N tokens at once from the text's own words; the answers are the same.")
@click.option("--stop", multiple=True, help="Text that ends an answer; may be given several times.")
@click.option("--json-schema", type=click.Path(path_type=Path), help="A file with the JSON schema that answers follow (extra structured).")
@click.option("--top-logprobs", type=click.IntRange(0), help="Tell the N best tokens at each place, with --json.")
@click.option("--n-best", type=click.IntRange(1), help="Answers a text; all but the best are in the JSON's alternatives.")
@click.option("--chat", is_flag=True, help="Each TEXT or line is what a user says, or a JSON list of messages.")
@click.option("--long", type=click.Choice(["segments", "sentences"]), help="Long text in parts; standard input is one text.")
@click.option("--src-lang", help="Language of the texts, for models of many; default: the tokenizer's own.")
@click.option("--tgt-lang", help="Language of the answers, for models of many; default: the model's own settings.")
@click.option("--stride", type=click.IntRange(0), help="Tokens that windows of a long text share; default: 128, at most half a window.")
@click.option("--max-answer-tokens", type=click.IntRange(1), help="Longest answer to a question; default: 30.")
@click.option("--no-answer", is_flag=True, help="A question may have no answer.")
@click.option("--candidates", help="Labels between commas that texts are judged by (zero-shot, multiple choice).")
@click.option("--hypothesis-template", help="Makes a sentence of a candidate, which stands for {}; default: 'This example is {}.'")
@click.option("--multi-label", is_flag=True, help="Any number of the candidates may hold.")
@click.option("--aggregation", type=click.Choice(["none", "simple", "first", "average", "max"]), help="Of tokens; default: first.")
@click.option("--targets", multiple=True, help="A token that a mask may be filled with; may be given several times.")
@click.option("--prompt", help="Text that stands before every text that is embedded.")
@click.option("--prompt-name", help="One of the bundle's own prompts.")
@click.option("--normalize-embeddings", is_flag=True, help="Bring vectors to length 1.")
@click.option("--truncate-dim", type=click.IntRange(1), help="Numbers of a vector that are kept.")
@click.option("--timeout", type=float, help="Seconds after which the call is given up.")
@click.option("--stream", is_flag=True, help="Print the answer as it is made.")
@click.option("--npz", type=click.Path(path_type=Path), help="Input arrays, for bundles whose task is tensor.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the output arrays go (with --npz).")
@click.option("--force", is_flag=True, help="Replace an existing --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all results; with --stream one object a line.")
@common
def run(bundle: Path, text: tuple[str, ...], quiet: bool, verbose: bool, **options: Any) -> None:
    """Answer TEXT from BUNDLE.

    Without TEXT, every line of standard input is answered by a line; an empty line by an empty one.
    Pairs and questions are JSON: {"text": ..., "pair": ...}, {"question": ..., "context": ...}, {"query": ..., "documents": [...]},
    {"text": ..., "candidates": [...]}.
    """
    from onnxport.cli.run import answer

    answer(bundle, text, quiet=quiet, **options)


@command("""
    onnxport compare artifacts/en-de --data examples/en-de/test-200.tsv
    onnxport compare artifacts/en-de --data test.tsv --source examples/en-de --gate 'int8.bleu_drop<=0.5' --gate 'agreement>=0.8'
    onnxport compare artifacts/en-de --data test.tsv --baseline old/report.json --gate 'int8.speedup_change>=-0.1'
    onnxport compare artifacts/en-de --with artifacts/en-de-new --data test.tsv --gate 'en-de-new/int8.bleu_drop_ci.low<=0'
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Evaluation data: .tsv, .csv, .jsonl, .conll, .txt, SQuAD's JSON.")
@click.option(
    "--precision", "precisions", callback=precision_list, shell_complete=precisions_from, help="Variants to compare; default: all."
)
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--source", help="The original model: joins in PyTorch and becomes the reference.")
@click.option("--with", "others", multiple=True, type=click.Path(path_type=Path), help="A bundle whose variants join as NAME/VARIANT.")
@click.option("--batch", callback=number_list, default="1,8", show_default=True, help="Batch sizes to time.")
@click.option("--threads", type=click.IntRange(1), help="Default: what the machine or container grants.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the reports; default: artifacts/reports/NAME.")
@click.option("--baseline", type=click.Path(path_type=Path), help="An earlier report.json: gives X_change of every metric X.")
@click.option("--gate", "gates", multiple=True, help="[VARIANT.]METRIC OP NUMBER; exit 3 if any fails.")
@click.option("--tolerance", "tolerances", multiple=True, help="What is accepted of quality, such as 'bleu_drop<=1': verdicts follow it.")
@click.option("--beam", type=click.IntRange(1), help="Beams of every side; 1 is greedy; default: the model's own.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer.")
@click.option("--limit", type=click.IntRange(1), help="Use N rows, evenly spaced over the data.")
@click.option("--force", is_flag=True, help="Replace existing reports.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table.")
@common
def compare(
    bundle: Path,
    data: Path | None,
    precisions: tuple[str, ...] | None,
    device: str,
    source: str | None,
    others: tuple[Path, ...],
    batch: tuple[int, ...],
    threads: int | None,
    out: Path | None,
    baseline: Path | None,
    gates: tuple[str, ...],
    tolerances: tuple[str, ...],
    beam: int | None,
    max_new_tokens: int | None,
    limit: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare the variants of BUNDLE.

    Quality, agreement with the reference, latency, memory and size, and a verdict for each; as a table, JSON, Markdown and HTML, and the
    gates as JUnit XML.
    """
    from onnxport.cli.overview import report_folder, show_report
    from onnxport.compare import compare as measure

    folder = report_folder(out, bundle)
    with StageLines(quiet) as progress:
        report = measure(
            bundle,
            data=data,
            precisions=precisions,
            device=device,
            source=source,
            others=others,
            batches=batch,
            threads=threads,
            out=folder,
            baseline=baseline,
            gates=gates,
            tolerances=tolerances,
            beam=beam,
            max_new_tokens=max_new_tokens,
            limit=limit,
            force=force,
            progress=progress,
        )
    try:
        emit_json(report.as_dict()) if as_json else show_report(report, folder)
    finally:  # a failed gate counts even when nobody reads the table to its end
        report.raise_for_gates()


@command("""
    onnxport pipeline model.toml
    onnxport pipeline model.toml --dry-run
    onnxport pipeline model.toml --key
""")
@click.argument("file", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace existing outputs, as the commands' own --force.")
@click.option("--dry-run", is_flag=True, help="Check the file and print the commands that it stands for.")
@click.option("--key", is_flag=True, help="Print a hash of all that the outputs depend on, by content: a key for caches.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and report.json as one JSON object.")
@common
def pipeline(file: Path, force: bool, dry_run: bool, key: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Export, add variants and compare, as FILE.toml says.

    The file is checked whole before any work. Outputs and exit codes are those of the commands that it stands for.
    """
    from onnxport.cli.pipeline import run
    from onnxport.cli.pipeline_file import read_steps

    use_less()
    if dry_run and key:
        raise click.UsageError("--dry-run and --key print different things: give one of them")
    steps = read_steps(file, {"export": export, "quantize": quantize, "compare": compare}, force)
    run(file, steps, dry_run=dry_run, key=key, as_json=as_json, quiet=quiet)


@command("""
    onnxport inspect artifacts/en-de
    onnxport inspect artifacts/en-de --json
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
@common
def inspect(bundle: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show what BUNDLE holds.

    Task, variants, sizes, fusions, parity, and where it came from.
    """
    from onnxport.cli.overview import show_bundle
    from onnxport.runtime.bundle.reader import Bundle

    show_bundle(Bundle.open(bundle), as_json)


@command("""
    onnxport verify artifacts/en-de
    onnxport verify artifacts/en-de --signature team.pub
    onnxport verify artifacts/en-de --device cuda --record
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--device", type=Device(), help="Run the variants that are for this device there; default: each where it was checked when made."
)
@click.option(
    "--signature",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Public key, or certificates of authorities, that the bundle must be signed by.",
)
@click.option("--record", is_flag=True, help="Write what the device confirmed to confirmations.json beside bundle.json.")
@click.option("--json", "as_json", is_flag=True)
@common
def verify(bundle: Path, device: str | None, signature: Path | None, record: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Check BUNDLE.

    Every hash is right, every graph loads, and the golden answers are reproduced within their bounds.
    """
    from onnxport.cli.overview import parity_line
    from onnxport.runtime.verify import verify as check

    if record and device is None:
        raise click.UsageError("--record is about a device: give --device too")
    with StageLines(quiet) as progress:
        progress(f"verifying {bundle}")
        result = check(bundle, device=device, signed_by=signature)
        if record:
            assert device is not None
            _record(bundle, device, result["variants"])
    if as_json:
        emit_json(result)
    else:
        emit(f"{bundle}: {result['files']} files, {', '.join(result['variants'])}: hashes, graphs and golden answers are right")
        if signature is not None:
            emit(f"signed by {signature}" if result["signer"] is None else f"signed by {result['signer']}, whom {signature} vouches for")
        for name, parity in result["variants"].items():
            emit(f"{name}: {parity_line(parity)}")
        for name in result["unlisted"]:
            emit(f"not part of the bundle: {name}")


@command("""
    onnxport sign artifacts/en-de --key team.pem
    onnxport sign artifacts/en-de --key release.pem --certificate release.crt
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Private key, PEM of an elliptic curve, without a password.")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM with the certificate of that key, then those between it and its authority.",
)
@click.option("--force", is_flag=True, help="Replace the signature if the bundle has one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@common
def sign(bundle: Path, key: Path, certificate: Path | None, force: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Sign BUNDLE: bundle.sig beside bundle.json, whose hashes cover all other files.

    Every hash is checked before. It needs no network.
    """
    from onnxport.runtime.bundle import signature

    place = signature.sign(bundle, key, force, certificate)
    emit_json({"path": str(bundle), "signature": place.name}) if as_json else emit(str(place))


def _record(path: Path, device: str, found: dict[str, Any]) -> None:
    """Writes to a bundle's confirmations what a device was right about."""
    from onnxport.compare.measure import gpu, machine
    from onnxport.runtime.bundle.confirmations import record
    from onnxport.runtime.bundle.reader import Bundle

    facts = machine.describe()
    shown = {name: facts[name] for name in ("cpu", "os", "versions")}
    record(Bundle.open(path), device, found, shown if device == "cpu" else gpu.describe() | shown)


@command("""
    onnxport serve artifacts/en-de --port 8000
    onnxport serve chat=artifacts/smollm2 artifacts/minilm --precision int8 --api-key-file keys.txt
""")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one and prints it.")
@click.option("--precision", help="The variant of every bundle; default: the bundle's own default.")
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of each model; default: what the machine or container grants.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Keys, one a line: who sends none of them is refused.")
@click.option("--prefix-cache-mb", type=click.IntRange(1), help="MiB for each language model's kept prompts; default: none is kept.")
@click.option("--batch-rows", type=click.IntRange(1), help="Rows (texts times beams) that decode together; default: 32 texts.")
@click.option("--batch-cache-mb", type=click.IntRange(1), help="MiB of a batch's keys and values; default: no bound.")
@click.option(
    "--require-signature",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Public key, or certificates of authorities, that bundles must be signed by.",
)
@click.option("--max-requests", type=click.IntRange(1), help="Requests at once; more are refused (429); default: 256.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of a request, prompts and answers together; default: 262144.")
@click.option("--max-body-mb", type=click.IntRange(1), help="MiB of a request's body; default: 16.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds of a request; default: 600.")
@common
def serve(bundles: tuple[str, ...], quiet: bool, verbose: bool, **options: Any) -> None:
    """Answer HTTP requests from one BUNDLE or several, each as BUNDLE or NAME=BUNDLE.

    OpenAI's API, rankings, KServe's open inference protocol and Prometheus's metrics. SIGTERM finishes what is under way.
    """
    from onnxport.cli.serving import answer

    answer(bundles, quiet=quiet, verbose=verbose, **options)


@command("""
    onnxport triton artifacts/en-de --out repository --precision int8
    onnxport triton artifacts/minilm --out repository --onnxruntime 1.30
""")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model repository; the model becomes a folder in it.")
@click.option("--name", help="The model's name; default: the bundle's own.")
@click.option("--precision", shell_complete=precisions_from, help="The variant; default: the bundle's own default.")
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: what the machine or container grants.")
@click.option("--onnxruntime", help="Version of ONNX Runtime in your Triton: its own backend answers, arrays in and out (encoders).")
@click.option("--force", is_flag=True, help="Replace the model if the repository has it.")
@common
def triton(
    bundle: Path,
    out: Path,
    name: str | None,
    precision: str | None,
    device: str,
    threads: int | None,
    onnxruntime: str | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write BUNDLE into a model repository of NVIDIA's Triton.

    The runtime answers in Triton's Python backend, text in and out.
    """
    from onnxport.serve.triton.repository import write

    with StageLines(quiet) as progress:
        place = write(bundle, out, name, precision, device, threads, onnxruntime, force, progress)
    emit(str(place))


@command("""
    onnxport doctor
    onnxport doctor --json
""")
@click.option("--json", "as_json", is_flag=True)
@common
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Tell what this machine can do.

    Processor features, providers, package versions, and clashes between wheels.
    """
    from onnxport.cli.doctor import examine, render

    findings = examine()
    if as_json:
        emit_json(findings)
    else:
        emit(render(findings))


def main() -> None:
    """Entry point of the console script."""
    if not sys.argv[1:]:
        sys.argv.append("--help")
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    if not verbose:
        warnings.simplefilter("ignore")  # what libraries say to programmers is no news to the command's users
    catch_signals()
    with reported(verbose):
        cli.main(standalone_mode=False)
