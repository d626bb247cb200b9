"""What the gaps of a page may say, from the page, from `--constrain` and from the names that vLLM has for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cm3kit.decoders.grammar.kinds  # noqa: F401  (they register themselves)
from cm3kit.canvas import ConstraintSpec
from cm3kit.decode_options import GenerateOptions
from cm3kit.decoders.grammar.kinds.choices import join
from cm3kit.decoders.grammar.rules import constraint
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.page import Page

EVERY = "*"
Specs = Mapping[int, ConstraintSpec]
"""Constraints by the index of the gap."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One entry of `GenerateOptions.constrain`; `gap` None is every gap of words that has no constraint of its own."""

    gap: int | None
    kind: str
    value: str

    @staticmethod
    def read(entry: str, folder: Path | None) -> Asked:
        """Read `GAP=KIND:VALUE`.

        Args:
            folder: where relative files start; None where none may be named.

        Raises:
            ConfigError: it is none, or its value cannot be used (`bad_value`, `unknown_name`, `no_file`).
        """
        gap, sign, rest = entry.partition("=")
        kind, _, value = rest.partition(":")
        number = gap.strip()
        if not sign or not kind or not (number == EVERY or (number.isascii() and number.isdecimal())):
            raise ConfigError(
                f"constraint {entry[:80]!r} is not GAP=KIND:VALUE, such as 0=choices:red|green; GAP is a number or *.",
                code="bad_value",
            )
        return Asked(None if number == EVERY else int(number), *resolved(kind.strip(), value, folder))


def resolved(kind: str, value: str, folder: Path | None) -> tuple[str, str]:
    """Kind and value with files made explicit; ConfigError as `ConstraintKind.resolve`."""
    return kind, constraint[kind]().resolve(value, folder)


def specs_of_page(page: Page, given: Sequence[str], leads: Mapping[int, str]) -> dict[int, ConstraintSpec]:
    """The constraint of each gap of a page; that of `given` goes before the page's own.

    Args:
        leads: for each gap of words what is written before its answer.

    Raises:
        ConfigError: one names a gap that is none or a picture's, a file outside of the page's folder, or see `Asked`.
    """
    asked = [Asked.read(entry, Path.cwd()) for entry in given]
    told = {each.gap for each in asked}
    for each in asked:
        if each.gap is not None and each.gap not in leads:
            what = (
                "is a picture"
                if each.gap < len(page.gaps)
                else f"is none of the page's {len(page.gaps)} gaps"
            )
            raise ConfigError(
                f"constraint {each.kind} is for gap {each.gap}, which {what}; give a gap of words.",
                code="bad_value",
            )
    found: dict[int, tuple[str, str]] = {}
    for gap in page.gaps:
        if gap.constraint is not None and gap.index not in told:
            found[gap.index] = _of_gap(page, *gap.constraint)
    for each in asked:
        for index in [each.gap] if each.gap is not None else [other for other in leads if other not in found]:
            found[index] = each.kind, each.value
    return {
        index: ConstraintSpec(kind, value, leads[index])
        for index, (kind, value) in found.items()
        if index in leads and not _free(kind, value)
    }


def _of_gap(page: Page, kind: str, value: str) -> tuple[str, str]:
    """A constraint that a page writes itself; files lie below its folder, or that of its site."""
    kind, value = resolved(kind, value, page.base)
    path, top = Path(value), page.root or page.base
    if path.is_absolute() and top is not None and "\n" not in value and path.is_file():
        if not path.resolve().is_relative_to(top.resolve()):
            raise ConfigError(
                f"{kind} {value} lies outside of {top}; give its folder with --root, or use --constrain.",
                code="no_file",
            )
    return kind, value


def pinned(options: GenerateOptions, folder: Path | None, page: Page | None = None) -> GenerateOptions:
    """The options with all constraints made explicit, the page's own among them, so that they mean the same anywhere.

    Args:
        folder: where relative files of the options start; None where none may be named.

    Raises:
        ConfigError: see `specs_of_page`.
    """
    asked = [Asked.read(entry, folder) for entry in options.constrain or ()]
    told = {each.gap for each in asked}
    for gap in page.gaps if page is not None else ():
        if gap.constraint is not None and gap.index not in told:
            asked.append(Asked(gap.index, *_of_gap(page, *gap.constraint)))  # type: ignore[arg-type]
    if not asked:
        return options
    entries = (f"{EVERY if each.gap is None else each.gap}={each.kind}:{each.value}" for each in asked)
    return replace(options, constrain=tuple(entries))


