"""A trajectory as a self-contained HTML page that plays it; only its own script runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cm3kit.images import encode_png
from cm3kit.provenance.trajectories import Record
from cm3kit.viewing.document import document, render, resource
from cm3kit.viewing.playback import END, OPEN, Filmed, Frame, labels
from cm3kit_tokenizers.pictures import to_data_uri

KIND_NAMES = {"all": "all slots", "text": "text", "image": "pictures"}


def player(
    record: Record,
    shown: Sequence[Frame],
    films: Sequence[Filmed],
    figures: Mapping[str, Any],
    fps: float = 8,
    scale: float = 6,
) -> str:
    """The page.

    Args:
        shown: `playback.frames` of the record, and `films` its pictures.
        figures: `evaluation.arness.stats` of the trajectory, for the footer.
        fps: steps per second. scale: CSS pixels per pixel of a picture.
    """
    body = render(
        "player.html", title=title(record), how=subtitle(record), summary=summary(figures),
        table=Markup(_table(figures)),
    )  # fmt: skip
    return document(
        title(record), body, resource("player.css"), script=resource("player.js"),
        data=_data(record, shown, films, fps, scale),
        generator=f"cm3kit {record.how.get('version', '')}".rstrip(),
    )  # fmt: skip


def title(record: Record) -> str:
    """The prompt, or a default title."""
    return " ".join(str(record.how.get("prompt") or "Trajectory").split())


def subtitle(record: Record) -> str:
    """Model, and the caller's short values."""
    noted = {
        key: value
        for key, value in record.how.items()
        if key not in ("prompt", "version", "model") and isinstance(value, str | int | float)
    }
    return " · ".join([record.model, *(f"{key} {value}" for key, value in noted.items())])


def summary(figures: Mapping[str, Any]) -> str:
    """The main figures of `evaluation.arness.stats` in one line."""
    said = [f"{figures['written']} of {figures['slots']} positions written in {figures['passes']} passes"]
    if figures["parallelism"] is not None:
        said.append(f"{figures['parallelism']:.1f} per pass")
    said += [f"{figures[key]} {key}" for key in ("remasked", "edited") if figures[key]]
    if math.isfinite(figures["logprob"]):
        said.append(f"log-probability {figures['logprob']:.1f}".replace("-", "−").replace("g−p", "g-p"))
    return " · ".join(said)


def _table(figures: Mapping[str, Any]) -> str:
    rows = figures["arness"]
    ks = list(next(iter(rows.values()))["local_at"]) if rows else []
    names = [f"local@{k}" for k in ks] + [f"global@{k}" for k in ks]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{KIND_NAMES[kind]}</th>'
        + "".join(f"<td>{_figure(row[key][k])}</td>" for key in ("local_at", "global_at") for k in ks)
        + "</tr>"
        for kind, row in rows.items()
    )
    return f'<table><tr><th scope="row">AR-ness</th>{head}</tr>{body}</table>' if rows else ""


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _data(
    record: Record, shown: Sequence[Frame], films: Sequence[Filmed], fps: float, scale: float
) -> dict[str, Any]:
    read = [labels(record, each.ids) for each in shown]
    return {
        "fps": fps,
        "scale": scale,
        "grid": record.grid,
        "open": OPEN,
        "end": END,
        "slots": sum(span.max_tokens for span in record.trajectory.canvas.spans),
        "classes": _classes(record, films),
        "first": read[0],
        "frames": [
            {
                "step": each.step,
                "diff": [[i, b] for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b],
                "fresh": [[place, commit.kind] for commit in each.commits for place in commit.positions],
                "log": _log(record, each),
            }
            for each, before, after in zip(shown, [read[0], *read], read, strict=False)
        ],
        "films": [
            {
                "start": each.places.start,
                "size": each.pictures[0].size,
                "pictures": [to_data_uri(encode_png(picture)) for picture in each.pictures],
                "shown": each.shown,
            }
            for each in films
        ],
    }


def _classes(record: Record, films: Sequence[Filmed]) -> str:
    """One letter per position: p in a picture, t in a masked span, m fixed markup, f fixed text."""
    vocab, flat = record.vocab, record.trajectory.canvas.flatten(record.vocab.mask)
    letters = ["f" if id in vocab.text else "m" for id in flat.ids]
    for where in flat.ranges:
        letters[where.start : where.stop] = "t" * len(where)
    for each in films:
        letters[each.places.start : each.places.stop] = "p" * len(each.places)
    return "".join(letters)


def _log(record: Record, frame: Frame) -> list[list[Any]]:
    return [
        [commit.kind, place, name(record, id), logprob]
        for commit in frame.commits
        for place, id, logprob in zip(commit.positions, commit.ids, commit.logprobs, strict=True)
    ]


def name(record: Record, id: int) -> str:
    """Readable name of an id; a leading space is made visible."""
    if id in record.vocab.image:
        return f"code {id - record.vocab.image.start}"
    if id in (record.vocab.eoss, record.vocab.eod):
        return "end"
    shown = labels(record, (id,))[0] or ""
    return shown.replace(" ", "␣").replace("\n", "↵")
