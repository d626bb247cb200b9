"""From a recipe to a finished run: settings, task, loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from cm3kit.config import Settings, dump, read_yaml, resolve
from cm3kit.registry import Registry
from cm3kit.training.loop import Report, Warn, train

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


@trainable("cm3")
def _cm3(sources: list[dict[str, object]], overrides: Sequence[str], output: Path, **how: object) -> Path:
    from cm3kit.training.cm3 import Cm3Recipe, Cm3Task

    recipe = resolve(Cm3Recipe, sources, overrides)
    keep(recipe, output)
    return train(Cm3Task(recipe, output / "cache"), recipe.loop, output, **how)  # type: ignore[arg-type]


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
) -> Path:
    """Train `kind` (vqgan, text or cm3) by the merged recipes, and return the folder of the result.

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
    )


def recipe_path(name: Path) -> Path:
    """A recipe's file: the path itself, or the recipe that ships under that name."""
    shipped = Path(str(resources.files("cm3kit.training"))) / "recipes" / f"{name.name}.yaml"
    return name if name.exists() or not shipped.is_file() else shipped


def keep(recipe: Settings, output: Path) -> None:
    """Write the resolved recipe beside the run."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump(recipe), encoding="utf-8")
