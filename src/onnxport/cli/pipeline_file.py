"""Reading of a pipeline's file: the tables of a TOML file become commands, through the commands' own options.

source = "checkpoint"                 # SOURCE of `export`
bundle = "build/model"                # its --out, and BUNDLE of `quantize` and `compare`

[export]                              # every option of the command is a key, without its dashes
precision = ["fp32", "int8"]

[[quantize]]                          # as often as there are variants to add
precision = "int4"

[compare]
data = "eval/test.tsv"
gate = ["int8.bleu_drop<=0.5"]
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxport.errors import UsageError, one_line
from onnxport.files import MOST, read_regular

SOURCE, BUNDLE = "source", "bundle"  # the keys above the tables
EXPORT, QUANTIZE, COMPARE = STEPS = ("export", "quantize", "compare")  # in the order in which they run
_ELSEWHERE = {EXPORT: {"out"}}  # options that the keys above give
_OF_OUTPUT = {"json", "dry-run", "quiet", "verbose", "help"}
_NOT_HANDED_ON = {"as_json", "dry_run", "quiet", "verbose"}
_FORCED = {"force": True}


@dataclass(frozen=True)
class Step:
    """A command of a pipeline. name: for messages. arguments: as they are typed. params: the values
    that the command has from them, but for those on what it prints."""

    name: str
    command: str
    arguments: tuple[str, ...]
    params: Mapping[str, Any]

    def __str__(self) -> str:
        return shlex.join(["onnxport", self.command, *self.arguments])


def read_steps(path: Path, commands: Mapping[str, click.Command], force: bool = False) -> list[Step]:
    """The commands that a file stands for, in the order in which they run.

    commands: by name of STEPS. force: outputs are replaced, whatever the file says. UsageError: the file cannot be read, or all that is
    wrong in it.
    """
    content, problems = _content(path), list[str]()
    tables = {name: content.pop(name) for name in STEPS if name in content}
    named = {name: content.pop(name) for name in (SOURCE, BUNDLE) if name in content}
    problems += [_unknown(name, (SOURCE, BUNDLE, *STEPS)) for name in content]
    problems += [f"{name}: expected a text that is not empty, found {value!r}" for name, value in named.items() if not _is_text(value)]
    if BUNDLE not in named:
        problems.append(f"{BUNDLE} is missing: the bundle's folder")
    if SOURCE in named:
        tables.setdefault(EXPORT, {})
    elif EXPORT in tables:
        problems.append(f"{SOURCE} is missing: what is exported")
    elif not tables:
        problems.append(f"nothing to do: give {SOURCE}, [[{QUANTIZE}]] or [{COMPARE}]")
    source, bundle = (str(named.get(name, name)) for name in (SOURCE, BUNDLE))
    places = {EXPORT: [source, "--out", bundle], QUANTIZE: [bundle], COMPARE: [bundle]}
    steps = []
    for command in STEPS:
        for name, table in _tables(command, tables.get(command, []), problems):
            given = table | ({SOURCE: source} if command == COMPARE and table.get(SOURCE) is True and SOURCE in named else {})
            given |= _FORCED if force and (command != QUANTIZE or EXPORT not in tables) else {}
            options = _arguments(name, command, commands[command], given, problems)
            steps.append((name, command, (*places[command], *options)))
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}")
    return [Step(name, command, found, _params(commands[command], found)) for name, command, found in steps]


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(path, MOST).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the pipeline's file cannot be read ({error.strerror or error}); give a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML ({one_line(error)}); see docs/pipelines.md for an example") from None


def _tables(command: str, value: Any, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The tables of a command with their names; only `quantize` has several."""
    if isinstance(value, dict):
        return [(command, value)]
    if command == QUANTIZE and isinstance(value, list) and all(isinstance(table, dict) for table in value):
        return [(f"{command}[{i}]" if len(value) > 1 else command, table) for i, table in enumerate(value)]
    if value != []:
        problems.append(f"{command}: expected a table, [{command}], found {value!r}")
    return []


def _arguments(name: str, command: str, made: click.Command, table: dict[str, Any], problems: list[str]) -> list[str]:
    """A table's keys as options of the command."""
    known = {_key(option): option for option in made.params if isinstance(option, click.Option) and not option.hidden}
    known = {key: option for key, option in known.items() if key not in _OF_OUTPUT | _ELSEWHERE.get(command, set())}
    context, found = click.Context(made, info_name=command), list[str]()
    for key, value in table.items():
        if key not in known:
            problems.append(_unknown(key, known, f"{name}."))
            continue
        try:
            found += _option(known[key], value, context)
        except click.BadParameter as error:
            problems.append(f"{name}.{key}: {error.message.rstrip('.')}")
    problems += [f"{name}.{key} is missing" for key, option in known.items() if option.required and key not in table]
    return found


def _option(option: click.Option, value: Any, context: click.Context) -> list[str]:
    """An option as it is typed. BadParameter: the value is of another type, or the option does not take it."""
    name = option.opts[-1]
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"expected true or false, found {value!r}")
        return [name] if value else []
    between_commas = option.callback is not None
    values = value if isinstance(value, list) and (between_commas or option.multiple) else [value]
    whole = isinstance(option.type, click.types.IntParamType)
    for one in values:
        if not (_is_number(one) if whole else _is_text(one) or (between_commas and _is_number(one))):
            raise click.BadParameter(f"expected {'a whole number' if whole else 'a text that is not empty'}, found {one!r}")
    texts = [",".join(map(str, values))] if between_commas else [str(one) for one in values]
    option.process_value(context, texts if option.multiple else texts[0])
    return [part for text in texts for part in ([f"{name}={text}"] if text.startswith("-") else [name, text])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _params(command: click.Command, arguments: tuple[str, ...]) -> dict[str, Any]:
    found = command.make_context(command.name, list(arguments)).params
    return {name: value for name, value in found.items() if name not in _NOT_HANDED_ON}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _key(option: click.Option) -> str:
    return option.opts[-1].lstrip("-")


def _unknown(name: str, known: Any, before: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"{before}{name} is no key" + (f"; did you mean {close[0]}?" if close else f": expected some of {', '.join(known)}")
