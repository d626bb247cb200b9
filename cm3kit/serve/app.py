"""The server's application and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cm3kit.fill.kit import Kit
from cm3kit.serve import handlers
from cm3kit.serve.auth import Auth, refused
from cm3kit.serve.queue import ModelQueue, failure
from cm3kit.serve.schemas import CompletionBody, ImageBody, InfillBody, PageBody, read

UI: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"), "/app.js": ("app.js", "text/javascript"), "/app.css": ("app.css", "text/css"),
}  # fmt: skip
Endpoint = Callable[[Request], Awaitable[Response]]


def build(kit: Kit, token: str, hosts: Iterable[str], ui: bool = True) -> Starlette:
    """The application.

    Args:
        token: the secret that clients send.
        hosts: accepted values of `Host`, with the port.
        ui: whether to serve the editor.
    """
    queue = ModelQueue(kit)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        queue.close()

    routes = [Route(path, _file(*file)) for path, file in UI.items()] if ui else []
    routes += [
        Route("/model", _model(queue)),
        Route("/look", _edged(_look), methods=["POST"]),
        Route("/infill", _edged(partial(_infill, queue)), methods=["POST"]),
        Route("/v1/models", _models(queue)),
        Route("/v1/models/{name}", _edged(_models(queue))),
        Route("/v1/completions", _edged(partial(_completions, queue)), methods=["POST"]),
        Route("/v1/images/generations", _edged(partial(_images, queue)), methods=["POST"]),
    ]
    guard = Middleware(Auth, token=token, hosts=tuple(hosts))
    errors = {HTTPException: _no_such}
    app = Starlette(routes=routes, middleware=[guard], lifespan=lifespan, exception_handlers=errors)
    app.state.kit, app.state.queue = kit, queue
    return app


def _file(name: str, kind: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        content = resources.files("cm3kit.serve").joinpath("ui", name).read_bytes()
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return endpoint


def _edged(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors converted to responses."""

    async def edged(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001 - every error becomes a response
            return failure(error)

    return edged


async def _no_such(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refused(status, "usage", f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}")


def _model(queue: ModelQueue) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        kit = queue.kit
        side = kit.image.config.resolution
        told: dict[str, Any] = {
            "model": kit.parts.name,
            "decoders": kit.parts.defaults.decoders,
            "picture": side,
        }
        return JSONResponse({**told, "waiting": queue.waiting})

    return endpoint


def _models(queue: ModelQueue) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        own = {"id": queue.kit.parts.name, "object": "model", "created": 0, "owned_by": "cm3kit"}
        if "name" in request.path_params:
            handlers.known(str(request.path_params["name"]), queue.kit)
            return JSONResponse(own)
        return JSONResponse({"object": "list", "data": [own]})

    return endpoint


async def _look(request: Request) -> Response:
    body = await read(request, PageBody)
    return JSONResponse(await run_in_threadpool(handlers.look, body))


async def _infill(queue: ModelQueue, request: Request) -> Response:
    body = await read(request, InfillBody)
    job = partial(handlers.infill, body)
    return queue.stream(job) if body.stream else await queue.answer(job, request)


async def _completions(queue: ModelQueue, request: Request) -> Response:
    body = await read(request, CompletionBody)
    job = partial(handlers.completions, body)
    if not body.stream:
        return await queue.answer(job, request)
    handlers.known(body.model, queue.kit)
    return queue.stream(job, partial(handlers.chunks, body))


async def _images(queue: ModelQueue, request: Request) -> Response:
    body = await read(request, ImageBody)
    job = partial(handlers.images, body)
    return queue.stream(job) if body.stream else await queue.answer(job, request)
