"""Commands, options and public names are documented."""

import importlib
import inspect

import click
import pytest

from onnxport.cli.commands import cli
from support.paths import ROOT

SECTIONS = {  # docs/commands.md has one section a command
    section.split()[1].strip("`"): section for section in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").split("\n## `")[1:]
}
COMMON = {"--quiet", "--verbose"}  # named once, above the sections
PUBLIC = ("onnxport", "onnxport.runtime", "onnxport.export", "onnxport.compare", "onnxport.build", "onnxport.errors")
OPTIONS = [
    (name, option.opts[-1])
    for name, command in cli.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.hidden and option.opts[-1] not in COMMON
]


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_in_the_docs_and_has_help_and_an_example(name: str) -> None:
    command = cli.commands[name]
    assert name in SECTIONS
    assert command.help
    assert f"onnxport {name}" in (command.epilog or "")


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_is_in_the_section_of_its_command(name: str, option: str) -> None:
    assert f"| `{option}`" in SECTIONS[name] or f"| `{option} " in SECTIONS[name]


def test_the_docs_name_no_option_that_a_command_lacks() -> None:
    for name, section in SECTIONS.items():
        named = {line.split("`")[1].split()[0] for line in section.splitlines() if line.startswith("| `")}
        assert named <= {opt for option in cli.commands[name].params for opt in option.opts}, name


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_docstring(module: str) -> None:
    opened = importlib.import_module(module)
    names = getattr(opened, "__all__", None) or [name for name, value in vars(opened).items() if inspect.isclass(value)]
    assert opened.__doc__ and names
    for name in names:
        value = getattr(opened, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{module}.{name}"
