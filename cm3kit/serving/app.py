"""The server's addresses."""

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

from cm3kit.pipelines.kit import Kit
from cm3kit.serving import work
from cm3kit.serving.bodies import CompletionBody, ImageBody, InfillBody, PageBody, read
from cm3kit.serving.desk import Desk, failure
from cm3kit.serving.guard import Guard, refused

UI: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"), "/app.js": ("app.js", "text/javascript"), "/app.css": ("app.css", "text/css"),
}  # fmt: skip
Endpoint = Callable[[Request], Awaitable[Response]]


def build(kit: Kit, token: str, hosts: Iterable[str], ui: bool = True) -> Starlette:
    """The application.

    Args:
        token: what clients must know.
        hosts: the values of `Host` that are ours, with the port.
        ui: whether to serve the editor too.
    """
    desk = Desk(kit)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    routes = [Route(path, _file(*file)) for path, file in UI.items()] if ui else []
    routes += [
        Route("/model", _model(desk)),
        Route("/look", _edged(_look), methods=["POST"]),
        Route("/infill", _edged(partial(_infill, desk)), methods=["POST"]),
        Route("/v1/models", _models(desk)),
        Route("/v1/models/{name}", _edged(_models(desk))),
        Route("/v1/completions", _edged(partial(_completions, desk)), methods=["POST"]),
        Route("/v1/images/generations", _edged(partial(_images, desk)), methods=["POST"]),
    ]
    guard = Middleware(Guard, token=token, hosts=tuple(hosts))
    errors = {HTTPException: _no_such}
    app = Starlette(routes=routes, middleware=[guard], lifespan=lifespan, exception_handlers=errors)
    app.state.kit, app.state.desk = kit, desk
    return app


def _file(name: str, kind: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        content = resources.files("cm3kit.serving").joinpath("ui", name).read_bytes()
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return endpoint


def _edged(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors as answers."""

    async def edged(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001 - the edge: whatever went wrong becomes an answer
            return failure(error)

    return edged


async def _no_such(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refused(status, "usage", f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}")


def _model(desk: Desk) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        kit = desk.kit
        side = kit.image.config.resolution
        told: dict[str, Any] = {
            "model": kit.parts.name,
            "decoders": kit.parts.defaults.decoders,
            "picture": side,
        }
        return JSONResponse({**told, "waiting": desk.waiting})

    return endpoint


def _models(desk: Desk) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        own = {"id": desk.kit.parts.name, "object": "model", "created": 0, "owned_by": "cm3kit"}
        if "name" in request.path_params:
            work.known(str(request.path_params["name"]), desk.kit)
            return JSONResponse(own)
        return JSONResponse({"object": "list", "data": [own]})

    return endpoint


async def _look(request: Request) -> Response:
    body = await read(request, PageBody)
    return JSONResponse(await run_in_threadpool(work.look, body))


async def _infill(desk: Desk, request: Request) -> Response:
    body = await read(request, InfillBody)
    job = partial(work.infill, body)
    return desk.stream(job) if body.stream else await desk.answer(job, request)


async def _completions(desk: Desk, request: Request) -> Response:
    body = await read(request, CompletionBody)
    job = partial(work.completions, body)
    if not body.stream:
        return await desk.answer(job, request)
    work.known(body.model, desk.kit)
    return desk.stream(job, partial(work.chunks, body))


async def _images(desk: Desk, request: Request) -> Response:
    body = await read(request, ImageBody)
    job = partial(work.images, body)
    return desk.stream(job) if body.stream else await desk.answer(job, request)
