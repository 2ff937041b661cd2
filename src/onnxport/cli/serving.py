"""The `serve` command: options become limits, and what is told while a server runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click

from onnxport.cli.console import StageLines, complain
from onnxport.extras import require
from onnxport.printable import printable


def answer(
    bundles: Sequence[str],
    *,
    max_requests: int | None,
    max_tokens: int | None,
    max_body_mb: int | None,
    timeout: float | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Serve bundles until the process is told to end; every option is the command's."""
    for module in ("starlette", "uvicorn", "prometheus_client"):
        require(module, "serve", "serving")
    from onnxport.serve.limits import Limits
    from onnxport.serve.server import is_local, serve

    given = {"requests": max_requests, "tokens": max_tokens, "body": max_body_mb and max_body_mb << 20, "seconds": timeout}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if options["api_key_file"] is None and not is_local(options["host"]):
        complain(f"note: whoever reaches {options['host']} is answered; --api-key-file asks for keys")
    with ExitStack() as loading:
        progress = loading.enter_context(StageLines(quiet, finished=False))

        def listening(url: str, names: Sequence[str]) -> None:
            loading.close()  # a server that goes on is no news
            click.echo(printable(f"listening on {url} ({', '.join(names)})"))

        serve(bundles, limits=limits, verbose=verbose, progress=progress, listening=listening, **options)
