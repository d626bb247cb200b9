"""`report.html` of a training run: figures, curves and pictures on one self-contained page."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from cm3kit.json_lines import objects
from cm3kit.publish import write_atomic
from cm3kit.quantities import duration
from cm3kit.training.observe import HELD, Seen
from cm3kit.training.run import NOTES, viewers
from cm3kit.training.speed import Gauge, told
from cm3kit.training.task import Warn
from cm3kit.viewing.curves import chart
from cm3kit.viewing.document import document, resource
from cm3kit_tokenizers.errors import Cm3kitError

NAME, REFRESH = "report.html", 30.0
PICTURES, BYTES = 4, 4_000_000  # limits on the number of previews and the size of each

Log = dict[str, list[tuple[float, float]]]
# Title, unit, and the log's names of its curves; other curves get a chart each.
CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Loss", "", ("loss",)),
    ("Reward", "", ("reward",)),
    ("Reward, held out", "", (f"{HELD}reward",)),
    ("Answers of a group", "share", ("distinct", "no spread", "no reward", "ended")),
    ("Ratios that are clipped", "share", ("clip share",)),
    ("Divergence from the reference", "nats a token", ("kl",)),
    ("By kind of id", "nats", ("text", "image", "hidden text", "hidden image")),
    ("Held out, all ids", "bits per token", (
        f"{HELD}bits_per_token", f"{HELD}fill_bits_per_token", f"{HELD}bound_bits_per_token")),
    ("Held out, text", "bits per byte", (
        f"{HELD}text_bits_per_byte", f"{HELD}fill_text_bits_per_byte", f"{HELD}bound_text_bits_per_byte")),
    ("Held out, pictures", "bits per code", (
        f"{HELD}image_bits_per_code", f"{HELD}fill_image_bits_per_code", f"{HELD}bound_image_bits_per_code")),
    ("Held out, pictures", "bits per pixel", (
        f"{HELD}image_bits_per_pixel", f"{HELD}fill_image_bits_per_pixel", f"{HELD}bound_image_bits_per_pixel")),
    ("<eoss> where a filling ends", "share of hits", (
        f"{HELD}eoss_hit_rate", f"{HELD}fill_eoss_hit_rate", f"{HELD}bound_eoss_hit_rate")),
    ("Gradient norm", "before clipping", ("grad_norm", "norm")),
    ("Learning rate", "", ("lr", "rate")),
)  # fmt: skip


@viewers("report")
class ReportPage:
    """Updates the page of a run; an observer (`training.observe`)."""

    def __init__(self, run: Path, gauge: Gauge, warn: Warn = lambda line: None) -> None:
        self.run, self.gauge, self.warn = run, gauge, warn
        self._seen: Seen | None = None
        self._written = 0.0

    def begin(self, step: int, total: int) -> None:
        """No action: all data are in the log."""

    def saw(self, seen: Seen) -> None:
        """Rewrite the page if it is older than the interval."""
        self._seen = seen
        if time.monotonic() - self._written >= REFRESH:
            self._write(running=True)

    def end(self) -> None:
        """Write the final page."""
        if self._seen is not None:
            self._write(running=False)

    def _write(self, running: bool) -> None:
        self._written = time.monotonic()
        assert self._seen is not None
        try:
            page = render(self.run, self._seen, self.gauge.now(), running)
            write_atomic(self.run / NAME, page.encode(), force=True)
        except (Cm3kitError, OSError) as error:  # a failure to write the page must not end the run
            self.warn(f"no {NAME} of step {self._seen.step}: {error}")


def render(run: Path, seen: Seen, speed: Mapping[str, float], running: bool) -> str:
    """The page of a run from its files."""
    state = "running" if running else "finished" if seen.step == seen.total else "stopped"
    title = run.resolve().name
    done = 100 * seen.step / seen.total
    body = "".join(
        (
            f'<header><h1>{escape(title)}</h1><p class="{state}">{state}</p></header>',
            f'<progress max="100" value="{done:.2f}">{done:.0f} %</progress>',
            _tiles(seen, speed),
            f'<section class="charts">{"".join(charts(read_log(run / "log.jsonl")))}</section>',
            *pictures(run / "previews"),
            _notes(run / NOTES),
            _recipe(run / "config.yaml"),
        )
    )
    return document(title, body, resource("training.css"), refresh=REFRESH if running else None)


def read_log(path: Path) -> Log:
    """All values of a log as curves over the steps."""
    curves: Log = {}
    if not path.is_file():
        return curves
    for figures in objects(path.read_bytes()):
        step = figures.pop("step", None)
        if not isinstance(step, int):
            continue
        for name, value in figures.items():
            if name != "seconds":
                curves.setdefault(name, []).append((float(step), math.nan if value is None else float(value)))
    return curves


def _tiles(seen: Seen, speed: Mapping[str, float]) -> str:
    facts = {"step": f"{seen.step} of {seen.total}", "loss": f"{seen.figures.get('loss', math.nan):.4g}"}
    facts |= dict(told(name, value) for name, value in speed.items())
    facts["trained for"] = duration(seen.seconds)
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{inner}</dl>"


def charts(log: Log) -> Iterator[str]:
    """Figures of the charts with data in the log."""
    left = dict(log)
    for title, unit, names in CHARTS:
        curves = {name.removeprefix(HELD): left.pop(name) for name in names if name in left}
        if curves:
            yield chart(title, curves, unit)
    for name, curve in left.items():
        yield chart(name, {name: curve})


def pictures(folder: Path) -> Iterator[str]:
    """The first picture and the newest ones, and such pages; pages are untrusted and shown as text."""
    found = sorted(folder.glob("*.png")) if folder.is_dir() else []
    newest = [*found[:1], *found[1:][1 - PICTURES :]]
    figures = "".join(
        f"<figure><figcaption>{escape(path.stem)}</figcaption>"
        f'<img alt="preview {escape(path.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"></figure>'
        for path in reversed(newest)
        if path.stat().st_size <= BYTES
    )
    if figures:
        yield f'<h2>Pictures</h2><section class="pictures">{figures}</section>'
    pages = sorted(folder.glob("*.html")) if folder.is_dir() else []
    for path in dict.fromkeys((*pages[-1:], *pages[:1])):
        text = path.read_text(encoding="utf-8", errors="replace")
        short = re.sub(r"data:[\w/+.-]+;base64,[\w+/=]{60,}", "data:…", text)[:20_000]
        yield f"<h2>A page, {escape(path.stem)}</h2><pre>{escape(short)}</pre>"


def _notes(path: Path) -> str:
    """The data that are truncated or dropped."""
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return f"<h2>Data</h2><pre>{escape(text)}</pre>" if text else ""


def _recipe(path: Path) -> str:
    if not path.is_file():
        return ""
    text = escape(path.read_text(encoding="utf-8", errors="replace"))
    return f"<details><summary>Recipe</summary><pre>{text}</pre></details>"
