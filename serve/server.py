"""The process of a server: it loads bundles, listens, and ends when it is told to."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics

from onnxport.errors import UsageError
from onnxport.progress import Progress, silent
from onnxport.serve.app import app
from onnxport.serve.keys import Keys
from onnxport.serve.limits import Limits
from onnxport.serve.models import Models
from onnxport.serve.service import Service

BACKLOG = 1024  # connections that the system keeps until they are taken
IDLE = 75  # seconds that a connection may be idle; longer than the minute of common proxies


class Server(uvicorn.Server):
    """uvicorn, ended as the command promises: SIGTERM finishes what is under way, Ctrl-C does not wait."""

    interrupted = False

    def __init__(self, config: uvicorn.Config, began: Callable[[], None]) -> None:
        super().__init__(config)
        self._began = began

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, told of when it is over."""
        await super().startup(sockets)
        self._began()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves, SIGTERM and SIGINT end it; uvicorn's own raises them again in the end."""
        handlers = {signal.SIGTERM: self._finish, signal.SIGINT: self._stop}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _finish(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = self.should_exit = self.force_exit = True


def serve(
    bundles: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    api_key_file: Path | None = None,
    prefix_cache_mb: int | None = None,
    batch_rows: int | None = None,
    batch_cache_mb: int | None = None,
    limits: Limits | None = None,
    verbose: bool = False,
    require_signature: Path | None = None,
    progress: Progress = silent,
    listening: Callable[[str, Sequence[str]], None] = lambda url, names: None,
) -> None:
    """Serve bundles until SIGTERM, which lets requests under way end, or Ctrl-C, which does not (KeyboardInterrupt).

    listening: called with the address and the models' names once requests are answered. Errors: those of `load`; UsageError: the address
    cannot be had.
    """
    keys = Keys.read(api_key_file)
    disable_created_metrics()  # a series with the time of its start beside each other one
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that leave while they are written to
    with _socket(host, port) as listener:
        models = Models.open(bundles, precision, device, threads, prefix_cache_mb, progress, require_signature, batch_rows, batch_cache_mb)
        try:
            service = Service(models, limits or Limits(), keys, verbose)
            config = uvicorn.Config(
                app(service), log_config=None, access_log=False, lifespan="off", ws="none", timeout_keep_alive=IDLE, backlog=BACKLOG,
                server_header=False,
            )  # fmt: skip
            url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            server = Server(config, lambda: listening(url, [one.name for one in models]))
            server.run([listener])
        finally:
            models.close()
    if server.interrupted:
        raise KeyboardInterrupt


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _socket(host: str, port: int) -> socket.socket:
    """A socket that listens. UsageError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error