def _free(kind: str, value: str) -> bool:
    """Whether it is what gaps have anyway."""
    return kind == "html" and constraint[kind]().rule(value) is None


def constrained(canvas: Canvas, specs: Specs) -> Canvas:
    """The canvas with constraints on its spans."""
    if not any(span.gap in specs for span in canvas.spans):
        return canvas
    spans = tuple(_with(span, specs) for span in canvas.spans)
    guides = tuple(
        replace(each, spans=tuple(_with(span, specs) for span in each.spans)) for each in canvas.guides
    )
    return replace(canvas, spans=spans, guides=guides)


def _with(span: MaskSpan, specs: Specs) -> MaskSpan:
    return replace(span, constraint=specs[span.gap]) if span.gap in specs else span


def specs_of_canvas(canvas: Canvas, given: Sequence[str], later: bool = False) -> dict[int, ConstraintSpec]:
    """The constraints of the words of a task, whose gaps are numbered as its canvas has them.

    Args:
        later: whether the task had a canvas before, whose words the constraints may be about.

    Raises:
        ConfigError: one names a gap that is none of words (`bad_value`), or see `Asked`.
    """
    words = [span.gap for span in canvas.spans if span.kind in ("attribute", "content")]
    found: dict[int, ConstraintSpec] = {}
    for each in (Asked.read(entry, Path.cwd()) for entry in given):
        wanted = words if each.gap is None else [each.gap]
        if later:
            wanted = [gap for gap in wanted if gap in words]
        elif not wanted or not set(wanted) <= {*words}:
            raise ConfigError(
                f"constraint {each.kind} is about words, and this task writes none there; leave it out.",
                code="bad_value",
            )
        found |= {
            gap: ConstraintSpec(each.kind, each.value) for gap in wanted if not _free(each.kind, each.value)
        }
    return found


GUIDED = ("guided_choice", "guided_regex", "guided_json", "response_format", "structured_outputs")
"""Names that vLLM's requests have for constraints; they are about every gap."""


def guided(given: Mapping[str, Any]) -> tuple[str, ...]:
    """What vLLM's names come to in `GenerateOptions.constrain`; nothing where none is given.

    Raises:
        ConfigError: two are given, or one is malformed (`bad_value`).
    """
    found = [*_guided({name: value for name, value in given.items() if value is not None})]
    if len(found) > 1:
        raise ConfigError(f"{found[0][0]} and {found[1][0]} are given; give one of them.", code="bad_value")
    return tuple(f"{EVERY}={kind}:{value}" for _, (kind, value) in found)


def _guided(given: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    plain = {"guided_choice": "choice", "guided_regex": "regex", "guided_json": "json"}
    for name, key in plain.items():
        if name in given:
            yield name, _one(name, key, given[name])
    structured = given.get("structured_outputs", {})
    if not isinstance(structured, Mapping) or structured.keys() - {"choice", "regex", "json", "json_object"}:
        raise ConfigError("structured_outputs holds choice, regex, json or json_object.", code="bad_value")
    for key, value in structured.items():
        if value not in (None, False):
            yield f"structured_outputs.{key}", _one(f"structured_outputs.{key}", key, value)
    if "response_format" in given and (one := _format(given["response_format"])) is not None:
        yield "response_format", one


def _format(given: Any) -> tuple[str, str] | None:
    """OpenAI's response_format; None for text."""
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _one("response_format", "json_object", True)
    schema = given.get("json_schema", {}) if kind == "json_schema" else None
    if not isinstance(schema, Mapping) or "schema" not in schema:
        raise ConfigError(
            "response_format is {type: text}, {type: json_object} or {type: json_schema, json_schema: {schema: …}}.",
            code="bad_value",
        )
    return _one("response_format", "json", schema["schema"])


def _one(name: str, key: str, value: Any) -> tuple[str, str]:
    if key == "choice" and isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return "choices", join(value)
    if key == "regex" and isinstance(value, str):
        return "regex", value
    if key == "json" and isinstance(value, Mapping | bool):
        return "json-schema", json.dumps(value, ensure_ascii=False)
    if key == "json" and isinstance(value, str):
        # A text is the schema itself: no file is named here.
        return "json-schema", constraint["json-schema"]().resolve(value, None)
    if key == "json_object" and value is True:
        return "json-schema", '{"type": "object"}'
    wanted = {"choice": "a list of texts", "regex": "a text", "json": "a schema", "json_object": "true"}[key]
    raise ConfigError(f"{name} is {wanted}, and not {str(value)[:60]!r}.", code="bad_value")
