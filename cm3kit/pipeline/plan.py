"""The plan: which parts are trained, how large and how long, by the corpus, the machine and the time budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cm3kit.config import Settings, read_yaml, resolve
from cm3kit.pipeline.request import PRESETS, Decoder, Request
from cm3kit.pipeline.survey import Survey
from cm3kit.quantities import duration, memory
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.run import recipe_path
from cm3kit.training.speed import peak_flops
from cm3kit.training.text import TextRecipe
from cm3kit.training.vqgan import VqganRecipe
from cm3kit.web.pack import PackSettings
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq.model import ImageTokenizer

KINDS: Mapping[Decoder, str] = {"cm3": "cm3", "diffusion": "mdm", "both": "block"}
HELD_OUT = 0.05
ADDED = 14  # ids that an objective adds to a document: sentinels, ends
COPIES = 16  # of a piece with pictures at most
AROUND = 24  # ids of a picture's tag and its caption, which a window has to hold beside the codes
SEEN = 4.0  # least training ids per weight of a decoder before a larger one is chosen
PICTURES = 16_000  # that an image tokenizer sees at least
OF_PEAK = {"cpu": 0.4, "cuda": 0.15}  # share of the fastest products that training reaches, about


class Cost(Settings):
    """What a stage needs: seconds, and bytes of memory at most (0: hardly any)."""

    seconds: float = 0.0
    memory: int = 0
    steps: int = 0


class Plan(Settings):
    """Complete settings of every stage, and their costs.

    Attributes:
        preset: the family that the recipes are of.
        text: None where a finished tokenizer is taken, as `image`.
        grid: rows and columns of a picture's codes, of `codes` that there are.
        sliced: share of pages that are longer than a row, told from some of them; `drawn` that of pieces with pictures.
        ids: of the whole corpus, about.
        costs: by the name of a stage, in order.
        notes: what was not as one would expect.
    """

    preset: str
    decoder: Decoder
    budget: float | None
    survey: Survey
    text: TextRecipe | None
    image: VqganRecipe | None
    pack: PackSettings
    main: DecoderRecipe
    text_size: int
    grid: tuple[int, int]
    codes: int
    weights: int
    sliced: float
    drawn: float
    ids: int
    costs: dict[str, Cost]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(each.seconds for each in self.costs.values())

    @property
    def memory(self) -> int:
        """Most bytes at once."""
        return max(each.memory for each in self.costs.values())

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        rows, columns = self.grid
        pixels = (
            f"{self.image.tokenizer.resolution} pixels" if self.image else "as the given tokenizer has it"
        )
        table = [f"{'stage':19}{'steps':>8}{'time':>14}{'memory':>12}"]
        for name, cost in self.costs.items():
            steps, held = f"{cost.steps:,}" if cost.steps else "", memory(cost.memory) if cost.memory else ""
            table.append(f"{NAMES[name]:19}{steps:>8}{duration(cost.seconds):>14}{held:>12}")
        table.append(f"{'in all':27}{duration(self.seconds):>14}{memory(self.memory):>12}")
        return [
            *self.survey.lines(),
            f"preset     {self.preset}"
            + (f", within a budget of {duration(self.budget)}" if self.budget is not None else ""),
            f"picture    {pixels}, {rows} x {columns} codes of {self.codes:,}",
            f"vocabulary {self.text_size:,} ids of text; about {self.ids:,} ids in all pages",
            f"window     {self.main.window:,} ids; {self.sliced:.0%} of the pages are longer and are read in slices",
            f"seen       {self.drawn:.0%} of what is in rows has pictures, and comes {self.pack.picture_copies} times",
            f"decoder    {self.main.objective.name}, {self.weights / 1e6:.1f} M weights",
            *self.notes, *table,
        ]  # fmt: skip


NAMES = {
    "data": "reading pages", "text": "text tokenizer", "image": "picture tokenizer", "pack": "pages to ids",
    "decoder": "decoder", "model": "model folder",
}  # fmt: skip


def choose_preset(request: Request, seconds: float | None, device: str) -> str:
    """The preset of the request, or the largest that can be trained enough in a time."""
    if request.preset != "auto" or seconds is None:
        return request.preset
    rate = (
        peak_flops(device, torch.float32 if device == "cpu" else torch.bfloat16)
        * OF_PEAK[device.split(":")[0]]
    )
    for preset in reversed(PRESETS):
        recipe = resolve(DecoderRecipe, [family(preset, KINDS[request.decoder])])
        shape = recipe.backbone
        weights = shape.layers * shape.hidden_size * (4 * shape.hidden_size + 3 * shape.intermediate_size)
        table = shape.hidden_size * int(family(preset, "text")["size"])
        learnt = SEEN * weights * 6 * (weights + table) / rate
        drawn = 0.0
        if request.image is None:
            image = resolve(VqganRecipe, [family(preset, "vqgan")])
            drawn = PICTURES * 3 * _flops_of(image) / rate
        if learnt <= 0.6 * seconds and drawn <= 0.4 * seconds:
            return preset
    return PRESETS[0]


def _flops_of(recipe: VqganRecipe) -> float:
    """FLOPs of one picture through an image tokenizer."""
    from torch.utils.flop_counter import FlopCounterMode

    side = recipe.tokenizer.resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = ImageTokenizer(recipe.tokenizer)
        network.render(network.latents(torch.zeros(1, 3, side, side)))
    return float(counter.get_total_flops())


def family(preset: str, kind: str) -> dict[str, Any]:
    """The recipe of a family."""
    return read_yaml(recipe_path(Path(f"{preset}-{kind}")))


def image_recipe(preset: str, found: Survey, prepared: Path, overrides: Sequence[str]) -> VqganRecipe:
    """The image tokenizer's: no larger than the pictures, with as many codes as they can fill."""
    recipe = family(preset, "vqgan")
    shape = recipe["tokenizer"]
    side, channels = int(shape["resolution"]), list(shape["channels"])
    while side > 32 and side > 1.5 * found.sides[1] and len(channels) > 2:
        side, channels = side // 2, channels[:-1]
    vectors = found.pictures * (side // 2 ** (len(channels) - 1)) ** 2
    codes = max(64, min(int(shape["codes"]), 2 ** int(math.log2(max(1, vectors / 32)))))
    own = {"data": str(prepared), "tokenizer": {"resolution": side, "channels": channels, "codes": codes}}
    return resolve(VqganRecipe, [recipe, own], overrides)


def text_recipe(preset: str, found: Survey, prepared: Path, request: Request) -> TextRecipe:
    """The text tokenizer's: the more text, the more ids; it is trained on the decoder's data."""
    held = resolve(PackSettings, [{"held_out": HELD_OUT}], request.of("pack")).held_out
    most = int(family(preset, "text")["size"])
    size = max(512, min(most, 2 ** round(math.log2(4 * math.sqrt(max(1, found.chars))))))
    return resolve(TextRecipe, [{"data": str(prepared), "size": size, "held_out": held}], request.of("text"))


def decoder_recipe(
    preset: str,
    request: Request,
    grid: tuple[int, int],
    steps: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> DecoderRecipe:
    """The decoder's, on shards and tokenizers that lie beside its run.

    Raises:
        ConfigError: its window does not hold a picture (`bad_config`).
    """
    runs, codes = request.runs, grid[0] * grid[1]
    recipe = family(preset, KINDS[request.decoder])
    copies = 2 if request.decoder == "both" else 1
    least = 2 ** math.ceil(math.log2(copies * (codes + ADDED + AROUND)))
    window = max(int(recipe["window"]), least)
    shape = {"max_positions": max(int(recipe["backbone"]["max_positions"]), window)}
    own: dict[str, Any] = {
        "data": str(runs / "shards"), "text": str(runs / "text/final"), "image": str(runs / "image/final"),
        "window": window, "backbone": shape, "loop": {} if steps is None else {"steps": steps},
    }  # fmt: skip
    made = resolve(DecoderRecipe, [recipe, own, more or {}], request.of("decoder"))
    if codes and made.window // copies < codes + ADDED:
        raise ConfigError(
            f"decoder.window = {made.window}: a picture has {codes} codes, which need {copies * (codes + ADDED)} ids"
            f" with its markup; make the window longer, or pictures of fewer codes.",
            code="bad_config",
        )
    return made


def pack_recipe(longest: int, with_pictures: float, overrides: Sequence[str]) -> PackSettings:
    """How documents are cut for a window, and how often those pieces come that have pictures.

    Args:
        longest: ids of a piece.
        with_pictures: share of the pieces that have one; they are to be about half of what is seen.
    """
    times = (1 - with_pictures) / max(with_pictures, 1e-3)
    own = {"longest": longest, "held_out": HELD_OUT, "least": 8}
    return resolve(PackSettings, [{**own, "picture_copies": max(1, min(COPIES, round(times)))}], overrides)


def paced(steps: int, seconds: float) -> dict[str, Any]:
    """How often a run of so many steps, of so many seconds each, is validated and saved."""
    steps = max(4, steps - steps % 4)
    often = max(1, min(steps, round(300 / max(seconds, 1e-3))))
    return {
        "steps": steps, "save_every": often, "preview_every": steps // 2, "validate_every": steps // 4,
        "validate_on": 32, "log_every": max(1, min(20, steps // 40)),
    }  # fmt: skip
