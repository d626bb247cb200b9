"""Start the server on this machine alone."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

import cm3kit
from cm3kit.serve.app import build
from cm3kit.serve.queue import ModelQueue
from cm3kit.serve.timed import Timed
from cm3kit_tokenizers.errors import ConfigError

SECONDS_TO_REST, INTERRUPTED = 0.5, 130


def serve(
    model: str | None, device: str, host: str, port: int, ui: bool, say: Callable[[str], None],
    token: str | None = None,
) -> None:  # fmt: skip
    """Serve until Ctrl-C; `say` hears the address with the token once the server listens.

    Args:
        host: 127.0.0.1, ::1 or localhost. port: 0 takes a free one.
        token: at least 16 characters; unless given, a random one.

    Raises:
        ConfigError: the host is not this machine's own, or the port is taken (`bad_value`).
        ModelError: see `cm3kit.load`.
    """
    address = "127.0.0.1" if host == "localhost" else host
    if not _is_loopback(address):
        raise ConfigError(
            f"--host {host} could be reached from other machines; use 127.0.0.1, and an SSH tunnel from elsewhere",
            code="bad_value",
        )
    if token is not None and len(token) < 16:
        raise ConfigError(
            "the token has fewer than 16 characters; give a longer one, or none", code="bad_value"
        )
    token = token or secrets.token_urlsafe(24)
    kit = cm3kit.load(model, device=device)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used: {error.strerror}", code="bad_value") from error
        listener.listen(128)
        port = int(listener.getsockname()[1])
        app = build(kit, token, hosts(port), ui)
        say(f"http://{f'[{address}]' if ':' in address else address}:{port}/?token={token}")
        # The address line of a request may hold the token: nothing of requests is logged.
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Timed,
            timeout_graceful_shutdown=1,
        )
        try:
            _Server(config, app.state.queue).run(sockets=[listener])
        finally:
            app.state.queue.close()
            if not app.state.queue.rested(SECONDS_TO_REST):
                # A step of the model that takes longer would keep the process; nothing is written that it could harm.
                say("stopped while the model was at work")
                os._exit(INTERRUPTED)


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Stops what the model does as soon as a signal comes, so that nobody is waited for."""

    def __init__(self, config: uvicorn.Config, queue: ModelQueue) -> None:
        super().__init__(config)
        self._queue = queue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._queue.close()
        super().handle_exit(sig, frame)


def hosts(port: int) -> tuple[str, ...]:
    """What `Host` says of requests to this machine's own address."""
    return (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
