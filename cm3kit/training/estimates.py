"""What a training of any kind needs before it starts, by its recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cm3kit.config import read_yaml, resolve
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.estimate import Estimate, estimate_decoder, estimate_vqgan
from cm3kit.training.rl.estimate import estimate_rl
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.run import kind_of, recipe_path, recipes
from cm3kit.training.vqgan import VqganRecipe
from cm3kit_tokenizers.errors import ConfigError


def estimate(
    kind: str | None, config: Sequence[Path], overrides: Sequence[str] = (), elsewhere: bool = False
) -> tuple[Estimate, int]:
    """What a training of merged recipes needs, and its steps.

    Args:
        kind: vqgan, cm3, mdm, block, hybrid or rl; None is told from the recipes.
        config: recipes, by file or by the name of one that ships, later ones winning.
        overrides: `a.b=c`.
        elsewhere: on a device that is not here: in bf16, and nothing is timed.

    Raises:
        ConfigError: a recipe is wrong, or of something that has no estimate (`bad_config`).
    """
    kind = kind or kind_of(config)
    shape, base = recipes[kind]()
    recipe = resolve(shape, [base, *(read_yaml(recipe_path(path)) for path in config)], overrides)
    if isinstance(recipe, VqganRecipe):
        return estimate_vqgan(recipe), recipe.loop.steps
    if isinstance(recipe, RLRecipe):
        return estimate_rl(recipe), recipe.loop.steps
    if not isinstance(recipe, DecoderRecipe):
        raise ConfigError(f"no estimate of {kind!r}, which has no weights.", code="bad_config")
    return estimate_decoder(recipe, not elsewhere, True if elsewhere else None), recipe.loop.steps
