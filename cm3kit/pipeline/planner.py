"""From a survey and a few trial steps to a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cm3kit.interop.conversion import convert
from cm3kit.objectives.contract import TokenizerParts
from cm3kit.pipeline.plan import (
    ADDED,
    KINDS,
    OF_PEAK,
    Cost,
    Plan,
    choose_preset,
    decoder_recipe,
    family,
    image_recipe,
    paced,
    pack_recipe,
    text_recipe,
)
from cm3kit.pipeline.request import Request
from cm3kit.pipeline.survey import Sample, Survey, sample
from cm3kit.quantities import duration, memory
from cm3kit.registry import objective
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.estimate import Estimate, estimate_on, estimate_vqgan
from cm3kit.training.precision import computes_bf16
from cm3kit.training.text import TextRecipe
from cm3kit.training.vqgan import VqganRecipe
from cm3kit.web.pack import in_pieces
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import FILE, ImageTokenizer

SHARE = 0.35  # of the time that is left, for the image tokenizer
LEAST = 80  # least useful steps of an image tokenizer, and of a decoder
DRAWN, READ = 300, 40  # most times that a picture, and a page, is seen: more would overfit
OPENING = 0.003  # seconds that a stored picture takes to open
PREVIEW = 4.0  # seconds of a preview of a decoder
FINISH = 8.0  # seconds that the model folder takes, besides trying it on held-out pages
PREVIEWS, TRIES, HELD = 2, 4, 64  # of a run, and documents of the last trial


@dataclass(frozen=True)
class Parts:
    """What the stages start from: finished tokenizers, or recipes of those to come."""

    text: TextRecipe | None
    image: VqganRecipe | None
    finished_text: TextTokenizer | None
    grid: tuple[int, int]
    codes: int

    @classmethod
    def of(cls, request: Request, preset: str, found: Survey, prepared: Path) -> Parts:
        """The parts of a request; ModelError where a finished one cannot be opened."""
        text = image = given = None
        if request.text is None:
            text = text_recipe(preset, found, prepared, request)
        else:
            given = TextTokenizer.load(part_of(request.text))
        if request.image is None:
            image = image_recipe(preset, found, prepared, request.of("image"))
            return cls(text, image, given, image.tokenizer.grid, image.tokenizer.codes)
        tokenizer = finished_image(request)
        return cls(text, None, given, tokenizer.grid, tokenizer.size)


def part_of(folder: Path) -> Path:
    """The finished part of a run, or the folder itself."""
    return folder / "final" if (folder / "final").is_dir() else folder


def finished_image(request: Request) -> ImageTokenizer:
    """The image tokenizer that was given, converted into `.runs` where it is another project's.

    Raises:
        ModelError: it is of no known family, or damaged.
    """
    assert request.image is not None
    given, made = part_of(request.image), request.runs / "image/final"
    if (given / FILE).is_file():
        return ImageTokenizer.load(given)
    if not made.is_dir():
        convert(given, made)
    return ImageTokenizer.load(made)


def make_plan(request: Request, prepared: Path, found: Survey, spent: float) -> Plan:
    """Choose settings, measure a few steps, and divide the time.

    Args:
        prepared: the folder of records.
        spent: seconds that reading the pages took.

    Raises:
        ConfigError: the time is too short (`bad_value`), or settings contradict one another (`bad_config`).
        ModelError: a finished part cannot be opened.
    """
    device = "cuda" if request.device != "cpu" and torch.cuda.is_available() else "cpu"
    left = None if request.seconds is None else request.seconds - spent
    preset = choose_preset(request, left, device)
    parts = Parts.of(request, preset, found, prepared)
    size = parts.text.size if parts.text else 0
    some = sample(prepared, parts.finished_text, size, parts.grid[0] * parts.grid[1], parts.codes)
    main = decoder_recipe(preset, request, parts.grid)
    tokenizer_parts = TokenizerParts(some.vocab, some.text, parts.grid)
    copies = objective[main.objective.name].build(main.objective, tokenizer_parts).copies
    longest = main.window // copies - ADDED
    pieces = _cut(some, longest)
    drawn = sum(any(id in some.vocab.image for id in each) for each in pieces) / max(1, len(pieces))
    packing = pack_recipe(longest, drawn, request.of("pack"))
    image_need = estimate_vqgan(parts.image) if parts.image else None
    need = estimate_on(main, tokenizer_parts, pieces, device=device)
    costs = _Costs(found, some, parts, main, image_need, need, device, spent)
    image_steps, steps = costs.steps(left, preset, request)
    image = parts.image
    if image is not None:
        start = max(1, min(image.codebook.start, image_steps // 5))
        pace = paced(image_steps, costs.image_step) | {"validate_on": 64}
        image = _again(image, {"codebook": {"start": start}, "loop": pace}, request.of("image"))
    main = decoder_recipe(preset, request, parts.grid, more={"loop": paced(steps, costs.step)})
    table = costs.table(image.loop.steps if image else 0, main.loop.steps)
    window = main.window // copies
    return Plan(
        preset=preset, decoder=request.decoder, budget=request.seconds, survey=found, text=parts.text, image=image,
        pack=packing, main=main, text_size=some.text.size, grid=parts.grid, codes=parts.codes,
        weights=need.parameters, drawn=drawn, sliced=some.sliced(window), ids=some.ids(found.html_bytes), costs=table,
        notes=tuple(_notes(request, device, table, left)),
    )  # fmt: skip


def _again(recipe: VqganRecipe, more: dict[str, object], overrides: list[str]) -> VqganRecipe:
    from cm3kit.config import resolve

    return resolve(VqganRecipe, [recipe.model_dump(mode="json"), more], overrides)


def _cut(some: Sample, longest: int) -> list[list[int]]:
    """The sample's documents in pieces of about the length that they will have."""
    pages = PageTokenizer(some.text, some.vocab)
    return [
        list(piece) for ids in some.documents for piece in in_pieces(ids, longest, pages) if len(piece) > 1
    ]


