"""Reproduce a file from its recipe, and compare the two."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

import cm3kit
from cm3kit import images
from cm3kit.config import message_of
from cm3kit.decode_options import known, under_new_names
from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.finding import available, find
from cm3kit.fill.options import GenerateOptions
from cm3kit.provenance import outputs
from cm3kit.provenance.recipes import Recipe, embedded, listed_files, read_recipe
from cm3kit.provenance.records import surroundings
from cm3kit.provenance.sources import page_of, sha256
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit, Result

Watch = Callable[[int, int], None]
MARKS = re.compile(
    rb'<meta name="(?:generator|Iptc4xmpExt:DigitalSourceType)" content="[^"]*">'
    rb'|<script type="application/json" id="cm3kit">.*?</script>',
    re.S,
)
TASKS = ("image", "text", "caption", "document", "pair")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the comparison of one file, with reasons.

    The file is the `same` byte for byte, has equal `pixels` in another encoding, is an equal page but `marked`
    differently, as by another version, or it `differs`.
    """

    path: Path
    verdict: str
    reasons: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the file equals the reproduced one."""
        return self.verdict != "differs"

    @property
    def line(self) -> str:
        """One line of text."""
        return f"{self.verdict} {self.path}" + (f": {'; '.join(self.reasons)}" if self.reasons else "")


class ModelCache:
    """Models by the names in recipes, each loaded once.

    Args:
        model: use this model instead of the recipe's.
        trust: also load models of recipes that are not shipped with cm3kit.
    """

    def __init__(self, model: str | None = None, device: str = "auto", trust: bool = False) -> None:
        self._model, self._device, self._trust = model, device, trust
        self._kits: dict[str, Kit] = {}

    def kit(self, recipe: Recipe) -> Kit:
        """The model of a recipe; ModelError (`unknown_model`) if it is not found."""
        name = self._model or str(recipe.made.get("model") or "")
        if name not in self._kits:
            try:
                self._check(recipe, name)
                self._kits[name] = cm3kit.load(name or None, device=self._device)
            except ModelError as error:
                if error.code != "unknown_model" or self._model:
                    raise
                raise ModelError(
                    f"{recipe.path} was made by the model {name!r}, which was not found; give --model",
                    code="unknown_model",
                ) from error
        return self._kits[name]

    def _check(self, recipe: Recipe, name: str) -> None:
        """ModelError (`untrusted_model`) for a model of a recipe that is not shipped with cm3kit."""
        if self._model or self._trust or not name or name in available():
            return
        folder = find(name).absolute()
        raise ModelError(
            f"{recipe.path} names the model {name!r} ({folder}), which is not shipped with cm3kit; if you trust"
            " it, give --trust-model, or --model",
            code="untrusted_model",
        )

    def check(self, paths: Sequence[Path], watch: Watch = lambda done, total: None) -> Iterator[Verdict]:
        """Reproduce each file and compare.

        Raises:
            DataError: a file has no recipe (`no_recipe`), or an incomplete one (`bad_data`).
        """
        for done, path in enumerate(paths):
            yield self._verdict(read_recipe(path))
            watch(done + 1, len(paths))

    def _verdict(self, recipe: Recipe) -> Verdict:
        kit = self.kit(recipe)
        try:
            again = rebuild(kit, recipe)
        except DataError as error:
            if error.code == "no_recipe":
                raise
            return Verdict(recipe.path, "differs", (str(error.args[0]),))
        verdict, what = compare(recipe.content, again)
        if verdict != "differs":
            return Verdict(recipe.path, verdict, (what,) if what else ())
        then_and_now = changes(recipe.made, surroundings(kit))
        edited = ("the file was changed after it was written",) if recipe.changed else ()
        known = (*edited, *then_and_now) or ("model, versions and machine are those of the recipe",)
        return Verdict(recipe.path, verdict, (what, *known))


def expand(paths: Sequence[Path]) -> list[Path]:
    """Expand folders of runs to the files of their manifests; DataError if a folder has none."""
    return [file for path in paths for file in (listed_files(path) if path.is_dir() else [path])]


def rebuild(kit: Kit, recipe: Recipe) -> bytes:
    """Reproduce the content of a file.

    Raises:
        DataError: the recipe is incomplete (`no_recipe`, `bad_data`), or the page was changed since (`bad_data`).
        Cm3kitError: see `Kit.generate` and `Kit.infill`.
    """
    made = recipe.made
    try:
        task, seed, index = str(made["task"]), int(made["seed"]), int(made["index"])
        options = _as_then(kit, options_of(made.get("options") or {}))
    except KeyError as error:
        raise DataError(
            f"{recipe.path} does not record its {error.args[0]}; it was written with --no-prompt-metadata, or by"
            " another program",
            code="no_recipe",
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{recipe.path}: the recipe is malformed ({error})", code="bad_data") from error
    if task == "infill":
        if not isinstance(made.get("source"), Mapping):
            raise DataError(f"{recipe.path} does not record its source page", code="no_recipe")
        page = page_of(made["source"], recipe.content, recipe.path.parent)
        return kit.infill(page, seed=seed, options=options, first=index)[0].html
    if task not in TASKS:
        raise DataError(f"{recipe.path}: unknown task {task!r}; known: {', '.join(TASKS)}", code="bad_data")
    prompt = _picture(recipe) if task == "caption" else str(made.get("prompt", ""))
    if "prompt" not in made and task != "pair":
        raise DataError(f"{recipe.path} does not record its prompt", code="no_recipe")
    (result,) = kit.generate(prompt, task=task, seed=seed, options=options, first=index)  # type: ignore[arg-type]
    return encode(result, carried(recipe))


def _as_then(kit: Kit, options: GenerateOptions) -> GenerateOptions:
    """The number format of a recipe that names none, as of times when nothing was chosen but by the model."""
    if options.precision is not None:
        return options
    then = "fp32" if options.decoder == DIFFUSION else kit.parts.defaults.text.precision
    return replace(options, precision=then)


def options_of(given: Mapping[str, Any]) -> GenerateOptions:
    """The options of a recipe or a request; a one-line ValueError for invalid ones."""
    given = under_new_names(given)
    for name in sorted(given):
        known(name)
    try:
        options = TypeAdapter(GenerateOptions).validate_python(dict(given))
        options.check()
        return options
    except ConfigError as error:
        raise ValueError(str(error.args[0])) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"option {'.'.join(map(str, first['loc'][:1]))}: {message_of(first)}") from error


def carried(recipe: Recipe) -> Mapping[str, Any] | None:
    """The recipe embedded in the file itself, even if there is another one."""
    return recipe.made if recipe.where in ("chunk", "page") else embedded(recipe.content)[1]


def encode(result: Result, how: Mapping[str, Any] | None) -> bytes:
    """A result as the bytes of a file, with `how` embedded if the format allows it."""
    if result.image is not None:
        return images.encode_png(result.image, how)
    if result.html is not None:
        return outputs.mark_html(result.html, how).encode()
    return f"{result.text}\n".encode()


def compare(old: bytes, new: bytes) -> tuple[str, str]:
    """The verdict, and the difference."""
    if old == new:
        return "same", ""
    if not new.startswith(b"\x89PNG"):
        if MARKS.sub(b"", old) == MARKS.sub(b"", new):
            return "marked", "the page is equal, but its mark differs"
        place = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
        )
        return "differs", f"from byte {place} on ({len(old):,} bytes, {len(new):,} reproduced)"
    try:
        before, after = (
            np.asarray(Image.open(io.BytesIO(each), formats=("PNG",)).convert("RGB"), np.int16)
            for each in (old, new)
        )
    except (OSError, ValueError, SyntaxError):
        return "differs", "it is not a readable PNG"
    if before.shape != after.shape:
        return (
            "differs",
            f"{before.shape[1]}x{before.shape[0]} pixels, {after.shape[1]}x{after.shape[0]} reproduced",
        )
    wrong = int((before != after).any(-1).sum())
    if not wrong:
        return "pixels", "every pixel is equal, but the file is encoded differently"
    return "differs", f"{wrong:,} of {before.shape[0] * before.shape[1]:,} pixels"


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences from the time when the file was made, one line each."""
    found = []
    for key in ("version", "torch", "transformers", "pillow", "machine", "device", "dtype", "threads"):
        if key in then and key in now and then[key] != now[key]:
            found.append(f"{key} {then[key]} then, {now[key]} now")
    old, new = then.get("sha256"), now.get("sha256")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        files = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            found.insert(0, f"another model: sha256 of {files[0]}{more}")
    return found


