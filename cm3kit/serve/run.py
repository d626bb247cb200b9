"""Start the server on a loopback address."""

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
    """Serve until Ctrl-C; `say` is called with the URL and token once the server listens.

    Args:
        host: 127.0.0.1, ::1 or localhost. port: 0 chooses a free one.
        token: at least 16 characters; random by default.

    Raises:
        ConfigError: the host is not a loopback address, or the port is in use (`bad_value`).
        ModelError: see `cm3kit.load`.
    """
    address = "127.0.0.1" if host == "localhost" else host
    if not _is_loopback(address):
        raise ConfigError(
            f"--host {host} is reachable from other machines; use 127.0.0.1 and an SSH tunnel",
            code="bad_value",
        )
    if token is not None and len(token) < 16:
        raise ConfigError(
            "the token has fewer than 16 characters; give a longer one, or omit it", code="bad_value"
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
        # Requests are not logged, as their URL may contain the token.
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
                # A longer step of the model would keep the process alive; ending it is safe, as it writes no files.
                say("stopped during a request")
                os._exit(INTERRUPTED)


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Stops the running request on a signal, so that shutdown does not wait for it."""

    def __init__(self, config: uvicorn.Config, queue: ModelQueue) -> None:
        super().__init__(config)
        self._queue = queue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._queue.close()
        super().handle_exit(sig, frame)


def hosts(port: int) -> tuple[str, ...]:
    """Values of `Host` for requests to the loopback addresses."""
    return (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
