"""Plug-ins: Python files that register more parts, by `--plugin FILE`, `CM3KIT_PLUGINS` or an entry point.

The names of the files are kept in the environment, so that workers and launched processes load the same ones.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from cm3kit_tokenizers.errors import Cm3kitError, ConfigError

ENVIRONMENT, GROUP = "CM3KIT_PLUGINS", "cm3kit"
_LOADED: set[str] = set()


def add(files: Sequence[Path]) -> None:
    """Name files for this process and those that it starts; `load` runs them."""
    named = [each for each in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if each]
    named += [str(path.resolve()) for path in files]
    os.environ[ENVIRONMENT] = os.pathsep.join(dict.fromkeys(named))


def load() -> None:
    """Run every file that is named and every installed plug-in, each once in a process.

    They run with all rights of the caller: load only what you trust.

    Raises:
        ConfigError: there is no such file (`no_file`), it fails, or it registers a name that is taken (`bad_config`).
    """
    for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep):
        if name and name not in _LOADED:
            _LOADED.add(name)
            load_file(Path(name))
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        if entry.value not in _LOADED:
            _LOADED.add(entry.value)
            entry.load()


def load_file(path: Path) -> None:
    """Run one file; see `load`."""
    # The same name in every process, and another for a file of the same name elsewhere.
    name = f"cm3kit_plugin_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    # Relative imports of a plug-in are of the files beside it.
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a plug-in is one .py file.", code="no_file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name while they are made.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if isinstance(error, Cm3kitError) or not isinstance(error, Exception):
            raise
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the plug-in {path} cannot be loaded: {type(error).__name__}: {line}.", code="bad_config"
        ) from error
