"""Models by name, by folder, and as the run of a decoder, whose parts are put together when it is first used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cm3kit.config import read_yaml
from cm3kit.fill.openers import find_foreign
from cm3kit.fill.runs import FINAL, INDEX, MODEL, RECIPE, RUNS, Kind, kind_of_run, steps_of
from cm3kit.models.quantized import split_format
from cm3kit.renamed import warn_renamed
from cm3kit_tokenizers.errors import ModelError

ENVIRONMENT, DEFAULT = "CM3KIT_MODEL", "pictures"
ALIASES = {"emoji": "pictures"}  # names that models had before
DEEP = 3  # folders down from here that models and runs are looked for


def shelves() -> tuple[Path, ...]:
    """Folders whose sub-folders are models known by name."""
    package = Path(__file__).resolve().parents[1]
    return tuple(path for path in (package / "checkpoints", package.parent / "checkpoints") if path.is_dir())


def available() -> list[str]:
    """Names of the models that ship."""
    return sorted({path.parent.name for shelf in shelves() for path in shelf.glob(f"*/{INDEX}")})


def find(name: str | Path | None) -> Path:
    """The folder of a model by name or path; unless given, `CM3KIT_MODEL` or the default.

    The run of a decoder, or its `final/`, is the model that it makes with its tokenizers; that of reinforcement
    learning is its `final/`, which is a model already.

    Raises:
        ModelError: there is none (`unknown_model`), with the nearest name, or with what it lacks.
    """
    given = str(name or os.environ.get(ENVIRONMENT) or DEFAULT)
    wanted, quantize = split_format(given)
    found = _find(wanted)
    return found if quantize is None else Path(f"{found}:{quantize}")


def _find(wanted: str) -> Path:
    """The same, without a number format behind the name."""
    known = ALIASES.get(wanted, wanted)
    for folder in (*(shelf / known for shelf in shelves()), Path(wanted)):
        if (folder / INDEX).is_file():
            if folder.name != wanted and known != wanted:
                warn_renamed(f"the model {wanted}", known)
            return folder
    folder = Path(wanted)
    run = folder.resolve().parent if folder.name == FINAL else folder
    if kind_of_run(run) is not None:
        return model_of_run(run)
    _refuse_unfinished(folder)
    if foreign := find_foreign(wanted):
        return foreign[1]
    near = get_close_matches(wanted, available(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(available()) or 'none'}."
    raise ModelError(
        f"no model {wanted!r}: neither a known name nor a folder with {INDEX} or a run; {hint}",
        code="unknown_model",
    )


def _refuse_unfinished(folder: Path) -> None:
    if (folder / RUNS).is_dir():
        raise ModelError(
            f"{folder} is not finished: give its `cm3kit train all` command again, which goes on.",
            code="unknown_model",
        )
    if (folder / "trained.json").is_file():
        raise ModelError(
            f"{folder} is a decoder alone: it lacks its text and image tokenizers; put them together with cm3kit model"
            " assemble.",
            code="unknown_model",
        )


def model_of_run(run: Path) -> Path:
    """The model that a run of a decoder makes with the tokenizers it was trained on; put together if it is not yet.

    Raises:
        ModelError: it is the run of something else, has not finished, or its tokenizers are gone (`unknown_model`).
        OutputError: the model cannot be written.
    """
    kind = kind_of_run(run)
    if kind not in ("decoder", "model by rewards"):
        raise ModelError(
            f"{run} is the run of {'an' if kind == 'image tokenizer' else 'a'} {kind}, which writes nothing by itself;"
            " name the run of a decoder that was trained on it.",
            code="unknown_model",
        )
    if not (run / FINAL).is_dir():
        done, total = steps_of(run)
        raise ModelError(
            f"{run} is not finished: {done:,} of {total:,} steps are saved, and there is no {FINAL}/ yet; give its"
            " train command again, which goes on.",
            code="unknown_model",
        )
    return assemble_run(run) if kind == "decoder" else run / FINAL


def assemble_run(run: Path) -> Path:
    """`model/` of a finished run, put together unless it is, with hard links where the disk has them.

    Raises:
        ModelError, OutputError: see `model_of_run`.
    """
    from cm3kit.fill.defaults import Defaults
    from cm3kit.fill.folder import assemble

    if (run / MODEL / INDEX).is_file():
        if _weights(run / FINAL, "") == _weights(run / MODEL, "decoder/"):
            return run / MODEL
        shutil.rmtree(run / MODEL)  # of a training before, whose result was taken away

    recipe = read_yaml(run / RECIPE)
    parts: dict[str, Path] = {}
    for name in ("text", "image"):
        if recipe[name] is None:
            continue  # a model of words alone
        own = run / name  # a public decoder's text tokenizer is kept in the run
        parts[name] = own if own.is_dir() else _from_run(run, Path(str(recipe[name])))
        if not parts[name].is_dir():
            raise ModelError(
                f"{run / FINAL} lacks its {name} tokenizer, which was {recipe[name]} and is gone; put it together with"
                f" another place of it: cm3kit model assemble --decoder {run / FINAL} --{name} FOLDER …",
                code="unknown_model",
            )
    card = f"# {run.resolve().name}\n\nThe decoder of a run of cm3kit, with the tokenizers that it was trained on.\n"
    return assemble(
        run / MODEL, parts["text"], parts.get("image"), run / FINAL, Defaults(), card, copy=link_or_copy
    )


def _weights(folder: Path, prefix: str) -> dict[str, str]:
    """Hashes of a decoder's weights by the manifest of a folder."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return {}
    names = [name for name in listed if name.startswith(prefix) and name.endswith(".safetensors")]
    return {name.removeprefix(prefix): str(listed[name]["sha256"]) for name in names}


