"""Figures on held-out pages against closed forms and against documents scored one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toys import toy_image

from cm3kit.evaluation.bound import bits_per_id
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.folder import assemble
from cm3kit.models.backbone import BackboneConfig, build_backbone, save_backbone
from cm3kit.objectives import BlockDiffusion, CausalBlocks, CausalMask, Hybrid, MaskedDiffusion, NextToken
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.validation import spread, validate
from cm3kit_cli.main import run
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

torch.set_num_threads(1)
SHAPE = BackboneConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16, std=0.3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two pages, one of them held out, and tokenizers for them."""
    folder = tmp_path_factory.mktemp("held")
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    for number in range(22):
        page = f'<title>{number}</title><p>A red naïve square {number}: <img alt="red" src="red.png"></p>'
        (folder / f"{number:02}.html").write_text(page, encoding="utf-8")
    toy_image(folder / "image", channels=(8, 8), norm_groups=8, attention=False)
    TextTokenizer.train(["A red naïve square red square"] * 2, 280).save(folder)
    return folder


def task(corpus: Path, objective: str = "cm3", **loop: Any) -> DecoderTask:
    recipe = DecoderRecipe(
        data=corpus, text=corpus, image=corpus / "image", window=160, backbone=SHAPE, previews=(),
        objective={"name": objective},
        loop=LoopSettings(batch_size=2, precision="fp32", preview_every=100, log_every=1, **loop),
    )  # fmt: skip
    return DecoderTask(recipe, corpus / "cache")


def tools(made: DecoderTask) -> tuple[Any, PageTokenizer, ImageTokenizer, Vocab]:
    return made.model.backbone.eval(), made.tokenizer, made.image, made.vocab


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(corpus: Path) -> None:
    made = task(corpus)
    backbone, tokenizer, image, vocab = tools(made)
    backbone.get_output_embeddings().weight.data.zero_()
    documents = made.documents.ids[:5]
    found = validate(backbone, made.objective, documents, tokenizer, image, 160)
    bits = math.log2(len(vocab))
    text = [id for each in documents for id in each if id in vocab.text]
    size = len("".join(tokenizer.text.decode([id - vocab.text.start for id in text])).encode())
    assert found["bits_per_token"] == pytest.approx(bits)
    assert found["fill_bits_per_token"] == pytest.approx(bits)
    assert found["text_bits_per_byte"] == pytest.approx(bits * len(text) / size)
    assert found["image_bits_per_code"] == pytest.approx(bits)
    assert found["image_bits_per_pixel"] == pytest.approx(bits * 64 / 256)
    assert found["fill_eoss_hit_rate"] == 0  # the likeliest of equals is the first id