def _picture(recipe: Recipe) -> bytes:
    """The captioned picture, at the path in the recipe."""
    wanted, name = recipe.made.get("prompt_sha256"), str(recipe.made.get("prompt", ""))
    for path in (Path(name), recipe.path.parent / name):
        if path.is_file() and sha256(content := path.read_bytes()) == wanted:
            return content
    raise DataError(f"the picture {name!r} that it describes is missing or has changed", code="bad_data")


def write(
    models: ModelCache, paths: Sequence[Path], output: str | None, force: bool,
    watch: Watch = lambda done, total: None,
) -> list[Path]:  # fmt: skip
    """Reproduce files into a folder, or a single file to a path.

    Raises:
        OutputError: a file exists or cannot be written. DataError, Cm3kitError: see `rebuild`.
    """
    named = (
        output is not None and not output.endswith("/") and not Path(output).is_dir() and Path(output).suffix
    )
    if named and len(paths) > 1:
        raise ConfigError(
            f"-o {output} is one file, but there are {len(paths)}; give a folder", code="bad_value"
        )
    folder = Path(output) if output and not named else Path("outputs", outputs.run_id("reproduce"))
    targets = [Path(str(output))] if named else [folder / path.name for path in paths]
    outputs.check_free(outputs.Plan("", tuple(targets)), force)
    for done, (path, target) in enumerate(zip(paths, targets, strict=True)):
        recipe = read_recipe(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, rebuild(models.kit(recipe), recipe), force)
        watch(done + 1, len(paths))
    return targets
