"""The model of reinforcement learning: one decoder of a model folder, the kit for its rollouts, its reference."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.folder import PARTS, write_json
from cm3kit.fill.kit import Kit
from cm3kit.fill.options import GenerateOptions, chosen_decoder, chosen_style
from cm3kit.fill.parts import Parts, diffusion_backbone, own_diffusion
from cm3kit.fill.runs import INDEX
from cm3kit.fill.styles import spelling
from cm3kit.fill.trained import Trained
from cm3kit.models.backbone import LARGE, save_backbone
from cm3kit.models.lora import LoraSettings, add_lora, without_lora
from cm3kit.models.timestep import is_timed
from cm3kit.objectives.contract import Use
from cm3kit.training.parallel import is_spread, whole
from cm3kit.training.rl.policy import Policy, Reading, Row
from cm3kit.training.rl.together import processes, shared

CARD = """

The {decoder} decoder was trained further by `cm3kit train rl`.
"""


class PolicyModel:
    """What is trained, and how it writes and is asked.

    Args:
        parts: of the model that training begins with.
        options: of the rollouts, which say which decoder is trained.
        lora: adapters, if any.
        apart: whether weights will be spread over processes, so that rollouts need a copy that is whole.

    Raises:
        ConfigError: the options do not fit the model (`bad_value`).
    """

    def __init__(
        self, parts: Parts, options: GenerateOptions, lora: LoraSettings, seed: int, apart: bool = False
    ) -> None:
        self.start, self.decoder = parts, chosen_decoder(parts.defaults, options, parts.name)
        writes_in_place = self.decoder == DIFFUSION
        backbone = diffusion_backbone(parts) if writes_in_place else parts.backbone
        if not lora.rank:
            backbone = backbone.float()
        self._own = writes_in_place and own_diffusion(parts)
        self.timed = is_timed(backbone)
        vocab, how = parts.vocab, parts.defaults.diffusion
        self._adapted: Any = None
        if lora.rank:
            self._adapted = add_lora(backbone, lora, (), seed)
        unseen = vocab.mask if writes_in_place and how.isolated_masks else None
        mask = vocab.mask if writes_in_place else None
        self.policy = Policy(backbone, mask, len(vocab), unseen).eval()
        self._whole = copy.deepcopy(backbone) if apart else None
        self._kit: tuple[PreTrainedModel, Kit] | None = None
        self.reading = self._reading(options)

    def _reading(self, options: GenerateOptions) -> Reading:
        parts = self.start
        if self.decoder != DIFFUSION:
            return Reading("causal", shift=True)
        how = parts.defaults.diffusion
        if how.trained_block is not None:
            clean = 1 if how.trained_cache == "causal" else how.trained_block
            return Reading("blocks", how.shift, clean, most=2 * parts.defaults.window)
        spelt = spelling(chosen_style(parts.defaults, options), parts.text, parts.vocab, parts.defaults.chat)
        return Reading("full", how.shift, spell=spelt.spell if spelt else None)

    def kit(self, policy: Policy) -> Kit:
        """The kit with the current weights; every process has to call this where they are sharded."""
        backbone = policy.backbone
        if is_spread(policy):
            assert self._whole is not None
            state = {name: whole(each) for name, each in backbone.state_dict().items()}
            self._whole.load_state_dict(state)
            backbone = self._whole.to(next(iter(state.values())).device)
        elif self._adapted is not None and not self.writes_by_module:
            # The lean engine reads matrices, of which adapters are no part until they are merged.
            return self._made(without_lora(self._adapted))
        if self._kit is None or self._kit[0] is not backbone:
            self._kit = backbone, self._made(backbone)
        self._kit[1].forget_weights()
        return self._kit[1]

    def kit_before(self) -> Kit:
        """The kit with the initial weights, before training; needs no other process."""
        return self.kit(self.policy) if self._whole is None else self._made(self._whole)

    def _made(self, backbone: PreTrainedModel) -> Kit:
        """A kit of one decoder, whose folder holds no other weights."""
        defaults = self.start.defaults.model_copy(update={"decoders": (self.decoder,)})
        folder = self.start.folder / "decoder" if self._own else self.start.folder
        parts = replace(self.start, folder=folder, decoder=backbone.eval(), defaults=defaults)
        return Kit(parts, str(backbone.get_input_embeddings().weight.device))

    @property
    def writes_by_module(self) -> bool:
        """Whether rollouts run the module itself, as those of public models do, for which there is no second copy."""
        return self.start.public and self.decoder == DIFFUSION

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The weights that training began with, where adapters learn."""
        with self._adapted.disable_adapter() if self._adapted is not None else nullcontext():
            yield

    @property
    def adapted(self) -> bool:
        """Whether adapters learn."""
        return self._adapted is not None

    def reference(self) -> Policy:
        """A copy of the policy as reference."""
        kept = copy.deepcopy(self.policy).eval().requires_grad_(False)
        return kept

    def export(self, policy: Policy, folder: Path) -> None:
        """A whole model folder, with the trained decoder in the place of that which training began with."""
        parts = self.start
        trained = policy.backbone if self._adapted is None else without_lora(self._adapted)
        if (parts.folder / INDEX).is_file():
            part = DIFFUSION if self._own else "decoder"
            ignored = shutil.ignore_patterns("manifest.json", "*.safetensors", "*.safetensors.index.json")
            for source in parts.folder.iterdir():
                if source.is_dir():
                    kept = ignored if source.name == part else shutil.ignore_patterns("manifest.json")
                    shutil.copytree(source, folder / source.name, ignore=kept)
                elif source.name != "manifest.json":
                    shutil.copy2(source, folder / source.name)
            save_backbone(trained, folder / part, half=not parts.public)
        else:
            self._export_public(trained, folder)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {parts.name}\n"
        card.write_text(text.rstrip() + CARD.format(decoder=self.decoder), encoding="utf-8")

    def _export_public(self, trained: PreTrainedModel, folder: Path) -> None:
        """A model folder of a public model, which has been opened as it was downloaded."""
        parts, how = self.start, self.start.defaults
        (folder / "text").mkdir()
        parts.text.save(folder / "text")
        save_backbone(trained, folder / "decoder", shard=LARGE)
        own = how.diffusion
        use = Use(window=how.window)
        if self.decoder == DIFFUSION:
            use = Use(
                decoder=DIFFUSION, layout=own.layout, attention="full", window=how.window, shift=own.shift,
                objective=own.objective,
            )  # fmt: skip
        Trained(uses=(use,)).save(folder / "decoder")
        write_json(folder / "vocab.json", parts.vocab.to_dict())
        unused = set() if self.decoder == DIFFUSION else {DIFFUSION}
        write_json(folder / "defaults.json", how.model_dump(mode="json", exclude=unused))
        index = {name: PARTS[name] for name in ("text", "decoder")}
        write_json(folder / INDEX, {"_class_name": "Cm3Pipeline", "_cm3kit_format": 1, **index})


@torch.no_grad()
def score(policy: Policy, rows: Sequence[Row], at_once: int, count: int) -> tuple[Tensor, Tensor]:
    """Log-probability (N,) and entropy (N,) of all answers to rows, `at_once` rows at a time, on the CPU.

    Several processes share the rows, and take as many passes each, since layers of spread weights wait for one another.

    Args:
        count: of answers.
    """
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    parts += [[]] * (-len(parts) % processes()[1])

    def ask(parts: Sequence[Sequence[Row]]) -> list[tuple[list[float], list[float]]]:
        found = [policy.score(part) for part in parts]
        return [(logp.double().tolist(), entropy.double().tolist()) for logp, entropy in found]

    logp_N, entropy_N = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for part, (logp, entropy) in zip(parts, shared(parts, ask), strict=True):
        answers = torch.tensor([answer for row in part for answer in row.answers], dtype=torch.long)
        logp_N[answers] = torch.tensor(logp, dtype=torch.float64)
        entropy_N[answers] = torch.tensor(entropy, dtype=torch.float64)
    return logp_N, entropy_N
