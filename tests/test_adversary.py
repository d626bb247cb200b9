"""The discriminator, LPIPS, and the guard against values that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from cm3kit.rng import generator
from cm3kit.training.adversary import Adversary, AdversarySettings, balance
from cm3kit.training.guard import culprit
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.reconstruct import LossWeights, Reconstruction
from cm3kit.training.task import Part, TaskInParts
from cm3kit.training.vqgan import CodebookSettings, VqganRecipe, VqganTask
from cm3kit_tokenizers.errors import DataError, ModelError
from cm3kit_tokenizers.vq.discriminator import PatchDiscriminator
from cm3kit_tokenizers.vq.lpips import SCALE, SHIFT, Lpips
from cm3kit_tokenizers.vq.model import ImageTokenizerConfig

torch.set_num_threads(1)
SMALL = ImageTokenizerConfig(
    resolution=16, channels=(8, 8), code_dim=3, codes=8, latent_channels=4, norm_groups=4, attention=False
)
LOOP = LoopSettings(
    steps=8, batch_size=4, save_every=2, preview_every=8, log_every=1, precision="fp32", keep=9
)
JUDGE = AdversarySettings(weight=0.2, train_from=0.25, start=0.5, ramp=0.25, channels=4, layers=1, lecam=0.01)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed)) * 2 - 1


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"pictures/{index}.png")
    return tmp_path / "pictures"


def task(corpus: Path, **changes: Any) -> VqganTask:
    fields = {
        "data": corpus, "tokenizer": SMALL, "codebook": CodebookSettings(start=2), "loop": LOOP, "shift": 0,
        "adversary": JUDGE,
    }  # fmt: skip
    return VqganTask(VqganRecipe(**fields | changes))


def test_a_patch_is_seventy_pixels_wide() -> None:
    judge = seeded(lambda: PatchDiscriminator(4, 3, "spectral")).eval()
    x_BCHW = pixels(1, 3, 256, 256).requires_grad_()
    logits = judge(x_BCHW)
    assert logits.shape == (1, 1, 30, 30)
    (seen,) = torch.autograd.grad(logits[0, 0, 15, 15], x_BCHW)
    rows = seen.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == 70


def test_spectral_norm_bounds_every_layer() -> None:
    judge = seeded(lambda: PatchDiscriminator(4, 2, "spectral"))
    for _ in range(30):
        judge(pixels(1, 3, 16, 16))
    for layer in judge.main:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.05)


def test_it_learns_before_it_is_heard_and_is_heard_by_degrees() -> None:
    assert [JUDGE.trains(done) for done in (0.0, 0.24, 0.25, 1.0)] == [False, False, True, True]
    assert [JUDGE.heard(done) for done in (0.3, 0.5, 0.625, 0.75, 1.0)] == pytest.approx(
        [0, 0, 0.1, 0.2, 0.2]
    )
    assert JUDGE.model_copy(update={"ramp": 0.0}).heard(0.5) == 0.2
    assert JUDGE.model_copy(update={"weight": 0.0}).trains(1.0) is False


def test_hinge_and_lecam_have_their_closed_forms() -> None:
    adversary = seeded(lambda: Adversary(JUDGE))
    adversary.averages_2.copy_(torch.tensor([0.5, -0.25]))
    real, fake = 2 * pixels(3, 1, 2, 2), 2 * pixels(3, 1, 2, 2, seed=1)
    verdict = type("V", (), {"real": real, "fake": fake, "heard": None})()
    found = adversary.own_loss(verdict, 0.1, decay=0.9)
    r, f = real.double().numpy(), fake.double().numpy()
    hinge = 0.5 * (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean())
    lecam = (np.maximum(0, r + 0.25) ** 2).mean() + (np.maximum(0, 0.5 - f) ** 2).mean()
    assert float(found) == pytest.approx(hinge + 0.1 * lecam, abs=1e-5)
    expected = [0.9 * 0.5 + 0.1 * r.mean(), 0.9 * -0.25 + 0.1 * f.mean()]
    assert adversary.averages_2.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_neither_side_gets_gradients_of_the_others_loss(norm: str) -> None:
    adversary = seeded(lambda: Adversary(JUDGE.model_copy(update={"norm": norm}))).eval()
    x_BCHW, y_BCHW = pixels(2, 3, 16, 16), pixels(2, 3, 16, 16, seed=1).requires_grad_()
    verdict = adversary(x_BCHW, y_BCHW, True)
    opinion = -verdict.heard.mean()
    (opinion + adversary.own_loss(verdict, 0.0)).backward()
    together = {name: each.grad.clone() for name, each in adversary.named_parameters()}
    (alone,) = torch.autograd.grad(-adversary.discriminator(y_BCHW).mean(), y_BCHW)
    assert y_BCHW.grad is not None and torch.allclose(y_BCHW.grad, alone, atol=1e-7)
    adversary.zero_grad()
    adversary.own_loss(adversary(x_BCHW, y_BCHW, False), 0.0).backward()
    assert all(torch.allclose(each.grad, together[name]) for name, each in adversary.named_parameters())


def test_balancing_makes_both_gradients_equal_up_to_a_bound() -> None:
    last = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    first, second = (last * torch.tensor([3.0, 0.0, 4.0])).sum(), (last * torch.tensor([0.0, 2.0, 0.0])).sum()
    assert float(balance(first, second, last, 100.0)) == pytest.approx(5 / (2 + 1e-4))
    assert float(balance(first, second, last, 1.5)) == 1.5
    assert float(balance(first, 0 * second, last, 10.0)) == 10.0


@pytest.mark.parametrize("adaptive", [False, True])
def test_training_against_a_discriminator_resumes_exactly(
    corpus: Path, tmp_path: Path, adaptive: bool
) -> None:
    judge = JUDGE.model_copy(update={"adaptive": adaptive, "norm": "spectral" if adaptive else "group"})
    made = task(corpus, adversary=judge)
    assert isinstance(made, TaskInParts) and len(made.parts()) == 2
    everything = [id(each) for part in made.parts() for each in part.weights]
    assert sorted(everything) == sorted(id(each) for each in made.model.parameters() if each.requires_grad)
    train(made, LOOP, tmp_path / "straight", device="cpu")
    train(task(corpus, adversary=judge), LOOP, tmp_path / "run", max_steps=5, device="cpu")
    train(task(corpus, adversary=judge), LOOP, tmp_path / "run", device="cpu")
    straight, resumed = (
        load_file(tmp_path / each / "step-00000008/state.safetensors") for each in ("straight", "run")
    )
    assert straight.keys() == resumed.keys() and all(
        torch.equal(straight[name], resumed[name]) for name in straight
    )
    lines = [json.loads(line) for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    assert ["d_loss" in line for line in lines] == [False] * 2 + [True] * 6
    assert [line.get("g_weight", 0) > 0 for line in lines] == [False] * 5 + [True] * 3
    assert {"used", "dead", "perplexity", "psnr", "commitment", "d_real", "d_fake"} <= lines[-1].keys()
    names = load_file(tmp_path / "run/final/diffusion_pytorch_model.safetensors").keys()
    assert not any("discriminator" in name for name in names)


def test_the_entropy_term_is_logged_and_weighed(corpus: Path, tmp_path: Path) -> None:
    plain = task(corpus, adversary=AdversarySettings())
    weighed = task(corpus, adversary=AdversarySettings(), loss=LossWeights(entropy=0.1, temperature=1.0))
    for each in (plain, weighed):
        each.model.codebook.started.fill_(True)
    batch = plain.batch(generator(1), 4)
    low, figures = plain.loss(plain.model, batch, 5, generator(2))
    high, told = weighed.loss(weighed.model, batch, 5, generator(2))
    assert "entropy" not in figures and -math.log(8) <= told["entropy"] <= math.log(8)
    assert (high - low).item() == pytest.approx(0.1 * told["entropy"], abs=1e-5)


def vgg_files(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    sizes = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    rng, before, vgg = generator(4), 3, {}
    for place, size in zip(places, sizes, strict=True):
        weight = torch.randn(size, before, 3, 3, generator=rng) * math.sqrt(2 / 9 / before)
        vgg |= {
            f"features.{place}.weight": weight,
            f"features.{place}.bias": 0.1 * torch.randn(size, generator=rng),
        }
        before = size
    vgg["classifier.0.weight"] = torch.zeros(2)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, size, 1, 1, generator=rng)
        for i, size in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(heads, folder / "vgg.pth")
    return vgg, heads


def test_lpips_is_the_distance_of_normalised_features(tmp_path: Path) -> None:
    vgg, heads = vgg_files(tmp_path)
    lpips = Lpips.open(tmp_path / "vgg16.pth", tmp_path / "vgg.pth")
    x_BCHW, y_BCHW = pixels(2, 3, 32, 16), pixels(2, 3, 32, 16, seed=1)

    def features(x_BCHW: Tensor) -> list[Tensor]:
        h, out = (x_BCHW - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1), []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            h = F.max_pool2d(h, 2) if out else h
            for place in stage:
                h = F.conv2d(
                    h, vgg[f"features.{place}.weight"], vgg[f"features.{place}.bias"], padding=1
                ).relu()
            out.append(F.normalize(h, dim=1))
        return out

    expected = torch.zeros(2)
    for index, (a, b) in enumerate(zip(features(x_BCHW), features(y_BCHW), strict=True)):
        weight_C = heads[f"lin{index}.model.1.weight"].flatten()
        expected += torch.einsum("bchw,c->bhw", (a - b) ** 2, weight_C).mean((1, 2))
    assert torch.allclose(lpips(x_BCHW, y_BCHW), expected, rtol=1e-4)
    assert lpips(x_BCHW, x_BCHW).tolist() == [0, 0]
    weights = LossWeights(
        l1=0,
        l2=0,
        laplacian=0,
        ssim=0,
        lpips=2.0,
        lpips_vgg=tmp_path / "vgg16.pth",
        lpips_heads=tmp_path / "vgg.pth",
    )
    y_BCHW.requires_grad_()
    total, figures = Reconstruction(weights)(x_BCHW, y_BCHW)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(2 * float(expected.mean()), rel=1e-4)
    assert figures["lpips"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert y_BCHW.grad is not None and bool(torch.isfinite(y_BCHW.grad).all())
    with pytest.raises(ModelError, match=r"features\.0\.weight is missing"):
        Lpips.open(tmp_path / "vgg.pth", tmp_path / "vgg.pth")


def test_lpips_without_its_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs the files lpips_vgg and lpips_heads"):
        LossWeights(lpips=1.0)


class Fragile:
    """A weight whose loss is not finite where the rate is too high, from step 5 on."""

    def __init__(self, most: float, where: str) -> None:
        self.model, self.most, self.where = nn.Linear(2, 1), most, where
        self.rates: list[float] = []

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randn(size, 2, generator=rng)

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        bad = step >= 5 and self.most < 1
        out = model(batch).square().mean()
        if bad and self.where == "gradient":
            return out + (self.model.weight * 0).abs().sqrt().sum(), {"term": 1.0}
        return (out * math.nan if bad else out), {"fine": 1.0, "term": math.nan if bad else 1.0}

    def preview(self, model: nn.Module, path: Path) -> None:
        """Nothing to show."""

    def export(self, model: nn.Module, folder: Path) -> None:
        (folder / "done").write_text("")


@pytest.mark.parametrize("where, blamed", [("term", "the term term"), ("gradient", "the gradient of weight")])
def test_a_run_goes_back_and_names_what_is_to_blame(tmp_path: Path, where: str, blamed: str) -> None:
    lines: list[str] = []
    fragile = seeded(lambda: Fragile(0.0, where))

    def warn(line: str) -> None:
        lines.append(line)
        fragile.most += 0.5  # what a lower rate is there for

    train(fragile, LOOP.model_copy(update={"rollbacks": 2}), tmp_path, device="cpu", warn=warn)
    assert len(lines) == 2 and lines[0].startswith(
        f"{blamed} was not finite at 3 steps up to 8; going back to"
    )
    assert "step-00000004 with 0.5 of" in lines[0] and "0.25 of the learning rate" in lines[1]
    told = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == list(range(1, 9)) and all(
        line["loss"] is not None for line in told
    )
    rates = {line["step"]: line["lr"] for line in told}
    calm = tmp_path / "calm"
    train(seeded(lambda: Fragile(9.0, where)), LOOP, calm, device="cpu", warn=pytest.fail)
    usual = [json.loads(line)["lr"] for line in (calm / "log.jsonl").read_text().splitlines()]
    assert [rates[step] / usual[step - 1] for step in range(1, 9)] == pytest.approx(
        [1] * 4 + [0.25] * 4, rel=0.03
    )
    assert json.loads((tmp_path / "step-00000008/state.json").read_text())["state"]["scale"] == 0.25


def test_a_run_that_going_back_does_not_help_ends(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(
        DataError, match=r"\(the term term; the last batch was unnamed\); try a lower"
    ) as caught:
        train(seeded(lambda: Fragile(-99.0, "term")), LOOP, tmp_path, device="cpu", warn=lines.append)
    assert caught.value.code == "not_finite" and len(lines) == 2
    with pytest.raises(DataError, match="not finite"):
        never = LOOP.model_copy(update={"rollbacks": 0})
        train(seeded(lambda: Fragile(-99.0, "term")), never, tmp_path / "b", device="cpu", warn=pytest.fail)


def test_a_broken_weight_is_blamed_before_its_gradient() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.bias.fill_(torch.inf)
    assert culprit({"loss": math.nan, "grad_norm": 1.0, "lr": 1.0}, model) == "the weight bias"
    assert culprit({"loss": math.nan}, nn.ReLU()) == "the loss"


def test_parts_learn_at_their_own_rates(tmp_path: Path) -> None:
    class Two(Fragile):
        def parts(self) -> list[Part]:
            return [Part([self.model.weight]), Part([self.model.bias], 0.0, (0.1, 0.2))]  # type: ignore[list-item]

    made = seeded(lambda: Two(9.0, "term"))
    weight, bias = made.model.weight.detach().clone(), made.model.bias.detach().clone()
    train(made, LOOP, tmp_path, device="cpu")
    assert torch.equal(made.model.bias, bias) and not torch.equal(made.model.weight, weight)