def _notes(request: Request, device: str, table: dict[str, Cost], left: float | None) -> list[str]:
    out = []
    if device != "cpu":
        out.append(
            f"note       steps of the image tokenizer are estimated from its FLOPs at {OF_PEAK['cuda']:.0%} of the peak"
        )
    total = sum(each.seconds for each in table.values())
    if left is not None and total < 0.7 * (request.seconds or 0):
        out.append(
            f"note       the budget is not used up: every page is seen {READ} times, and more would overfit"
            " (--set decoder.loop.steps=N overrides it)"
        )
    free = _free_memory()
    most = max(table.items(), key=lambda item: item[1].memory)
    if free and most[1].memory > free:
        out.append(f"note       {most[0]} needs {memory(most[1].memory)}, and {memory(free)} are free")
    return out


def _free_memory() -> int:
    """Bytes of memory that are available; 0 where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)


class _Costs:
    """The cost of steps, and how the time is divided."""

    def __init__(
        self, found: Survey, some: Sample, parts: Parts, main: DecoderRecipe, image: Estimate | None, need: Estimate,
        device: str, spent: float,
    ) -> None:  # fmt: skip
        self.found, self.parts, self.main, self.spent, self.need, self.image = (
            found,
            parts,
            main,
            spent,
            need,
            image,
        )
        self.step = need.seconds_per_step or need.seconds_at_best
        self.image_step = self.image_batch = 0.0
        if image is not None and parts.image is not None:
            self.image_step = image.seconds_per_step or image.seconds_at_best
            self.image_batch = parts.image.loop.batch_size
            if device != "cpu":
                self.image_step = _on_cuda(image)
        read = found.html_bytes * some.reading
        self.text = 0.0 if parts.text is None else 1.0 + found.html_bytes * some.learning
        encode = self.image_step / self.image_batch / 5 if self.image_batch else 0.02
        self.pack = 1.0 + read + found.pictures * (encode + OPENING)
        self.corpus_ids = some.ids(found.html_bytes)
        batch = main.loop.batch_size
        rounds = 3 if main.objective.name == "cm3" else 2
        # Forward alone is a third of a step.
        self.tried = 32 * rounds / batch / 3 * self.step
        self.last = FINISH + HELD * rounds / batch / 3 * self.step
        self.image_fixed = (
            found.pictures * OPENING + (5 * 64 / self.image_batch / 3 + 10) * self.image_step
            if image
            else 0.0
        )
        self.fixed = TRIES * self.tried + PREVIEWS * PREVIEW

    def steps(self, left: float | None, preset: str, request: Request) -> tuple[int, int]:
        """Steps of the image tokenizer and of the decoder."""
        window, batch = self.main.window, self.main.loop.batch_size
        most = max(LEAST, int(READ * self.corpus_ids / (batch * window)))
        most_image = max(LEAST, int(DRAWN * self.found.pictures / max(1.0, self.image_batch)))
        if left is None:
            image = int(family(preset, "vqgan")["loop"]["steps"])
            return min(most_image, image), min(
                most, int(family(preset, KINDS[request.decoder])["loop"]["steps"])
            )
        left -= self.text + self.pack + self.image_fixed + self.fixed + self.last
        steps = 0
        if self.image is not None:
            steps = min(most_image, int(SHARE * left / self.image_step))
        decoder = int((left - steps * self.image_step) / self.step)
        if decoder < LEAST or (self.image is not None and steps < LEAST):
            needed = (
                (request.seconds or 0) - left + LEAST * max(self.step / (1 - SHARE), self.image_step / SHARE)
            )
            raise ConfigError(
                f"a budget of {duration(request.seconds or 0)} is too short for these pages: with the preset"
                f" {preset} they need {duration(1.1 * needed + 30)} at least; give a longer --budget"
                + (" or a smaller --preset." if preset != "tiny" else "."),
                code="bad_value",
            )
        return steps, min(most, decoder)

    def table(self, image_steps: int, steps: int) -> dict[str, Cost]:
        """The stages in order."""
        table = {"data": Cost(seconds=self.spent)}
        if self.parts.text is not None:
            table["text"] = Cost(seconds=self.text)
        if self.image is not None:
            seconds = self.image_fixed + image_steps * self.image_step
            table["image"] = Cost(seconds=seconds, memory=self.image.peak, steps=image_steps)
        table["pack"] = Cost(seconds=self.pack)
        seconds = self.fixed + steps * self.step
        table["decoder"] = Cost(seconds=seconds, memory=self.need.peak, steps=steps)
        return table | {"model": Cost(seconds=self.last)}


def _on_cuda(image: Estimate) -> float:
    from cm3kit.training.speed import peak_flops

    dtype = torch.bfloat16 if computes_bf16(False) else torch.float32
    return image.flops_per_step / (peak_flops("cuda", dtype) * OF_PEAK["cuda"])
