"""Settings as pydantic models ↔ YAML: defaults < recipe < `--config` files < `--set a.b=c`, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cm3kit.renamed import warn_renamed
from cm3kit_tokenizers.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings: frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RenamedSettings(Settings):
    """Settings some of which had other names, which still work with a warning.

    `renamed` has the new name of an old one, `renamed_values` the new words of a setting.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    renamed_values: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _under_new_names(cls, given: Any) -> Any:
        """What was given, by today's names; of two names for one setting the one that was set last counts."""
        if not isinstance(given, Mapping):
            return given
        found: dict[str, Any] = {}
        for key, value in given.items():
            new = cls.renamed.get(key, key)
            words = cls.renamed_values.get(new, {})
            word = words.get(value, value) if isinstance(value, str) else value
            if new != key or word is not value:
                warn_renamed(f"{key} = {value!r}", f"{new} = {word!r}" if word is not value else new)
            found.pop(new, None)
            found[new] = word
        return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; ConfigError if the file is missing, broken, aliased or not a mapping."""
    try:
        found = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", code="no_file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not usable YAML: {' '.join(str(error).split())}.", code="bad_config"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} does not hold a mapping of settings.", code="bad_config")
    return found


def resolve(kind: type[Model], sources: Iterable[Mapping[str, Any]], overrides: Sequence[str] = ()) -> Model:
    """Merge settings, later ones winning, apply `a.b=c` overrides, and validate."""
    merged: dict[str, Any] = {}
    for source in sources:
        _merge(merged, source)
    for override in overrides:
        _override(merged, override)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(kind, error), code="bad_config") from error


def dump(settings: BaseModel) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


@dataclass(frozen=True, slots=True)
class Traced:
    """A value of settings by its full name, or a group of them, and where it was set."""

    values: dict[str, tuple[Any, str]]

    def as_yaml(self) -> str:
        """The settings as YAML that can be used as a recipe, with where each is from as a comment."""
        lines: list[tuple[str, str]] = []
        open_groups: tuple[str, ...] = ()
        for name, (value, origin) in self.values.items():
            *groups, last = name.split(".")
            same = 0
            while same < min(len(groups), len(open_groups)) and groups[same] == open_groups[same]:
                same += 1
            lines += [("  " * depth + f"{groups[depth]}:", "") for depth in range(same, len(groups))]
            open_groups = tuple(groups)
            lines.append(("  " * len(groups) + f"{last}: {_on_one_line(value)}", origin))
        width = min(60, max((len(text) for text, origin in lines if origin), default=0))
        return "".join(f"{text:{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def trace(
    kind: type[Model], sources: Sequence[tuple[str, Mapping[str, Any]]], overrides: Sequence[str] = ()
) -> Traced:
    """What `resolve` makes of named sources, with the name of the last that set each value.

    A value that none has set is from `default`, one of an override from `--set`.
    """
    found = resolve(kind, [source for _, source in sources], overrides).model_dump(mode="json")
    values = dict.fromkeys(leaves(found), "default")
    for name, source in [*sources, *(("--set", _nested(each)) for each in overrides)]:
        for path in leaves(source):
            # A group that a source sets as one value counts for all that is in it.
            for each in values:
                if each == path or each.startswith(f"{path}."):
                    values[each] = name
    flat = leaves(found)
    return Traced({path: (flat[path], origin) for path, origin in values.items()})


def leaves(source: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their full names; what is no mapping, or an empty one, is a value."""
    found: dict[str, Any] = {}
    for key, value in source.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _nested(override: str) -> dict[str, Any]:
    target: dict[str, Any] = {}
    _override(target, override)
    return target


def _on_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _parse(text: str) -> Any:
    """Plain YAML; ValueError for aliases, which can make a small file enormous."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it uses aliases; write the values out")
    return yaml.safe_load(text)


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(target[key], value)
        else:
            # In the order of being set: see `Settings`.
            target.pop(key, None)
            target[key] = value


def _override(target: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise ConfigError(f"--set {override!r} is not of the form a.b=c.", code="bad_config")
    try:
        value = _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {override!r}: the value is not usable YAML.", code="bad_config") from error
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is not a group of settings.", code="bad_config")
    target.pop(last, None)
    target[last] = value


def message_of(problem: Mapping[str, Any]) -> str:
    """What pydantic says of a value, without the kind of exception that a check of ours raised."""
    return str(problem["msg"]).removeprefix("Value error, ")


def _first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        value = repr(problem.get("input"))
        given = f"{where} = {value if len(value) <= 80 else value[:77] + '...'}: " if where else ""
        return f"{given}{message_of(problem).removesuffix('.')}."
    group: Any = kind
    for part in problem["loc"][:-1]:
        field = getattr(group, "model_fields", {}).get(part)
        group = field.annotation if field is not None else None
    near = get_close_matches(str(problem["loc"][-1]), getattr(group, "model_fields", {}), n=1)
    return f"{where} is unknown" + (
        f"; did you mean {near[0]}?" if near else "; see the recipe for the known names."
    )
