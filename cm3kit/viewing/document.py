"""The one shell of every HTML page that is written here to look at, and the templates in it.

Under its policy a page loads nothing, and runs at most the one script that it is given, which is named by its hash.
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
    """A whole page.

    Args:
        title, generator: plain text.
        body: HTML, whose texts are escaped already.
        style: CSS. script: JavaScript, which finds `data` as JSON in the element of that id.
        refresh: seconds after which a browser reads the page again.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "document.html", title=title, generator=generator, refresh=refresh and f"{refresh:g}",
        body=Markup(body), style=Markup(style), script=Markup(script), hash=Markup(f"sha256-{digest}"),
        # A closing tag inside the data would end the element.
        data=Markup(dump_json(data or {}).replace("<", "\\u003c")),
    )  # fmt: skip


def render(name: str, **parts: Any) -> str:
    """A template of this folder with its parts, which are escaped unless they are `Markup`."""
    return _template(name).render(parts)


def resource(name: str) -> str:
    """A file of this folder."""
    return resources.files("cm3kit.viewing").joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(resource(name))
