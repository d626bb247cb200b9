"""The average of two decoders: each weight a closed form, and what cannot be averaged refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cm3kit.fill.average import average
from cm3kit.fill.trained import Trained
from cm3kit.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from cm3kit.objectives.contract import Use
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, ModelError, OutputError

SHAPE = BackboneConfig(hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=32, max_positions=64)


def decoder(folder: Path, seed: int, shape: BackboneConfig = SHAPE, window: int | None = 64) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build_backbone(shape, 50)
        with torch.no_grad():
            for each in model.parameters():
                each.add_(torch.randn_like(each) * 0.1)
    save_backbone(model, folder, half=True)
    if window:
        Trained(uses=(Use(window=window),)).save(folder)
    return folder


def test_each_weight_is_a_share_of_both_and_the_use_that_of_the_first(tmp_path: Path) -> None:
    first, second = decoder(tmp_path / "a", 1), decoder(tmp_path / "b", 2, window=32)
    made = average(first, second, 0.3, tmp_path / "made")
    states = [load_backbone(each, 50).state_dict() for each in (first, second, made)]
    for name, weight in states[0].items():
        expected = 0.7 * weight + 0.3 * states[1][name]
        assert torch.allclose(states[2][name], expected, atol=2e-3), name
        assert not torch.equal(weight, states[1][name])
    assert Trained.load(made) == Trained.load(first) != Trained.load(second)
    for share, same in ((0.0, 0), (1.0, 1)):
        whole = load_backbone(average(first, second, share, tmp_path / str(share)), 50).state_dict()
        assert all(torch.equal(whole[name], weight) for name, weight in states[same].items())


def test_a_decoder_of_others_has_no_use_of_ours(tmp_path: Path) -> None:
    first, second = decoder(tmp_path / "a", 1, window=None), decoder(tmp_path / "b", 2)
    assert Trained.load(average(first, second, 0.5, tmp_path / "made")) is None


def test_what_cannot_be_averaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = decoder(tmp_path / "a", 1)
    for change in ({"layers": 3}, {"intermediate_size": 48}):
        other = decoder(
            tmp_path / f"other{len(change)}{next(iter(change))}", 2, SHAPE.model_copy(update=change)
        )
        with pytest.raises(ConfigError, match="are not of one shape"):
            average(first, other, 0.5, tmp_path / "made")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        average(first, first, float("nan"), tmp_path / "made")
    for pair in ((first, tmp_path / "none"), (Path("owner/name"), first)):
        with pytest.raises(ModelError, match="is no folder of a decoder"):
            average(*pair, 0.5, tmp_path / "made")
    with pytest.raises(OutputError, match="exists"):
        average(first, first, 0.5, first)
    assert not (tmp_path / "made").exists()
    command = ["model", "average", str(first), str(tmp_path / "a"), "-o", str(tmp_path / "made")]
    assert run([*command, "--share", "2"]) == 2
    assert run(command) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "made") and "Traceback" not in told.err