def _from_run(run: Path, path: Path) -> Path:
    """A path of a recipe: as it stands, or from a folder above the run, where the command was given once."""
    if path.is_absolute() or path.is_dir():
        return path
    return next((above / path for above in run.resolve().parents if (above / path).is_dir()), path)


def link_or_copy(source: str, target: str) -> str:
    """A second name of a file that nobody changes, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@dataclass(frozen=True, slots=True)
class Local:
    """A model or a run below a folder."""

    path: str
    kind: Kind
    state: str

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.path} ({'' if self.kind == 'model' else 'run of a '}{self.kind}, {self.state})"


def local(root: Path) -> list[Local]:
    """Models and runs below a folder, by path."""
    out = []
    for folder in _folders(root, DEEP):
        path = os.path.relpath(folder, root)
        if (folder / INDEX).is_file():
            out.append(Local(path, "model", _decoders(folder)))
        elif (folder / RUNS).is_dir():
            out.append(Local(path, "model", "not finished"))
        elif (kind := kind_of_run(folder)) is not None:
            done, total = steps_of(folder)
            steps = f"{done:,} of {total:,} steps" if total else "not finished"
            out.append(Local(path, kind, "finished" if (folder / FINAL).is_dir() else steps))
    return out


def _decoders(folder: Path) -> str:
    try:
        said = json.loads((folder / "defaults.json").read_text(encoding="utf-8"))
        return "decoders " + ", ".join(map(str, said["decoders"]))
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        return "unreadable"


def _folders(root: Path, deep: int) -> Iterator[Path]:
    """Folders below one; not those inside of models and runs, nor hidden ones."""
    try:
        inner = sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return
    for folder in inner:
        yield folder
        if deep > 1 and not (folder / INDEX).is_file() and not (folder / RECIPE).is_file():
            yield from _folders(folder, deep - 1)


def summary_of(card: str) -> str:
    """The first paragraph of a card on one line, without its front matter and headings."""
    text = card.split("\n---", 1)[-1] if card.startswith("---") else card
    blocks = (block.strip() for block in text.split("\n\n"))
    return next((" ".join(block.split()) for block in blocks if block and not block.startswith("#")), "")
