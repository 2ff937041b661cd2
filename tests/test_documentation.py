"""Commands, options and public names are documented; documents show commands that exist, and link to files that do."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

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


IN_SIGNATURES = {"onnxport.runtime.options.SearchOptions"}  # public functions take it by its keys


@pytest.mark.parametrize("module", [name for name in PUBLIC if "." in name])
def test_every_public_name_is_in_the_reference(module: str) -> None:
    page = (ROOT / "docs" / "reference" / f"{module.split('.')[1]}.md").read_text(encoding="utf-8")
    names = getattr(importlib.import_module(module), "__all__", None)
    shown = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE)) - IN_SIGNATURES
    assert shown == ({f"{module}.{name}" for name in names} if names else {module})


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    # anchors are checked by `make docs`
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    linked = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert not {link for link in linked if link and not (page.parent / link).exists()}


GUIDES = sorted([ROOT / "docs" / "quick-start.md", *(ROOT / "docs" / "guides").glob("*.md")])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_commands_of_guides_have_these_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^\s*(?:\$ )?onnxport (.+)$", text, re.MULTILINE) + re.findall(r"`onnxport ([a-z]+ [^`]+)`", text)
    for name, *arguments in map(shlex.split, shown):
        if name in cli.commands:
            options = {opt for option in cli.commands[name].params for opt in option.opts}
            assert {argument for argument in arguments if argument.startswith("-")} <= options, f"{page.name}: {name} {arguments}"
        else:
            pytest.fail(f"{page.name}: onnxport {name} is no command")
