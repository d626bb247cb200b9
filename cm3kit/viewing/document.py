"""The common HTML document of all viewer pages, and their templates.

Its policy loads nothing, and runs at most the one given script, identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from cm3kit.json_lines import Record, dump_json


def document(
    title: str, body: str, style: str, *, script: str = "", data: Record | None = None,
    generator: str = "cm3kit", refresh: float | None = None,
) -> str:  # fmt: skip
    """A complete page.

    Args:
        title, generator: plain text.
        body: HTML with escaped texts.
        style: CSS. script: JavaScript, which reads `data` as JSON from the element with that id.
        refresh: seconds after which a browser reloads the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "document.html", title=title, generator=generator, refresh=refresh and f"{refresh:g}",
        body=Markup(body), style=Markup(style), script=Markup(script), hash=Markup(f"sha256-{digest}"),
        # Escape closing tags in the data, which would end the element.
        data=Markup(dump_json(data or {}).replace("<", "\\u003c")),
    )  # fmt: skip


def render(name: str, **parts: Any) -> str:
    """Render a template of this folder; parts are escaped unless they are `Markup`."""
    return _template(name).render(parts)


def resource(name: str) -> str:
    """Read a file of this folder."""
    return resources.files("cm3kit.viewing").joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(resource(name))
