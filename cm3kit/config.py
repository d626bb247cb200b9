"""Settings as pydantic models ↔ YAML: defaults < recipe < `--config` files < `--set a.b=c`, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cm3kit_tokenizers.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings: frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    target[last] = value


def _first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        value = repr(problem.get("input"))
        given = f"{where} = {value if len(value) <= 80 else value[:77] + '...'}: " if where else ""
        return f"{given}{problem['msg']}."
    group: Any = kind
    for part in problem["loc"][:-1]:
        field = getattr(group, "model_fields", {}).get(part)
        group = field.annotation if field is not None else None
    near = get_close_matches(str(problem["loc"][-1]), getattr(group, "model_fields", {}), n=1)
    return f"{where} is unknown" + (
        f"; did you mean {near[0]}?" if near else "; see the recipe for the known names."
    )
