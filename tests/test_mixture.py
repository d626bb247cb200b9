"""Pages that go to one of several objectives: how often, in which order, and each as it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toys import toy_corpus

from cm3kit.data.views import ViewSettings
from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.collate import pack
from cm3kit.training.decoder import DecoderTask
from cm3kit.training.decoder_recipe import DecoderRecipe
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError

torch.set_num_threads(1)
BLOCKS = {"name": "causal-blocks", "diffusion": {"block_size": 4, "shift": True}}
STARTS = {"name": "picture-starts", "share": 1.0, "codes": 3}
MIXED = {
    "name": "mixture",
    "parts": [{"weight": 3.0, "objective": BLOCKS}, {"weight": 1.0, "objective": STARTS}],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return Path(toy_corpus(tmp_path, ("red", "green", "blue")))


def task(corpus: Path, objective: dict[str, Any], **changes: Any) -> DecoderTask:
    recipe = DecoderRecipe.model_validate(
        {
            "data": corpus, "text": corpus, "image": corpus / "image", "window": 192, "previews": (),
            "backbone": BackboneConfig(hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=16),
            "objective": objective, **changes,
        }
    )  # fmt: skip
    return DecoderTask(recipe, corpus / "cache")


def of_blocks(example: Example) -> bool:
    return example.noisy is not None


def test_pages_are_drawn_by_weight_and_stay_in_order(corpus: Path) -> None:
    made = task(corpus, MIXED)
    pages = [made.documents.seen(number, generator(0)) for number in range(3)]
    rng, blocks = generator(3), 0
    for _ in range(300):
        examples = made.objective.make_examples(pages, rng, 192)
        assert len(examples) == 3
        for example, ids in zip(examples, pages, strict=True):
            blocks += of_blocks(example)
            if not of_blocks(example):  # its words and first codes, in this page's place
                words = [id for id in example.ids if id in made.vocab.text]
                assert words and all(id in ids for id in words)
    assert blocks / 900 == pytest.approx(0.75, abs=0.04)
    assert made.objective.copies == 2 and made.objective.masks


def test_each_page_has_the_loss_that_it_has_alone(corpus: Path) -> None:
    """Blocks beside causal pages in one row, under one mask."""
    made = task(corpus, MIXED)
    ids = made.documents.seen(0, generator(0))
    parts = [
        task(corpus, each).objective.make_examples([ids], generator(5), 192)[0] for each in (BLOCKS, STARTS)
    ]
    assert [of_blocks(each) for each in parts] == [True, False]

    def nats(examples: list[Example]) -> torch.Tensor:
        batch = pack(examples, 1, 192)
        return made.nats(made.model, batch, 0, generator(0))[0][batch.weights_BT[0] > 0]

    both_N = nats(parts)
    alone_N = torch.cat([nats([each]) for each in parts])
    assert torch.allclose(both_N.sort().values, alone_N.sort().values, atol=1e-4)


def test_a_mixture_is_used_as_its_parts_are(corpus: Path) -> None:
    made = task(corpus, MIXED)
    assert [(use.decoder, use.window) for use in made.objective.uses(192)] == [("diffusion", 96), ("cm3", 96)]
    turned = {"name": "mixture", "parts": [*reversed(MIXED["parts"])]}
    assert [use.decoder for use in task(corpus, turned).objective.uses(192)] == ["cm3", "diffusion"]
    assert [*made.objective.validation()] == ["", "bound_", "fill_"]


def test_augmented_codes_have_no_loss_in_any_part(corpus: Path) -> None:
    """`hybrid` returns examples in another order than its pages', which must not mix up what is augmented."""
    with Image.open(corpus / "red.png") as opened:
        Image.new("RGB", (16, 16), "white").save(corpus / "white.png")
        see_through = opened.convert("RGBA")
    see_through.putpixel((0, 0), (0, 0, 0, 0))
    see_through.save(corpus / "red.png")  # alone in having views
    for objective in (MIXED, {"name": "hybrid", "diffusion": {"shift": True}}):
        made = task(
            corpus, objective, views=ViewSettings(count=3, plain=0.0, turn=90, light=0.5, scored=False)
        )
        augmented = made.documents.encodings
        assert augmented is not None
        number = next(n for n, name in enumerate(made.documents.names) if name.startswith("red"))
        words = [{id for id in made.documents.ids[page] if id in made.vocab.text} for page in range(3)]
        only = words[number].difference(*(words[:number] + words[number + 1 :]))
        learnt = {True: 0, False: 0}
        for seed in range(40):
            for example in made._drawn(generator(seed), 4)[1]:
                pairs = zip(example.ids, example.weights, strict=True)
                red = bool(only.intersection(example.ids))
                learnt[red] += any(weight for id, weight in pairs if id in made.vocab.image)
        assert learnt[False] and not learnt[True]


def test_parts_that_do_not_fit_together_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="mixture has no parts"):
        task(corpus, {"name": "mixture"})
    in_place = {"name": "masked-diffusion", "diffusion": {"shift": False}}
    parts = [{"objective": {"name": "cm3"}}, {"objective": in_place}]
    with pytest.raises(ConfigError, match=r"set diffusion\.shift=true"):
        task(corpus, {"name": "mixture", "parts": parts})
