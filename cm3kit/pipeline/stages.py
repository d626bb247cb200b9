"""The stages in their order; a stage that was interrupted is resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit.config import dump, resolve
from cm3kit.data.prepared import is_prepared
from cm3kit.devices import processors
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.folder import assemble
from cm3kit.pipeline.plan import KINDS, Plan
from cm3kit.pipeline.planner import part_of
from cm3kit.pipeline.request import Request
from cm3kit.publish import make_folder, publishing, write_atomic
from cm3kit.training.run import run
from cm3kit.training.task import Warn
from cm3kit.web.pack import pack_records
from cm3kit.web.runner import prepare
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import detect, kinds_of
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer

Told = Callable[[float, str], None]
"""Called with the share of a stage that is done, and a short note."""

SAMPLING = {"temperature": 0.8, "top_p": 0.95}  # of a model with little training


@dataclass(frozen=True)
class Stage:
    """One of the stages: whether it is done, and how it is done."""

    name: str
    done: Callable[[], bool]
    act: Callable[[Told, Warn], None]


def prepared_folder(request: Request) -> Path:
    """Where the records are."""
    return Path(request.pages) if is_prepared(Path(request.pages)) else request.runs / "data"


def read_pages(request: Request, told: Told, warn: Warn) -> Path:
    """Turn the pages into records, unless they are records already."""
    folder = prepared_folder(request)
    if folder == Path(request.pages):
        _refuse_rules(request)
        return folder
    kind = _kind(request, warn) if request.source == "auto" else request.source
    rules = {"page": {"detect": "unsaid"}, "pictures": {"fit": "whole"}}
    settings = resolve(WebSettings, [rules], request.of("data"))
    prepare(
        request.pages, folder, kind=kind, settings=settings, workers=processors(),
        watch=lambda done, total, note: told(done / total, note), warn=warn,
    )  # fmt: skip
    return folder


def _refuse_rules(request: Request) -> None:
    """Refuse rules for reading pages where these are records already, as they would have no effect."""
    given = [f"--set {each}" for each in request.overrides if each.startswith("data.")]
    given += [f"--source {request.source}"] if request.source != "auto" else []
    if given:
        raise ConfigError(
            f"{given[0]}: {request.pages} is prepared already, and is not read again; leave it out, or give the pages.",
            code="bad_config",
        )


def _kind(request: Request, warn: Warn) -> str:
    """What the pages are; where other files lie among HTML, which other projects' sites have, these are told of."""
    if (Path(request.pages) / "index.json").is_file() and list(Path(request.pages).glob("shard-*.tokens")):
        raise DataError(
            f"{request.pages} holds token shards, which belong to tokenizers; train a decoder on them with cm3kit train"
            " cm3 --from MODEL --set data=SHARDS, or give the pages.",
            code="bad_data",
        )
    found = kinds_of(request.pages, "--source")
    if "folder" in found and len(found) > 1:
        others = ", ".join(sorted(found - {"folder"}))
        warn(f"{request.pages} holds pages, which are read, and {others}, which are not (--source chooses)")
        return "folder"
    return detect(request.pages, "--source")


def stages(request: Request, plan: Plan) -> list[Stage]:
    """What follows the plan, in order."""
    runs = request.runs
    return [
        Stage("text", (runs / "text/final").is_dir, lambda told, warn: _text(request, plan)),
        Stage("image", (runs / "image/final").is_dir, lambda told, warn: _image(request, plan, told, warn)),
        Stage("pack", (runs / "shards").is_dir, lambda told, warn: _pack(request, plan, told)),
        Stage(
            "decoder", (runs / "decoder/final").is_dir, lambda told, warn: _decoder(request, plan, told, warn)
        ),
    ]


def _text(request: Request, plan: Plan) -> None:
    """Train the text tokenizer, or copy the one that was given."""
    if plan.text is None:
        assert request.text is not None
        _bring(part_of(request.text), request.runs / "text/final")
        return
    _run(request, "text", "text", plan.text, lambda done, note: None, lambda line: None)


def _image(request: Request, plan: Plan, told: Told, warn: Warn) -> None:
    if plan.image is None:
        assert request.image is not None
        _bring(part_of(request.image), request.runs / "image/final")
        return
    _run(request, "vqgan", "image", plan.image, told, warn)


def _decoder(request: Request, plan: Plan, told: Told, warn: Warn) -> None:
    _run(request, KINDS[plan.decoder], "decoder", plan.main, told, warn)


def _bring(source: Path, target: Path) -> None:
    """Copy a finished part, whole or not at all."""
    with publishing(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def _run(request: Request, kind: str, name: str, recipe: Any, told: Told, warn: Warn) -> None:
    """Train by a recipe, which is saved beside the run so that the training can be repeated."""
    folder = request.runs / "recipes"
    make_folder(folder)
    path = folder / f"{name}-{kind}.yaml"
    write_atomic(path, dump(recipe).encode(), force=True)

    def report(step: int, total: int, figures: Mapping[str, float]) -> None:
        told(step / total, f"step {step:,} of {total:,}{_shown(figures)}")

    run(kind, [path], (), request.runs / name, device=request.device, report=report, warn=warn)


def _shown(figures: Mapping[str, float]) -> str:
    named = (name for name in ("loss", "psnr", "text", "image") if name in figures)
    return "".join(f", {name} {figures[name]:.3g}" for name in named)


def _pack(request: Request, plan: Plan, told: Told) -> None:
    text = TextTokenizer.load(request.runs / "text/final")
    image = ImageTokenizer.load(request.runs / "image/final")
    pack_records(
        prepared_folder(request), text, image, request.runs / "shards", plan.pack,
        lambda done, total, note: told(done / total, note),
    )  # fmt: skip


def put_together(request: Request, plan: Plan, card: str, extra: Mapping[str, bytes]) -> None:
    """Make the model in `.runs/model`, and move it to where it is asked for, what makes it a model last.

    If a call ends between two files, the next one continues there.
    """
    runs, target = request.runs, request.output
    made = runs / "model"
    if not made.is_dir():
        named = ("cm3", "diffusion") if plan.decoder == "both" else ()
        drawn = {"image": SAMPLING, "text": SAMPLING}
        own: dict[str, Any] = {"image": drawn, "text": drawn} | ({"decoders": named} if named else {})
        text, image, decoder = (runs / name / "final" for name in ("text", "image", "decoder"))
        assemble(made, text, image, decoder, resolve(Defaults, [own]), card)
    for name, content in extra.items():
        write_atomic(target / name, content, force=True)
    for each in sorted(made.iterdir(), key=lambda path: path.name == "model_index.json"):
        to = target / each.name
        if to.is_dir():
            shutil.rmtree(to)
        os.replace(each, to)
    made.rmdir()
