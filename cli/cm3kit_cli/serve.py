"""`cm3kit serve`: the editor in the browser, and the HTTP interface."""

from __future__ import annotations

from typing import Annotated

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply


def serve(
    model: options.Model = None,
    device: options.Device = "auto",
    host: Annotated[str, typer.Option("--host", help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free port.")] = 8000,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="Serve the editor, or the interface only.")] = True,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="CM3KIT_TOKEN", help="Access token for clients; random by default."),
    ] = None,
    verbose: options.Verbose = False,
) -> Reply:
    """Serve a page editor and an HTTP interface on this machine, until Ctrl-C.

    Example: cm3kit serve --port 8000
    """
    from cm3kit.extras import need

    for package in ("starlette", "uvicorn"):
        need(package, "serve", "cm3kit serve")
    from cm3kit.serve.run import serve as start

    start(model, device, host, port, ui, lambda line: print(line, flush=True), token)
    return Reply({})
