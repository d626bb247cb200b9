"""The request for a model of pages, and which parts of it a later call has to repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cm3kit_tokenizers.errors import ConfigError

Decoder = Literal["cm3", "diffusion", "both"]
Preset = Literal["auto", "tiny", "small", "base"]
PRESETS: tuple[Preset, ...] = ("tiny", "small", "base")
STAGES = ("data", "text", "image", "pack", "decoder")
BUDGET, LEAST = 3600.0, 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """The pages, and the model to train on them.

    Attributes:
        pages: a folder of pages, a WARC or Parquet file, …, or a folder that `data prepare` made.
        output: the model folder; its runs lie in `.runs` of it.
        preset: a family of recipes, or the largest that the budget is enough for.
        budget: seconds for all stages together; None is an hour, or with a preset what its recipes say.
        decoder: what it writes with.
        text: folder of a text tokenizer to take instead of training one, and `image` of an image tokenizer, ours or
            one that `interop.conversion` knows.
        source: kind of source of the pages; `auto` looks at the names of the files.
        overrides: `stage.a.b=c`, of the stages data, text, image, pack and decoder.
        device: as everywhere.
    """

    pages: str
    output: Path
    preset: Preset = "auto"
    budget: float | None = None
    decoder: Decoder = "cm3"
    text: Path | None = None
    image: Path | None = None
    source: str = "auto"
    overrides: tuple[str, ...] = ()
    device: str = "auto"

    @property
    def runs(self) -> Path:
        """Where the runs of the parts lie."""
        return self.output / ".runs"

    @property
    def seconds(self) -> float | None:
        """The budget, or None where the recipes of a preset say how long training takes."""
        return BUDGET if self.budget is None and self.preset == "auto" else self.budget

    def of(self, stage: str) -> list[str]:
        """The overrides of a stage, without its name."""
        return [each.partition(".")[2] for each in self.overrides if each.partition(".")[0] == stage]

    def check(self) -> None:
        """ConfigError for a request that cannot be met."""
        for each in self.overrides:
            stage, dot, rest = each.partition(".")
            if stage not in STAGES or not dot or "=" not in rest:
                raise ConfigError(
                    f"--set {each!r} names no stage; write STAGE.A.B=C with a stage of {', '.join(STAGES)}.",
                    code="bad_config",
                )
            if (stage == "text" and self.text) or (stage == "image" and self.image):
                raise ConfigError(
                    f"--set {each!r} and --{stage}: a finished part has no recipe; leave one out.",
                    code="bad_config",
                )
        if self.budget is not None and self.budget < LEAST:
            raise ConfigError(
                f"a budget of {self.budget:g} s trains nothing; give a minute at least, such as --budget 10min.",
                code="bad_value",
            )

    def saved(self) -> dict[str, Any]:
        """What a later call has to repeat, as JSON."""
        given = {"text": self.text, "image": self.image}
        parts = {name: str(path.resolve()) if path else None for name, path in given.items()}
        return {
            "pages": str(Path(self.pages).resolve()), "source": self.source, "preset": self.preset,
            "budget": self.budget, "decoder": self.decoder, **parts, "overrides": list(self.overrides),
        }  # fmt: skip

    def hold_to(self, begun: Mapping[str, Any]) -> None:
        """ConfigError (`bad_config`) unless a folder was begun with this very request."""
        mine = self.saved()
        for name, flag in FLAGS.items():
            if begun.get(name) != mine[name]:
                raise ConfigError(
                    f"{self.output} was begun with {flag} {_shown(begun.get(name))}, and now it is"
                    f" {_shown(mine[name])}; choose another --output, or give the same command again.",
                    code="bad_config",
                )


FLAGS = {
    "pages": "the pages", "source": "--source", "preset": "--preset", "budget": "--budget", "decoder": "--decoder",
    "text": "--text", "image": "--image", "overrides": "--set",
}  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value) or "nothing"
    return f"{value:g} s" if isinstance(value, float) else "nothing" if value is None else str(value)
