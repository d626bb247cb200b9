"""JSON that a schema describes: `json-schema:FILE`, or the schema itself; as a regular expression by outlines-core.

What a regular expression cannot say, or outlines-core leaves aside, is refused and not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm3kit.decoders.grammar.byte_dfa import compile_regex, outlines
from cm3kit.decoders.grammar.rules import ConstraintKind, Regex, constraint, file_of
from cm3kit_tokenizers.errors import ConfigError, stops

# Keywords whose meaning outlines-core 0.2 carries over, and those that describe without restricting.
SAID = frozenset({
    "$ref", "additionalProperties", "anyOf", "const", "enum", "format", "items", "maxItems", "maxLength", "minItems",
    "minLength", "pattern", "prefixItems", "properties", "required", "type",
})  # fmt: skip
SILENT = frozenset({
    "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples",
    "readOnly", "title", "writeOnly",
})  # fmt: skip
FORMATS = ("date", "date-time", "time", "uuid")
# Of two of these in one schema only the first is kept to.
ALONE = {
    "$ref": SAID - {"$ref"}, "anyOf": SAID - {"anyOf"}, "enum": SAID - {"enum", "type"},
    "const": SAID - {"const", "type"},
    "pattern": {"minLength", "maxLength", "format"}, "format": {"minLength", "maxLength"},
    "prefixItems": {"minItems", "maxItems"},
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip
_UNSAFE = (*range(0x20), ord('"'), ord("\\"))


@constraint("json-schema")
class JsonSchema(ConstraintKind):
    """A schema as JSON, or a file that holds one."""

    def resolve(self, value: str, folder: Path | None) -> str:
        """The schema itself, in one line."""
        given = value.strip()
        if given[:1] not in ("{", "") and given not in ("true", "false"):
            path = file_of(value, folder, "json-schema")
            try:
                given = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"json-schema {path} cannot be read: {error}.", code="bad_value") from None
        try:
            return json.dumps(json.loads(given), ensure_ascii=False)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"json-schema {value[:60]!r} is not JSON: {error}.", code="bad_value") from None

    def rule(self, value: str) -> Regex:
        """The expression of a schema.

        Raises:
            ConfigError: a keyword cannot be kept to, or the schema is none (`bad_value`).
        """
        schema = json.loads(value)
        builder = outlines().json_schema
        try:
            for where, part in _parts(schema, "#"):
                _check(where, part)
            return Regex(builder.build_regex_from_schema(value))
        except BaseException as error:
            # Values of other types than a schema has fail anywhere, in a package of Rust too.
            if stops(error) or isinstance(error, ConfigError):
                raise
            line = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"json-schema {value[:60]!r} cannot be used: {line}.", code="bad_value"
            ) from error


def _parts(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with its place."""
    if not isinstance(schema, dict):
        return
    yield where, schema
    for key in ("properties", "$defs", "definitions"):
        for name, part in (schema.get(key) or {}).items():
            yield from _parts(part, f"{where}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        yield from _parts(schema.get(key), f"{where}/{key}")
    for key in ("anyOf", "prefixItems"):
        for number, part in enumerate(schema.get(key) or ()):
            yield from _parts(part, f"{where}/{key}/{number}")


def _check(where: str, part: dict[str, Any]) -> None:
    """Refuse what would be said in vain; ConfigError (`bad_value`)."""
    if (problem := next(_problems(part), None)) is not None:
        raise ConfigError(f"json-schema {where}: {problem}", code="bad_value")


def _problems(part: dict[str, Any]) -> Iterator[str]:
    for name in sorted(part.keys() - SAID - SILENT):
        yield f"{name!r} cannot be kept to while writing; leave it out, or say it by enum, anyOf or pattern."
    for name, others in ALONE.items():
        if name in part and (beside := sorted(others & part.keys())):
            yield f"{name!r} and {beside[0]!r} together cannot be kept to; say it in one of them."
    if isinstance(part.get("type"), list) and (beside := sorted(part.keys() & SAID - {"type"})):
        yield f"several types and {beside[0]!r} together cannot be kept to; use anyOf."
    values = part.get("enum", [part["const"]] if "const" in part else None)
    if values is not None and (not values or not all(_is(value, part.get("type")) for value in values)):
        yield "enum or const holds nothing of its type; mend it."
    if "format" in part and part["format"] not in FORMATS:
        yield f"the format {part['format']!r} cannot be kept to; use a pattern, or one of {', '.join(FORMATS)}."
    properties = part.get("properties", {})
    for name in (*properties, *part.get("required", ())):
        if name not in properties:
            yield f"{name!r} is required and none of the properties; say what it is."
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            yield f"the property {name!r} has quotes, backslashes or control characters; rename it."
    if "pattern" in part:
        dfa = compile_regex(str(part["pattern"]))
        if any((dfa.next_SB[:, byte] >= 0).any() for byte in _UNSAFE):
            yield (
                f"the pattern {part['pattern']!r} allows quotes, backslashes or control characters, which JSON writes"
                " otherwise; exclude them."
            )


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a JSON type, where one is named."""
    return kind is None or (
        isinstance(value, TYPES.get(kind, ())) and (kind == "boolean" or not isinstance(value, bool))
    )
