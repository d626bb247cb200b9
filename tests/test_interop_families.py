"""Diffusion language models of other people without their code: the same logits and the same ids.

`data/public_vectors.json` was made by `scripts/public_vectors.py` with the authors' modelling code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import public_folders
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.models.backbone import forward, load_backbone, save_backbone
from cm3kit.models.empty import empty_backbone
from cm3kit.models.families import Family, family_of
from cm3kit.models.transplant import borrow_text, load_transplanted
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import Vocab

VECTORS = json.loads((Path(__file__).parent / "data" / "public_vectors.json").read_text(encoding="utf-8"))
NAMES = list(public_folders.CONFIGS)
GREEDY = {"temperature": 0.0}
ORDERS = {"entropy": "entropy", "maskgit_plus": "probability", "topk_margin": "margin"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: public_folders.write(name, tmp_path_factory.mktemp("public")) for name in NAMES}


def family(folder: Path) -> Family:
    found = family_of(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_authors(shelf: dict[str, Path], name: str) -> None:
    assert family(shelf[name]).name == name
    model, told = load_backbone(shelf[name], 0), VECTORS[name]
    with torch.no_grad():
        found = forward(model, torch.tensor([told["row"]]), "full")[0, told["places"]]
    # They are written down with six decimals, and are up to 6 in size; processors round differently.
    assert float((found - torch.tensor(told["logits"])).abs().max()) < 2e-5


def written(model: PreTrainedModel, of: Family, mask: int, case: dict[str, Any]) -> Sequence[int]:
    """What our decoder writes after a prompt by the preset of the family and the settings of a case."""
    how, prompt = case["settings"], case["prompt"]
    total = how.get("gen_length") or how["max_new_tokens"]
    config = presets[of.preset].config(text=GREEDY, image=GREEDY, steps=how["steps"], batch_size=1)
    if of.name == "llada":
        blocks = total // how["block_length"]
        changes = {
            "block_size": how["block_length"],
            "steps": how["steps"] // blocks,
            "guidance": 1 + how["cfg_scale"],
        }
        config = config.model_copy(update=changes)
    else:
        config = config.model_copy(update={"order": ORDERS[how["alg"]]})
    spans = (MaskSpan("content", len(prompt), total, exact=True, slots=total),)
    guides = (Canvas((mask,) * len(prompt), spans),) if config.guidance != 1 else ()
    canvas = Canvas(tuple(prompt), spans, guides)
    size = len(model.get_input_embeddings().weight)
    denoiser = BackboneDenoiser(model, mask, size, shift=of.shift, lean=False)
    # The mask is never written, and no other id ends anything here.
    decoder = Diffusion(
        denoiser, lambda each: Free(each, size, mask, mask), config, eoss=mask, image=range(0)
    )
    return decoder.fill([canvas])[0].ids[len(prompt) :]


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_authors(shelf: dict[str, Path], name: str, case: int) -> None:
    mask, told = public_folders.CONFIGS[name]["mask_token_id"], VECTORS[name]["cases"][case]
    ids = written(load_backbone(shelf[name], 0), family(shelf[name]), mask, told)
    assert list(ids) == told["ids"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_at_our_ids_keep_the_logits_and_the_specials(shelf: dict[str, Path], name: str) -> None:
    theirs, borrowed = load_backbone(shelf[name], 0), borrow_text(str(shelf[name]))
    vocab = Vocab(borrowed.text.size, 4)
    ours = load_transplanted(borrowed, vocab, 64)
    assert set(borrowed.specials) == set(family(shelf[name]).specials)
    old = [*range(0, 40, 3), borrowed.specials[Vocab.mask], borrowed.specials[Vocab.eoss], 17]
    new = [
        {old: ours for ours, old in borrowed.specials.items()}.get(id, vocab.text.start + id) for id in old
    ]
    with torch.no_grad():
        before, after = (
            forward(each, torch.tensor([ids]), "full") for each, ids in ((theirs, old), (ours, new))
        )
    assert torch.allclose(before[..., old], after[..., new], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_a_plain_folder_of_transformers(
    shelf: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = load_backbone(shelf[name], 0)
    save_backbone(model, tmp_path)
    assert not any("transformer." in key for key in load_file(tmp_path / "model.safetensors"))
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    row = torch.tensor([VECTORS[name]["row"]])
    with torch.no_grad():
        assert torch.equal(forward(again, row, "full"), forward(model, row, "full"))


@pytest.mark.parametrize("name", NAMES)
def test_its_size_is_told_without_its_weights(shelf: dict[str, Path], name: str) -> None:
    with torch.device("meta"):
        empty = empty_backbone(shelf[name], public_folders.ROWS)
    whole = load_backbone(shelf[name], 0)
    assert {key: each.shape for key, each in empty.named_parameters()} == {
        key: each.shape for key, each in whole.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llada", "block_type", "sequential"),
        ("llada", "scale_logits", True),
        ("llada", "include_qkv_bias", True),
        ("llada", "d_model", None),
        ("dream", "use_sliding_window", True),
        ("dream", "hidden_act", "gelu"),
    ],
)
def test_shapes_that_were_never_released_are_refused(tmp_path: Path, name: str, key: str, value: Any) -> None:
    folder = public_folders.write(name, tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(ModelError, match=key) as caught:
        load_backbone(folder, 0)
    assert "\n" not in str(caught.value) and caught.value.code == "bad_checkpoint"


def test_a_tensor_that_is_missing_is_named_and_code_of_the_folder_is_not_run(tmp_path: Path) -> None:
    folder = public_folders.write("llada", tmp_path)
    for name in ("configuration_llada", "modeling_llada"):
        (folder / f"{name}.py").write_text("raise SystemExit('run')")
    assert load_backbone(folder, 0) is not None
    lost = "model.transformer.blocks.0.attn_out.weight"
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][lost]
    tensors = load_file(shard)
    del tensors[lost]
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"self_attn\.o_proj\.weight is missing"):
        load_backbone(folder, 0)


def test_dream_and_diffucoder_are_told_apart_by_the_folder(shelf: dict[str, Path]) -> None:
    assert family(shelf["dream"]).preset == "dream" and family(shelf["diffucoder"]).preset == "diffucoder"
