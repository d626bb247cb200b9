"""From a recipe to a finished run: settings, task, loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from cm3kit.config import Settings, dump, read_yaml, resolve
from cm3kit.publish import write_atomic
from cm3kit.registry import Registry
from cm3kit.training.loop import train
from cm3kit.training.observe import Observer
from cm3kit.training.task import Report, Warn
from cm3kit_tokenizers.errors import ConfigError, OutputError

Start = Callable[..., Path]
trainable: Registry[Start] = Registry("kind of training")


@trainable("vqgan")
def _vqgan(sources: list[dict[str, object]], overrides: Sequence[str], output: Path, **how: object) -> Path:
    from cm3kit.training.vqgan import VqganRecipe, VqganTask

    recipe = resolve(VqganRecipe, sources, overrides)
    keep(recipe, output)
    return train(VqganTask(recipe), recipe.loop, output, **how)  # type: ignore[arg-type]


@trainable("text")
def _text(sources: list[dict[str, object]], overrides: Sequence[str], output: Path, **how: object) -> Path:
    from cm3kit.training.text import TextRecipe, train_text

    recipe = resolve(TextRecipe, sources, overrides)
    keep(recipe, output)
    return train_text(recipe, output)


def _decoder(objective: str) -> Start:
    """A kind of training whose recipe has this objective unless it names another."""

    def start(
        sources: list[dict[str, object]], overrides: Sequence[str], output: Path, **how: object
    ) -> Path:
        from cm3kit.training.decoder import DecoderRecipe, DecoderTask

        recipe = resolve(DecoderRecipe, [{"objective": {"name": objective}}, *sources], overrides)
        keep(recipe, output)
        return train(DecoderTask(recipe, output / "cache"), recipe.loop, output, **how)  # type: ignore[arg-type]

    return start


trainable("cm3")(_decoder("cm3"))
trainable("mdm")(_decoder("masked-diffusion"))
trainable("block")(_decoder("block-diffusion"))
trainable("hybrid")(_decoder("hybrid"))


def run(
    kind: str,
    config: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/latest"),
    *,
    resume: bool = True,
    max_steps: int | None = None,
    device: str = "auto",
    report: Report = lambda step, total, figures: None,
    warn: Warn = lambda line: None,
    observers: Sequence[Observer] = (),
) -> Path:
    """Train `kind` (vqgan, text, cm3, mdm, block or hybrid) by the merged recipes, and return the folder of the result.

    A recipe is a YAML file, or the name of one that ships (such as `emoji-vqgan`).
    """
    sources = [read_yaml(recipe_path(path)) for path in config]
    start = trainable[kind]
    return start(
        sources,
        list(overrides),
        output,
        resume=resume,
        max_steps=max_steps,
        device=device,
        report=report,
        warn=warn,
        observers=observers,
    )


def recipe_path(name: Path, defaults: bool = False) -> Path:
    """A recipe's file: the path itself, or what ships under that name (see below); ConfigError if there is neither."""
    shipped = {path.stem: path for path in shipped_recipes(defaults)}
    if name.exists():
        return name
    if str(name) in shipped:
        return shipped[str(name)]
    near = get_close_matches(name.stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"recipes that ship: {', '.join(shipped)}."
    raise ConfigError(f"no recipe {str(name)!r}: neither a file nor one that ships; {hint}", code="no_file")


def shipped_recipes(defaults: bool = False) -> list[Path]:
    """Files of the recipes that ship, or those of the `defaults` of models, which nothing is trained by."""
    found = sorted(Path(str(resources.files("cm3kit.training"))).glob("recipes/*.yaml"))
    return [path for path in found if path.stem.endswith("-defaults") == defaults]


def keep(recipe: Settings, output: Path) -> None:
    """Write the resolved recipe beside the run."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be made: {error.strerror}; choose another --output.", code="cannot_write"
        ) from error
    write_atomic(output / "config.yaml", dump(recipe).encode(), force=True)
