"""Convert a saved trajectory to an animation file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import features

from cm3kit.provenance.trajectories import Record
from cm3kit.publish import write_atomic
from cm3kit.targets import check_file
from cm3kit.viewing import animation
from cm3kit.viewing.playback import (
    Filmed,
    Frame,
    film,
    frames,
    open_image_tokenizer,
    picture_places,
    thinned,
)
from cm3kit.viewing.player import player
from cm3kit_tokenizers.errors import ConfigError, OutputError

HTML, GIF, WEBP = "HTML", "GIF", "WEBP"
SUFFIXES = {".html": HTML, ".htm": HTML, ".gif": GIF, ".webp": WEBP}
STDOUT = "-"
MOST_FRAMES, FEWEST_FRAMES, MOST_PIXELS = 400, 24, 20_000_000

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Look:
    """Display settings of an animation: pixels per pixel of a picture, and steps per second."""

    scale: float = 6
    fps: float = 8


@dataclass(frozen=True, slots=True)
class Made:
    """The file's bytes, its numbers of frames and steps, and warnings."""

    content: bytes
    frames: int
    steps: int
    warnings: tuple[str, ...] = ()


def target(file: Path, output: str | None, force: bool) -> Path | None:
    """Output path of the animation of `file`; None is standard output.

    Without `output` it is beside the file as .html; in a folder it has the same name.

    Raises:
        ConfigError: the suffix is not .html, .gif or .webp (`bad_value`).
        OutputError: the file exists and `force` is off (`exists`), or a folder is in its place (`cannot_write`).
    """
    if output == STDOUT:
        return None
    name = file.with_suffix(".html").name
    path = file.with_name(name) if output is None else Path(output)
    if output is not None and (output.endswith("/") or path.is_dir()):
        path = path / name
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"-o {output}: end the name in .html, .gif or .webp", code="bad_value")
    check_file(path, force)
    return path


def report_target(folder: Path, output: str | None, force: bool) -> Path:
    """Output path of the report of a run's folder, by default in that folder.

    Raises:
        OutputError: the file exists and `force` is off (`exists`), or a folder is in its place (`cannot_write`).
    """
    path = folder / "report.html" if output is None else Path(output)
    if output is not None and (output.endswith("/") or path.is_dir()):
        path = path / "report.html"
    check_file(path, force)
    return path


def animate(
    record: Record, kind: str, figures: Mapping[str, Any], look: Look = Look(), model: str | None = None,
    watch: Watch = lambda done, total: None,
) -> Made:  # fmt: skip
    """Render a trajectory as HTML, GIF or WEBP.

    Args:
        figures: `evaluation.arness.stats` of the trajectory.
        model: name or folder of the model that decodes the pictures, by default the trajectory's.

    Raises:
        ModelError: the model does not exist, or its codes do not fit.
        OutputError: this build of Pillow does not support WebP (`cannot_write`).
    """
    if kind == WEBP and not features.check("webp"):
        raise OutputError(
            "this build of Pillow does not support WebP; choose .gif or .html", code="cannot_write"
        )
    whole = frames(record)
    places, warning = picture_places(record, whole[-1].ids), ""
    films: list[Filmed] = []
    shown: Sequence[Frame] = thinned(whole, MOST_FRAMES)
    if places:
        tokenizer, warning = open_image_tokenizer(record, model)
        pixels = len(places) * tokenizer.config.resolution**2
        pixels *= 1 if kind == HTML else max(1, round(look.scale**2))
        shown = thinned(whole, max(FEWEST_FRAMES, min(MOST_FRAMES, MOST_PIXELS // pixels)))
        for number, each in enumerate(places):
            films.append(film(tokenizer, record, shown, each))
            watch(number + 1, len(places))
    warnings = [warning] if warning else []
    if len(shown) < len(whole):
        warnings.append(f"{len(whole) - 1} steps are shown in {len(shown) - 1} frames")
    content = _encode(record, shown, films, kind, figures, look)
    return Made(content, len(shown), len(whole) - 1, tuple(warnings))


def _encode(
    record: Record,
    shown: Sequence[Frame],
    films: Sequence[Filmed],
    kind: str,
    figures: Mapping[str, Any],
    look: Look,
) -> bytes:
    if kind == HTML:
        return player(record, shown, films, figures, look.fps, look.scale).encode()
    drawn = list(animation.frames_of(record, shown, films, look.scale))
    return animation.encode(drawn, "GIF" if kind == GIF else "WEBP", look.fps)


def write(path: Path, content: bytes, force: bool) -> None:
    """Write the file and create its folders.

    Raises:
        OutputError: see `publish.write_atomic`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; change -o", code="cannot_write"
        ) from error
    write_atomic(path, content, force)
