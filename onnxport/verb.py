"""What the commands are made of: their class, the options all of them have, and values given as lists."""

from collections.abc import Callable
from typing import Any

import click

from onnxport.console import reported


class Verb(click.Command):
    """A command whose help keeps the layout of its examples and whose failures end with the contract's exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples as they were written, a line each."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Examples:\n" + "".join(f"  {line.strip()}\n" for line in self.epilog.strip().splitlines()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; failures become exit codes."""
        with reported(ctx.params.get("verbose", False)):
            return super().invoke(ctx)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has."""
    command = click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and details.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="No progress, only results and errors.")(command)


def precision_list(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names between commas, each once."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise click.BadParameter("expected a list such as fp32,fp16,int8")
    return tuple(dict.fromkeys(names))


def number_list(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers from 1 between commas."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"expected whole numbers from 1, such as 1,8, found {value!r}")
    return numbers