def test_a_page_needs_what_transformers_says_it_does(corpus: Path) -> None:
    made = task(corpus)
    backbone, tokenizer, image, vocab = tools(made)
    documents = made.documents.ids[:3]
    found = validate(backbone, NextToken(vocab), documents, tokenizer, image, 160, rows=1)
    nats = count = 0.0
    for each in documents:
        ids = torch.tensor([[vocab.eod, *each, vocab.eod]])
        with torch.no_grad():
            nats += float(backbone(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found["bits_per_token"] == pytest.approx(nats / math.log(2) / count, rel=1e-5)
    assert "fill_bits_per_token" not in found


def test_the_end_of_a_filling_is_counted_where_it_is_likeliest(corpus: Path) -> None:
    made = task(corpus)
    backbone, tokenizer, image, vocab = tools(made)
    # A head that is fond of <eoss>, so that there is something to count.
    backbone.get_output_embeddings().weight.data[vocab.eoss] *= 4
    documents = made.documents.ids
    found = validate(backbone, made.objective, documents, tokenizer, image, 160, rounds=1, seed=3)
    hits = ends = nats = spanned = 0.0
    for each in made.objective.make_examples(documents, generator(3), 160):
        with torch.no_grad():
            logits = backbone(torch.tensor([each.ids])).logits[0]
        first = next(
            (i for i, id in enumerate(each.ids) if id in each.ids[:i] and 8 <= id < 40), len(each.ids)
        )
        for place in range(first, len(each.ids)):
            if (id := each.ids[place]) not in vocab.sentinel_range:
                nats -= float(logits[place - 1].log_softmax(-1)[id])
                spanned += 1
                if id == vocab.eoss:
                    ends, hits = ends + 1, hits + (int(logits[place - 1].argmax()) == id)
    assert 0 < hits < ends
    assert found["fill_eoss_hit_rate"] == pytest.approx(hits / ends)
    assert found["fill_bits_per_token"] == pytest.approx(nats / math.log(2) / spanned, rel=1e-5)


@pytest.mark.parametrize("isolated", [False, True])
def test_the_bound_is_that_of_the_benchmark(corpus: Path, isolated: bool) -> None:
    made = task(corpus, "masked-diffusion")
    made.recipe = made.recipe.model_copy(update={"isolated_masks": isolated})
    unseen = isolated
    backbone, tokenizer, image, vocab = tools(made)
    documents = made.documents.ids[:6]
    asked = MaskedDiffusion(vocab, continues=tuple(tokenizer.text.continues), grid=image.grid)
    theirs = bits_per_id(made, made.model.eval(), asked, documents, rounds=3)
    ours = validate(backbone, asked, documents, tokenizer, image, 160, rounds=3, unseen=unseen)
    assert ours != validate(backbone, asked, documents, tokenizer, image, 160, rounds=3, unseen=not unseen)
    assert ours["bound_bits_per_token"] == pytest.approx(theirs["all"], rel=1e-5)
    assert ours["bound_image_bits_per_code"] == pytest.approx(theirs["image"], rel=1e-5)
    # What training weighs does not change the figure.
    weighed = MaskedDiffusion(
        vocab, continues=tuple(tokenizer.text.continues), grid=image.grid, cond_dropout=0.5, image_weight=3.0,
        norm="sequence", ordered=0.9,
    )  # fmt: skip
    assert validate(backbone, weighed, documents, tokenizer, image, 160, rounds=3, unseen=unseen) == ours


def test_block_and_hybrid_have_their_figures_and_repeat_them(corpus: Path) -> None:
    made = task(corpus)
    backbone, tokenizer, image, vocab = tools(made)
    documents = made.documents.ids[:4]
    blocks = BlockDiffusion(vocab, 8)
    both = Hybrid(CausalMask(vocab, continues=None, grid=image.grid), MaskedDiffusion(vocab, hides="all"))
    for objective, names in (
        (blocks, {"bound_bits_per_token"}),
        (CausalBlocks(vocab, 8), {"bits_per_token", "bound_bits_per_token"}),
        (both, {"bits_per_token", "bound_bits_per_token", "fill_bits_per_token"}),
    ):
        found = [validate(backbone, objective, documents, tokenizer, image, 160) for _ in range(2)]
        assert found[0] == found[1] and names <= found[0].keys()
        assert all(math.isfinite(value) and value >= 0 for value in found[0].values())
    # An upper bound on average: a model that knows nothing cannot do better than chance by much.
    backbone.get_output_embeddings().weight.data.zero_()
    chance = validate(backbone, blocks, documents, tokenizer, image, 160, rounds=40)
    assert chance["bound_bits_per_token"] == pytest.approx(math.log2(len(vocab)), rel=0.15)


def test_training_writes_them_down(corpus: Path, tmp_path: Path) -> None:
    lines = []
    for run_folder in (tmp_path / "a", tmp_path / "b"):
        train(task(corpus, steps=4, validate_every=3), _loop(corpus), run_folder, device="cpu")
        lines.append([json.loads(each) for each in (run_folder / "log.jsonl").read_text().splitlines()])
    told = [[name for name in line if name.startswith("held ")] for line in lines[0]]
    assert [bool(each) for each in told] == [False, False, True, False]
    assert {"held bits_per_token", "held text_bits_per_byte", "held image_bits_per_pixel"} <= set(told[2])
    assert [{**each, "seconds": 0} for each in lines[0]] == [{**each, "seconds": 0} for each in lines[1]]


def _loop(corpus: Path) -> LoopSettings:
    return task(corpus, steps=4, validate_every=3).recipe.loop


def test_a_model_folder_is_scored(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocab = task(corpus).vocab
    save_backbone(build_backbone(SHAPE, len(vocab)), tmp_path / "decoder")
    defaults = Defaults(decoders=("cm3", "diffusion"), window=160)
    model = assemble(tmp_path / "model", corpus, corpus / "image", tmp_path / "decoder", defaults, "# toy")
    told = []
    for _ in range(2):
        assert (
            run(
                ["eval", "model", str(corpus), "-m", str(model), "--json", "--device", "cpu", "--rounds", "9"]
            )
            == 0
        )
        told.append(json.loads(capsys.readouterr().out)["data"])
    assert told[0] == told[1] and told[0]["documents"] == 1
    assert {"bits_per_token", "bound_bits_per_token", "fill_bits_per_token"} <= told[0].keys()
    assert run(["eval", "model", str(corpus), "-m", str(model), "--split", "tone"]) == 1
    assert "no page of the split 'tone'" in capsys.readouterr().err


def test_numbers_are_spread_evenly() -> None:
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 9) == [0, 1, 2] and spread(0, 5) == []
