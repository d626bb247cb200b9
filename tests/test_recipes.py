"""What ships for training and what ships for use are told apart by name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from cm3kit.config import dump, read_yaml, resolve
from cm3kit.fill.defaults import Defaults
from cm3kit.objectives.causal_mask import CausalMaskSettings
from cm3kit.training.decoder_recipe import DecoderRecipe
from cm3kit.training.run import recipe_path, run, shipped_recipes
from cm3kit_tokenizers.errors import ConfigError


def test_recipes_and_defaults_share_no_name() -> None:
    recipes = [path.stem for path in shipped_recipes()]
    defaults = [path.stem for path in shipped_recipes(defaults=True)]
    assert "emoji-cm3" in recipes and "pictures-defaults" in defaults
    assert not set(recipes) & set(defaults)
    folder = shipped_recipes()[0].parent
    assert {*recipes, *defaults} == {path.stem for path in folder.glob("*.yaml")}


@pytest.mark.parametrize("path", shipped_recipes(defaults=True), ids=lambda path: path.stem)
def test_defaults_are_found_by_name_and_resolve(path: Path) -> None:
    assert recipe_path(Path(path.stem), defaults=True) == path
    found = resolve(Defaults, [read_yaml(path)])
    assert resolve(Defaults, [yaml.safe_load(dump(found))]) == found


def test_nothing_is_trained_by_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'pictures-defaults'") as caught:
        run("cm3", [Path("pictures-defaults")], [], tmp_path / "run")
    assert caught.value.code == "no_file" and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no recipe 'emoji-cm3'"):
        recipe_path(Path("emoji-cm3"), defaults=True)
    with pytest.raises(ConfigError, match="did you mean 'emoji-defaults'"):
        recipe_path(Path("emoji-default"), defaults=True)


def test_recipes_of_the_tasks_differ_by_objective_alone() -> None:
    found = {}
    for name in ("tasks-cm3", "tasks-cm3-next-token", "tasks-mdm"):
        recipe = resolve(DecoderRecipe, [read_yaml(recipe_path(Path(name)))])
        found[recipe.objective.name] = dump(recipe.model_copy(update={"objective": CausalMaskSettings()}))
    assert set(found) == {"cm3", "next-token", "masked-diffusion"} and len(set(found.values())) == 1


def test_an_unknown_recipe_is_told_which_there_are_as_a_shell_spells_them() -> None:
    with pytest.raises(ConfigError, match="recipes that ship: ") as caught:
        recipe_path(Path("nothing-of-the-kind"))
    listed = str(caught.value).partition("recipes that ship: ")[2].partition(". [")[0].replace(", ", " ")
    spelled = subprocess.run(
        ["bash", "-c", f"echo {listed}"], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(spelled.split()) == sorted(path.stem for path in shipped_recipes())
