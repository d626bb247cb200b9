"""Names of before: recipe keys, flags, arguments and files still work, with one line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from cm3kit.batch.rows import read_rows
from cm3kit.batch.store import JOB, read_job
from cm3kit.config import resolve
from cm3kit.decode_options import GenerateOptions
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.fill.defaults import Defaults
from cm3kit.objectives.masked_diffusion import DiffusionSettings
from cm3kit.provenance.reproducing import options_of
from cm3kit.renamed import RenamedWarning, old_names
from cm3kit.training.decoder import DecoderRecipe
from cm3kit_cli.options import with_synonyms_spelt_out

OLD = {"drop": 0.25, "modality": 0.5, "pairs": True, "weighting": "flat"}
NEW = {"cond_dropout": 0.25, "modality_dropout": 0.5, "complementary_masks": True, "weighting": "uniform"}


def test_recipe_keys_of_before_are_read() -> None:
    with pytest.warns(RenamedWarning) as told:
        assert resolve(DiffusionSettings, [OLD]) == resolve(DiffusionSettings, [NEW])
    assert "drop = 0.25 is called cond_dropout now" in str(told[0].message)


@pytest.mark.parametrize("order", [("drop", "cond_dropout"), ("cond_dropout", "drop")])
def test_of_two_names_the_one_that_was_set_last_counts(order: tuple[str, str]) -> None:
    first, last = order
    with pytest.warns(RenamedWarning):
        assert resolve(DiffusionSettings, [{first: 0.5}, {last: 0.25}]).cond_dropout == 0.25
        assert resolve(DiffusionSettings, [{first: 0.5}], [f"{last}=0.25"]).cond_dropout == 0.25
        sources = [{last: 0.1}, {first: 0.5}]
        assert resolve(DiffusionSettings, sources, [f"{last}=0.25"]).cond_dropout == 0.25


def test_masks_of_a_decoder_recipe(tmp_path: Path) -> None:
    given = {"data": "d", "text": "t", "image": "i"}
    for word, isolated in (("unseen", True), ("seen", False)):
        with pytest.warns(RenamedWarning, match=f"masks = '{word}'"):
            assert resolve(DecoderRecipe, [{**given, "masks": word}]).isolated_masks is isolated


def test_quota_is_a_schedule_at_every_door(tmp_path: Path) -> None:
    with pytest.warns(RenamedWarning, match="quota is called schedule now"):
        assert GenerateOptions(quota="cosine") == GenerateOptions(schedule="cosine")
    with pytest.warns(RenamedWarning):
        assert DiffusionConfig.model_validate({"quota": "cosine"}).schedule == "cosine"
    assert options_of({"quota": "cosine"}).schedule == "cosine"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "quota": "cosine"}\n')
    (row,) = read_rows(rows).rows
    assert row.error is None and row.options == {"schedule": "cosine"}
    table = tmp_path / "rows.csv"
    table.write_text("prompt,quota\na,cosine\n")
    assert read_rows(table).rows[0].options == {"schedule": "cosine"}
    (tmp_path / JOB).write_text(json.dumps({"seed": 1, "outputs": 1, "options": {"quota": "cosine"}}))
    assert read_job(tmp_path)["options"] == {"schedule": "cosine"}


def test_flags_of_before_are_read() -> None:
    with pytest.warns(RenamedWarning, match="is called --"):
        assert with_synonyms_spelt_out(["--quota=cosine", "--modifier", "edit", "--", "--quota"]) == [
            "--schedule=cosine",
            "--remasker",
            "edit",
            "--",
            "--quota",
        ]


def test_files_that_were_written_here_are_read_without_a_word() -> None:
    with warnings.catch_warnings(), old_names():
        warnings.simplefilter("error", UserWarning)
        old = Defaults.model_validate(
            {"window": 64, "decoders": ["diffusion"], "diffusion": {"image": {"quota": "cosine"}}}
        )
    assert old.diffusion is not None and old.diffusion.image.schedule == "cosine"
